"""`:train`."""

import dataclasses
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import MODEL
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.job_control import on_process_resume
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import samplers_heading
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import catch_termination, run_interruptibly
from minillm_repl.safetext import safe, safe_line
from minillm_repl.settings import change, specs
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.training.plan import TrainPlan, check_applies
from minillm_repl.training.run_paths import resume_path, unsaved_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from minillm_repl.checkpoint.checkpoint import Checkpoint
    from minillm_repl.insight.watching import Watch
    from minillm_repl.repl.session import Session
    from minillm_repl.training.distributed import Distributed
    from minillm_repl.training.events import Finished
    from minillm_repl.training.run import RunContext, TrainingRun

_SAMPLE = 40  # tokens of the model's own text, shown as it learns


@dataclasses.dataclass(frozen=True)
class TrainRequest:
    """What was asked for: a plan, a corpus if one was named, and whether for a new model."""

    plan: TrainPlan = dataclasses.field(default_factory=TrainPlan)
    corpus: str = ""
    is_new: bool = False
    is_resume: bool = False
    recipe: str = ""  # for a new model: its corpus is made from the folder `data`
    data: str = ""


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


def parse_request(argument: str) -> TrainRequest:
    """Read what follows `:train`: settings, before or after a corpus that may have spaces.

    Raises UserError.
    """
    words, request = _words(argument), TrainRequest()
    if words[:1] == ["resume"]:
        if any(word and _is_setting(word) for word in words[1:]):
            raise UserError(
                _(
                    "`:train resume` uses the settings of the stopped run; no other settings "
                    "may follow"
                )
            )
        return TrainRequest(is_resume=True, corpus=" ".join(words[1:]).strip())
    settings = list[str]()
    while words and _is_setting(words[-1]):
        settings.insert(0, words.pop())
    while words and _is_setting(words[0]):
        settings.append(words.pop(0))
    corpus = " ".join(words).strip()
    _check_corpus(corpus, words)
    for word in settings:
        request = _apply_setting(request, word)
    names = [word.partition("=")[0] for word in settings if "=" in word]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(_("{name} is set twice; set it once", name=twice[0]))
    return dataclasses.replace(request, corpus=corpus)


def _check_corpus(corpus: str, words: list[str]) -> None:
    """Raise UserError where a word in the name of a missing text was meant as a setting."""
    meant = [word for word in words[1:] if word and _is_setting(word)]
    if meant and not exists(user_path(corpus)):
        raise UserError(
            _(
                "{corpus:.80} does not exist; put settings such as {word:.40} before or "
                "after the text, each as NAME=VALUE without spaces",
                corpus=safe_line(corpus),
                word=safe_line(meant[0]),
            )
        )


