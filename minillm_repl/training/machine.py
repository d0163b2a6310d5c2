"""How this machine computes a step: in how many processes and threads, in which precision.

Several processes train one model together on torch's own distributed engine; what only they need
is imported inside, because it takes torch a second.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import LanguageModel
from minillm_repl.safetext import safe_line
from minillm_repl.training import STOPPED_EARLY, Cancelled
from minillm_repl.training.plan import TrainPlan

if TYPE_CHECKING:
    from minillm_repl.training.trainer import Trainer

_TIMEOUT = timedelta(minutes=10)  # with a rank that does not answer
# Multiplications a step, below which a second thread is no faster on a quiet machine, and far
# slower on a busy one.
_MIN_THREADED_WORK = 2e8
_MAX_TIME_RATIO = 0.9  # of the time: what changes the numbers must gain something
_TRIALS = 3
# Multiplications of a step; above, each of its blocks looks for Ctrl-C.
_MIN_CANCELLABLE_WORK = 2_000_000_000


# -- processes


@dataclass(frozen=True)
class Distributed:
    """Which of how many this process is. Alone, it has nothing to do here."""

    rank: int = 0
    world_size: int = 1

    def shard(self, model: LanguageModel) -> None:
        """Let each process hold its share of every weight (FSDP2), for models too large for one."""
        if self.world_size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(next(model.parameters()).device.type, (self.world_size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model in such a form that the gradients of all processes are averaged."""
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    @contextmanager
    def no_sync(self, forward: nn.Module) -> Iterator[None]:
        """Let gradients gather in this process, to be averaged with a later part of the batch."""
        ddp_no_sync = getattr(forward, "no_sync", None)  # DistributedDataParallel's
        with ddp_no_sync() if ddp_no_sync else nullcontext():
            set_fsdp_sync = getattr(
                forward, "set_requires_gradient_sync", None
            )  # of a model in shares
            if set_fsdp_sync:
                set_fsdp_sync(False)
            yield
            if set_fsdp_sync:
                set_fsdp_sync(True)

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def barrier(self) -> None:
        """Wait for all other processes."""
        dist.barrier()

    def any_rank(self, flag: bool, device: torch.device) -> bool:
        """Tell whether a flag is set in any of the processes, so that all go the same way."""
        return bool(self.all_reduce(torch.tensor(float(flag), device=device)) > 0)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that the processes may hold in shares as one; all of them must ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor in shares, if `like` is in shares."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor, mesh, placements)


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """Join the processes that torchrun has started beside this one; leave them at the end.

    Raises UserError if they do not find each other.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            _("the processes cannot connect to each other: {error}", error=error)
        ) from None
    try:
        yield Distributed(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


# -- threads and precision


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use this many threads meanwhile; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tune(trainer: "Trainer", threads: int, interrupted: Callable[[], bool]) -> tuple[int, float]:
    """Choose the precision of a trainer; return the number of threads, 0 for torch's own choice,
    and the seconds of a step, 0 where they are not measured.

    Raises UserError when interrupted.
    """
    precision, seconds = trainer.plan.precision, 0.0
    if trainer.distributed.world_size == 1:
        try:
            threads, precision, seconds = autotune(trainer, threads, interrupted)
        except Cancelled:
            raise UserError(_(STOPPED_EARLY)) from None
    elif precision == "auto":  # Not measured: every process must choose the same.
        precision = "bfloat16" if trainer.device.type == "cuda" else "float32"
    trainer.plan = replace(trainer.plan, precision=precision)
    return threads, seconds


def autotune(
    trainer: "Trainer", threads: int, interrupted: Callable[[], bool]
) -> tuple[int, str, float]:
    """Return the fastest number of threads and precision, and the seconds of a step with them.

    What the user gave, and what makes no difference for so small a model, is not tried. The model
    is left as it was. Raises Cancelled.
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
    # The trials draw dropout masks: the run itself must draw as if there had been none.
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
    trainer: "Trainer", n_threads: int, precision: str, interrupted: Callable[[], bool]
) -> float:
    """Return the time of forward and backward for one step, the shortest of a few."""
    plan = trainer.plan
    rows = max(1, plan.batch_size // plan.grad_accum_steps)
    times = []
    with torch_threads(n_threads):
        starts = np.arange(rows) % trainer.train.n_windows  # which windows they are changes no time
        trainer.plan = replace(plan, precision=precision)
        for _trial in range(_TRIALS):
            if interrupted():
                raise Cancelled
            started = perf_counter()
            trainer.model.train()
            with cancellable(trainer.model, plan, trainer.distributed.world_size, interrupted):
                trainer.loss(trainer.train, starts)[0].backward()  # type: ignore[no-untyped-call]
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(perf_counter() - started)
            trainer.model.zero_grad()  # no step is taken: the weights stay as they are
        trainer.plan = plan
    # The shortest: others ran while the machine did something else too.
    return min(times) * plan.grad_accum_steps


def check_compiles(trainer: "Trainer") -> None:
    """Run the model once: torch compiles it then. Raises UserError where it cannot."""
    split = trainer.train
    try:
        trainer.evaluator.mean_loss(split, np.zeros(1, np.int64))  # over the first window
    except RuntimeError as error:
        message = safe_line(str(error).partition("\n")[0])
        raise UserError(
            _(
                "the model cannot be compiled here ({why:.150}); training also works "
                "without compile=on",
                why=message,
            )
        ) from None


# -- Ctrl-C


def cancellable(
    model: LanguageModel, plan: TrainPlan, world_size: int, interrupted: Callable[[], bool]
) -> AbstractContextManager[None]:
    """Return a context in which Ctrl-C stops a step half-way, if a step takes long.

    In it, Cancelled leaves no trace of the step: gradients are zero, and torch's random numbers
    are as they were. One of several processes never stops alone, and a compiled model has no
    blocks to stop between.
    """
    work = model.config.n_params * plan.batch_size * plan.context_length
    if work < _MIN_CANCELLABLE_WORK or world_size > 1 or plan.compile:
        return nullcontext()
    return _cancellable_at_blocks(model, interrupted, restores_rng=bool(plan.dropout))


@contextmanager
def _cancellable_at_blocks(
    model: LanguageModel, interrupted: Callable[[], bool], *, restores_rng: bool
) -> Iterator[None]:
    """Look for Ctrl-C after each block, in the backward pass too. Raises Cancelled."""
    rng_state = torch.get_rng_state() if restores_rng else None

    def check_interrupted(*_signal: Any) -> None:
        if interrupted():
            raise Cancelled

    def check_forward_and_backward(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        check_interrupted()
        if output.requires_grad:
            output.register_hook(check_interrupted)  # type: ignore[no-untyped-call]

    hooks = [block.register_forward_hook(check_forward_and_backward) for block in model.blocks]
    try:
        yield
    except Cancelled:
        if rng_state is not None:
            torch.set_rng_state(rng_state)
        model.zero_grad()
        raise
    finally:
        for hook in hooks:
            hook.remove()
