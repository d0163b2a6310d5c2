"""One process, or several that train one model together, on torch's own distributed engine.

What only several need is imported inside: it takes torch a second.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import LanguageModel

_TIMEOUT = timedelta(minutes=10)  # with a rank that does not answer


@dataclass(frozen=True)
class Distributed:
    """Which of how many this process is. Alone, everything here does nothing."""

    rank: int = 0
    world_size: int = 1

    def shard(self, model: LanguageModel) -> None:
        """Let each process hold its share of every weight (FSDP2), for models too large for one."""
        if self.world_size > 1:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(next(model.parameters()).device.type, (self.world_size,))
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module, *, sharded: bool) -> nn.Module:
        """Return the model in such a form that the gradients of all processes are averaged."""
        if self.world_size == 1 or sharded:
            return model
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

    def any_rank(self, flag: bool, device: torch.device) -> bool:
        """Tell whether a flag is set in any of the processes, so that all go the same way."""
        return (
            flag
            if self.world_size == 1
            else bool(self.all_reduce(torch.tensor(float(flag), device=device)) > 0)
        )

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Let the first process do something, and the others after it: find in the cache what
        the first put there.
        """
        if self.rank > 0:
            dist.barrier()
        yield
        if self.rank == 0 and self.world_size > 1:
            dist.barrier()


def is_distributed() -> bool:
    """Tell whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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
    if not is_distributed():
        yield Distributed()
        return
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
