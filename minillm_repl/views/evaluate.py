"""`:eval`: how many questions of a file a model gets right, or how unlikely it finds a text."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_repl.errors import UsageError, UserError
from minillm_repl.evaluation import (
    BadLine,
    Kind,
    Measured,
    Questions,
    Subject,
    TextResult,
)
from minillm_repl.evaluation.figures import (
    compare_questions,
    compare_texts,
    item_data,
    question_figures,
    text_figures,
)
from minillm_repl.language import _
from minillm_repl.render.export import check_overwritable
from minillm_repl.repl.arguments import Arguments, ChoiceOption, Option, Values, Words
from minillm_repl.repl.conversation import is_chatting
from minillm_repl.repl.model_loading import LoadedModel, ModelFuture
from minillm_repl.repl.quoting import Output, mask_quoted, split_outside_quotes, unquoted
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.settings import integer
from minillm_repl.storage.encoding import DetectedEncoding
from minillm_repl.storage.paths import find_checkpoint, user_path
from minillm_repl.views.base import show
from minillm_repl.views.evaluation_view import EvalView

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_MAX_BAD = 1_000  # lines that could not be measured and are kept, of all that are counted
OnEvent = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `:eval` is asked for."""

    path: Path
    limit: int  # questions, or windows of a text; 0 for all
    space: bool
    max_tokens: int
    window: int  # tokens; 0 is the context
    stride: int  # tokens; 0 is the window


@dataclass
class _Run:
    """An evaluation while it runs: what is found so far, and who is told of it."""

    shell: "Shell"
    request: Request
    subjects: tuple[Subject, ...]
    on_event: OnEvent
    stopped: str = ""

    def until_stopped(self, steps: Iterator[Any]) -> Iterator[Any]:
        """Yield the steps; where an error or Ctrl-C ends them, note why."""
        try:
            yield from steps
        except UserError as error:
            self.stopped = str(error)

    def view(self, kind: Kind, total: int, done: int, bad: list[BadLine]) -> EvalView:
        """Return the view without its figures."""
        return EvalView(
            file=safe_line(self.request.path.name),
            kind=kind,
            names=tuple(each.name for each in self.subjects),
            chat=tuple(each.template is not None and kind != "text" for each in self.subjects),
            space=self.request.space,
            max_tokens=self.request.max_tokens,
            total=total,
            done=done,
            stopped=self.stopped,
            bad=tuple(bad[:_MAX_BAD]),
            bad_count=len(bad),
        )

    def measure_questions(self, found: Questions) -> EvalView:
        """Return what the models make of questions."""
        from minillm_repl.evaluation.questions import measure_questions

        request, bad, measured = self.request, list(found.bad), list[Measured]()
        items = found.items[: request.limit or None]
        for each in bad:
            self.on_event({"event": "bad_line", **asdict(each)})
        steps = measure_questions(
            self.subjects, items, self.shell.interrupted,
            space=request.space, max_tokens=request.max_tokens,
        )  # fmt: skip
        with self.shell.screen.waiting(_("evaluating")) as update:
            for number, step in enumerate(self.until_stopped(steps), 1):
                if isinstance(step, BadLine):
                    bad.append(step)
                    self.on_event({"event": "bad_line", **asdict(step)})
                else:
                    measured.append(step)
                    self.on_event({"event": "item", **item_data(step)})
                update(_progress(number, len(items), measured))
        bad.sort(key=lambda each: each.line)
        view = self.view(found.kind, len(items), len(measured), bad)
        if not measured:
            return view
        return replace(
            view,
            questions=tuple(
                question_figures(measured, model) for model in range(len(self.subjects))
            ),
            mcnemar=compare_questions(measured) if len(self.subjects) == 2 else None,
            items=tuple(map(item_data, measured)),
        )

    def measure_text(self, text: str) -> EvalView:
        """Return what the models make of a text."""
        from minillm_repl.evaluation.text import TextMeasure

        request, results = self.request, list[TextResult]()
        for subject in self.subjects:
            measure = TextMeasure(subject, text, request.window, request.stride)
            steps = measure.run(self.shell.interrupted, request.limit)
            with self.shell.screen.waiting(_("evaluating")) as update:
                for done in self.until_stopped(steps):
                    update(_("{done:,} of {total:,} tokens", done=done, total=measure.total))
                    self.on_event({"event": "window", "model": subject.name, "tokens": done})
            if measure.nats:
                results.append(measure.result())
            if self.stopped:
                break
        view = self.view(
            "text", measure.total, min((each.tokens for each in results), default=0), []
        )
        names = view.names[: max(1, len(results))]  # a model that was not reached has no figures
        lines = text.split("\n")
        return replace(
            view,
            names=names,
            chat=view.chat[: len(names)],
            texts=tuple(text_figures(each, lines) for each in results),
            difference=compare_texts(results[0], results[1]) if len(results) == 2 else None,
        )


def _progress(done: int, total: int, measured: list[Measured]) -> str:
    right = sum(each.results[0].is_right for each in measured)
    return _("{done:,} of {total:,} questions · {right:,} right",
             done=done, total=total, right=right)  # fmt: skip


