"""How this machine computes a step fastest, by trying."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from minillm_repl.training.cancellation import Interrupted
from minillm_repl.training.trainer import Trainer

# Multiplications a step, below which a second thread is no faster on a quiet machine, and far
# slower on a busy one.
_ONE_THREAD = 2e8
_WORTH_IT = 0.9  # of the time: what changes the numbers must gain something
_TRIALS = 3


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use this many threads meanwhile; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quickest(
    trainer: Trainer, given_threads: int, interrupted: Callable[[], bool]
) -> tuple[int, str, float]:
    """Return the number of threads and the precision that are fastest, and the seconds of a step
    with them.

    What the user gave, and what makes no difference for so small a model, is not tried. The model
    is left as it was. Raises Interrupted.
    """
    plan = trainer.plan
    small = trainer.model.config.parameters * plan.batch * plan.context < _ONE_THREAD
    counts = (
        [given_threads] if given_threads else [1] if small else sorted({1, torch.get_num_threads()})
    )
    kinds = (
        [plan.precision]
        if plan.precision != "auto"
        else ["float32"]
        if small
        else ["float32", "bfloat16"]
    )
    if trainer.device.type != "cpu":
        counts = counts[:1]
    with torch.random.fork_rng(enabled=trainer.device.type == "cpu"):
        times = {
            (count, kinds[0]): _seconds(trainer, count, kinds[0], interrupted) for count in counts
        }
        count = min(counts, key=lambda each: times[each, kinds[0]])
        best = count, kinds[0], times[count, kinds[0]]
        for kind in kinds[1:]:
            seconds = _seconds(trainer, count, kind, interrupted)
            if seconds < _WORTH_IT * best[2]:
                best = count, kind, seconds
    return best


def _seconds(
    trainer: Trainer, count: int, precision: str, interrupted: Callable[[], bool]
) -> float:
    """Return the time of forward and backward for one step, the shortest of a few."""
    plan = trainer.plan
    rows = max(1, plan.batch // plan.accumulate)
    starts = np.resize(trainer.train.even(rows * plan.context), rows)
    times = []
    with threads(count):
        trainer.plan = replace(plan, precision=precision)
        for _ in range(_TRIALS):
            if interrupted():
                raise Interrupted
            begun = perf_counter()
            trainer.model.train()
            with trainer.stopping(interrupted):
                trainer.loss(starts).backward()  # type: ignore[no-untyped-call]
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(perf_counter() - begun)
            trainer.model.zero_grad()
        trainer.plan = plan
    return min(times) * plan.accumulate
