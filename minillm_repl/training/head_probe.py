"""What heads attend to on random tokens that are given twice: probes of induction, as in
TransformerLens. `:heads` shows them, and `:watch heads` while a model learns.

Nothing here imports torch until it measures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.hooks import Hook, compose, no_hook
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.tokenizer.truncation import find_bos_token_id

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel

_BATCHES = 8  # sequences that the scores are a mean over
_HALF = 50  # random tokens, given twice
_MIN_HALF = 4  # fewer tell nothing


@dataclass(frozen=True)
class Probe:
    """Sequences of random tokens, each the same tokens twice, maybe after a start token."""

    half: int
    start: tuple[int, ...]
    sequences: tuple[tuple[int, ...], ...]


def make_probe(
    tokenizer: Tokenizer, config: AnyConfig, seed: int = 0, batches: int = _BATCHES
) -> Probe:
    """Return random tokens of the vocabulary, none of them special or twice in a half.

    They depend on the seed and the vocabulary alone. Raises UserError where the context or the
    vocabulary is too small.
    """
    import torch

    context = config.context_length
    bos = find_bos_token_id(tokenizer)
    start = () if bos is None else (bos,)
    half = min(_HALF, (context - len(start)) // 2)
    if half < _MIN_HALF:
        least = 2 * _MIN_HALF + len(start)
        raise UserError(
            _(
                "the context of {n} positions is too short: random tokens given twice need {least}",
                n=context,
                least=least,
            )
        )
    size = min(tokenizer.vocab_size, config.vocab_size)
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for _batch in range(batches):
        order = torch.randperm(size, generator=generator).tolist()
        usable = (token for token in order if tokenizer.token_bytes(token))
        tokens = tuple(token for token, _place in zip(usable, range(half), strict=False))
        sequences.append((*start, *tokens, *tokens))
    found = (len(sequences[0]) - len(start)) // 2
    if found < _MIN_HALF:
        raise UserError(_("the vocabulary has only {n} tokens with a text", n=found))
    return Probe(found, start, tuple(sequences))


def detection_patterns(ids: "Tensor") -> "Tensor":
    """Return where each probe says that a query attends: (3, time, time), induction first.

    These are the patterns of `detect_head` in TransformerLens.
    """
    import torch

    same = (ids[:, None] == ids[None]).tril(-1)  # (time, time)
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    before = torch.ones_like(same).tril(-1).triu(-1)
    return torch.stack((after.tril(), before, same)).double()


def measure(
    model: "LanguageModel",
    probe: Probe,
    hook: Hook = no_hook,
    progress: Callable[[float], None] = lambda _share: None,
) -> "Tensor":
    """Return the share of attention on each pattern: (layer, head, 3), a mean over the sequences.

    Layers without attention have zeros. `hook` is called first at each place.
    """
    import torch

    from minillm_repl.model.attention import attention_weights

    config = model.config
    ids = torch.tensor(probe.sequences, device=next(model.parameters()).device)  # (sequence, time)
    # All at once: the weights of the model are then read, and maybe widened, only once.
    patterns = torch.stack([detection_patterns(each) for each in ids.cpu()])
    queries: dict[str, Tensor] = {}
    shares = torch.zeros(config.n_layers, config.n_heads, 3, dtype=torch.float64)

    def score(name: str, tensor: "Tensor") -> "Tensor":
        _blocks, layer, *rest = (*name.split("."), "")
        if rest[:2] == ["attention", "q"]:
            queries[layer] = tensor
        elif rest[:2] == ["attention", "k"]:
            window = config.sliding_windows[int(layer)] if config.sliding_windows else 0
            weight = attention_weights(queries.pop(layer), tensor, config, window)
            followed = torch.einsum("bhqk,bpqk->bhp", weight.double().cpu(), patterns)
            shares[int(layer)] = followed.mean(0) / ids.shape[1]
            progress((int(layer) + 1) / config.n_layers)
        return tensor

    with torch.no_grad():
        model(ids, hook=compose(hook, score), last_only=True)
    return shares


def copying(model: "LanguageModel", probe: Probe, residual: "Tensor") -> float:
    """Return the mean probability of the token that comes next, where all was seen before.

    `residual` is the stream after the last layer on the probe: (sequence, time, d_model).
    """
    import torch

    start = len(probe.start) + probe.half  # the first position of the second half
    ids = torch.tensor(probe.sequences, device=residual.device)
    found = 0.0
    # One sequence at a time: the logits of all together can be large.
    for row, stream in zip(ids, residual, strict=True):
        probabilities = model.unembed(stream[start:-1]).softmax(-1)  # (half - 1, vocab)
        right = probabilities.gather(-1, row[start + 1 :, None])
        found += float(right.double().mean())
    return found / len(ids)


def baselines(probe: Probe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the largest share that there can be on each pattern, and that of uniform attention."""
    import torch

    patterns = detection_patterns(torch.tensor(probe.sequences[0]))  # (3, time, time)
    even = torch.ones_like(patterns[0]).tril()
    uniform = (even / even.sum(-1, keepdim=True) * patterns).sum(-1).mean(-1)
    return tuple(patterns.any(-1).double().mean(-1).tolist()), tuple(uniform.tolist())
