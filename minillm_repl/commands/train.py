"""`:train`."""

import dataclasses
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change, specs
from minillm_repl.training.plan import SIZES, TrainPlan

if TYPE_CHECKING:
    from minillm_repl.checkpoint.checkpoint import Checkpoint
    from minillm_repl.training.run import TrainingRun

_SAMPLE = 40  # tokens of the model's own text, shown as it learns


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked for: a plan, a corpus if one was named, and whether the model is to be a new one."""

    plan: TrainPlan = dataclasses.field(default_factory=TrainPlan)
    corpus: str = ""
    new: bool = False


@command("train", ":train [CORPUS] [...]", completion="file", words=("new", *(f"{name}=" for name in specs(TrainPlan))))
def train(shell: Shell, argument: str) -> None:
    """Train on a text; Ctrl-C stops and keeps what was learnt.

    :train CORPUS [steps=N] [lr=X] [batch=N] [seed=N] trains the model that is open further.
    :train CORPUS new [context=N] [width=N] [layers=N] [heads=N] ... makes a new one.
    :train alone goes on with the text that the model was trained on, if that is there.
    The loss is the mean surprisal in nats per token; a model that knows nothing has ln(vocabulary).
    """
    run(shell, parse(argument))


def parse(argument: str) -> Request:
    """Read the words after `:train`: settings before or after the corpus, whose name may hold spaces.

    Raises UserError.
    """
    words, request = argument.split(" "), Request()
    while words and _is_setting(words[-1]):
        request = _with(request, words.pop())
    while words and _is_setting(words[0]):
        request = _with(request, words.pop(0))
    return dataclasses.replace(request, corpus=" ".join(words).strip())


def _is_setting(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return word in ("", "new") or (bool(equals) and name.replace("-", "").replace("_", "").isalpha())


def _with(request: Request, word: str) -> Request:
    name, _, value = word.partition("=")
    if word in ("", "new"):
        return dataclasses.replace(request, new=request.new or word == "new")
    return dataclasses.replace(request, plan=change(request.plan, name, value, said=f":train {name}"))


def run(shell: Shell, request: Request) -> None:
    """Train as asked, drawing as it goes; at the end the trained model is the open one. Raises UserError."""
    session, screen = shell.session, shell.screen
    model = None if request.new or session.nothing_to_open else shell.model()
    sizes = [size for size in SIZES if getattr(request.plan, size) != getattr(TrainPlan, size)]
    if model is not None and sizes:
        raise UserError(
            f"{sizes[0]} is a size of a new model, and this one has its own; the word `new` makes a new one"
        )
    if model is None:
        session.agree_to_discard("train")
    with screen.waiting("getting ready to train"):  # importing torch takes a second or two
        from minillm_repl.checkpoint.native import check_replaceable
        from minillm_repl.render.training import TrainingView, summary
        from minillm_repl.training.run import TrainingRun, find_corpus

        if session.own and session.path is not None:
            check_replaceable(session.path)  # now, not after the work
        start = model.checkpoint if model else None
        corpus = find_corpus(request.corpus, start)
        trainee = TrainingRun(start, corpus, request.plan, session.opening.device, session.threads)
    if trainee.unknown:
        shown = safe_line(", ".join(trainee.unknown[:20]))
        screen.warn(f"{len(trainee.unknown)} characters of the corpus are not in the vocabulary, and skipped: {shown}")
    screen.note(safe_line(trainee.title))
    with TrainingView(screen, request.plan.steps) as view:
        finished = view.draw(trainee.events(shell.interrupted), lambda: _sample(trainee))
    if not finished.steps:
        raise UserError("stopped before the first step: nothing was changed")
    screen.side.print(summary(finished))
    if finished.last_loss > finished.first_loss:
        screen.warn("the loss went up; a smaller lr may help")
    _keep(shell, trainee.checkpoint(finished))


def _sample(trainee: "TrainingRun") -> str:
    """Return what the model says by now, from the start of its corpus."""
    import numpy as np

    from minillm_repl.engine.events import Step
    from minillm_repl.engine.generate import generate
    from minillm_repl.engine.options import Sampling
    from minillm_repl.engine.torch_decoder import TorchDecoder
    from minillm_repl.tokenizer.base import decode

    start = trainee.sample_start
    events = generate(
        TorchDecoder(trainee.model), trainee.tokenizer, start, Sampling(), np.random.default_rng(0), max_tokens=_SAMPLE
    )
    return decode(trainee.tokenizer, start + [event.id for event in events if isinstance(event, Step)])


def _keep(shell: Shell, checkpoint: "Checkpoint") -> None:
    """Make the trained model the open one, and save it where a file was named for it."""
    from minillm_repl.checkpoint.save import save

    session = shell.session
    session.adopt(session.opening.ready(checkpoint), unsaved=True)
    if session.path is None or not session.own:
        shell.screen.warn("not saved yet: `:save PATH` keeps the trained weights")
        return
    session.saved(save(checkpoint, session.path))
    shell.screen.note(f"saved to {safe_line(str(session.path))}")
