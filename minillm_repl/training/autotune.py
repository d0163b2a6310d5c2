"""How this machine computes a step, and how fastest, by trying."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.training.cancellation import Cancelled
from minillm_repl.training.trainer import Trainer

# Multiplications a step, below which a second thread is no faster on a quiet machine, and far
# slower on a busy one.
_MIN_THREADED_WORK = 2e8
_MAX_TIME_RATIO = 0.9  # of the time: what changes the numbers must gain something
_TRIALS = 3


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads meanwhile; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autotune(
    trainer: Trainer, threads: int, interrupted: Callable[[], bool]
) -> tuple[int, str, float]:
    """Return the fastest number of threads and precision, and the seconds of a step with them.

    What the user gave, and what makes no difference for so small a model, is not tried. The model
    is left as it was. Raises Interrupted.
    """
    plan = trainer.plan
    is_small = (
        trainer.model.config.n_params * plan.batch_size * plan.context_length < _MIN_THREADED_WORK
    )
    thread_counts = (
        [threads] if threads else [1] if is_small else sorted({1, torch.get_num_threads()})
    )
    precisions = (
        [plan.precision]
        if plan.precision != "auto"
        else ["float32"]
        if is_small
        else ["float32", "bfloat16"]
    )
    if trainer.device.type != "cpu":
        thread_counts = thread_counts[:1]
    with torch.random.fork_rng(enabled=trainer.device.type == "cpu"):
        times = {
            (count, precisions[0]): _time_step(trainer, count, precisions[0], interrupted)
            for count in thread_counts
        }
        count = min(thread_counts, key=lambda each: times[each, precisions[0]])
        best = count, precisions[0], times[count, precisions[0]]
        for precision in precisions[1:]:
            seconds = _time_step(trainer, count, precision, interrupted)
            if seconds < _MAX_TIME_RATIO * best[2]:
                best = count, precision, seconds
    return best


def _time_step(
    trainer: Trainer, n_threads: int, precision: str, interrupted: Callable[[], bool]
) -> float:
    """Return the time of forward and backward for one step, the shortest of a few."""
    plan = trainer.plan
    rows = max(1, plan.batch_size // plan.grad_accum_steps)
    starts = np.resize(trainer.train.evenly_spaced_starts(rows * plan.context_length), rows)
    times = []
    with torch_threads(n_threads):
        trainer.plan = replace(plan, precision=precision)
        for _trial in range(_TRIALS):
            if interrupted():
                raise Cancelled
            started = perf_counter()
            trainer.model.train()
            with trainer.cancellable(interrupted):
                trainer.loss(starts).backward()  # type: ignore[no-untyped-call]
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(perf_counter() - started)
            trainer.model.zero_grad()
        trainer.plan = plan
    return min(times) * plan.grad_accum_steps


def check_compiles(trainer: Trainer) -> None:
    """Run the model once: torch compiles it then. Raises UserError where it cannot."""
    split = trainer.train
    try:
        starts = split.evenly_spaced_starts(split.context_length)[:1]
        trainer.evaluator.mean_loss(split, starts)
    except RuntimeError as error:
        message = safe_line(str(error).partition("\n")[0])
        raise UserError(
            _(
                "the model cannot be compiled here ({why:.150}); training also works "
                "without compile=on",
                why=message,
            )
        ) from None
