"""`:plot`."""

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell

_COLUMNS, _ROWS = (40, 100), (6, 20)  # less is too small to read; with more there is no more to see


@command("plot", aliases=("그래프",), group="Train")
def plot(shell: Shell, _asked: Arguments) -> None:
    """Show the loss curve of the model's training.

    Line: smoothed training loss · dots: validation loss
    """
    record = shell.require_model().checkpoint.record
    if record is None or not (record.curve or record.val_curve):
        raise UserError(_("this model has no training record; `:train` creates one"))
    from minillm_repl.render.plot import loss_plot

    out = shell.screen.out
    rows = min(max(out.height - 4, _ROWS[0]), _ROWS[1])

    def drawn(width: int) -> Text:
        columns = min(max(width, _COLUMNS[0]), _COLUMNS[1])
        return loss_plot(record.curve, record.val_curve, columns, rows, not out.no_color)

    shell.last_view, shell.last_pinned = drawn, (0, 0)
    out.print(drawn(out.width), no_wrap=True, overflow="crop")
