"""Stopping in the middle of what takes long: a large model asks after each of its blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minillm_repl.language import N_
from minillm_repl.model.build import LanguageModel

STOPPED_EARLY = N_("stopped before the first step: nothing was changed")


class Interrupted(Exception):  # noqa: N818 - told in the Finished event
    """The user wants no more of a step or a measurement."""


@contextmanager
def stopping(
    model: LanguageModel, interrupted: Callable[[], bool], *, random: bool
) -> Iterator[None]:
    """Ask after each block, on the way back too, whether to stop.

    Raises Interrupted, with gradients at zero; with `random`, with torch's random numbers where
    they were.
    """
    before = torch.get_rng_state() if random else None

    def ask(*_: Any) -> None:
        if interrupted():
            raise Interrupted

    def ask_now_and_later(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        ask()
        if output.requires_grad:
            output.register_hook(ask)  # type: ignore[no-untyped-call]

    hooks = [block.register_forward_hook(ask_now_and_later) for block in model.blocks]
    try:
        yield
    except Interrupted:
        if before is not None:
            torch.set_rng_state(before)
        model.zero_grad()
        raise
    finally:
        for hook in hooks:
            hook.remove()
