"""How fast a run of training goes, and its curve with a bounded number of points."""

from math import exp
from statistics import fmean

from minillm_repl.training.events import TrainStep

_MIN_CURVE_POINTS = 200  # points; a curve keeps at least these, and at most twice as many
# The speed is that of the last 10 seconds, and of the last 8 steps if they took longer.
_DECAY_SECONDS, _DECAY_STEPS = 10.0, 8


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
