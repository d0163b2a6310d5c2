"""Draws what can be computed again by hand: with enough digits for what is shown to agree."""

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.changes import DescentView
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE, WARNING
from minillm_repl.render.drawing import short_label, title
from minillm_repl.render.tables import plain_table

_MOST_DIGITS = 12


def digits(least: int, agree: Callable[[int], bool]) -> int:
    """Return the fewest digits after the point, from `least` on, so that what is shown agrees."""
    return next((count for count in range(least, _MOST_DIGITS) if agree(count)), _MOST_DIGITS)


def descent_picture(view: DescentView, _width: int) -> RenderableType:
    """Return a row for each token to predict, the mean, and one weight's step in full."""
    count = len(view.targets)

    def means_agree(places: int) -> bool:
        return all(
            is_same(sum(round(each, places) for each in nats) / count, mean, 3)
            for nats, mean in (
                ([each.nats_before for each in view.targets], view.loss_before),
                ([each.nats_after for each in view.targets], view.loss_after),
            )
        )

    places = digits(3, means_agree)
    table = plain_table("#", "x", "y", "p(y|x)", "−ln p", _("after step"), "")
    for place, column in enumerate(table.columns):
        column.no_wrap = place not in (1, 2)
        column.justify = "right" if place in (0, 3, 4, 5) else "left"
    for each in view.targets:
        index = view.index_of(each.position)
        table.add_row(
            str(each.position),
            short_label(view.tokens[index]),
            short_label(view.tokens[index + 1]),
            f"{each.before:.4f}" if each.before >= 0.001 else f"{each.before:.1e}",
            f"{each.nats_before:.{places}f}",
            f"{each.nats_after:.{places}f}",
            _change(each.nats_before, each.nats_after, places),
        )
    table.add_section()
    table.add_row(
        "",
        "",
        "",
        _("mean"),
        Text(f"{view.loss_before:.3f}", TITLE),
        Text(f"{view.loss_after:.3f}", TITLE),
        _change(view.loss_before, view.loss_after, 3),
    )
    name = f"{view.weight}[{', '.join(map(str, view.index))}]"
    return Group(
        title(
            _("one gradient descent step"),
            _("weight − {rate} × gradient, for every weight", rate=f"{view.rate:g}"),
        ),
        table,
        Text(
            _("x: input token · y: target token · mean −ln p: cross-entropy loss (nats)"),
            FIGURES,
        ),
        *_too_far(view),
        Text(),
        Text(_("the weight with the largest gradient: {name}", name=name)),
        Text(_step(view), TITLE),
        Text(_("value − rate × gradient = new value, on a copy"), FIGURES),
    )


def _too_far(view: DescentView) -> list[Text]:
    """Return the warning that a step makes things worse, if it does."""
    if view.loss_after <= view.loss_before:
        return []
    worse = _(
        "the loss increased: the gradient points down only nearby, and rate {rate} steps "
        "past that. Use a smaller rate. The model itself is unchanged",
        rate=f"{view.rate:g}",
    )
    return [Text.assemble(("! ", WARNING), worse)]


def is_same(computed: float, real: float, places: int) -> bool:
    """Tell whether what comes out of the shown numbers is what is shown of the real result."""
    return f"{computed:+.{places}f}" == f"{real:+.{places}f}"


def _change(before: float, after: float, places: int) -> Text:
    if round(after, places) == round(before, places):
        return Text("=", FIGURES)
    return Text("↓", POSITIVE) if after < before else Text("↑", NEGATIVE)


def _step(view: DescentView) -> str:
    def agrees(places: int) -> bool:
        new = round(view.value, places) - view.rate * round(view.gradient, places)
        return is_same(new, view.new_value, 6)

    places = digits(6, agrees)
    gradient = f"{view.gradient:.{places}f}"
    return (
        f"{view.value:.{places}f} − {view.rate:g} × "
        f"{f'({gradient})' if view.gradient < 0 else gradient}"
        f" = {view.new_value:.6f}"
    )
