"""`:runs` and `:train sweep`: runs of the past beside each other, and short runs to choose by."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.commands import models
from minillm_repl.commands.trained import describe_failure
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import GOOD, TITLE
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import run_interruptibly
from minillm_repl.repl.train_request import is_setting, make_plan, split_words
from minillm_repl.safetext import safe_line
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run_folder import PastRun, add_run, delete_run, find_run, past_runs
from minillm_repl.views.plot import losses_of, show_overlay

if TYPE_CHECKING:
    from minillm_repl.checkpoint import Checkpoint
    from minillm_repl.training.run import RunContext

_SWEEP_STEPS = 100  # of each run, unless steps or epochs say more
_MAX_SWEEP = 32  # runs
_MAX_LISTED = 50  # runs, the newest


@command(
    "runs",
    arguments=Forms(
        (Words("numbers", "[N ...]"),), ("load", Words("number", "N")),
        ("delete", Words("deleted", "N ...")),
    ),
    aliases=("학습기록",),
    group="Train",
    example=":runs",
)  # fmt: skip
def runs(shell: Shell, asked: Arguments) -> None:
    """List the runs of training on this machine, or compare some.

    :runs N N ... shows the settings in which the runs differ, their losses, and their curves.
    :runs load N opens the model of a run, if it was saved.
    :runs delete N ... removes runs from the list; their models stay.

    loss: validation loss, or training loss without a validation split, in nats per token.
    """
    if asked.keyword == "delete":
        for number in _numbers(asked.deleted):
            delete_run(number)
            shell.screen.note(_("run {number} is no longer listed", number=number))
    elif asked.keyword == "load":
        path = find_run(next(iter(_numbers(asked.number)))).path
        if not path:
            raise UserError(_("the model of run {number} was not saved", number=asked.number))
        models.load.run(shell, Arguments({"path": path}))
    elif asked.numbers:
        compared = [find_run(number) for number in _numbers(asked.numbers)]
        shell.screen.out.print(_comparison(compared))
        show_overlay(shell, [losses_of(str(run.number)) for run in compared])
    else:
        _list(shell, past_runs())


def _numbers(text: str) -> list[int]:
    """Return the numbers of runs. Raises UserError for what is none, or nothing."""
    words = text.split()
    wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
    if wrong is not None or not words:
        raise UserError(
            _("{word!r} is no number of a run; `:runs` lists them", word=safe_line(wrong or ""))
        )
    return [int(word) for word in words]


def _list(shell: Shell, found: Sequence[PastRun]) -> None:
    if not found:
        shell.screen.note(_("no runs yet: `:train` makes one"))
        return
    table = plain_table(
        _("run"), _("when"), _("text"), _("steps"), _("loss"), _("settings"), _("model"),
        right=(0, 3, 4), wrap=(2, 5, 6),
    )  # fmt: skip
    for run in found[-_MAX_LISTED:]:
        text = safe_line(Path(run.record.corpus).name)
        table.add_row(
            Text(str(run.number), TITLE), safe_line(run.day), text, f"{run.record.steps:,}",
            f"{run.loss:.4f}", _own_settings(run), safe_line(run.path) or "–",
        )  # fmt: skip
    shell.screen.out.print(table)


def _plan(run: PastRun) -> dict[str, str]:
    return dict(run.record.run.plan) if run.record.run else {}


def _own_settings(run: PastRun) -> str:
    """Return the settings that matter most when runs are told apart."""
    plan = _plan(run)
    names = ("arch", "d-model", "n-layers")
    size = [f"{plan['arch']} {plan['d-model']}×{plan['n-layers']}"] * (plan.keys() >= {*names})
    shown = [
        f"{name}={_short(plan[name])}"
        for name in ("lr", "dropout", "lora-rank")
        if plan.get(name, "off") != "off"
    ]
    return safe_line(" ".join([*size, *shown]))


def _short(value: str) -> str:
    """Return a setting with as many digits as can be read."""
    try:
        return safe_line(value) if value.isdigit() else f"{float(value):.4g}"
    except ValueError:
        return safe_line(value)


def _comparison(compared: Sequence[PastRun]) -> object:
    """Return a table of what differs between runs, a column for each."""
    numbers = [str(run.number) for run in compared]
    table = plain_table("", *numbers, right=range(1, len(numbers) + 1), wrap=(0,))
    plans = [_plan(run) for run in compared]
    for name in dict.fromkeys(name for plan in plans for name in plan):
        values = [plan.get(name, "–") for plan in plans]
        if len(set(values)) > 1:
            table.add_row(name, *map(_short, values))
    table.add_row(_("text"), *(safe_line(Path(run.record.corpus).name) for run in compared))
    table.add_row(_("steps"), *(f"{run.record.steps:,}" for run in compared))
    table.add_row(_("train loss"), *(f"{run.record.train_loss:.4f}" for run in compared))
    best = min(run.loss for run in compared)
    table.add_row(
        _("loss"),
        *(Text(f"{run.loss:.4f}", GOOD if run.loss == best else "") for run in compared),
    )
    seconds = [run.record.run.seconds if run.record.run else 0.0 for run in compared]
    table.add_row(_("seconds"), *(f"{each:,.1f}" for each in seconds))
    return table


# -- sweeps


def sweep(shell: Shell, text: str, import_training: Callable[[], object]) -> None:
    """Try short runs of a corpus, one for each combination of the settings in `text`.

    Raises UserError.
    """
    words = split_words(text)
    settings = [word for word in words if word and is_setting(word)]
    corpus = " ".join(word for word in words if word not in settings).strip()
    is_new = "new" in settings or shell.session.workspace.has_no_model
    plans = expand_sweep([word for word in settings if word != "new"])
    start = None if is_new else shell.require_model().checkpoint
    with shell.screen.waiting(_("preparing to train")):
        run_interruptibly(import_training, shell.interrupted)
    from minillm_repl.training.run import RunContext

    loader = shell.session.workspace.loader
    context = RunContext(
        path=Path(),  # nothing is saved
        device=loader.device,
        threads=loader.threads,
        interrupted=shell.interrupted,
    )
    run_sweep(shell, plans, corpus, start, context)


@dataclass(frozen=True)
class _Tried:
    """A short run of a sweep: what was set for it, and how it went."""

    label: str
    loss: float  # nats per token; infinite if it learnt nothing
    seconds: float
    number: int | None  # in the folder of runs


def expand_sweep(settings: Iterable[str]) -> list[tuple[str, TrainPlan]]:
    """Return a plan for each combination of the values that stand in lists, as in
    `lr=0.003,0.01`, and what tells it from the others.

    Raises UserError for a value that is none, no list, or too many combinations.
    """
    fixed, lists = list[str](), list[list[str]]()
    for setting in settings:
        name, _equals, values = setting.partition("=")
        choices = [f"{name}={value}" for value in values.split(",")]
        (lists.append(choices) if len(choices) > 1 else fixed.append(setting))
    combinations = list(product(*lists))
    if not lists:
        raise UserError(_("a sweep needs a list of values, such as lr=0.003,0.01,0.03"))
    if len(combinations) > _MAX_SWEEP:
        raise UserError(
            _("{n} combinations are too many; at most {most}", n=len(combinations), most=_MAX_SWEEP)
        )
    return [(" ".join(each), make_plan([*fixed, *each])) for each in combinations]


def run_sweep(
    shell: Shell,
    plans: Sequence[tuple[str, TrainPlan]],
    corpus: str,
    start: "Checkpoint | None",
    context: "RunContext",
) -> None:
    """Train a short run of each plan, show all in a table, and name the best one. The open model
    stays as it is. Raises UserError.
    """
    tried = list[_Tried]()
    for label, plan in plans:
        with shell.screen.waiting(label) as update:
            result = _try(label, plan, corpus, start, context, update)
        if context.interrupted():
            break
        tried.append(result)
    if not tried:
        raise UserError(_("stopped before the first run had ended"))
    table = plain_table(
        _("settings"), _("loss"), _("seconds"), _("run"), right=(1, 2, 3), wrap=(0,)
    )
    best = min(tried, key=lambda each: each.loss)
    for each in tried:
        loss = f"{each.loss:.4f}" if isfinite(each.loss) else _("learnt nothing")
        style = GOOD if each is best else ""
        number = "–" if each.number is None else str(each.number)
        table.add_row(Text(safe_line(each.label), style), loss, f"{each.seconds:.1f}", number)
    shell.screen.out.print(table)
    if isfinite(best.loss):
        shell.screen.note(_("best: {settings}", settings=safe_line(best.label)))


def _try(
    label: str,
    plan: TrainPlan,
    corpus: str,
    start: "Checkpoint | None",
    context: "RunContext",
    update: Callable[[str], object],
) -> _Tried:
    """Train one run of a sweep."""
    from minillm_repl.training import TrainingFinished, TrainStep
    from minillm_repl.training.prepare import start_run

    if not plan.steps and not plan.epochs:
        plan = replace(plan, steps=_SWEEP_STEPS)
    run = start_run(start, corpus, plan, context)
    for event in run.events(context.interrupted, save=False):
        if isinstance(event, TrainStep):
            update(f"{label}  {event.step:,}/{run.trainer.plan.steps:,}")
    assert isinstance(event, TrainingFinished)
    if event.reason == "interrupt":
        return _Tried(label, inf, event.seconds, None)
    record = run.checkpoint(event).record
    number = add_run(record) if record else None
    loss = event.train_loss if event.val_loss is None else event.val_loss
    failed = bool(describe_failure(event, run.trainer.plan))
    return _Tried(label, inf if failed else loss, event.seconds, number)