def evaluate(
    shell: "Shell",
    request: Request,
    subjects: tuple[Subject, ...],
    on_event: OnEvent = lambda _event: None,
) -> EvalView:
    """Measure models on a file; what is stopped has figures over what was done.

    Raises UserError if nothing could be measured.
    """
    from minillm_repl.evaluation.items import read_file

    detected = DetectedEncoding()
    found = read_file(request.path, detected)
    for note in detected.notes(request.path):
        shell.screen.warn(note)
    run = _Run(shell, request, subjects, on_event)
    view = run.measure_text(found) if isinstance(found, str) else run.measure_questions(found)
    if not view.done:
        raise UserError(_why_nothing(view))
    return view


def _why_nothing(view: EvalView) -> str:
    if view.bad:
        return _("no line could be measured; line {line}: {why}",
                 line=view.bad[0].line, why=view.bad[0].why)  # fmt: skip
    return view.stopped or _("nothing could be measured")


def make_subject(shell: "Shell", model: LoadedModel, chat: str) -> Subject:
    """Return what is asked of a model. Raises UserError if `chat` is on and it cannot chat."""
    settings = shell.session.settings
    wish = {"auto": settings.chat, "on": True, "off": False}[chat]
    return Subject(
        name=safe_line(model.name),
        decoder=model.decoder,
        checkpoint=model.checkpoint,
        template=model.checkpoint.chat_template if is_chatting(model, wish) else None,
        system=settings.system,
        parse_special=settings.special,
    )


class _Files(Words):
    """A file, maybe another checkpoint after `vs`, and where the numbers go after `json`."""

    def __init__(self) -> None:
        super().__init__("file", "FILE [vs PATH|NAME]", "vs", required=True, completion="file")
        self.defaults = {"file": "", "other": "", "json": ""}

    def take(self, text: str) -> tuple[Values, str]:
        """Read all that remains."""
        if not text:
            return self.missing("")
        if " json " in mask_quoted(text):
            text, _found, target = split_outside_quotes(text, " json ")
        else:
            target = ""
        file, is_versus, other = split_outside_quotes(f"{text} ", " vs ")
        if is_versus and not other.strip():
            raise UsageError(_("a text is missing beside {mark}", mark="vs"))
        names = {"file": file, "other": other, "json": target}
        return {name: unquoted(each.strip()) for name, each in names.items()}, ""


_OPTIONS = (
    Option("limit", integer(1), None, "N"),
    ChoiceOption("chat", "auto", "on", "off"),
    ChoiceOption("space", "on", "off"),
    Option("tokens", integer(1, 4_096), 64),
    Option("window", integer(2), None, "N"),
    Option("stride", integer(1), None, "N"),
)


@command(
    "eval",
    arguments=(_Files(), *_OPTIONS),
    json=True,
    aliases=("evaluate", "평가"),
    group="Predictions",
    example=":eval questions.jsonl",
)
def eval_command(shell: "Shell", asked: Arguments) -> None:
    """Measure the model on a file of questions, or on a text.

    A file of questions has a JSON object in each line: {"prompt", "choices", "answer"}, where the
    answer is the index of the right choice, from 0, or its text; or {"prompt", "answer"}, where the
    model writes the answer (greedily, at most `tokens`). Any other file is a text.

    accuracy: the share of questions whose right choice has the highest probability, and its 95%
    interval (Wilson's: of 100 such files, about 95 give one that holds the true share). per byte,
    per character: the same for the log-probability divided by the length of the choice (acc_bytes
    and acc_norm of lm-eval). chance: the accuracy of a blind guess. ECE, the expected calibration
    error: how far stated probabilities are from the shares that come true, over ten bins. The worst
    items are those where a wrong choice is furthest ahead.

    perplexity: e to the power of the mean surprisal of a token, in nats. bits per byte compare
    across models. A text is read in windows of `window` tokens (the context), of which each
    predicts the last `stride` (all of them).

    `:eval FILE vs PATH` measures two models on the same items: for questions McNemar's exact test
    (of those that only one gets right, how likely is such a split by chance?), for a text the
    difference in bits per byte and its 95% interval.

    A chat model gets a prompt as the message of a user, unless `chat=off`. Otherwise a space goes
    between prompt and choice where neither has one, unless `space=off`. Ctrl-C stops; the figures
    are then over the items that are done. docs/evaluation.md says how lm-eval counts.
    """
    output = asked.output
    if asked.json:
        check_overwritable(user_path(asked.json), overwrite=False)
        output = Output(asked.json)
    show(shell, run_command(shell, asked), output)


def run_command(
    shell: "Shell", asked: Arguments, on_event: OnEvent = lambda _event: None
) -> EvalView:
    """Return what `:eval` shows. Raises UserError."""
    model = shell.require_model()
    subjects = [make_subject(shell, model, asked.chat)]
    if asked.other:
        path = find_checkpoint(asked.other)
        other = shell.wait_for_model(ModelFuture(shell.session.workspace.loader, path), path)
        subjects.append(make_subject(shell, other, asked.chat))
        if subjects[0].name == subjects[1].name:
            subjects[0] = replace(subjects[0], name=_("{model} (open)", model=subjects[0].name))
    request = Request(
        path=user_path(asked.file),
        limit=asked.limit or 0,
        space=asked.space == "on",
        max_tokens=asked.tokens,
        window=asked.window or 0,
        stride=asked.stride or 0,
    )
    return evaluate(shell, request, tuple(subjects), on_event)
