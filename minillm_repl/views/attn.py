"""`:attn`: attention weights; alone, what the last token attends to in every head."""

from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, level, short_label, title
from minillm_repl.render.tables import WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, Layer, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.attention import (
    UNIFORM_NOTE,
    HeadView,
    LayerView,
    Pattern,
    compute_head,
    compute_layer,
    find_patterns,
    pattern_scores,
    sliding_window,
    weights,
)
from minillm_repl.views.base import View, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_KEYS = 5  # that are listed for the last token
_LABEL = 8  # cells of the token of a key
_HEADS = 32  # that are listed, unless there is room for all
_MIN_WEIGHT = 0.005  # less rounds to 0%


@dataclass(frozen=True)
class HeadFocus:
    """What the last token attends to, in one head."""

    layer: int
    head: int
    looked: tuple[tuple[int, float], ...]  # (position, weight), the largest weight first
    patterns: tuple[Pattern, ...]  # the highest score first


@dataclass(frozen=True)
class FocusView(View, Truncation):
    """What the last token attends to, in every head. Layers, heads and positions count from 0."""

    tokens: tuple[Token, ...]
    heads: tuple[HeadFocus, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each head: the keys with the largest weights, and its patterns."""
        everything = len(self.heads) <= _HEADS or width >= UNLIMITED_WIDTH
        heads = self.heads if everything else self._most_focused()
        notes = [
            _("attends to: token @ position, weight"),
            _(
                "pattern: the attention pattern the head follows most over the whole text, and "
                "its mean weight"
            ),
            _(UNIFORM_NOTE),
        ]
        if len(heads) < len(self.heads):
            selection = _(
                "top {n} of {all} heads by weight on one earlier token (first token "
                "excluded); :scroll shows all",
                n=len(heads),
                all=len(self.heads),
            )
            notes.insert(0, selection)
        where = _(
            "{token}, position {position}",
            token=self.tokens[-1].label,
            position=self.position_of(len(self.tokens) - 1),
        )
        return Group(
            title(_("attention of the last token"), where),
            self._table(heads, width),
            Text(" · ".join(notes), FIGURES),
        )

    def _table(self, heads: tuple[HeadFocus, ...], width: int) -> Table:
        n_patterns = 1 if width < WIDE else 2
        scores = [pattern_scores(head.patterns[:n_patterns]) for head in heads]
        keys = [self._keys(head) for head in heads]
        # Keys of the same rank stand below each other, in as many columns as fit.
        by_rank = zip_longest(*keys, fillvalue=Text())
        cells = [max(key.cell_len for key in rank) + 2 for rank in by_rank]
        room = width - 10 - max(map(cell_len, scores))
        columns = max(1, sum(total <= room for total in accumulate(cells)))
        table = plain_table(_("head"), _("attends to"), _("pattern"), wrap=(2,))
        for head, row, score in zip(heads, keys, scores, strict=True):
            for key, size in zip(row, cells, strict=False):
                key.pad_right(size - key.cell_len)
            name = Text(f"{head.layer}.{head.head}", TITLE)
            table.add_row(name, Text.assemble(*row[:columns]), Text(score, FIGURES))
        return table

    def _keys(self, head: HeadFocus) -> list[Text]:
        """Return `말 @27 73% ▆` for each key whose weight does not round to nothing."""
        return [
            Text.assemble(
                short_label(self.tokens[self.index_of(position)], _LABEL),
                (f" @{position} ", FIGURES),
                f"{weight:.0%} {level(weight)}",
            )
            for position, weight in head.looked
            if weight >= _MIN_WEIGHT
        ]

    def _most_focused(self) -> tuple[HeadFocus, ...]:
        """Return the heads with the largest weight on one earlier token, in their order.

        The first token does not count: a head without anything to do attends to it.
        """
        last = len(self.tokens) - 1

        def largest_weight(head: HeadFocus) -> float:
            earlier = (
                weight for position, weight in head.looked if 0 < self.index_of(position) < last
            )
            return max(earlier, default=0.0)

        strongest = sorted(self.heads, key=largest_weight, reverse=True)[:_HEADS]
        return tuple(sorted(strongest, key=lambda head: (head.layer, head.head)))


def compute(
    inspected: InspectedText, layer: int | None = None, head: int | None = None
) -> FocusView | LayerView | HeadView:
    """Return the attention of the last token in every head, of one layer, or of one head.

    Raises UserError if there is no such layer or head.
    """
    if layer is None:
        return compute_focus(inspected)
    if head is None:
        return compute_layer(inspected, layer)
    return compute_head(inspected, layer, head)


def compute_focus(inspected: InspectedText) -> FocusView:
    """Return what the last token attends to, in every head of every layer."""
    heads = []
    for layer, by_head in weights(inspected).items():  # (head, time, time)
        patterns = find_patterns(by_head, inspected.ids, sliding_window(inspected, layer))
        for head, row in enumerate(by_head[:, -1]):  # (time,)
            top = row.argsort(descending=True, stable=True)[:_KEYS].tolist()
            looked = tuple((inspected.position_of(index), float(row[index])) for index in top)
            heads.append(HeadFocus(layer, head, looked, patterns[head]))
    return FocusView(inspected.tokens, tuple(heads), **inspected.window_fields)


@command(
    "attn",
    arguments=(Layer("optional"), TextArgument()),
    json=True,
    aliases=("attention", "어텐션"),
    group="Look inside",
    example=":attn 2.1 날씨가 좋",
)
def attn(shell: "Shell", asked: Arguments) -> None:
    """Show attention weights.

    :attn 2.1 shows head 1 of layer 2. Rows are queries, columns are keys, and each row sums to
    100%.
    :attn 2 shows all heads of layer 2 as small maps.
    :attn alone shows what the last token attends to, in every head.

    A weight is softmax(q·k / √d_head): the share of the column's value that goes into the row.
    Attention does not explain the answer: `:why` shows what a head adds to it.

    The score of a pattern is the share of attention that follows the pattern, as a mean over the
    positions where the pattern is possible. The number in brackets is the uniform baseline: the
    score of attention spread evenly over all visible positions.
        itself: all positions except 0
        previous token: positions from 2 on (before position 1 is the first token)
        first token: positions from 1 on
        same token: an earlier token that is the same
        induction on this text: the token after such an earlier token

    The last two need three such positions. A text that happens to repeat itself is weak evidence of
    induction; the usual test is a sequence of random tokens, given twice. Layers and heads count
    from 0.
    """
    inspected = inspect_text(shell, asked.text)
    show(shell, compute(inspected, asked.layer, asked.head), asked.output)
