"""Draws the logit lens."""

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.thinking import LensView
from minillm_repl.render.bars import bar
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.generation import percent
from minillm_repl.render.picture import LONGEST_LABEL, fitted, title, token_style
from minillm_repl.render.tables import plain_table


def lens_picture(view: LensView, width: int) -> RenderableType:
    """Return a row for each place of the residual stream: what it would say, and how far it is from the end."""
    answer = fitted(view.answer.label, min(cell_len(view.answer.label), LONGEST_LABEL))
    bars = 16 if width >= 100 else 8
    names = max(len(row.place) for row in view.rows)
    room = width - names - cell_len(answer) - bars - 28
    table = plain_table("after", "likeliest tokens", f"p({answer})", "", "rank", "KL, nats")
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if place in (2, 4, 5) else "left", True
    for row in view.rows:
        top = Text()
        for likely in row.top:
            label = fitted(likely.token.label, min(cell_len(likely.token.label), LONGEST_LABEL))
            if top and top.cell_len + 1 + cell_len(label) > max(room, 8):
                break
            top.append((" " if top else ""), "").append(label, token_style(likely.token))
        style = TITLE if row.place == view.first else ""
        table.add_row(
            Text(row.place, style), top, percent(row.prob), Text(bar(row.prob, bars), MODEL), f"{row.rank:,}",
            f"{row.kl:.3f}",
        )  # fmt: skip
    return Group(
        title("logit lens", f"what each place would say after {view.tokens[-1].label}, position {view.position}"),
        table,
        Text(f"{answer} is the likeliest from {view.first} on", FIGURES),
    )
