"""The progress of a training run: its speed, its loss curve, and a curve drawn as braille dots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from math import ceil, exp, floor, log10
from statistics import fmean

from rich.cells import cell_len
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, GOOD, MODEL, TITLE, WARNING
from minillm_repl.training import TrainStep

# The speed is that of the last 10 seconds, and of the last 8 steps if they took longer.
_DECAY_SECONDS, _DECAY_STEPS = 10.0, 8

Points = Sequence[tuple[int, float]]

# a point of the training loss is the mean of its neighbours on both sides, this part of all each
_SMOOTH = 30
_HUGE = 1e100  # what is above, or no number, is left out
_DOTS_X, _DOTS_Y = 2, 4  # dots of a braille character
_BRAILLE = 0x2800  # the character without dots; each dot adds its bit, by row and column
_DOT_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_RECENT, _MIN_RECENT = 5, 20  # the first fifth of a run is left out where so many points remain
OVERLAY_MARKS = "abcdef"  # one for each run
_OVERLAY_STYLES = (GOOD, WARNING, TITLE, MODEL)  # of the letters, in turn
_CURVE_MARKS = 8  # letters along the curve of a run without validation losses
_FRAME_ROWS = 4  # two borders, the steps, and what the axes are called


@dataclass(frozen=True)
class Losses:
    """The losses of one run: (step, nats per token) while training, and on held-out text."""

    name: str
    train: Points
    val: Points


def loss_plot(train: Points, val: Points, columns: int, rows: int, colours: bool) -> Text:
    """Return the curve of (step, loss) while training, smoothed, and dots for the losses on
    held-out text.

    It fills `columns` x `rows` cells, from 40 x 6 on. Losses are in nats per token.
    """
    of_train, of_val = "⠒⠒ " + _("train"), "• " + _("validation")
    legend = f" {of_train} {f'  {of_val} ' if val else ''}"
    text = _plot([Losses("", train, val)], "•", legend, columns, rows)
    if colours:
        text.highlight_regex("[─│┌┐└┘┬┤]+", FIGURES)
        text.highlight_regex(f"{of_train}|[\u2801-\u28ff]+", MODEL)
        text.highlight_regex(f"{of_val}|•+", GOOD)
    return text


def overlay_plot(
    runs: Sequence[Losses], columns: int, rows: int, colours: bool, unit: str = ""
) -> Text:
    """Return the losses of several runs in one picture, each run with a letter of its own: at its
    validation losses, or along the curve while training where nothing is held out.

    `unit` is what the left axis is called, if it is no loss.
    """
    legend = "  ".join(f"{mark} {run.name}" for mark, run in zip(OVERLAY_MARKS, runs, strict=False))
    text = _plot(runs, OVERLAY_MARKS, "", columns, rows, unit)
    if colours:
        text.highlight_regex("[─│┌┐└┘┬┤]+", FIGURES)
        text.highlight_regex("[\u2801-\u28ff]+", MODEL)
        for mark, style in zip(OVERLAY_MARKS, cycle(_OVERLAY_STYLES), strict=False):
            text.highlight_regex(rf"(?<![a-z]){mark}(?![a-z])", style)
    return Text("\n").join([text, Text(legend, no_wrap=True, overflow="ellipsis")])


def recent(points: Points, step: int) -> Points:
    """Return the part of a curve that still changes: the steep beginning would hide it."""
    late = [point for point in points if point[0] >= step // _RECENT]
    return late if len(late) >= _MIN_RECENT else points


def _plot(
    runs: Sequence[Losses], marks: str, legend: str, columns: int, rows: int, unit: str = ""
) -> Text:
    curves = [(smooth(_drawable(run.train)), _drawable(run.val)) for run in runs]
    every = [point for train, val in curves for point in (*train, *val)]
    steps, losses = ([point[axis] for point in every] for axis in (0, 1))
    # The least length of an axis: one step, or what a float still resolves; 1% of the largest
    # loss, so that noise does not fill the plot.
    left, right = _limits(steps, max(1.0, 1e-9 * max(steps, default=0)))
    bottom, top = _limits(losses, max(1e-3, 0.01 * max(losses, default=0)))
    height = rows - _FRAME_ROWS
    ticks = dict(zip(*_ticks(bottom, top, rows // 2), strict=True))
    labels = max(map(len, ticks.values()), default=0)  # cells
    # The area has a border of one cell on each side.
    area = _Area(left, right, bottom, top, columns - labels - 2, height)
    cells = [[" "] * area.width for _row in range(height)]
    for train, _val in curves:
        for row, drawn in zip(cells, area.curve(train), strict=True):
            row[:] = [new if new != " " else old for old, new in zip(row, drawn, strict=True)]
    for (train, val), mark in zip(curves, marks, strict=False):
        # After the curves: a measurement covers the lines below it.
        is_marked = len(runs) > 1 and not val
        for step, loss in train[:: max(1, len(train) // _CURVE_MARKS)] if is_marked else val:
            cells[area.row(loss)][area.column(step)] = mark
    names = {area.row(loss): name for loss, name in ticks.items()}
    lines = [
        f"{names.get(row, ''):>{labels}}{'┤' if row in names else '│'}{''.join(cells[row])}│"
        for row in range(height)
    ]
    # A number on the step axis needs about 12 cells, its gap included.
    below_marks, below = _step_axis(area, columns // 12)
    border = "─" * (area.width - cell_len(legend) - 1) + legend + "─"
    indent = " " * labels
    lines = [f"{indent}┌{border}┐", *lines, f"{indent}└{below_marks}┘", f"{indent} {below} "]
    return Text("\n".join([*lines, _axis_names(columns, unit)]), no_wrap=True, overflow="crop")


@dataclass(frozen=True)
class _Area:
    """The inside of the frame: the values at its edges, and its size in cells."""

    left: float
    right: float
    bottom: float
    top: float
    width: int
    height: int

    def column(self, step: float, per_cell: int = 1) -> int:
        """Return the column of a step, in cells, or in dots of which a cell has `per_cell`."""
        return round((step - self.left) / (self.right - self.left) * (self.width * per_cell - 1))

    def row(self, loss: float, per_cell: int = 1) -> int:
        """Return the row of a loss, from the top."""
        return round((self.top - loss) / (self.top - self.bottom) * (self.height * per_cell - 1))

    def curve(self, points: Points) -> list[list[str]]:
        """Return the rows of cells with lines from each point to the next."""
        dots = [
            (self.column(step, _DOTS_X), self.row(loss, _DOTS_Y)) for step, loss in points
        ]  # (x, y) from the top left
        bits = [[0] * self.width for _row in range(self.height)]
        # The last dot is its own neighbour, so a single point is drawn too.
        for (x, y), (next_x, next_y) in pairwise([*dots, *dots[-1:]]):
            count = max(abs(next_x - x), abs(next_y - y), 1)
            for at in range(count):
                dot_x = x + round((next_x - x) * at / count)
                dot_y = y + round((next_y - y) * at / count)
                bit = _DOT_BITS[dot_y % _DOTS_Y][dot_x % _DOTS_X]
                bits[dot_y // _DOTS_Y][dot_x // _DOTS_X] |= bit
        return [[chr(_BRAILLE + cell) if cell else " " for cell in row] for row in bits]


def _step_axis(area: _Area, most: int) -> tuple[str, str]:
    """Return the lower border with its marks, and the numbers below the marks."""
    marks, numbers = ["─"] * area.width, " " * area.width
    for step, name in zip(*_ticks(area.left, area.right, most, 1), strict=True):
        column = area.column(step)
        marks[column] = "┬"
        start = min(max(column - len(name) // 2, 0), area.width - len(name))
        around = numbers[max(start - 1, 0) : start + len(name) + 1]
        if not around.strip():  # else it would run into the number before
            numbers = numbers[:start] + name + numbers[start + len(name) :]
    return "".join(marks), numbers


def _axis_names(columns: int, unit: str) -> str:
    """Return what the axes are called: the loss on the left, the step in the middle."""
    loss, step = unit or _("loss, nats per token"), _("step")
    gap = max(columns // 2 - cell_len(step) // 2 - cell_len(loss), 1)
    names = f"{loss}{' ' * gap}{step}"
    return names + " " * (columns - cell_len(names))


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
    # Round distances are 1, 2 or 5 times a power of ten.
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    ticks = [apart * place for place in range(ceil(low / apart), floor(high / apart) + 1)]
    digits = max(0, -floor(log10(apart)))
    return ticks, [f"{tick:,.{digits}f}" if high < 1e8 else f"{tick:.3g}" for tick in ticks]


# -- how fast a run goes


class Throughput:
    """How long the last steps took; measuring and saving between them count apart."""

    def __init__(self) -> None:
        self._steps = self._tokens = self._seconds = 0.0  # each decays: late steps weigh more
        self._step_count = 0
        self._saving_seconds = 0.0
        self._eval_seconds, self._eval_count = 0.0, 0
        self._seconds_to_first_step = 0.0  # most of them are of the first evaluation
        self._is_paused = self._paused_for_eval = False
        self._last: TrainStep | None = None

    @property
    def is_known(self) -> bool:
        """Whether there have been enough steps to tell."""
        return self._seconds > 0

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self._tokens / self._seconds if self.is_known else 0.0

    def estimate_seconds(self, steps: int, evaluations: float = 0.0) -> float:
        """Return the seconds that these steps and evaluations will take, with the saves between."""
        # Seconds. Saves are spread evenly over the steps; evaluations are counted one by one.
        each = self._eval_seconds / self._eval_count if self._eval_count else 0.0
        return (
            steps * (self._seconds / self._steps + self._saving_seconds / self._step_count)
            + evaluations * each
        )

    def pause(self, *, is_evaluation: bool = False) -> None:
        """Take note that something else is done before the next step."""
        self._is_paused, self._paused_for_eval = True, self._paused_for_eval or is_evaluation

    def step(self, event: TrainStep) -> None:
        """Take note of a step."""
        last, self._last = self._last, event
        paused, measures = self._is_paused, self._paused_for_eval
        self._is_paused = self._paused_for_eval = False
        if last is None:
            self._seconds_to_first_step = event.seconds if event.step == 1 and measures else 0.0
            return
        seconds = event.seconds - last.seconds
        self._step_count += 1
        if paused and self.is_known:
            # These seconds hold a step and the pause before it: the usual step is taken off.
            self._add_pause(max(0.0, seconds - self._seconds / self._steps), measures)
            return
        # A step longer than 10 / 8 s decays by count, a shorter one by time.
        decay = exp(-min(seconds / _DECAY_SECONDS, 1 / _DECAY_STEPS))
        self._steps = self._steps * decay + 1
        self._tokens = self._tokens * decay + event.tokens - last.tokens
        self._seconds = self._seconds * decay + seconds
        # The second step is the first whose own time is known: what the first took longer was
        # the evaluation before it.
        if self._seconds_to_first_step:
            self._add_pause(max(0.0, self._seconds_to_first_step - seconds), measures=True)
            self._seconds_to_first_step = 0.0

    def _add_pause(self, seconds: float, measures: bool) -> None:
        if measures:
            self._eval_seconds += seconds
            self._eval_count += 1
        else:
            self._saving_seconds += seconds
