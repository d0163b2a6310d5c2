"""Watches a pass over a text: Ctrl-C ends it, and a long one tells how far it is."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_LONG_WORK = 2**33  # products of a weight and an input: below, a pass takes less than a second
_LONG = 3.0  # seconds that are left: below, they are no news


@dataclass
class PassWatcher:
    """A hook that changes nothing. It ends a pass after Ctrl-C: raises UserError.

    While a long pass goes on, a line tells which layer it is at. A command that shows a line of its
    own keeps that.
    """

    shell: "Shell"
    config: AnyConfig
    tokens: int
    started: float = 0.0

    def __call__(self, name: str, tensor: "Tensor") -> "Tensor":
        """Look whether Ctrl-C was pressed, and tell how far the pass is."""
        if self.shell.interrupted():
            raise UserError(_("stopped"))
        if name == "positions":
            self.started = time.monotonic()
            if self.config.n_params * self.tokens >= _LONG_WORK:
                self.shell.screen.show_working(_("reading {n:,} tokens", n=self.tokens))
        elif name.endswith(".residual"):
            self._tell(int(name.split(".")[1]) + 1)
        elif name == "final":
            self.shell.screen.end_working()
        return tensor

    def _tell(self, done: int) -> None:
        shown = _(
            "reading {n:,} tokens · layer {done} of {all}",
            n=self.tokens,
            done=done,
            all=self.config.n_layers,
        )
        left = (time.monotonic() - self.started) * (self.config.n_layers / done - 1)
        if left >= _LONG:
            shown += " · " + _("{n:.0f} s left", n=left)
        self.shell.screen.update_working(shown)
