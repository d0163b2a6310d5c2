"""Draws training: on a terminal a curve and a bar that move, above them a line per measurement;
elsewhere the lines.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from math import inf
from statistics import fmean
from time import monotonic
from types import TracebackType

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, GOOD, MODEL, WARNING, Screen
from minillm_repl.render.drawing import bar
from minillm_repl.render.plot import Throughput, loss_plot, recent
from minillm_repl.render.training_summary import perplexity
from minillm_repl.safetext import safe_line
from minillm_repl.training import (
    Evaluated,
    Evaluating,
    NotSaved,
    Saved,
    TrainEvent,
    TrainingFinished,
    TrainStep,
)

_MIN_CURVE_POINTS = 200  # points; a curve keeps at least these, and at most twice as many
_FRAME = 0.5  # seconds from one drawing to the next, which takes 5 ms
_PLOT_ROWS = 10
_MIN_PLOT_COLUMNS, _MIN_PLOT_ROWS = 50, 16  # on a terminal with less there is no curve
_MAX_SECONDS = 1e8  # seconds: what would take longer is not told more exactly
_BEST_MARK = "★"


class TrainingView:
    """Draws the events of one training run; used as a context, so that what moves is gone
    afterwards in every case.

    Losses are measured each time `every` steps are done; `last` is how much longer the measurement
    of the weights that are kept takes than one on the way.
    """

    def __init__(
        self, screen: Screen, steps: int, eval_interval: int, final_eval_cost: float = 1.0
    ) -> None:
        self._steps, self._eval_interval, self._final_eval_cost = (
            steps,
            eval_interval,
            final_eval_cost,
        )
        # The step of the last evaluation. The first one is at step 0, so -1 is before it.
        self._evaluated = -1
        self._console = screen.notes_console
        self._is_animated = screen.animated and not screen.notes_console.is_dumb_terminal
        # Only `_refresh` draws: a thread of rich's would compete with training.
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
        )
        self._stack = ExitStack()
        self._last_frame_time = -inf
        self._throughput = Throughput()
        self._train, self._val = Curve(), Curve()
        self._last: TrainStep | None = None
        self._saved: int | None = None
        self._save_error = ""  # why the last save failed
        self._is_evaluating = False

    def __enter__(self) -> "TrainingView":
        if self._is_animated:
            self._stack.enter_context(self._live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()

    def redraw_below(self) -> None:
        """Leave what moves there, and draw the next below: others have written to the terminal."""
        # there is no public way; its lines are no longer those above the cursor
        self._live._live_render._shape = None

    def draw(self, events: Iterable[TrainEvent], sample: Callable[[], object]) -> TrainingFinished:
        """Draw the events until the last, and return it.

        `sample` is called after each measurement and returns what is to be shown below it: the
        model's own text, which is made safe here, something drawn, or None.
        """
        for event in events:
            match event:
                case TrainStep():
                    self._throughput.step(event)
                    self._train.add(event.step, event.loss)
                    self._last = event
                case Evaluating():
                    self._is_evaluating = True
                    self._last_frame_time = -inf  # shown at once: nothing moves until it is done
                case Evaluated():
                    self._throughput.pause(is_evaluation=True)
                    self._is_evaluating = False
                    self._evaluated = event.step
                    if event.val_loss is not None:
                        self._val.add(event.step, event.val_loss)
                    self._draw_evaluation(event, sample)
                case Saved():
                    self._throughput.pause()
                    self._draw_saved(event)
                case NotSaved():
                    self._throughput.pause()
                    self._draw_not_saved(event)
                case TrainingFinished():
                    return event
            self._refresh()
        raise AssertionError("training ends with Finished")

    def _draw_evaluation(self, event: Evaluated, sample: Callable[[], object]) -> None:
        """Print the line of a measurement, and the sample: below it on a terminal, elsewhere
        after it if it is text.
        """
        facts, out = _evaluation_columns(event, self._steps), self._console
        if self._is_animated:
            # Two cells stay free for a space and the mark.
            facts = [_join_fitting(facts, "  ", out.width - 2)]
        elif self._last:
            facts += [
                _("{speed:>7,.0f} tokens/s", speed=self._throughput.speed),
                _("lr {lr:<7.2g}", lr=self._last.lr),
            ]
        line = Text("  ".join(facts)).append(f" {_BEST_MARK if event.best else ' '}", GOOD)
        if self._is_animated:  # at once: a sample takes a while
            out.print(line, no_wrap=True)
        shown = sample()
        text = Text(safe_line(shown), MODEL) if isinstance(shown, str) else None
        if not self._is_animated:
            out.print(line.append("  ").append(text) if text else line, soft_wrap=True)
        elif text:
            out.print(text, no_wrap=True, overflow="ellipsis")
        if shown is not None and text is None:
            out.print(shown)

    def _draw_saved(self, event: Saved) -> None:
        """Take note of a save; say so where the one before failed."""
        self._saved = event.step
        if self._save_error:
            self._save_error = ""
            self._console.print(Text(_("saved at step {step:,}", step=event.step), FIGURES))

    def _draw_not_saved(self, event: NotSaved) -> None:
        """Print why the run could not be saved: once, however often it is tried again."""
        if event.why == self._save_error:
            return
        self._save_error = event.why
        message = _(
            "could not save at step {step:,}; training goes on, and saving is tried again: {why}",
            step=event.step,
            why=event.why,
        )
        self._console.print(Text.assemble(("! ", WARNING), safe_line(message)))

    def _refresh(self) -> None:
        """Draw what moves, if the last frame is old enough."""
        if self._is_animated and monotonic() - self._last_frame_time >= _FRAME:
            self._live.update(self._frame(), refresh=True)
            self._last_frame_time = monotonic()

    def _frame(self) -> Group:
        width, height = self._console.size
        lines = self._progress_lines(width)
        if width >= _MIN_PLOT_COLUMNS and height >= _MIN_PLOT_ROWS:
            step = self._last.step if self._last else 0
            train = recent(self._train.points, step)
            first = train[0][0] if train else 0
            val = [point for point in self._val.points if point[0] >= first]
            curve = loss_plot(train, val, width, _PLOT_ROWS, not self._console.no_color)
            lines.insert(0, curve)
        return Group(*lines)

    def _progress_lines(self, width: int) -> list[Text]:
        """Return a line with a bar and how far it is, and one with the figures of the last step."""
        last, pace = self._last, self._throughput
        done = last.step if last else 0
        facts = [_("step {done:,} of {steps:,}", done=done, steps=self._steps)]
        if self._is_evaluating:
            facts.append(_("measuring"))
        if pace.is_known:
            left = pace.estimate_seconds(self._steps - done, self._evaluations_left(done))
            facts.append(_("{time} left", time=_format_duration(left)))
        if self._saved is not None:
            facts.append(_("saved at step {step:,}", step=self._saved))
        # Six cells stay free: a bar of five and a space.
        text = _join_fitting(facts, " · ", width - 6)
        cells = max(0, width - cell_len(text) - 1)
        first = Text.assemble((f"{bar(done / max(self._steps, 1), cells):{cells}} ", MODEL), text)
        figures = []
        if last:
            figures += [
                _("loss {loss}", loss=_format_number(last.loss, 4).strip()),
                _("lr {lr:.2g}", lr=last.lr),
                _("gradient {norm:.3g}", norm=last.grad_norm),
            ]
        if pace.is_known:
            figures.append(_("{speed:,.0f} tokens/s", speed=pace.speed))
        second = Text(_join_fitting(figures, " · ", width), FIGURES)
        for line in (first, second):
            line.no_wrap, line.overflow = True, "crop"
        return [first, second]

    def _evaluations_left(self, done: int) -> float:
        """Return how many measurements are still to come, the longer one at the end as what it
        is of these.
        """
        # The evaluation of the present step may still be to come.
        after = max(self._evaluated, done - 1)
        # Multiples of the interval after `after`, up to the last step.
        on_the_way = self._steps // self._eval_interval - after // self._eval_interval
        return (
            on_the_way
            + (self._steps % self._eval_interval > 0 and after < self._steps)
            + self._final_eval_cost
        )


def _evaluation_columns(event: Evaluated, steps: int) -> list[str]:
    """Return what was measured, in columns as wide as in all other measurements of the run."""
    train, val = event.train_loss, event.val_loss
    return [
        _("step {number}", number=f"{event.step:>{len(f'{steps:,}')},}"),
        _("train {loss}", loss=_format_number(train, 4)),
        *([] if val is None else [_("val {loss}", loss=_format_number(val, 4))]),
        _(
            "perplexity {number}",
            number=_format_number(perplexity(train if val is None else val), 2),
        ),
        _("{rate} bits/char", rate=_format_number(event.bits_per_character, 3)),
    ]


def _format_number(value: float, decimals: int) -> str:
    """Return a number in six characters, with as many of the decimals as there is room for."""
    texts = (f"{value:6.{digits}f}" for digits in range(decimals, -1, -1))
    return next((text for text in texts if len(text) == 6), f"{value:6.0e}")


def _join_fitting(parts: Sequence[str], separator: str, width: int) -> str:
    """Return as many of the first parts as there is room for, at least one."""
    text = "".join(parts[:1])
    for part in parts[1:]:
        if cell_len(text + separator + part) > width:
            break
        text += separator + part
    return text


def _format_duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, _MAX_SECONDS))))


class Curve:
    """The points of a curve; when they are too many, two become their mean."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._bin_size = 1
        self._pending: list[float] = []

    def add(self, step: int, loss: float) -> None:
        """Take one more."""
        self._pending.append(loss)
        if len(self._pending) < self._bin_size:
            return
        self.points.append((step, fmean(self._pending)))
        self._pending.clear()
        # Pairs become their means, and each later point is a mean of twice as many losses.
        if len(self.points) == 2 * _MIN_CURVE_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(step, fmean((before, loss))) for (_step, before), (step, loss) in pairs]
            self._bin_size *= 2
