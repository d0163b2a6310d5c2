"""`:train`: what it is asked for, how a run is prepared, and how a model is made again."""

import dataclasses
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.commands.runs import sweep
from minillm_repl.commands.training_screen import announce, draw_run, run_on_screen
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.quoting import TO_SCREEN, Output
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import catch_termination, run_interruptibly
from minillm_repl.repl.train_request import PlanArgument, TrainRequest, make_request
from minillm_repl.repl.workspace import Writable
from minillm_repl.storage.paths import exists, resume_path, unsaved_path, user_path
from minillm_repl.training.plan import TrainPlan

if TYPE_CHECKING:  # The prompt line starts without torch.
    from minillm_repl.checkpoint import Checkpoint
    from minillm_repl.repl.workspace import Workspace
    from minillm_repl.training.machine import Distributed
    from minillm_repl.training.run import RunContext, TrainingRun


_CORPUS = Words("corpus", "CORPUS", completion="file")


@command(
    "train",
    arguments=Forms(
        (_CORPUS, PlanArgument()),
        ("resume", _CORPUS),
        ("remake", _CORPUS),
        ("sweep", Words("sweep", "CORPUS NAME=VALUE,VALUE ...", completion="file")),
        ("settings",),
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
    :train remake [CORPUS] makes the open model again from its record, and says whether the weights
    are the same, bit for bit. The open model stays as it is.
    :train CORPUS check [new] [NAME=VALUE ...] trains nothing: it shows what would be learnt, with
    pieces of the text, lengths, duplicates, unknown characters, overlap, time and memory.
    :train sweep CORPUS lr=0.003,0.01,0.03 ... tries short runs, 100 steps each unless steps=N says
    otherwise, and names the best one.
    :train alone trains on the text that the model was trained on, if that text still exists.
    :train settings lists all settings.

    CORPUS is a text file, JSON or a table (text or chat messages), or a folder of these. Several
    are mixed by ` + `, each with a weight: `tales.txt + talks.jsonl*2`. The program chooses and
    shows every setting that you leave out.

    The loss is the mean surprisal in nats per token. The uniform baseline is ln(vocabulary).
    """
    if asked.keyword == "settings":  # the defaults: a plan is made anew by each `:train`
        from minillm_repl.render.tables import settings_table

        shell.screen.out.print(settings_table(TrainPlan()))
        return
    if asked.keyword == "sweep":
        sweep(shell, asked.sweep, _import_training)
        return
    run_training(shell, make_request(asked))


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
                join_others = run_interruptibly(_import_training, interrupted)
            with join_others(shell.session.workspace.loader.device) as distributed:
                if request.is_remake:
                    _remake(shell, request, interrupted, distributed, json=json)
                    return
                run = _prepare(shell, request, interrupted, distributed)
                if request.is_check:
                    _check(shell, run, json=json)
                else:
                    run_on_screen(shell, run, interrupted, json=json)
        except (UserError, OSError) as error:
            if not received_signal():
                raise
            with suppress(OSError):  # The terminal may be gone.
                shell.screen.fail(str(error))
    if received_signal():
        # Shells report 128 + N for a process that signal N ended.
        raise SystemExit(128 + received_signal())


def _check(shell: Shell, run: "TrainingRun", *, json: bool) -> None:
    """Show what a run would learn."""
    from minillm_repl.views.base import show
    from minillm_repl.views.check import compute

    announce(shell, run)
    show(shell, compute(run), Output("-") if json else TO_SCREEN)


def _import_training() -> "Callable[[str], AbstractContextManager[Distributed]]":
    """Import all that training needs; return what joins the processes of torchrun, if any."""
    import_module("minillm_repl.training.prepare")
    import_module("minillm_repl.render.training")
    import_module("torch._dynamo")  # torch's first optimiser would import it, for a second
    from minillm_repl.training.machine import Distributed, init_distributed

    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return (lambda _device: nullcontext(Distributed())) if is_alone else init_distributed


def _prepare(
    shell: Shell, request: TrainRequest, interrupted: Callable[[], bool], distributed: "Distributed"
) -> "TrainingRun":
    """Return the run that was asked for, ready to go. Raises UserError."""
    session, workspace = shell.session, shell.session.workspace
    # A new model starts from nothing, and a resumed run has the weights in its own file.
    starts_anew = request.is_new or request.is_resume or workspace.has_no_model
    start = None if starts_anew else shell.require_model().checkpoint
    if request.out:
        workspace.destination = Writable(
            user_path(request.out.rstrip("/")), is_folder=request.out.endswith("/")
        )
    if request.is_resume:
        target = _resumable_path(workspace)
        workspace.forget_failed_load()
    else:
        target = workspace.writable_path
    replaces = start is None and not request.is_check
    if replaces and not (request.is_resume and workspace.resumable):
        session.confirm_discard("train")
    with shell.screen.waiting(_("preparing to train")) as update:
        from minillm_repl.training.run import RunContext

        context = RunContext(
            path=target or unsaved_path(),
            is_folder=workspace.is_folder,
            device=workspace.loader.device,
            threads=workspace.loader.threads,
            distributed=distributed,
            progress=lambda share: update(_("reading the text  {share:.0%}", share=share)),
            interrupted=interrupted,
        )
        if target is not None:
            _check_can_save(target, is_folder=workspace.is_folder)
        if request.is_resume:
            workspace.save_run_to(target)
        return _make_run(request, start, context, shell.screen.note)


def _remake(
    shell: Shell,
    request: TrainRequest,
    interrupted: Callable[[], bool],
    distributed: "Distributed",
    *,
    json: bool,
) -> None:
    """Make the open model again. Raises UserError if the weights are not the same."""
    from minillm_repl.training.history import remake_run, run_record, same_weights
    from minillm_repl.training.run import RunContext

    made = shell.require_model().checkpoint
    context = RunContext(
        path=Path(),  # nothing is saved on the way
        device=shell.session.workspace.loader.device,
        distributed=distributed,
        interrupted=interrupted,
    )
    with shell.screen.waiting(_("preparing to train")):
        run, stops = remake_run(made, request.corpus, context)
    finished = draw_run(shell, run, lambda: interrupted() or stops(), json=json, save=False)
    if interrupted():
        raise UserError(_("stopped before the model was remade; nothing was changed"))
    if not same_weights(made, run.checkpoint(finished)):
        raise UserError(
            _(
                "the weights are not the same: loss {again:.6f}, not {loss:.6f}. Another machine "
                "or other versions round otherwise",
                again=finished.last_loss,
                loss=run_record(made).last_loss,
            )
        )
    shell.screen.note(_("the same weights, bit for bit"))


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


def _check_can_save(path: Path, *, is_folder: bool) -> None:
    """Raise UserError if nothing can be saved there: now, not after the work."""
    from minillm_repl.checkpoint.native import check_replaceable
    from minillm_repl.storage.atomic import check_can_save, check_no_folder

    (check_no_folder if is_folder else check_replaceable)(path)
    check_can_save(path)


def _make_run(
    request: TrainRequest,
    start: "Checkpoint | None",
    context: "RunContext",
    note: Callable[[str], None],
) -> "TrainingRun":
    """Return a run that is resumed, of a recipe, or of a corpus. Raises UserError."""
    from minillm_repl.training.history import resume_run
    from minillm_repl.training.prepare import rank_zero_first, start_run

    if request.is_resume:
        return resume_run(context.path, context, request.corpus)
    if not request.recipe:
        return start_run(start, request.corpus, request.plan, context)
    from minillm_repl.training.recipe import read_recipe

    recipe, folder = read_recipe(request.recipe), context.path.with_suffix(".corpus")
    # All ranks write the same files; the others wait until rank 0 has written them.
    with rank_zero_first(context.distributed):
        corpus, val = recipe.prepare(user_path(request.data), folder, note)
    plan = dataclasses.replace(request.plan, val=str(val))
    return start_run(None, str(corpus), plan, context, recipe.chat)
