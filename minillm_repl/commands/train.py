"""`:train`: it prepares a run, draws it, and opens and saves what was learnt."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.commands.training_screen import announce, draw_training
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import catch_termination, run_interruptibly
from minillm_repl.safetext import safe_line
from minillm_repl.settings import specs
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.training.plan import TrainPlan, check_applies
from minillm_repl.training.request import TrainRequest, parse_request
from minillm_repl.training.run_paths import resume_path, unsaved_path

if TYPE_CHECKING:  # The prompt line starts without torch.
    from minillm_repl.checkpoint.checkpoint import Checkpoint
    from minillm_repl.repl.workspace import Workspace
    from minillm_repl.training.distributed import Distributed
    from minillm_repl.training.events import TrainingFinished
    from minillm_repl.training.run import RunContext, TrainingRun


@command(
    "train",
    arguments=(
        Words(
            "request",
            "[CORPUS] [...]",
            *("new", "resume", "settings", *(f"{name}=" for name in specs(TrainPlan))),
            completion="file",
        ),
    ),
    aliases=("학습",),
    group="Train",
    example=":train corpus.txt new steps=20",
)
def train(shell: Shell, asked: Arguments) -> None:
    """Train on a text; Ctrl-C stops and keeps the trained weights.

    :train CORPUS [steps=N] [lr=X] [batch=N] ... continues the training of the open model.
    :train CORPUS new [preset=small] [arch=llama] [width=N] [tokenizer=bpe:2048] ... trains a new
    model.
    :train resume [CORPUS] continues a stopped run, with the same result as a run that never
    stopped.
    :train alone trains on the text that the model was trained on, if that text still exists.
    :train settings lists all settings.

    CORPUS is a text file, JSON or a table (text or chat messages), or a folder of these. The
    program chooses and shows every setting that you leave out.

    The loss is the mean surprisal in nats per token. The uniform baseline is ln(vocabulary).
    """
    if asked.request == "settings":
        from minillm_repl.render.tables import settings_table

        shell.screen.out.print(settings_table(TrainPlan()))
        return
    run_training(shell, parse_request(asked.request))


def run_training(shell: Shell, request: TrainRequest, *, json: bool = False) -> None:
    """Train as asked, drawing as it goes; at the end the trained model is the open one.

    Raises UserError, and SystemExit after a signal to end, once what was learnt is saved.
    """
    with catch_termination() as received_signal:

        def interrupted() -> bool:
            return shell.interrupted() or bool(received_signal())

        try:
            # Importing torch takes a second or two.
            with shell.screen.waiting(_("preparing to train")):
                join_distributed = run_interruptibly(_import_training, interrupted)
            with join_distributed(shell.session.workspace.loader.device) as distributed:
                run = _prepare(shell, request, interrupted, distributed)
                _train(shell, run, interrupted, json=json)
        except (UserError, OSError) as error:
            if not received_signal():
                raise
            with suppress(OSError):  # The terminal may be gone.
                shell.screen.fail(str(error))
    if received_signal():
        raise SystemExit(128 + received_signal())


def _import_training() -> "Callable[[str], AbstractContextManager[Distributed]]":
    """Import all that training needs; return what joins its processes."""
    import_module("minillm_repl.training.prepare")
    import_module("minillm_repl.render.training")
    import_module("torch._dynamo")  # torch's first optimiser would import it, for a second
    from minillm_repl.training.distributed import init_distributed

    return init_distributed


# -- before


def _prepare(
    shell: Shell, request: TrainRequest, interrupted: Callable[[], bool], distributed: "Distributed"
) -> "TrainingRun":
    """Return the run that was asked for, ready to go. Raises UserError."""
    session, workspace = shell.session, shell.session.workspace
    if request.is_resume:
        target = _resumable_path(workspace)
        workspace.forget_failed_load()
    else:
        target = workspace.writable_path
    starts_anew = request.is_new or request.is_resume or workspace.has_no_model
    start = None if starts_anew else shell.require_model().checkpoint
    if not request.is_resume:
        check_applies(request.plan, is_new=start is None)
    if start is None and not (request.is_resume and workspace.resumable):
        session.confirm_discard("train")
    with shell.screen.waiting(_("preparing to train")) as update:
        from minillm_repl.training.run import RunContext

        context = RunContext(
            path=target or unsaved_path(),
            device=workspace.loader.device,
            threads=workspace.loader.threads,
            distributed=distributed,
            progress=lambda share: update(_("reading the text  {share:.0%}", share=share)),
            interrupted=interrupted,
        )
        if target is not None:
            _check_can_save(target)
        if request.is_resume:
            workspace.save_run_to(target)
        return _make_run(request, start, context, shell.screen.note)


def _resumable_path(workspace: "Workspace") -> Path | None:
    """Return the checkpoint whose run can go on: the open one, or None if no file was named for it.

    Raises UserError if there is none. Whoever named a file does not mean the run of another model.
    """
    if workspace.path is not None and exists(resume_path(workspace.path)):
        return workspace.path
    may_be_unsaved = workspace.resumable or workspace.writable_path is None
    if may_be_unsaved and exists(resume_path(unsaved_path())):
        return None
    raise UserError(_("no run to resume: Ctrl-C during `:train` leaves one"))


def _check_can_save(path: Path) -> None:
    """Raise UserError if nothing can be saved there: now, not after the work."""
    from minillm_repl.checkpoint.formats.native import check_replaceable
    from minillm_repl.storage.atomic import check_can_save

    check_replaceable(path)
    check_can_save(path)


def _make_run(
    request: TrainRequest,
    start: "Checkpoint | None",
    context: "RunContext",
    note: Callable[[str], None],
) -> "TrainingRun":
    """Return a run that is resumed, of a recipe, or of a corpus. Raises UserError."""
    from minillm_repl.training.open_corpora import find_corpus
    from minillm_repl.training.prepare import resume_run, start_run

    if request.is_resume:
        return resume_run(context.path, context, request.corpus)
    if not request.recipe:
        return start_run(start, find_corpus(request.corpus, start), request.plan, context)
    from minillm_repl.training.recipe import read_recipe

    recipe, folder = read_recipe(request.recipe), context.path.with_suffix(".corpus")
    with context.distributed.rank_zero_first():
        corpus, val = recipe.prepare(user_path(request.data), folder, note)
    plan = dataclasses.replace(request.plan, val=str(val))
    return start_run(None, str(corpus), plan, context, recipe.chat)


# -- meanwhile, and after


def _train(
    shell: Shell, run: "TrainingRun", interrupted: Callable[[], bool], *, json: bool
) -> None:
    """Draw a run to its end, and open what was learnt, also after a second Ctrl-C."""
    screen, workspace = shell.screen, shell.session.workspace
    announce(shell, run)
    first_step = run.trainer.state.step
    workspace.is_training = True
    try:
        finished = draw_training(shell, run, interrupted, json=json)
        if not finished.steps:
            raise UserError(_("stopped before the first step; nothing was changed"))
        if finished.last_loss > finished.first_loss:
            screen.warn(_("the loss increased; try a smaller lr"))
        _finish(shell, run, finished)
    except KeyboardInterrupt:  # a second Ctrl-C, in the middle of anything
        is_alone = run.context.distributed.world_size == 1
        if workspace.is_training and run.trainer.state.step > first_step and is_alone:
            _open_trained(shell, run.checkpoint(), resumable=run.is_saved)
        if run.is_saved:
            screen.note(_("`:train resume` continues from here"))
        raise
    finally:
        workspace.is_training = False


def _finish(shell: Shell, run: "TrainingRun", finished: "TrainingFinished") -> None:
    """Open what was learnt, and keep the resume file of a run that was stopped."""
    path = shell.session.workspace.writable_path or unsaved_path()
    is_stopped = finished.reason == "interrupt"
    resumable = is_stopped and not run.save_error
    if resumable:
        shell.screen.note(_("`:train resume` continues from here"))
    elif is_stopped:
        why = run.save_error
        shell.screen.warn(_("`:train resume` cannot continue from here: {why}", why=why))
    _open_trained(shell, run.checkpoint(finished), resumable=resumable)
    if not is_stopped:
        with suppress(OSError):  # Not before the weights are saved: until then it is what there is.
            resume_path(path).unlink()


def _open_trained(shell: Shell, checkpoint: "Checkpoint", *, resumable: bool = False) -> None:
    """Make a trained model the open one, and save it if a file was named for it.

    Raises UserError.
    """
    from minillm_repl.checkpoint.save import save
    from minillm_repl.storage.atomic import make_parent_folder

    workspace = shell.session.workspace
    shell.session.adopt(workspace.loader.prepare(checkpoint), unsaved=True)
    workspace.resumable, workspace.is_training = resumable, False
    path = workspace.writable_path
    if path is None:
        shell.screen.warn(_("the trained weights are not saved: `:save PATH` keeps them"))
    else:
        make_parent_folder(path)
        workspace.mark_saved(save(checkpoint, path))
        shell.screen.note(_("saved to {path}", path=safe_line(str(path))))
