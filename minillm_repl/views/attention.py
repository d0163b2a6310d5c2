"""Attention weights, the patterns that heads follow, and maps of both: what `:attn` shows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    fit_to_width,
    label_width,
    shade,
    title,
    token_style,
)
from minillm_repl.render.tables import WIDE
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import Row, View
from minillm_repl.views.inspected_text import InspectedText, check_layer, to_tuples

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


def pattern_scores(patterns: Iterable[Pattern], *, baseline: bool = True) -> str:
    """Return `previous token 62% (15%)` for each pattern; the baseline is in brackets."""
    return " · ".join(
        f"{_(each.name)} {each.score:.0%}" + (f" ({each.chance:.0%})" if baseline else "")
        for each in patterns
    )


def weights(inspected: InspectedText, layer: int | None = None) -> "dict[int, Tensor]":
    """Return the attention weights of one layer, or of all, from one pass.

    Each is (head, time, time): a row is a query, a column a key, and each row sums to 1.
    """
    return dict(weights_by_layer(inspected, layer))


def weights_by_layer(
    inspected: InspectedText, layer: int | None = None
) -> "Iterator[tuple[int, Tensor]]":
    """Yield each layer and its attention weights, as `weights` has them, from one pass.

    A long text has gigabytes of them in all layers together: only one is in memory.
    """
    from minillm_repl.model.attention import attention_weights

    layers = inspected.config.attention_layers if layer is None else (layer,)
    if layer is not None:
        check_layer(inspected.config, layer, 0)
    prefix = "" if layer is None else f"blocks.{layer}."
    cache = inspected.run_with_cache(
        prefix + "attention.q", prefix + "attention.k", last_only=True
    )[1]
    for index in layers:
        found = attention_weights(
            cache[f"blocks.{index}.attention.q"][None],
            cache[f"blocks.{index}.attention.k"][None],
            inspected.config,
            sliding_window(inspected, index),
        )[0]
        # The hook ends this too after Ctrl-C, as it ends the pass.
        yield index, inspected.hook(f"blocks.{index}.attention.weights", found)


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


_CELL = 2  # columns of one weight: as wide as a Hangul syllable
_MAP = 16  # tokens to an edge of a small map, at most
_MIN_MAP_WIDTH = 24  # cells: a small map has a pattern in its title


@dataclass(frozen=True, kw_only=True)
class HeadView(View, Truncation):
    """One attention head on a text. Layers and heads count from 0."""

    layer: int
    head: int
    tokens: tuple[Token, ...]
    weights: tuple[Row, ...]  # (time, time): rows are queries, columns keys; each row sums to 1
    patterns: tuple[Pattern, ...]  # the highest score first

    def draw(self, width: int) -> RenderableType:
        """Return the matrix of weights; of a text too long for the width, the last tokens."""
        labels = label_width(self.tokens) if width > 40 else 5
        lead = labels + self._position_width + 2
        fitting = max(1, (width - lead) // _CELL)
        first = max(0, len(self.tokens) - fitting)
        notes = [
            _("rows: queries · columns: keys · ░ ≥20% ▒ ≥40% ▓ ≥60% █ ≥80%"),
        ]
        notes += [_(UNIFORM_NOTE)] if self.patterns else []
        if first:
            last_tokens = _(
                "the last {n} of {all} tokens; :scroll shows all",
                n=len(self.tokens) - first,
                all=len(self.tokens),
            )
            notes.insert(0, last_tokens)
        heading = title(
            _("layer {layer} head {head}", layer=self.layer, head=self.head),
            pattern_scores(self.patterns[: 2 if width < WIDE else 5]),
        )
        return Group(heading, self._matrix(first, labels), Text("\n".join(notes), FIGURES))

    def _matrix(self, first: int, labels: int) -> Text:
        """Return the weights from token `first` on, as shades, with the tokens beside them."""
        numbers = self._position_width
        shown = range(first, len(self.tokens))
        heads = self._column_heads(shown)
        lines = Text.assemble((" " * (labels + numbers + 2) + heads + "\n", FIGURES))
        lines.no_wrap = True
        for index in shown:
            token = self.tokens[index]
            lines.append(f"{self.position_of(index):>{numbers}} ", FIGURES)
            lines.append(fit_to_width(token.label, labels) + " ", token_style(token))
            lines.append_text(_shades(self.weights[index], first, index))
            lines.append(f"{'·':>{_CELL}}" * (len(self.tokens) - index - 1) + "\n", FIGURES)
        return lines

    def _column_heads(self, shown: range) -> str:
        """Return the tokens above the columns; if a token is wider, every fifth position."""
        tokens = [self.tokens[index].label for index in shown]
        if max(map(cell_len, tokens)) <= _CELL:
            return "".join(fit_to_width(label, _CELL) for label in tokens)
        every = 5
        positions = (self.position_of(index) for index in shown[::every])
        return "".join(f"{each:<{every * _CELL}}" for each in positions).rstrip()

    @property
    def _position_width(self) -> int:
        return len(str(self.position_of(len(self.tokens) - 1)))

    @property
    def pinned(self) -> tuple[int, int]:
        """The title and the heads of the columns, and the tokens to the left of the matrix."""
        return 2, label_width(self.tokens) + self._position_width + 2

    def small_map(self, size: int, width: int) -> Text:
        """Return the weights of the last `size` tokens, below the name and its first pattern."""
        first = len(self.tokens) - size
        name = f"{self.layer}.{self.head}  {pattern_scores(self.patterns[:1], baseline=False)}"
        picture = Text.assemble((fit_to_width(name, width).rstrip() + "\n", TITLE))
        for index in range(first, len(self.tokens)):
            picture.append_text(_shades(self.weights[index], first, index))
            picture.append("·".rjust(_CELL) * (len(self.tokens) - index - 1) + "\n", FIGURES)
        picture.rstrip()
        return picture


@dataclass(frozen=True)
class LayerView(View, Truncation):
    """All heads of a layer."""

    tokens: tuple[Token, ...]
    heads: tuple[HeadView, ...]

    def draw(self, width: int) -> RenderableType:
        """Return all heads as small maps, as many side by side as fit."""
        size = min(len(self.tokens), _MAP)
        cells = max(size * _CELL, _MIN_MAP_WIDTH)
        across = max(1, min((width + 3) // (cells + 3), len(self.heads)))
        grid = Table.grid(padding=(0, 3, 1, 0))
        maps = [head.small_map(size, cells) for head in self.heads]
        for start in range(0, len(maps), across):
            grid.add_row(*maps[start : start + across])
        layer = self.heads[0].layer
        facts = [_("{n} heads", n=len(self.heads)), _("rows: queries · columns: keys")]
        if size < len(self.tokens):
            facts.insert(1, _("the last {n} of {all} tokens", n=size, all=len(self.tokens)))
        hint = _(":attn {layer}.0 shows one head with its tokens", layer=layer)
        return Group(
            title(_("layer {layer}", layer=layer), " · ".join(facts)),
            Text(),
            grid,
            Text(hint, FIGURES),
        )


def _shades(row: Row, first: int, last: int) -> Text:
    """Return the weights of one query on the keys from `first` to `last`."""
    return Text("".join(shade(weight) * _CELL for weight in row[first : last + 1]), MODEL)


def compute_layer(inspected: InspectedText, layer: int) -> LayerView:
    """Return all heads of a layer. Raises UserError if there is no such layer."""
    check_layer(inspected.config, layer)
    by_head = weights(inspected, layer)[layer]  # (head, time, time)
    patterns = find_patterns(by_head, inspected.ids, sliding_window(inspected, layer))
    heads = tuple(
        _head_view(inspected, layer, head, by_head[head], patterns[head])
        for head in range(len(by_head))
    )
    return LayerView(inspected.tokens, heads, **inspected.window_fields)


def _head_view(
    inspected: InspectedText,
    layer: int,
    head: int,
    weight: "Tensor",
    patterns: tuple[Pattern, ...],
) -> HeadView:
    return HeadView(
        layer=layer,
        head=head,
        tokens=inspected.tokens,
        weights=to_tuples(weight),
        patterns=patterns,
        **inspected.window_fields,
    )


def compute_head(inspected: InspectedText, layer: int, head: int) -> HeadView:
    """Return one head's attention on the text. Raises UserError if there is no such head."""
    check_layer(inspected.config, layer, head)
    # This head alone: a matrix of plain numbers takes eight times the memory of the tensor.
    weight = weights(inspected, layer)[layer][head : head + 1]  # (1, time, time)
    patterns = find_patterns(weight, inspected.ids, sliding_window(inspected, layer))
    return _head_view(inspected, layer, head, weight[0], patterns[0])
