"""The program of the study note: a GPT in one page, from a text to a text.

`:source note` walks through it. It is kept as plain as the note's own: one matrix for each head,
nothing for speed. The comments on lines of their own are translated, so that they are listed below.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from minillm_repl.language import N_


def tokenize(text: str) -> tuple[list[str], list[int]]:
    """Number the characters."""
    # The vocabulary: each character once, in order.
    chars = sorted(set(text))
    number = {char: i for i, char in enumerate(chars)}
    # A number for each character of the text.
    return chars, [number[char] for char in text]


class Head(nn.Module):
    """One head."""

    def __init__(self, n_embed: int, head_size: int) -> None:
        super().__init__()
        # Three tables turn a token's vector into query, key and value.
        self.query = nn.Linear(n_embed, head_size, bias=False)
        self.key = nn.Linear(n_embed, head_size, bias=False)
        self.value = nn.Linear(n_embed, head_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, w) -> (b, t, d)."""
        # What is looked for, the label, the content.
        q, k = self.query(x), self.key(x)  # (b, t, d)
        v = self.value(x)  # (b, t, d)
        # How well each query fits each key, made smaller.
        scores = q @ k.transpose(1, 2)  # (b, t, t)
        scores = scores * x.shape[-1] ** -0.5
        # What comes later must not be seen.
        later = torch.ones_like(scores).triu(1) == 1
        scores = scores.masked_fill(later, float("-inf"))
        # Each row becomes shares that add up to 1.
        attention = F.softmax(scores, dim=-1)  # (b, t, t)
        # Take that much of each value.
        return attention @ v  # (b, t, d)


class MultiHeadAttention(nn.Module):
    """Several heads."""

    def __init__(self, n_embed: int, n_head: int) -> None:
        super().__init__()
        size = n_embed // n_head
        heads = [Head(n_embed, size) for _ in range(n_head)]
        self.heads = nn.ModuleList(heads)
        self.proj = nn.Linear(n_embed, n_embed)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, w) -> (b, t, w)."""
        # Side by side, what all heads have found, and mixed.
        found = [head(x) for head in self.heads]  # (b, t, d)
        return self.proj(torch.cat(found, dim=-1))  # (b, t, w)


class FeedForward(nn.Module):
    """Each token thinks by itself."""

    def __init__(self, n_embed: int) -> None:
        super().__init__()
        # Four times as wide, bent, and back.
        self.net = nn.Sequential(
            nn.Linear(n_embed, 4 * n_embed),
            nn.GELU(),
            nn.Linear(4 * n_embed, n_embed),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, w) -> (b, t, w)."""
        return self.net(x)  # (b, t, w)


class Block(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, n_embed: int, n_head: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(n_embed, n_head)
        self.ff = FeedForward(n_embed)
        self.ln1 = nn.LayerNorm(n_embed)
        self.ln2 = nn.LayerNorm(n_embed)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, w) -> (b, t, w)."""
        # x stays, and only a difference is added: the highway.
        x = x + self.attention(self.ln1(x))  # (b, t, w)
        return x + self.ff(self.ln2(x))  # (b, t, w)


class MiniLLM(nn.Module):
    """The model."""

    def __init__(
        self,
        vocab: int,
        block: int,
        n_embed: int,
        n_head: int,
        n_layer: int,
    ) -> None:
        super().__init__()
        self.block_size = block
        # A row of numbers for each token, and for each position.
        self.token_embedding = nn.Embedding(vocab, n_embed)
        self.position_embedding = nn.Embedding(block, n_embed)
        # The same block several times, with other numbers in each.
        blocks = [Block(n_embed, n_head) for _ in range(n_layer)]
        self.blocks = nn.Sequential(*blocks)
        self.ln_f = nn.LayerNorm(n_embed)
        self.lm_head = nn.Linear(n_embed, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        """(b, t) -> (b, t, v)."""
        place = torch.arange(ids.shape[1])
        x = self.token_embedding(ids)  # (b, t, w)
        x = x + self.position_embedding(place)  # (b, t, w)
        x = self.blocks(x)  # (b, t, w)
        # A score for each token that could come next.
        return self.lm_head(self.ln_f(x))  # (b, t, v)


def get_batch(data: Tensor, size: int, n: int) -> tuple[Tensor, Tensor]:
    """Pieces of the text."""
    # n places of the text, drawn by chance.
    starts = torch.randint(len(data) - size, (n,)).tolist()
    x = torch.stack([data[i : i + size] for i in starts])  # (b, t)
    # y is x, one token later: the text is its own answer.
    y = torch.stack([data[i + 1 : i + size + 1] for i in starts])  # (b, t)
    return x, y


def loss(model: MiniLLM, x: Tensor, y: Tensor) -> Tensor:
    """How wrong it is."""
    logits = model(x)  # (b, t, v)
    # Minus the logarithm of what the right token was given, on average.
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def train_step(
    model: MiniLLM,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
) -> float:
    """One step."""
    # Predict, and compare with what did come.
    wrong = loss(model, x, y)
    optimizer.zero_grad()
    # How the loss changes with each weight, all at once.
    wrong.backward()
    # Each weight goes a little way down.
    optimizer.step()
    return float(wrong.detach())


def generate(model: MiniLLM, ids: Tensor, n: int) -> Tensor:
    """Writes."""
    for _ in range(n):
        # It sees no more than the last block_size tokens.
        logits = model(ids[:, -model.block_size :])[:, -1]  # (b, v)
        probs = F.softmax(logits, dim=-1)  # (b, v)
        # Draw by the probabilities, append, and again.
        drawn = torch.multinomial(probs, 1)
        ids = torch.cat((ids, drawn), dim=1)
    return ids


COMMENTS = (
    N_("The vocabulary: each character once, in order."),
    N_("A number for each character of the text."),
    N_("n places of the text, drawn by chance."),
    N_("Predict, and compare with what did come."),
    N_("Three tables turn a token's vector into query, key and value."),
    N_("What is looked for, the label, the content."),
    N_("How well each query fits each key, made smaller."),
    N_("What comes later must not be seen."),
    N_("Each row becomes shares that add up to 1."),
    N_("Take that much of each value."),
    N_("Side by side, what all heads have found, and mixed."),
    N_("Four times as wide, bent, and back."),
    N_("x stays, and only a difference is added: the highway."),
    N_("A row of numbers for each token, and for each position."),
    N_("The same block several times, with other numbers in each."),
    N_("A score for each token that could come next."),
    N_("Minus the logarithm of what the right token was given, on average."),
    N_("y is x, one token later: the text is its own answer."),
    N_("How the loss changes with each weight, all at once."),
    N_("Each weight goes a little way down."),
    N_("It sees no more than the last block_size tokens."),
    N_("Draw by the probabilities, append, and again."),
)
"""The comments, as they stand above."""
