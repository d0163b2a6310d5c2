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
from minillm_repl.repl.job_control import woken
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import samplers_text
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import patiently, told_to_end
from minillm_repl.safetext import safe, safe_line
from minillm_repl.settings import change, default_of, specs, value_of
from minillm_repl.storage.paths import there, user_path
from minillm_repl.training.plan import NEW_MODEL, TrainPlan
from minillm_repl.training.run_paths import resume_path, unsaved_path

if TYPE_CHECKING:
    from rich.console import RenderableType

    from minillm_repl.checkpoint.checkpoint import Checkpoint
    from minillm_repl.insight.watching import Watch
    from minillm_repl.repl.session import Session
    from minillm_repl.training.distributed import Processes
    from minillm_repl.training.events import Finished
    from minillm_repl.training.run import Surroundings, TrainingRun

_SAMPLE = 40  # tokens of the model's own text, shown as it learns


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for: a plan, a corpus if one was named, and whether the model is to be a
    new one.
    """

    plan: TrainPlan = dataclasses.field(default_factory=TrainPlan)
    corpus: str = ""
    new: bool = False
    resume: bool = False
    recipe: str = ""  # for a new model: its corpus is made from the folder `data`
    data: str = ""


@command(
    "train",
    ":train [CORPUS] [...]",
    aliases=("학습",),
    completion="file",
    words=("new", "resume", *(f"{name}=" for name in specs(TrainPlan))),
    group="Train",
)
def train(shell: Shell, argument: str) -> None:
    """Train on a text; Ctrl-C stops and keeps what was learnt.

    :train CORPUS [steps=N] [lr=X] [batch=N] ... trains the model that is open further.
    :train CORPUS new [preset=small] [arch=llama] [width=N] [tokenizer=bpe:2048] ... makes a new
    one.
    :train resume [CORPUS] goes on with the run that was stopped, exactly as if it had not been.
    :train alone goes on with the text that the model was trained on, if that is there. CORPUS is a
    text file, JSON or a table (text, or chat messages), or a folder of these.
    :train settings lists everything that can be set. What is not set is chosen, and told. The loss
    is the mean surprisal in nats per token; a model that knows nothing has ln(vocabulary).
    """
    if argument == "settings":
        from minillm_repl.render.tables import settings_table

        shell.screen.out.print(settings_table(TrainPlan()))
        return
    run(shell, parse(argument))


def parse(argument: str) -> Request:
    """Read the words after `:train`: settings before or after the corpus, whose name may hold
    spaces.

    Raises UserError.
    """
    words, request = _words(argument), Request()
    if words[:1] == ["resume"]:
        if any(word and _is_setting(word) for word in words[1:]):
            raise UserError(
                _("`:train resume` goes on with a run as it was: its settings are known")
            )
        return Request(resume=True, corpus=" ".join(words[1:]).strip())
    settings = list[str]()
    while words and _is_setting(words[-1]):
        settings.insert(0, words.pop())
    while words and _is_setting(words[0]):
        settings.append(words.pop(0))
    corpus = " ".join(words).strip()
    _check_corpus(corpus, words)
    for word in settings:
        request = _with(request, word)
    names = [word.partition("=")[0] for word in settings if "=" in word]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(_("{name} is set twice: once is enough", name=twice[0]))
    return dataclasses.replace(request, corpus=corpus)


def _check_corpus(corpus: str, words: list[str]) -> None:
    """Raise UserError where a word within the name of a text that is not there was meant as a
    setting.
    """
    meant = [word for word in words[1:] if word and _is_setting(word)]
    if meant and not there(user_path(corpus)):
        raise UserError(
            _(
                "{corpus:.80} does not exist; settings such as {word:.40} stand before or "
                "after the text, each as"
                " NAME=VALUE without spaces",
                corpus=safe_line(corpus),
                word=safe_line(meant[0]),
            )
        )


def _words(text: str) -> list[str]:
    """Split at spaces, but for those in quotes; a quote without its second is a letter like any
    other.
    """
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace, lexer.whitespace_split, lexer.escape, lexer.commenters = " ", True, "", ""
    try:
        return list(lexer)
    except ValueError:
        return text.split(" ")


def _is_setting(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return word in ("", "new") or (
        bool(equals) and name.replace("-", "").replace("_", "").isalpha()
    )


def _with(request: Request, word: str) -> Request:
    name, _, value = word.partition("=")
    if word in ("", "new"):
        return dataclasses.replace(request, new=request.new or word == "new")
    return dataclasses.replace(
        request, plan=change(request.plan, name, value, said=f":train {name}")
    )


def run(shell: Shell, request: Request, *, json: bool = False) -> None:
    """Train as asked, drawing as it goes; at the end the trained model is the open one.

    Raises UserError, and SystemExit after a signal to end, once what was learnt is saved.
    """
    with told_to_end() as signalled:
        try:
            # importing torch takes a second or two
            with shell.screen.waiting(_("getting ready to train")):
                joined = patiently(_joined, lambda: shell.interrupted() or bool(signalled()))
            with joined(shell.session.opening.device) as processes:
                _run(
                    shell,
                    request,
                    lambda: shell.interrupted() or bool(signalled()),
                    processes,
                    json,
                )
        except (UserError, OSError) as error:
            if not signalled():
                raise
            with suppress(OSError):  # the terminal may be gone
                shell.screen.fail(str(error))
    if signalled():
        raise SystemExit(128 + signalled())


def _joined() -> "Callable[[str], AbstractContextManager[Processes]]":
    """Import all that training needs; return what joins its processes."""
    for module in ("minillm_repl.training.run", "minillm_repl.render.training", "torch._dynamo"):
        # the last one torch's first optimiser would import, which takes a second
        import_module(module)
    from minillm_repl.training.distributed import joined

    return joined


def _run(
    shell: Shell,
    request: Request,
    interrupted: Callable[[], bool],
    processes: "Processes",
    json: bool,
) -> None:
    session, screen = shell.session, shell.screen
    trainee = _begin(shell, request, interrupted, processes)
    for warning in trainee.warnings:
        screen.warn(warning)
    for note in trainee.notes:
        screen.note(note)
    screen.note(safe_line(trainee.title))
    begun = trainee.trainer.state.step
    session.learning = True
    try:
        finished = _drawn(shell, trainee, interrupted, json)
        if not finished.steps:
            raise UserError(_("stopped before the first step: nothing was changed"))
        if finished.last_loss > finished.first_loss:
            screen.warn(_("the loss went up; a smaller lr may help"))
        _keep(shell, trainee, finished)
    except KeyboardInterrupt:  # a second Ctrl-C, in the middle of anything
        if session.learning and trainee.trainer.state.step > begun and processes.size == 1:
            _open_trained(shell, trainee.checkpoint(), resumable=trainee.saved)
        if trainee.saved:
            screen.note(_("`:train resume` goes on from here"))
        raise
    finally:
        session.learning = False


def _drawn(
    shell: Shell, trainee: "TrainingRun", interrupted: Callable[[], bool], json: bool
) -> "Finished":
    """Train, and draw what happens or print it as JSON; return how it ended."""
    screen, events = shell.screen, trainee.events(interrupted)
    if json:
        from minillm_repl.render.json_lines import print_training_json

        return print_training_json(events, screen.out.file)
    from minillm_repl.render.training import TrainingView, summary

    watch = _watch(shell, trainee)
    plan, (reading, last) = trainee.plan, trainee.trainer.readings()
    with TrainingView(screen, plan.steps, plan.every, last / reading) as view, woken(view.leave):
        finished = view.draw(events, lambda: _sample(shell, trainee, watch, interrupted))
    if watch:
        shell.session.watched = watch.view()
    if finished.steps:
        screen.side.print(summary(finished))
    return finished


def _begin(
    shell: Shell, request: Request, interrupted: Callable[[], bool], processes: "Processes"
) -> "TrainingRun":
    """Return the run that was asked for, ready to go. Raises UserError."""
    session, screen = shell.session, shell.screen
    if request.resume:
        own = _to_resume(session)
        session.forget_failed_load()
    else:
        own = session.path if session.own else None
    model = None if request.new or request.resume or session.nothing_to_open else shell.model()
    sizes = [
        size for size in NEW_MODEL if value_of(request.plan, size) != default_of(TrainPlan, size)
    ]
    if model is not None and sizes:
        raise UserError(
            _(
                "{name} is for a new model, and this one has its own; the word `new` makes a new "
                "one",
                name=sizes[0],
            )
        )
    if model is None and request.plan.lora:
        raise UserError(
            _("lora is for a model that is open already: it trains beside what is there")
        )
    if model is None and not (request.resume and session.resumable):
        session.agree_to_discard("train")
    with screen.waiting(_("getting ready to train")) as update:
        from minillm_repl.checkpoint.formats.native import check_replaceable
        from minillm_repl.storage.atomic import check_can_save
        from minillm_repl.training.open_corpora import find_corpus
        from minillm_repl.training.run import Surroundings, TrainingRun

        if own is not None:
            check_replaceable(own)  # now, not after the work
            check_can_save(own)
        around = Surroundings(
            own or unsaved_path(),
            session.opening.device,
            session.threads,
            processes,
            lambda share: update(_("reading the text  {share:.0%}", share=share)),
            interrupted,
        )
        if request.resume:
            # it goes where it went before
            session.path, session.own, session.written = own, own is not None, False
            return TrainingRun.resumed(around.path, around, request.corpus)
        if request.recipe:
            return _by_recipe(request, around, screen.note)
        start = model.checkpoint if model else None
        return TrainingRun(start, find_corpus(request.corpus, start), request.plan, around)


def _by_recipe(
    request: Request, around: "Surroundings", tell: Callable[[str], None]
) -> "TrainingRun":
    """Make the corpus of a recipe beside the checkpoint, and return the run that trains on it.

    Raises UserError.
    """
    from minillm_repl.training.recipe import read_recipe
    from minillm_repl.training.run import TrainingRun

    recipe = read_recipe(request.recipe)
    with around.processes.first_then_others():
        train, held = recipe.prepare(
            user_path(request.data), around.path.with_suffix(".corpus"), tell
        )
    return TrainingRun(
        None, str(train), dataclasses.replace(request.plan, val=str(held)), around, chat=recipe.chat
    )


def _to_resume(session: "Session") -> Path | None:
    """Return the checkpoint whose run can go on: the open one, or None for one that no file was
    named for.

    Raises UserError if there is no run that was stopped; that of another model is not meant by a
    file that was named.
    """
    if session.path is not None and there(resume_path(session.path)):
        return session.path
    if (session.resumable or not session.own) and there(resume_path(unsaved_path())):
        return None
    raise UserError(_("there is no run to go on with: Ctrl-C during `:train` leaves one"))


def _watch(shell: Shell, trainee: "TrainingRun") -> "Watch | None":
    """Return what is to be watched, if anything is: a sharded model is whole in no process."""
    if not shell.session.watch or trainee.plan.shard:
        return None
    ids = trainee.tokenizer.encode(shell.session.watch)
    if not ids:
        shell.screen.warn(
            _("nothing is watched: the model has never seen any character of that prompt")
        )
        return None
    from minillm_repl.insight.watching import Watch

    return Watch(trainee.tokenizer, ids)


def _sample(
    shell: Shell, trainee: "TrainingRun", watch: "Watch | None", interrupted: Callable[[], bool]
) -> "RenderableType | None":
    """Return what the model says by now; with `:verbose`, also what it thinks comes next after the
    sample's start.

    And after the prompt that is watched. None once interrupted.
    """
    import numpy as np
    from rich.console import Group
    from rich.text import Text

    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.generate.events import Step
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.options import Sampling
    from minillm_repl.render.generation import step_table
    from minillm_repl.tokenizer.base import decode

    if trainee.plan.shard:
        return None  # no process has the whole model
    start, verbose = trainee.sample_start, shell.session.settings.verbose
    decoder, sampling = TorchDecoder(trainee.trainer.model), Sampling()
    events = generate(
        decoder, trainee.tokenizer, start, sampling, np.random.default_rng(0), max_tokens=_SAMPLE, top=verbose,
        interrupted=interrupted,
    )  # fmt: skip
    steps = [event for event in events if isinstance(event, Step)]
    if interrupted():
        return None
    text = decode(trainee.tokenizer, start + [step.id for step in steps])
    parts: list[RenderableType] = []
    if watch:
        from minillm_repl.render.watching import moment_line

        trainer = trainee.trainer
        parts.append(
            moment_line(watch.look(trainer.model, trainer.state.step), shell.session.watch)
        )
    if verbose:
        parts.append(Text(_("after {text!r}", text=safe(decode(trainee.tokenizer, start)))))
        parts.append(step_table(steps[0], samplers_text(sampling), shell.screen.side.width))
    if not parts:
        return text
    whole = (
        Text(safe(text))
        if verbose
        else Text(safe_line(text), MODEL, no_wrap=True, overflow="ellipsis")
    )
    return Group(*parts, whole)


def _keep(shell: Shell, trainee: "TrainingRun", finished: "Finished") -> None:
    """Make the trained model the open one, and save it where a file was named for it."""
    session, own = shell.session, shell.session.own
    path = session.path if own and session.path else unsaved_path()
    resumable = finished.reason == "interrupt" and not trainee.not_saved
    if resumable:
        shell.screen.note(_("`:train resume` goes on from here"))
    elif finished.reason == "interrupt":
        shell.screen.warn(_("`:train resume` cannot go on from here: {why}", why=trainee.not_saved))
    _open_trained(shell, trainee.checkpoint(finished), resumable=resumable)
    if finished.reason != "interrupt":
        with suppress(OSError):  # not before the weights are saved: until then it is what there is
            resume_path(path).unlink()


def _open_trained(shell: Shell, checkpoint: "Checkpoint", *, resumable: bool = False) -> None:
    """Make a trained model the open one, and save it where a file was named for it.

    Raises UserError.
    """
    from minillm_repl.checkpoint.save import save
    from minillm_repl.storage.atomic import make_folder

    session = shell.session
    session.adopt(session.opening.ready(checkpoint), unsaved=True)
    session.resumable, session.learning = resumable, False
    if session.path is None or not session.own:
        shell.screen.warn(_("not saved yet: `:save PATH` keeps the trained weights"))
    else:
        make_folder(session.path)
        session.saved(save(checkpoint, session.path))
        shell.screen.note(_("saved to {path}", path=safe_line(str(session.path))))
