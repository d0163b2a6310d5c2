"""Draws what each part of the model adds: to a logit, and to the residual stream."""

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.thinking import Part, ResidualView, WhyView
from minillm_repl.language import _
from minillm_repl.render.bars import bar
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    component_name,
    fit_to_width,
    format_logit,
    signed_bar,
    title,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table

_SHOWN = 14  # parts that have a row of their own; the others share one


def why_picture(view: WhyView, width: int) -> RenderableType:
    """Return the strongest parts as bars, strongest first, and the sum of the others: together
    they are the logit.
    """
    shown, others = _strongest(view.parts)
    called = [component_name(part.name) for part in shown]
    together = _("total")
    names = max(map(cell_len, (*called, together)))
    most = max(abs(part.value) for part in shown)
    bars = min(60, max(16, width - names - 14))
    lines = Text(no_wrap=True)
    for part, name in zip(shown, called, strict=True):
        lines.append(f"{fit_to_width(name, names)}  ").append_text(
            signed_bar(part.value, most, bars)
        )
        lines.append(f" {part.value:+9.3f}\n")
    total = sum(part.value for part in view.parts)
    lines.append(f"{fit_to_width(together, names)}  {'':{bars + 1}} {total:+9.3f}", TITLE)
    chance = _("p {chance} · rank {rank:,}", chance=percent(view.prob), rank=view.rank)
    asked = (
        _("why {token} rather than {versus}", token=view.token.label, versus=view.versus.label)
        if view.versus
        else _("why {token}", token=view.token.label)
    )
    last = {"token": view.tokens[-1].label, "position": view.position_of(len(view.tokens) - 1)}
    return Group(
        title(
            asked, f"{format_logit(view.logit, is_difference=view.versus is not None)} · {chance}"
        ),
        Text(
            _("direct logit attribution for the token after {token} (position {position})", **last),
            FIGURES,
        ),
        lines,
        *(
            [
                Text(
                    _(
                        "others: the remaining {n} components, each smaller than those shown",
                        n=others,
                    ),
                    FIGURES,
                )
            ]
            if others
            else []
        ),
    )


def residual_picture(view: ResidualView, width: int) -> RenderableType:
    """Return the norms as bars: what each place adds, and how long the stream is after it."""
    bars = min(30, max(6, (width - 58) // 2))
    most = max(row.stream for row in view.rows) or 1.0
    table = plain_table(_("after"), _("update"), "", _("residual"), "", _("cos"))
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if place in (1, 3, 5) else "left", True
    for row in view.rows:
        table.add_row(
            component_name(row.place),
            f"{row.added:,.2f}",
            Text(bar(row.added / most, bars), MODEL),
            f"{row.stream:,.2f}",
            Text(bar(row.stream / most, bars), MODEL),
            f"{row.aligned:+.2f}",
        )
    return Group(
        title(
            _("residual stream"),
            _(
                "at {token}, position {position}",
                token=view.tokens[-1].label,
                position=view.position,
            ),
        ),
        table,
        Text(
            _(
                "update and residual: L2 norms · cos: cosine of the update with the "
                "residual stream before it (+1 reinforces, 0 orthogonal, −1 cancels)"
            ),
            FIGURES,
        ),
    )


def _strongest(parts: tuple[Part, ...]) -> tuple[list[Part], int]:
    """Return the strongest parts, strongest first, then the rest as one; and how many that are."""
    order = sorted(parts, key=lambda part: -abs(part.value))
    rest = order[_SHOWN:]
    if len(rest) < 2:
        return order, 0
    return [*order[:_SHOWN], Part("others", sum(part.value for part in rest))], len(rest)
