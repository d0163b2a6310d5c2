"""What ends a step or an evaluation half-way: Ctrl-C, or a number that is not finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minillm_repl.language import N_
from minillm_repl.model.build import LanguageModel

STOPPED_EARLY = N_("stopped before the first step; nothing was changed")


def never_interrupted() -> bool:
    """Return False: the default where Ctrl-C has no effect."""
    return False


class Cancelled(Exception):  # noqa: N818 - told in the TrainingFinished event
    """Ctrl-C, in the middle of a step or an evaluation."""


class NonFiniteLoss(Exception):  # noqa: N818 - told in the TrainingFinished event
    """The loss or a gradient is no longer a finite number."""


@contextmanager
def cancellable(
    model: LanguageModel, interrupted: Callable[[], bool], *, restores_rng: bool
) -> Iterator[None]:
    """Look for Ctrl-C after each block, in the backward pass too.

    Raises Cancelled with gradients at zero, and with `restores_rng` with torch's random numbers as
    they were.
    """
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