def _words(text: str) -> list[str]:
    """Split at spaces, but for those in quotes; a quote without its second is a letter."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace, lexer.whitespace_split, lexer.escape, lexer.commenters = " ", True, "", ""
    try:
        return list(lexer)
    except ValueError:
        return text.split(" ")


def _is_setting(word: str) -> bool:
    name, equals, _value = word.partition("=")
    return word in ("", "new") or (
        bool(equals) and name.replace("-", "").replace("_", "").isalpha()
    )


def _apply_setting(request: TrainRequest, word: str) -> TrainRequest:
    name, _equals, value = word.partition("=")
    if word in ("", "new"):
        return dataclasses.replace(request, is_new=request.is_new or word == "new")
    return dataclasses.replace(
        request, plan=change(request.plan, name, value, display_name=f":train {name}")
    )


def run_training(shell: Shell, request: TrainRequest, *, json: bool = False) -> None:
    """Train as asked, drawing as it goes; at the end the trained model is the open one.

    Raises UserError, and SystemExit after a signal to end, once what was learnt is saved.
    """
    with catch_termination() as received_signal:
        try:
            # importing torch takes a second or two
            with shell.screen.waiting(_("preparing to train")):
                join_distributed = run_interruptibly(
                    _import_training, lambda: shell.interrupted() or bool(received_signal())
                )
            with join_distributed(shell.session.workspace.loader.device) as distributed:
                _run_training(
                    shell,
                    request,
                    lambda: shell.interrupted() or bool(received_signal()),
                    distributed,
                    json,
                )
        except (UserError, OSError) as error:
            if not received_signal():
                raise
            with suppress(OSError):  # the terminal may be gone
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


def _run_training(
    shell: Shell,
    request: TrainRequest,
    interrupted: Callable[[], bool],
    distributed: "Distributed",
    json: bool,
) -> None:
    session, screen = shell.session, shell.screen
    trainee = _make_run(shell, request, interrupted, distributed)
    for warning in trainee.warnings:
        screen.warn(warning)
    for note in trainee.notes:
        screen.note(note)
    screen.note(safe_line(trainee.title))
    begun = trainee.trainer.state.step
    session.workspace.is_training = True
    try:
        finished = _draw_training(shell, trainee, interrupted, json)
        if not finished.steps:
            raise UserError(_("stopped before the first step; nothing was changed"))
        if finished.last_loss > finished.first_loss:
            screen.warn(_("the loss increased; try a smaller lr"))
        _finish_training(shell, trainee, finished)
    except KeyboardInterrupt:  # a second Ctrl-C, in the middle of anything
        if (
            session.workspace.is_training
            and trainee.trainer.state.step > begun
            and distributed.world_size == 1
        ):
            _open_trained(shell, trainee.checkpoint(), resumable=trainee.is_saved)
        if trainee.is_saved:
            screen.note(_("`:train resume` continues from here"))
        raise
    finally:
        session.workspace.is_training = False


def _draw_training(
    shell: Shell, trainee: "TrainingRun", interrupted: Callable[[], bool], json: bool
) -> "Finished":
    """Train, and draw what happens or print it as JSON; return how it ended."""
    screen, events = shell.screen, trainee.events(interrupted)
    if json:
        from minillm_repl.render.json_lines import print_training_json

        return print_training_json(events, screen.out.file)
    from minillm_repl.render.training import TrainingView, summary

    watch = _make_watch(shell, trainee)
    plan, (reading, last) = trainee.plan, trainee.trainer.evaluator.token_counts()
    with (
        TrainingView(screen, plan.steps, plan.eval_interval, last / reading) as view,
        on_process_resume(view.redraw_below),
    ):
        finished = view.draw(events, lambda: _draw_sample(shell, trainee, watch, interrupted))
    if watch:
        shell.session.workspace.watch_view = watch.view()
    if finished.steps:
        screen.notes_console.print(summary(finished))
    return finished


def _make_run(
    shell: Shell, request: TrainRequest, interrupted: Callable[[], bool], distributed: "Distributed"
) -> "TrainingRun":
    """Return the run that was asked for, ready to go. Raises UserError."""
    session, screen = shell.session, shell.screen
    if request.is_resume:
        writable_path = _resumable_path(session)
        session.workspace.forget_failed_load()
    else:
        writable_path = session.workspace.writable_path
    model = (
        None
        if request.is_new or request.is_resume or session.workspace.has_no_model
        else shell.require_model()
    )
    if not request.is_resume:
        check_applies(request.plan, is_new=model is None)
    if model is None and not (request.is_resume and session.workspace.resumable):
        session.confirm_discard("train")
    with screen.waiting(_("preparing to train")) as update:
        from minillm_repl.checkpoint.formats.native import check_replaceable
        from minillm_repl.storage.atomic import check_can_save
        from minillm_repl.training.open_corpora import find_corpus
        from minillm_repl.training.prepare import resume_run, start_run
        from minillm_repl.training.run import RunContext

        if writable_path is not None:
            check_replaceable(writable_path)  # now, not after the work
            check_can_save(writable_path)
        run_context = RunContext(
            writable_path or unsaved_path(),
            session.workspace.loader.device,
            session.workspace.loader.threads,
            distributed,
            lambda share: update(_("reading the text  {share:.0%}", share=share)),
            interrupted,
        )
        if request.is_resume:
            # it goes where it went before
            session.workspace.save_run_to(writable_path)
            return resume_run(run_context.path, run_context, request.corpus)
        if request.recipe:
            return _make_recipe_run(request, run_context, screen.note)
        start = model.checkpoint if model else None
        return start_run(start, find_corpus(request.corpus, start), request.plan, run_context)


def _make_recipe_run(
    request: TrainRequest, run_context: "RunContext", report: Callable[[str], None]
) -> "TrainingRun":
    """Make the corpus of a recipe beside the checkpoint, and return the run that trains on it.

    Raises UserError.
    """
    from minillm_repl.training.prepare import start_run
    from minillm_repl.training.recipe import read_recipe

    recipe = read_recipe(request.recipe)
    with run_context.distributed.rank_zero_first():
        train, validation = recipe.prepare(
            user_path(request.data), run_context.path.with_suffix(".corpus"), report
        )
    return start_run(
        None,
        str(train),
        dataclasses.replace(request.plan, val=str(validation)),
        run_context,
        chat=recipe.chat,
    )


def _resumable_path(session: "Session") -> Path | None:
    """Return the checkpoint whose run can go on: the open one, or None if no file was named for it.

    Raises UserError if there is no run that was stopped; that of another model is not meant by a
    file that was named.
    """
    if session.workspace.path is not None and exists(resume_path(session.workspace.path)):
        return session.workspace.path
    workspace = session.workspace
    may_be_unsaved = workspace.resumable or workspace.writable_path is None
    if may_be_unsaved and exists(resume_path(unsaved_path())):
        return None
    raise UserError(_("no run to resume: Ctrl-C during `:train` leaves one"))


def _make_watch(shell: Shell, trainee: "TrainingRun") -> "Watch | None":
    """Return what is to be watched, if anything is: a sharded model is whole in no process."""
    if not shell.session.workspace.watch_prompt or trainee.plan.shard:
        return None
    ids = trainee.tokenizer.encode(shell.session.workspace.watch_prompt)
    if not ids:
        shell.screen.warn(_("nothing is watched: no character of that prompt is in the vocabulary"))
        return None
    from minillm_repl.insight.watching import Watch

    return Watch(trainee.tokenizer, ids)


def _draw_sample(
    shell: Shell, trainee: "TrainingRun", watch: "Watch | None", interrupted: Callable[[], bool]
) -> "RenderableType | None":
    """Return what the model says by now; with `:verbose`, also what it expects after the start.

    And after the prompt that is watched. None once interrupted.
    """
    from rich.console import Group
    from rich.text import Text

    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.generate.events import Step
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.options import GenerationConfig
    from minillm_repl.generate.sampling import make_rng
    from minillm_repl.render.generation import step_table
    from minillm_repl.tokenizer.base import decode

    if trainee.plan.shard:
        return None  # no process has the whole model
    start, verbose = trainee.sample_prompt_ids, shell.session.settings.verbose
    config = GenerationConfig(max_tokens=_SAMPLE, n_candidates=verbose)
    decoder = TorchDecoder(trainee.trainer.model)
    events = generate(decoder, trainee.tokenizer, start, config, make_rng(0), interrupted)
    steps = [event for event in events if isinstance(event, Step)]
    if interrupted():
        return None
    text = decode(trainee.tokenizer, start + [step.id for step in steps])
    parts: list[RenderableType] = []
    if watch:
        from minillm_repl.render.watching import moment_line

        trainer = trainee.trainer
        parts.append(
            moment_line(
                watch.look(trainer.model, trainer.state.step), shell.session.workspace.watch_prompt
            )
        )
    if verbose:
        parts.append(Text(_("after {text!r}", text=safe(decode(trainee.tokenizer, start)))))
        parts.append(
            step_table(
                steps[0], samplers_heading(config.sampling), shell.screen.notes_console.width
            )
        )
    if not parts:
        return text
    whole = (
        Text(safe(text))
        if verbose
        else Text(safe_line(text), MODEL, no_wrap=True, overflow="ellipsis")
    )
    return Group(*parts, whole)


def _finish_training(shell: Shell, trainee: "TrainingRun", finished: "Finished") -> None:
    """Make the trained model the open one, and save it where a file was named for it."""
    path = shell.session.workspace.writable_path or unsaved_path()
    resumable = finished.reason == "interrupt" and not trainee.save_error
    if resumable:
        shell.screen.note(_("`:train resume` continues from here"))
    elif finished.reason == "interrupt":
        shell.screen.warn(
            _("`:train resume` cannot continue from here: {why}", why=trainee.save_error)
        )
    _open_trained(shell, trainee.checkpoint(finished), resumable=resumable)
    if finished.reason != "interrupt":
        with suppress(OSError):  # not before the weights are saved: until then it is what there is
            resume_path(path).unlink()


def _open_trained(shell: Shell, checkpoint: "Checkpoint", *, resumable: bool = False) -> None:
    """Make a trained model the open one, and save it where a file was named for it.

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
