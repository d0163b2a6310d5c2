"""`:lens grid`: the prediction that each layer would make at each position, in one picture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import (
    component_name,
    fit_to_width,
    label_width,
    level,
    short_label,
    title,
    token_style,
)
from minillm_repl.render.tables import TABLE_GAP, plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View
from minillm_repl.views.inspected_text import InspectedText, Likely, no_grad, place_name
from minillm_repl.views.lens_maps import Kind, LensMaps, lens_name

if TYPE_CHECKING:
    from torch import Tensor

_POSITIONS = 64  # that are computed: more columns than any terminal has room for
_SHOWN_ROWS = 14  # layers in a picture of 24 rows; :scroll and :export show all
_MAX_LABEL = 8  # cells


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """The most likely next token after each position, if the model stopped at one place."""

    place: str  # `embedding`, `0 feed-forward`
    top: tuple[Likely, ...]


@dataclass(frozen=True, kw_only=True)
class GridView(View, Truncation):
    """The logit lens at the last positions of a text. Positions count from 0."""

    kind: Kind | Literal[""]  # of a fitted lens: `j`, `tuned`; empty for the logit lens
    first: int  # the position of the first column
    tokens: tuple[Token, ...]  # those that are read, from there on
    rows: tuple[GridRow, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each layer and a column for each position, as many as fit."""
        shown = [*self.tokens, *(each.token for each in self.rows[-1].top)]
        cells = min(_MAX_LABEL, label_width(shown, 3))
        names = max(len(component_name(row.place)) for row in self.rows)
        columns = max(1, min(len(self.tokens), (width - names) // (cells + 1 + TABLE_GAP)))
        start = len(self.tokens) - columns  # of the columns that are shown
        heads = [fit_to_width(token.label, cells).rstrip() for token in self.tokens[start:]]
        table = plain_table(_("after"), *heads, wrap=())
        table.add_row("", *(f"@{self.first + at}" for at in range(start, len(self.tokens))))
        for row in self._rows(width):
            style = TITLE if row is self.rows[-1] else ""
            name = Text(component_name(row.place), style)
            table.add_row(name, *(self._cell(each, cells) for each in row.top[start:]))
        legend = _(
            "the most likely next token after each position, and how likely: ▁ less than 1/8, █ at "
            "least 7/8 · the last row is the model's own"
        )
        total = self.first + len(self.tokens)
        about = (
            _("all {n} positions", n=total)
            if columns == total
            else _("the last {n} of {all} positions", n=columns, all=total)
        )
        return Group(title(lens_name(self.kind), about), table, Text(legend, FIGURES))

    def _rows(self, width: int) -> tuple[GridRow, ...]:
        """Return the rows, without some that change no top token where there are too many."""
        from minillm_repl.render.drawing import UNLIMITED_WIDTH

        rows = list(self.rows)
        if width >= UNLIMITED_WIDTH:
            return self.rows
        quiet = [
            row
            for before, row in zip(self.rows, self.rows[1:-1], strict=False)
            if [each.token for each in row.top] == [each.token for each in before.top]
        ]
        while len(rows) > _SHOWN_ROWS and quiet:
            rows.remove(quiet.pop(0))
        return tuple(rows)

    def _cell(self, likely: Likely, cells: int) -> Text:
        style = token_style(likely.token) if likely.prob >= 0.125 else FIGURES
        label = short_label(likely.token, cells)
        label.stylize(style)
        return Text.assemble(label, (level(likely.prob), style))


@no_grad
def compute(
    inspected: InspectedText, maps: LensMaps | None = None, last: int = _POSITIONS
) -> GridView:
    """Return the lens after each block at the `last` positions of a text.

    Each residual stream goes through the last norm, with statistics of its own, and the head. The
    last row is the model's own output. A fitted lens maps the stream before that.
    """
    maps = maps and maps.to(inspected.input_ids.device)
    count = min(last, len(inspected.ids))
    streams = inspected.run_with_cache("embedding", "residual", last_only=True, rows=count)
    cache = streams[1]  # (position, d_model) each

    def read(hook_name: str, residual: "Tensor") -> GridRow:
        mapped = maps.read(hook_name, residual) if maps else residual
        logits = inspected.model.unembed(mapped).double()  # (position, vocab)
        # Of equally likely tokens, the one with the lowest id.
        tokens = logits.argmax(-1).tolist()
        probs = logits.softmax(-1).amax(-1).tolist()
        top = tuple(
            Likely(Token.from_id(inspected.tokenizer, token), prob)
            for token, prob in zip(tokens, probs, strict=True)
        )
        return GridRow(place=place_name(inspected, hook_name), top=top)

    return GridView(
        kind=maps.kind if maps else "",
        first=inspected.position_of(len(inspected.ids) - count),
        tokens=inspected.tokens[-count:],
        rows=tuple(read(name, residual) for name, residual in cache.items()),
        **inspected.window_fields,
    )
