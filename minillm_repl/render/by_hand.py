"""Draws what can be computed again by hand: with enough digits for what is shown to agree."""

from collections.abc import Callable
from math import exp, sqrt

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.changes import DescentView
from minillm_repl.insight.views.thinking import DotView
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE, WARNING
from minillm_repl.render.drawing import short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table

_MOST_DIGITS = 12
_ROWS, _LARGEST = 16, 12  # products: all, up to so many; of more, the largest


def digits(least: int, agree: Callable[[int], bool]) -> int:
    """Return the fewest digits after the point, from `least` on, so that what is shown agrees."""
    return next((count for count in range(least, _MOST_DIGITS) if agree(count)), _MOST_DIGITS)


def descent_picture(view: DescentView, _width: int) -> RenderableType:
    """Return a row for each token to predict, the mean, and one weight's step in full."""
    count = len(view.targets)

    def means_agree(places: int) -> bool:
        return all(
            _same(sum(round(each, places) for each in nats) / count, mean, 3)
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


def dot_picture(view: DotView, _width: int) -> RenderableType:
    """Return a row for each product of two numbers, their sum, that divided by √d, and its share
    among the others.
    """
    size = len(view.query)
    most = sorted(range(size), key=lambda place: -abs(view.products[place]))[
        : size if size <= _ROWS else _LARGEST
    ]
    listed = sorted(most)
    rest = [view.products[place] for place in range(size) if place not in most]
    parts = [*(view.products[place] for place in listed), sum(rest)]
    # Each line is computed from what is shown in those above it.
    scaled = digits(2, lambda places: _softmax_agrees(view, places))
    dot = digits(
        scaled, lambda places: _same(round(view.dot, places) / sqrt(size), view.scaled, scaled)
    )
    product = digits(
        dot, lambda places: _same(sum(round(each, places) for each in parts), view.dot, dot)
    )
    factor = digits(
        product,
        lambda places: all(
            _same(
                round(view.query[each], places) * round(view.key[each], places),
                view.products[each],
                product,
            )
            for each in listed
        ),
    )
    table = plain_table("#", "q", "k", "q × k")
    for column in table.columns:
        column.justify = "right"
    for each in listed:
        table.add_row(
            str(each), f"{view.query[each]:+.{factor}f}", f"{view.key[each]:+.{factor}f}",
            f"{view.products[each]:+.{product}f}",
        )  # fmt: skip
    if rest:
        table.add_row("", "", _("{count} more", count=len(rest)), f"{sum(rest):+.{product}f}")
    table.add_section()
    table.add_row("", "", _("sum, q·k"), Text(f"{view.dot:+.{dot}f}", TITLE))
    table.add_row("", "", f"÷ √{size}", Text(f"{view.scaled:+.{scaled}f}", TITLE))
    asks, answers = view.tokens[-1].label, view.tokens[view.index_of(view.met)].label
    return Group(
        title(
            _("layer {layer} head {head}", layer=view.layer, head=view.head),
            _("query: {asks} at position {position} · key: {answers} at position {met}",
              asks=asks, position=view.position, answers=answers, met=view.met),
        ),
        table,
        Text(),
        Text(_("softmax: e to the power of each score, divided by the sum over all keys")),
        _shares(view, scaled),
    )  # fmt: skip


def _shares(view: DotView, places: int) -> RenderableType:
    """Return the scaled score and the share of each key; of many, the largest, and the one that
    was asked for.
    """
    largest = sorted(view.all_scaled, key=lambda each: (each[0] != view.met, -each[2]))
    listed = sorted(largest if len(largest) <= _ROWS else largest[:_LARGEST])
    shares = [
        Text.assemble(
            (f"{place} ", FIGURES),
            short_label(view.tokens[view.index_of(place)]),
            f" {score:+.{places}f}",
            (f" {percent(weight)}", TITLE if place == view.met else ""),
        )
        for place, score, weight in listed
    ]
    if len(listed) < len(largest):
        shares.append(Text(_("… and {count} more", count=len(largest) - len(listed)), FIGURES))
    return Columns(shares, padding=(0, 2))


def _same(computed: float, real: float, places: int) -> bool:
    """Tell whether what comes out of the shown numbers is what is shown of the real result."""
    return f"{computed:+.{places}f}" == f"{real:+.{places}f}"


def _softmax_agrees(view: DotView, places: int) -> bool:
    powers = [exp(round(score, places) - view.scaled) for _place, score, _weight in view.all_scaled]
    total = sum(powers)
    return all(
        f"{power / total:.1%}" == f"{weight:.1%}"
        for power, (_place, _score, weight) in zip(powers, view.all_scaled, strict=True)
    )


def _change(before: float, after: float, places: int) -> Text:
    if round(after, places) == round(before, places):
        return Text("=", FIGURES)
    return Text("↓", POSITIVE) if after < before else Text("↑", NEGATIVE)


def _step(view: DescentView) -> str:
    def agrees(places: int) -> bool:
        new = round(view.value, places) - view.rate * round(view.gradient, places)
        return _same(new, view.new_value, 6)

    places = digits(6, agrees)
    gradient = f"{view.gradient:.{places}f}"
    return (
        f"{view.value:.{places}f} − {view.rate:g} × "
        f"{f'({gradient})' if view.gradient < 0 else gradient}"
        f" = {view.new_value:.6f}"
    )
