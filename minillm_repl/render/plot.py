"""Draws the curve of a loss with plotext, whose only figure is used here and nowhere else."""

from collections.abc import Iterable, Sequence
from math import ceil, floor, log10
from statistics import fmean

import plotext
from rich.cells import cell_len
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, GOOD, MODEL

Points = Sequence[tuple[int, float]]

_FILLER = "\ue000"  # of private use: no text has it
# a point of the training loss is the mean of its neighbours on both sides, this part of all each
_SMOOTH = 30
_HUGE = 1e100  # what is above, or no number, is left out


def loss_plot(train: Points, val: Points, columns: int, rows: int, colours: bool) -> Text:
    """Return the smoothed curve of (step, loss) in training, and dots for held-out losses.

    It fills `columns` x `rows` cells, from 40 x 6 on. Losses are in nats per token.
    """
    train, val = smooth(_drawable(train)), _drawable(val)
    steps, losses = ([point[axis] for point in (*train, *val)] for axis in (0, 1))
    left, right = _limits(steps, max(1.0, 1e-9 * max(steps, default=0)))
    bottom, top = _limits(losses, max(1e-3, 0.01 * max(losses, default=0)))
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(columns, rows)
    plotext.xlim(left, right)
    plotext.ylim(bottom, top)
    plotext.xlabel(_spread(_("step")))
    plotext.ylabel(_spread(_("loss, nats per token")))
    plotext.xticks(*_ticks(left, right, columns // 12, 1))
    plotext.yticks(*_ticks(bottom, top, rows // 2))
    if train:
        plotext.plot(*zip(*train, strict=True), marker="braille")
    if val:
        plotext.scatter(*zip(*val, strict=True), marker="•")
    built = Text.from_ansi(plotext.build()).plain.rstrip("\n")
    plotext.clear_figure()
    of_train, of_val = "⠒⠒ " + _("train"), "• " + _("validation")
    legend = _spread(f" {of_train} {f'  {of_val} ' if val else ''}")
    # in the frame's upper edge, where it covers nothing; each character is one cell
    at = columns - len(legend) - 2
    drawn = built[:at] + legend + built[at + len(legend) :]
    text = Text(drawn.replace(_FILLER, ""), no_wrap=True, overflow="crop")
    if colours:
        text.highlight_regex("[─│┌┐└┘┬┤]+", FIGURES)
        text.highlight_regex(f"{of_train}|[\u2801-\u28ff]+", MODEL)
        text.highlight_regex(f"{of_val}|•+", GOOD)
    return text


def _spread(text: str) -> str:
    """Return a text with a filler after each wide character: plotext takes every character to be
    one cell wide.
    """
    return "".join(character + _FILLER * (cell_len(character) - 1) for character in text)


def smooth(points: Points) -> Points:
    """Return the running mean; it reaches as far back as forward at most, so that the first
    points stay as steep.
    """
    losses = [loss for _step, loss in points]
    reach = len(points) // _SMOOTH
    means = (
        fmean(losses[max(0, place - reach) : place + min(place, reach) + 1])
        for place in range(len(points))
    )
    return [(step, mean) for (step, _loss), mean in zip(points, means, strict=True)]


def _drawable(points: Iterable[tuple[int, float]]) -> Points:
    return [(step, loss) for step, loss in points if 0 <= loss < _HUGE]


def _limits(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return where an axis begins and ends: at least so far apart, around the values, none of
    which is below 0.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = max(0.0, low - max(0.0, least - (high - low)) / 2)
    return low, max(high, low + least)


def _ticks(low: float, high: float, most: int, least: float = 0.0) -> tuple[list[float], list[str]]:
    """Return about `most` round numbers from low to high, at least so far apart, and names."""
    rough = max((high - low) / max(most, 1), least)
    power = 10.0 ** floor(log10(rough))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    ticks = [apart * place for place in range(ceil(low / apart), floor(high / apart) + 1)]
    digits = max(0, -floor(log10(apart)))
    return ticks, [f"{tick:,.{digits}f}" if high < 1e8 else f"{tick:.3g}" for tick in ticks]
