"""`:plot`: the loss curve of the training of the open model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.views.base import View

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_COLUMNS, _ROWS = (40, 100), (6, 20)  # cells: fewer cannot be read, more show nothing new


@dataclass(frozen=True)
class PlotView(View):
    """The losses of a training: (step, nats per token)."""

    train: Sequence[tuple[int, float]]
    val: Sequence[tuple[int, float]]
    rows: int = _ROWS[1]
    has_color: bool = True

    def draw(self, width: int) -> Text:
        """Return the smoothed training loss as a line, and the validation losses as dots."""
        from minillm_repl.render.plot import loss_plot

        columns = min(max(width, _COLUMNS[0]), _COLUMNS[1])
        return loss_plot(self.train, self.val, columns, self.rows, self.has_color)


@command("plot", aliases=("그래프",), group="Train", example=":plot")
def plot(shell: "Shell", _asked: Arguments) -> None:
    """Show the loss curve of the model's training.

    Line: smoothed training loss · dots: validation loss
    """
    record = shell.require_model().checkpoint.record
    if record is None or not (record.curve or record.val_curve):
        raise UserError(_("this model has no training record; `:train` creates one"))
    out = shell.screen.out
    rows = min(max(out.height - 4, _ROWS[0]), _ROWS[1])
    view = PlotView(record.curve, record.val_curve, rows, not out.no_color)
    shell.last_view, shell.last_shown, shell.last_pinned = view.draw, view, (0, 0)
    out.print(view.draw(out.width), no_wrap=True, overflow="crop")
