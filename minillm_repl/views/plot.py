"""`:plot`: how a model has learnt, as a loss curve; several runs in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.views.base import View
from minillm_repl.views.watch_curves import PROBES, curves_view

if TYPE_CHECKING:
    from minillm_repl.render.plot import Losses
    from minillm_repl.repl.shell import Shell

_PLOT_COLUMNS, _PLOT_ROWS = (40, 100), (6, 20)  # cells: fewer cannot be read, more show nothing new


@dataclass(frozen=True)
class PlotView(View):
    """The losses of a training: (step, nats per token)."""

    train: Sequence[tuple[int, float]]
    val: Sequence[tuple[int, float]]
    rows: int = _PLOT_ROWS[1]
    has_color: bool = True

    def draw(self, width: int) -> Text:
        """Return the smoothed training loss as a line, and the validation losses as dots."""
        from minillm_repl.render.plot import loss_plot

        columns = min(max(width, _PLOT_COLUMNS[0]), _PLOT_COLUMNS[1])
        return loss_plot(self.train, self.val, columns, self.rows, self.has_color)


@dataclass(frozen=True)
class OverlayView(View):
    """The losses of several runs in one picture."""

    runs: Sequence["Losses"]
    rows: int = _PLOT_ROWS[1]
    has_color: bool = True

    def draw(self, width: int) -> Text:
        """Return a curve for each run, and its letter at each of its validation losses."""
        from minillm_repl.render.plot import overlay_plot

        columns = min(max(width, _PLOT_COLUMNS[0]), _PLOT_COLUMNS[1])
        return overlay_plot(self.runs, columns, self.rows, self.has_color)


@command(
    "plot",
    arguments=(Words("runs", "[heads|lens|kl|RUN|FILE ...]", *PROBES, completion="checkpoint"),),
    aliases=("그래프",),
    group="Train",
    example=":plot",
)
def plot(shell: "Shell", asked: Arguments) -> None:
    """Show the loss curve of the model, or of several runs.

    Line: smoothed training loss · dots: validation loss

    RUN is a number from `:runs`, FILE a checkpoint. Several are drawn in one picture: each has a
    letter, which stands at its validation losses.

    `:plot heads`, `:plot lens` and `:plot kl` show what `:watch heads` and so on measured while the
    open model was trained.
    """
    out = shell.screen.out
    rows = min(max(out.height - 4, _PLOT_ROWS[0]), _PLOT_ROWS[1])
    if asked.runs.lower() in PROBES:
        _show_curves(shell, asked.runs.lower(), rows - 2)
        return
    if asked.runs:
        show_overlay(shell, [losses_of(name) for name in asked.runs.split()])
        return
    record = shell.require_model().checkpoint.record
    if record is None or not (record.curve or record.val_curve):
        raise UserError(_("this model has no training record; `:train` creates one"))
    view = PlotView(record.curve, record.val_curve, rows, not out.no_color)
    shell.last_view, shell.last_shown, shell.last_pinned = view.draw, view, (0, 0)
    out.print(view.draw(out.width), no_wrap=True, overflow="crop")


def _show_curves(shell: "Shell", probe: str, rows: int) -> None:
    """Draw what a probe measured. Raises UserError if it measured nothing."""
    record, out = shell.require_model().checkpoint.record, shell.screen.out
    view = curves_view(record.probes if record else {}, probe, max(rows, _PLOT_ROWS[0]))
    view = replace(view, has_color=not out.no_color)
    shell.last_view, shell.last_shown, shell.last_pinned = view.draw, view, (0, 0)
    out.print(view.draw(out.width), no_wrap=True, overflow="crop")


def show_overlay(shell: "Shell", runs: Sequence["Losses"]) -> None:
    """Draw several runs in one picture. Raises UserError for more than there are letters."""
    from minillm_repl.render.plot import OVERLAY_MARKS

    if len(runs) > len(OVERLAY_MARKS):
        raise UserError(_("at most {n} runs fit in one picture", n=len(OVERLAY_MARKS)))
    out = shell.screen.out
    rows = min(max(out.height - 6, _PLOT_ROWS[0]), _PLOT_ROWS[1])
    view = OverlayView(runs, rows, not out.no_color)
    shell.last_view, shell.last_shown, shell.last_pinned = view.draw, view, (0, 0)
    out.print(view.draw(out.width), no_wrap=True, overflow="crop")


def losses_of(name: str) -> "Losses":
    """Return the losses of a run by its number, or of a checkpoint by its name.

    Raises UserError if there is no such run, or the checkpoint does not say how it was trained.
    """
    from minillm_repl.checkpoint.load_save import read_record
    from minillm_repl.render.plot import Losses
    from minillm_repl.training.run_folder import find_run

    is_number = name.isascii() and name.isdigit()
    record = find_run(int(name)).record if is_number else read_record(find_checkpoint(name))
    if record is None or not (record.curve or record.val_curve):
        raise UserError(_("{name} has no training record", name=safe_line(name)))
    return Losses(safe_line(name), record.curve, record.val_curve)
