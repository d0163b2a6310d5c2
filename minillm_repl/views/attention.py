"""Attention weights, and the patterns that heads follow: what the views of `:attn` share."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm_repl.language import N_, _
from minillm_repl.views.inspected_text import InspectedText

if TYPE_CHECKING:
    from torch import Tensor

UNIFORM_NOTE = N_("in brackets: the score of uniform attention")
_BY_CONTENT = N_("same token"), N_("induction on this text")
_MIN_PLACES = 3  # positions that can show a pattern by content; fewer are chance


@dataclass(frozen=True)
class Pattern:
    """A pattern that a head can follow on a text, and how much of its attention does."""

    name: str  # `previous token`
    # the share of the weight that follows it: a mean over the positions where that is possible
    score: float
    chance: float  # the score of attention spread evenly over all visible positions
    places: int  # how many positions the means are over


def pattern_scores(patterns: Iterable[Pattern]) -> str:
    """Return `previous token 62% (15%)` for each pattern."""
    return " · ".join(f"{_(each.name)} {each.score:.0%} ({each.chance:.0%})" for each in patterns)


def weights(inspected: InspectedText, layer: int | None = None) -> "dict[int, Tensor]":
    """Return the attention weights of one layer, or of all, from one pass.

    Each is (head, time, time): a row is a query, a column a key, and each row sums to 1.
    """
    from minillm_repl.model.attention import attention_weights

    layers = range(inspected.config.n_layers) if layer is None else [layer]
    prefix = "" if layer is None else f"blocks.{layer}."
    cache = inspected.run_with_cache(
        prefix + "attention.q", prefix + "attention.k", last_only=True
    )[1]
    return {
        index: attention_weights(
            cache[f"blocks.{index}.attention.q"][None],
            cache[f"blocks.{index}.attention.k"][None],
            sliding_window(inspected, index),
        )[0]
        for index in layers
    }


def sliding_window(inspected: InspectedText, layer: int) -> int:
    """Return how many positions back a layer sees, itself included; 0 is all."""
    windows = inspected.config.sliding_windows
    return windows[layer] if windows else 0


def find_patterns(
    weight: "Tensor", ids: tuple[int, ...], window: int = 0
) -> list[tuple[Pattern, ...]]:
    """Return the patterns of each head of a layer (head, time, time), the highest score first.

    A pattern that no position can show is left out. So is one by content (same token, induction)
    that fewer than three positions can show.
    """
    weight, visible = weight.float().cpu(), _visible(len(ids), window)
    uniform = visible / visible.sum(-1, keepdim=True)  # (time, time)
    scored = []
    for name, place in _places(ids, visible).items():
        possible = place.any(-1)  # (time,)
        count = int(possible.sum())
        if count >= (_MIN_PLACES if name in _BY_CONTENT else 1):
            scores = (weight * place).sum(-1)[:, possible].mean(-1).tolist()  # (head,)
            chance = float((uniform * place).sum(-1)[possible].mean())
            scored.append([Pattern(name, score, chance, count) for score in scores])
    by_head = ([by_pattern[head] for by_pattern in scored] for head in range(len(weight)))
    return [tuple(sorted(patterns, key=lambda each: -each.score)) for patterns in by_head]


def _places(ids: tuple[int, ...], visible: "Tensor") -> "dict[str, Tensor]":
    """Return where each pattern says that a position (row) attends: (time, time) each.

    Rows that cannot show the pattern are empty: position 0 sees only itself, and the token before
    position 1 is the first token.
    """
    import torch

    time, token = len(ids), torch.tensor(ids)
    row, column = torch.arange(time)[:, None], torch.arange(time)
    earlier = visible.tril(-1)
    same = (token[:, None] == token[None, :]).tril(-1)
    after_same = torch.nn.functional.pad(same, (1, 0))[:, :-1]
    return {
        N_("itself"): torch.eye(time, dtype=torch.bool) & (row > 0),
        N_("previous token"): earlier.triu(-1) & (row > 1),
        N_("first token"): earlier & (column == 0),
        _BY_CONTENT[0]: same & earlier,
        _BY_CONTENT[1]: after_same & earlier,
    }


def _visible(time: int, window: int) -> "Tensor":
    """Return which positions each position sees: (time, time)."""
    import torch

    causal = torch.ones(time, time, dtype=torch.bool).tril()
    return causal.triu(1 - window) if window else causal
