"""Attention weights of a pass, a few queries at a time, and the patterns that heads follow.

The weights of a long text in one layer are gigabytes: none of this ever holds them all.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minillm_repl.language import N_, _
from minillm_repl.model.hooks import Hook, wants_pattern
from minillm_repl.views.inspected_text import InspectedText, check_layer

if TYPE_CHECKING:
    from torch import Tensor

UNIFORM_NOTE = N_("in brackets: the score of uniform attention")
_ITSELF, _PREVIOUS, _FIRST = N_("itself"), N_("previous token"), N_("first token")
_BY_CONTENT = N_("same token"), N_("induction on this text")
_MIN_PLACES = 3  # positions that can show a pattern by content; fewer are chance
_MAX_NUMBERS = 2**24  # weights that are in memory at once: 64 MiB

Visit = Callable[[int, "Tensor", "Tensor"], None]
"""Is given a layer, its queries and its keys: (head, time, head_dim) each."""


@dataclass(frozen=True)
class Pattern:
    """A pattern that a head can follow on a text, and how much of its attention does."""

    name: str  # `previous token`
    # the share of the weight that follows it: a mean over the positions where that is possible
    score: float
    chance: float  # the score of attention spread evenly over all visible positions
    places: int  # how many positions the means are over


def pattern_scores(patterns: Iterable[Pattern], *, baseline: bool = True) -> str:
    """Return `previous token 62% (15%)` for each pattern; the baseline is in brackets."""
    return " · ".join(
        f"{_(each.name)} {each.score:.0%}" + (f" ({each.chance:.0%})" if baseline else "")
        for each in patterns
    )


# -- the weights of a pass


def visiting(inspected: InspectedText, visit: Visit, layer: int | None = None) -> Hook:
    """Return a hook that calls `visit` for each layer with attention, or for one, and keeps
    nothing.
    """
    layers = inspected.config.attention_layers if layer is None else (layer,)
    names = {f"blocks.{each}.attention.k": each for each in layers}
    queries: list[Tensor] = []

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name.endswith("attention.q"):
            queries[:] = [tensor]
        elif name in names:
            visit(names[name], queries[0][0], tensor[0])
            queries.clear()
        return tensor

    return hook


def weights_by_query(
    inspected: InspectedText, layer: int, q: "Tensor", k: "Tensor", first: int = 0
) -> "Iterator[tuple[int, Tensor]]":
    """Yield the weights of a few queries at a time, from the query `first` on: the index of the
    first of them, and (head, query, key), the keys up to the last of them.
    """
    from minillm_repl.model.attention import attention_weights

    time, window = q.shape[1], sliding_window(inspected, layer)
    size = max(1, _MAX_NUMBERS // (len(q) * time))
    for start in range(first, time, size):
        end = min(start + size, time)
        found = attention_weights(q[None, :, start:end], k[None, :, :end], inspected.config, window)
        name = f"blocks.{layer}.attention.pattern"
        if wants_pattern(inspected.hook, name):  # an intervention on the weights themselves
            found = inspected.hook(name, found)
        # The hook ends this too after Ctrl-C, as it ends the pass.
        yield start, inspected.hook(f"blocks.{layer}.attention.weights", found)[0]


def weights(inspected: InspectedText, layer: int | None = None) -> "dict[int, Tensor]":
    """Return the attention weights of one layer, or of all, from one pass: short texts only.

    Each is (head, time, time): a row is a query, a column a key, and each row sums to 1.
    """
    if layer is not None:
        check_layer(inspected.config, layer, 0)
    found: dict[int, Tensor] = {}

    def visit(index: int, q: "Tensor", k: "Tensor") -> None:
        found[index] = last_weights(inspected, index, q, k, q.shape[1])

    inspected.with_hook(visiting(inspected, visit, layer)).logits(last_only=True)
    return found


def last_weights(
    inspected: InspectedText, layer: int, q: "Tensor", k: "Tensor", count: int
) -> "Tensor":
    """Return the weights of the last `count` queries on all keys: (head, query, key)."""
    import torch

    found = [
        torch.nn.functional.pad(each, (0, q.shape[1] - each.shape[-1]))
        for _start, each in weights_by_query(inspected, layer, q, k, q.shape[1] - count)
    ]
    return torch.cat(found, 1)


def sliding_window(inspected: InspectedText, layer: int) -> int:
    """Return how many positions back a layer sees, itself included; 0 is all."""
    windows = inspected.config.sliding_windows
    return windows[layer] if windows else 0


# -- patterns


@dataclass
class _Sum:
    """The weight that followed a pattern so far."""

    weight: "Tensor"  # (head,)
    chance: float = 0.0
    places: int = 0


@dataclass
class PatternScores:
    """The patterns of the heads of a layer, from the weights of a few queries at a time.

    A pattern that no position can show is left out. So is one by content (same token, induction)
    that fewer than three positions can show.
    """

    ids: "Tensor"  # (time,)
    window: int = 0
    sums: dict[str, _Sum] = field(default_factory=dict)

    def add(self, first: int, weight: "Tensor") -> None:
        """Count the weights (head, query, key) of the queries from `first` on."""
        import torch

        ids = self.ids.to(weight.device)
        row = first + torch.arange(weight.shape[1], device=weight.device)  # (query,)
        column = torch.arange(weight.shape[2], device=weight.device)  # (key,)
        window = self.window or len(ids)
        visible = (row + 1).clamp(max=window)  # (query,): how many positions are
        earlier = (column < row[:, None]) & (row[:, None] - column < window)  # (query, key)
        # Position 0 sees only itself, and the token before position 1 is the first token.
        after = row > 0
        self._add(_ITSELF, weight, visible, (after.nonzero()[:, 0], row[after]))
        after = (row > 1) & (window > 1)
        self._add(_PREVIOUS, weight, visible, (after.nonzero()[:, 0], row[after] - 1))
        after = earlier[:, 0].nonzero()[:, 0]
        self._add(_FIRST, weight, visible, (after, torch.zeros_like(after)))
        same = ids[row][:, None] == ids[column]  # (query, key)
        self._add(_BY_CONTENT[0], weight, visible, (same & earlier).nonzero(as_tuple=True))
        after_same = torch.nn.functional.pad(same, (1, 0))[:, :-1] & earlier
        self._add(_BY_CONTENT[1], weight, visible, after_same.nonzero(as_tuple=True))

    def _add(
        self, name: str, weight: "Tensor", visible: "Tensor", places: "tuple[Tensor, ...]"
    ) -> None:
        """Count the weights at places (query, key) that follow a pattern."""
        query, key = places
        total = self.sums.setdefault(name, _Sum(weight.new_zeros(len(weight)).double()))
        total.weight += weight[:, query, key].double().sum(-1)
        total.chance += float((1 / visible[query].double()).sum())
        total.places += int((query.bincount() > 0).sum())

    def by_head(self) -> list[tuple[Pattern, ...]]:
        """Return the patterns of each head, the highest score first."""
        scored = [
            [Pattern(name, score, each.chance / each.places, each.places)
             for score in (each.weight / each.places).tolist()]
            for name, each in self.sums.items()
            if each.places >= (_MIN_PLACES if name in _BY_CONTENT else 1)
        ]  # fmt: skip
        heads = len(next(iter(self.sums.values())).weight)
        found = ([by_pattern[head] for by_pattern in scored] for head in range(heads))
        return [tuple(sorted(patterns, key=lambda each: -each.score)) for patterns in found]


def find_patterns(
    weight: "Tensor", ids: tuple[int, ...], window: int = 0
) -> list[tuple[Pattern, ...]]:
    """Return the patterns of each head of a layer (head, time, time), the highest score first."""
    import torch

    scores = PatternScores(torch.tensor(ids), window)
    scores.add(0, weight.float())
    return scores.by_head()


def patterns_of(
    inspected: InspectedText, layer: int, q: "Tensor", k: "Tensor"
) -> list[tuple[Pattern, ...]]:
    """Return the patterns of each head of a layer, of its queries and keys."""
    import torch

    scores = PatternScores(torch.tensor(inspected.ids), sliding_window(inspected, layer))
    for first, weight in weights_by_query(inspected, layer, q, k):
        scores.add(first, weight.float())
    return scores.by_head()
