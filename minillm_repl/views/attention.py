"""Maps of attention weights, of one head and of all heads of a layer: what `:attn` shows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.model.hooks import wants_pattern
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
from minillm_repl.views.attention_patterns import (
    UNIFORM_NOTE,
    Pattern,
    last_weights,
    pattern_scores,
    patterns_of,
    visiting,
)
from minillm_repl.views.base import Row, View
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad, to_tuples

if TYPE_CHECKING:
    from torch import Tensor

_MAX_WEIGHTS = 2**22  # that a view holds: as plain numbers, 128 MiB

_CELL = 2  # columns of one weight: as wide as a Hangul syllable
_MAP = 16  # tokens to an edge of a small map, at most
_MIN_MAP_WIDTH = 24  # cells: a small map has a pattern in its title


@dataclass(frozen=True, kw_only=True)
class HeadView(View, Truncation):
    """One attention head on a text. Layers and heads count from 0."""

    table = "tokens", "weights"

    layer: int
    head: int
    tokens: tuple[Token, ...]
    # (query, key): each row sums to 1; of a long text, those of the last queries
    weights: tuple[Row, ...]
    patterns: tuple[Pattern, ...]  # of the whole text, the highest score first

    @property
    def first(self) -> int:
        """The index of the token of the first row."""
        return len(self.tokens) - len(self.weights)

    def draw(self, width: int) -> RenderableType:
        """Return the matrix of weights; of a text too long for the width, the last tokens."""
        labels = label_width(self.tokens) if width > 40 else 5
        lead = labels + self._position_width + 2
        fitting = max(1, (width - lead) // _CELL)
        first = max(self.first, len(self.tokens) - fitting)
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
            lines.append_text(_shades(self.weights[index - self.first], first, index))
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
            picture.append_text(_shades(self.weights[index - self.first], first, index))
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


@no_grad
def compute_layer(inspected: InspectedText, layer: int) -> LayerView:
    """Return all heads of a layer. Raises UserError if there is no such layer."""
    check_layer(inspected.config, layer, 0)
    heads = tuple(_heads(inspected, layer, range(inspected.config.n_heads)))
    return LayerView(inspected.tokens, heads, **inspected.window_fields)


@no_grad
def compute_head(inspected: InspectedText, layer: int, head: int) -> HeadView:
    """Return one head's attention on the text. Raises UserError if there is no such head."""
    check_layer(inspected.config, layer, head)
    return _heads(inspected, layer, range(head, head + 1))[0]


def _heads(inspected: InspectedText, layer: int, wanted: range) -> list[HeadView]:
    """Return some heads of a layer: a head, or all. Of a long text, the weights of the last
    queries.
    """
    size = max(1, min(len(inspected.ids), _MAX_WEIGHTS // (len(inspected.ids) * len(wanted))))
    found: list[HeadView] = []

    # A head alone is a part of the work, unless an intervention counts the heads.
    is_cut = wants_pattern(inspected.hook, f"blocks.{layer}.attention.pattern")
    first = 0 if is_cut else wanted.start

    def visit(_layer: int, q: "Tensor", k: "Tensor") -> None:
        if not is_cut and len(wanted) == 1:
            kv_head = first * len(k) // len(q)
            q, k = q[first : first + 1], k[kv_head : kv_head + 1]
        patterns = patterns_of(inspected, layer, q, k)
        last = last_weights(inspected, layer, q, k, size)
        found.extend(
            HeadView(
                layer=layer,
                head=head,
                tokens=inspected.tokens,
                weights=to_tuples(last[head - first]),
                patterns=patterns[head - first],
                **inspected.window_fields,
            )
            for head in wanted
        )

    inspected.with_hook(visiting(inspected, visit, layer)).logits(last_only=True)
    return found
