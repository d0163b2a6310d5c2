"""What was learnt becomes the open model, and is saved, also where that fails at first."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.training.plan import TrainPlan

if TYPE_CHECKING:  # The prompt line starts without torch.
    from minillm_repl.checkpoint import Checkpoint
    from minillm_repl.training import TrainingFinished
    from minillm_repl.training.run import TrainingRun

_MIN_TELLING_STEPS = 10  # of a run that must have learnt something by its end


def finish_run(shell: Shell, run: "TrainingRun", finished: "TrainingFinished") -> None:
    """Open what was learnt, and keep the resume file of a run that was stopped."""
    from minillm_repl.checkpoint.adapter import printable_path
    from minillm_repl.storage.paths import resume_path, unsaved_path
    from minillm_repl.training.run_folder import add_run

    path = shell.session.workspace.writable_path or unsaved_path()
    is_stopped = finished.reason == "interrupt"
    resumable = is_stopped and not run.save_error
    if resumable:
        shell.screen.note(_("`:train resume` continues from here"))
    elif is_stopped:
        why = run.save_error
        shell.screen.warn(_("`:train resume` cannot continue from here: {why}", why=why))
    checkpoint = run.checkpoint(finished)
    try:
        open_trained(shell, checkpoint, resumable=resumable)
    finally:  # also of a model that could not be saved
        if checkpoint.record and run.context.distributed.rank == 0:
            saved = shell.session.workspace.writable_path
            add_run(checkpoint.record, printable_path(saved) if saved else "")
    if not is_stopped:
        with suppress(OSError):  # Not before the weights are saved: until then it is what there is.
            resume_path(path).unlink()


def open_trained(shell: Shell, checkpoint: "Checkpoint", *, resumable: bool = False) -> None:
    """Make a trained model the open one, and save it if a file was named for it.

    Raises UserError.
    """
    from minillm_repl.storage.atomic import make_parent_folder
    from minillm_repl.training.run import same_path, save_trained

    workspace = shell.session.workspace
    shell.session.adopt(workspace.loader.prepare(checkpoint), unsaved=True)
    workspace.resumable, workspace.is_training = resumable, False
    path = workspace.writable_path
    if path is None:
        shell.screen.warn(_("the trained weights are not saved: `:save PATH` keeps them"))
        return
    try:
        make_parent_folder(path)
        saved = save_trained(checkpoint, path, is_folder=workspace.is_folder)
        workspace.mark_saved(saved)
    except UserError as error:
        raise _rescue(checkpoint, path, error) from None
    name = safe_line(str(path)) + ("/" if workspace.is_folder else "")
    shell.screen.note(
        _("adapter saved to {path}", path=name)
        if saved.adapter and not same_path(saved.adapter.base, path)
        else _("saved to {path}", path=name)
    )


def _rescue(checkpoint: "Checkpoint", path: Path, error: UserError) -> UserError:
    """Save weights that could not be saved at `path` in the user's state folder.

    Return the error to tell, which says where they are.
    """
    from minillm_repl.checkpoint.native import save_native
    from minillm_repl.storage.atomic import make_parent_folder
    from minillm_repl.storage.paths import rescue_path

    rescued = rescue_path(path)
    try:
        make_parent_folder(rescued)
        save_native(checkpoint, rescued)
    except UserError:
        return error  # a terminal still has the model; nothing else can be done
    name = safe_line(str(rescued))
    return UserError(_("{error}. The trained weights are in {path}", error=error, path=name))


# -- what is said before a run, and of one that learnt nothing


def describe_failure(finished: "TrainingFinished", plan: TrainPlan) -> str:
    """Return what went wrong in a run that learnt nothing, and what to try; empty if it learnt."""
    advice = {"lr": plan.lr, "less": plan.lr / 10}
    if finished.reason == "diverged":
        return _(
            "the loss was no finite number after step {step:,}, and the weights of step {kept:,} "
            "are kept: lr={lr:g} may be too large; try lr={less:.2g}",
            step=finished.steps,
            kept=finished.kept,
            **advice,
        )
    is_long_enough = finished.steps >= _MIN_TELLING_STEPS and finished.reason != "interrupt"
    if is_long_enough and finished.kept == 0:
        return _(
            "no step made the loss lower, and the weights from before the first step are kept: "
            "lr={lr:g} may be too large; try lr={less:.2g}",
            **advice,
        )
    return ""
