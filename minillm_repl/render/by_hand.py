"""Draws what can be computed again by hand: with as many digits as it takes for what is shown to agree."""

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.changes import DescentView
from minillm_repl.language import _
from minillm_repl.render.console import CONTRA, FIGURES, PRO, TITLE
from minillm_repl.render.picture import short, title
from minillm_repl.render.tables import plain_table

_MOST_DIGITS = 12


def digits(least: int, agree: Callable[[int], bool]) -> int:
    """Return the fewest digits after the point, from `least` on, with which what is shown agrees."""
    return next((count for count in range(least, _MOST_DIGITS) if agree(count)), _MOST_DIGITS)


def descent_picture(view: DescentView, _width: int) -> RenderableType:
    """Return a row for each token that was to be predicted, the mean, and one weight's step in full."""
    count = len(view.targets)

    def means_agree(places: int) -> bool:
        return all(
            round(sum(round(each, places) for each in nats) / count, 3) == round(mean, 3)
            for nats, mean in (
                ([each.nats_before for each in view.targets], view.loss_before),
                ([each.nats_after for each in view.targets], view.loss_after),
            )
        )

    places = digits(3, means_agree)
    table = plain_table("#", _("reads"), _("is to say"), "p", "−ln p", _("after"), "")
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if place in (0, 3, 4, 5) else "left", True
    for each in view.targets:
        table.add_row(
            str(each.position), short(view.tokens[each.position]), short(view.tokens[each.position + 1]),
            f"{each.before:.4f}" if each.before >= 0.001 else f"{each.before:.1e}",
            f"{each.nats_before:.{places}f}", f"{each.nats_after:.{places}f}",
            _change(each.nats_before, each.nats_after, places),
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "", _("loss: the mean"), "", "", Text(f"{view.loss_before:.3f}", TITLE), Text(f"{view.loss_after:.3f}", TITLE),
        _change(view.loss_before, view.loss_after, 3),
    )  # fmt: skip
    name = f"{view.weight}[{', '.join(map(str, view.index))}]"
    return Group(
        title(_("one step down"), _("each weight less {rate} × its gradient", rate=f"{view.rate:g}")),
        table,
        Text(),
        Text(_("the weight with the steepest gradient: {name}", name=name)),
        Text(_step(view), TITLE),
        Text(_("value − rate × gradient = new value. The open model stays as it was."), FIGURES),
    )


def _change(before: float, after: float, places: int) -> Text:
    if round(after, places) == round(before, places):
        return Text("=", FIGURES)
    return Text("↓", PRO) if after < before else Text("↑", CONTRA)


def _step(view: DescentView) -> str:
    def agrees(places: int) -> bool:
        new = round(view.value, places) - view.rate * round(view.gradient, places)
        return round(new, 6) == round(view.new_value, 6)

    places = digits(6, agrees)
    gradient = f"{view.gradient:.{places}f}"
    return (
        f"{view.value:.{places}f} − {view.rate:g} × {f'({gradient})' if view.gradient < 0 else gradient}"
        f" = {view.new_value:.6f}"
    )
