"""Draws the logit lens."""

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.thinking import LensView
from minillm_repl.language import _
from minillm_repl.render.bars import bar
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    MAX_LABEL_WIDTH,
    component_name,
    fit_to_width,
    title,
    token_style,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import NARROW, WIDE, plain_table


def lens_picture(view: LensView, width: int) -> RenderableType:
    """Return a row for each place of the residual stream: what it would say, and how far it is
    from the end.
    """
    answer = fit_to_width(view.answer.label, min(cell_len(view.answer.label), MAX_LABEL_WIDTH))
    bars = 16 if width >= WIDE else 8 if width >= NARROW else 0
    names = max(cell_len(component_name(row.place)) for row in view.rows)
    room = width - names - cell_len(answer) - bars - 28
    table = plain_table(_("after"), _("top tokens"), f"p({answer})", "", _("rank"), _("KL, nats"))
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = (
            "right" if place in (2, 4, 5) else "left",
            place > 1 or width >= NARROW,
        )
    for row in view.rows:
        top = Text()
        for likely in row.top:
            label = fit_to_width(
                likely.token.label, min(cell_len(likely.token.label), MAX_LABEL_WIDTH)
            )
            if top and top.cell_len + 1 + cell_len(label) > max(room, 8):
                break
            top.append((" " if top else ""), "").append(label, token_style(likely.token))
        style = TITLE if row.place == view.first else ""
        table.add_row(
            Text(component_name(row.place), style),
            top,
            percent(row.prob),
            Text(bar(row.prob, bars), MODEL),
            f"{row.rank:,}",
            f"{row.kl:.3f}",
        )
    return Group(
        title(
            _("logit lens"),
            _(
                "next-token prediction read from each layer, after {token} (position {position})",
                token=view.tokens[-1].label,
                position=view.position,
            ),
        ),
        table,
        Text(
            _(
                "{token} is top-1 from {place} onwards",
                token=answer,
                place=component_name(view.first),
            ),
            FIGURES,
        ),
    )
