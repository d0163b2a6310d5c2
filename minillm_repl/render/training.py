"""Draws training: a bar that moves on a terminal, a line per evaluation elsewhere."""

from collections.abc import Callable, Iterable
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from minillm_repl.render.console import FIGURES, MODEL, Screen
from minillm_repl.safetext import safe
from minillm_repl.training.events import Evaluated, Finished, TrainStep


class TrainingView:
    """Draws the events of one training run; used as a context, so that the bar is gone afterwards in every case."""

    def __init__(self, screen: Screen, steps: int) -> None:
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(separator=" of "),
            BarColumn(bar_width=None, complete_style=MODEL, finished_style=MODEL, pulse_style=MODEL),
            TextColumn("loss {task.fields[loss]:.3f} · {task.fields[speed]:,.0f} tokens/s ·"),
            TimeRemainingColumn(compact=True),
            console=screen.side,
            transient=True,
            expand=True,
            disable=not screen.animated,
        )
        self._task = self._progress.add_task("", total=steps, loss=0.0, speed=0.0)

    def __enter__(self) -> "TrainingView":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def draw(self, events: Iterable[TrainStep | Evaluated | Finished], sample: Callable[[], str | None]) -> Finished:
        """Draw the events until the last, and return it. `sample` is asked for the model's own text now and then."""
        for event in events:
            match event:
                case TrainStep():
                    speed = event.tokens / event.seconds if event.seconds else 0.0
                    self._progress.update(self._task, completed=event.step, loss=event.loss, speed=speed)
                case Evaluated():
                    text = sample()
                    self._progress.console.print(
                        Text.assemble(
                            f"step {event.step:>6,} · loss {event.loss:.4f}",
                            ("  " if text else "", ""),
                            (safe(text or "").replace("\n", " "), MODEL),
                        ),
                        no_wrap=True,
                        overflow="ellipsis",
                    )
                case Finished():
                    return event
        raise AssertionError("training ends with Finished")


def summary(finished: Finished) -> Text:
    """Return the closing line of a training run."""
    stopped = "stopped by Ctrl-C · " if finished.reason == "interrupt" else ""
    return Text(
        f"{stopped}{finished.steps:,} steps · {finished.tokens:,} tokens · {finished.seconds:.1f} s"
        f" · loss {finished.first_loss:.4f} → {finished.last_loss:.4f} nats per token",
        FIGURES,
    )
