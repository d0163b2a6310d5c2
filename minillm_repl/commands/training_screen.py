"""A training run on the screen or as JSON lines, with samples; its model is opened and saved."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from minillm_repl.commands.trained import describe_failure, finish_run, open_trained
from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.render.console import MODEL
from minillm_repl.render.training_summary import passes_text
from minillm_repl.repl.job_control import on_process_resume
from minillm_repl.repl.settings import samplers_heading, verbose_rows
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe, safe_line
from minillm_repl.training.plan import TrainPlan

if TYPE_CHECKING:  # The prompt line starts without torch.
    from rich.console import RenderableType

    from minillm_repl.generate import GenerationConfig, Step
    from minillm_repl.training import TrainingFinished
    from minillm_repl.training.probes import Probes
    from minillm_repl.training.run import TrainingRun
    from minillm_repl.training.trainer import Trainer
    from minillm_repl.views.watch import Watch

_SAMPLE_TOKENS = 40  # of the model's own text
_OPTIMIZERS = {"normuon": "NorMuon", "muon": "Muon"}


def run_on_screen(
    shell: Shell, run: "TrainingRun", interrupted: Callable[[], bool], *, json: bool
) -> None:
    """Draw a run to its end, and open what was learnt, also after a second Ctrl-C.

    Raises UserError at the end of a run that learnt nothing.
    """
    screen, workspace = shell.screen, shell.session.workspace
    first_step = run.trainer.state.step
    workspace.is_training = True
    try:
        finished = draw_run(shell, run, interrupted, json=json)
        if not finished.steps:
            raise UserError(_("stopped before the first step; nothing was changed"))
        finish_run(shell, run, finished)
        failure = describe_failure(finished, run.trainer.plan)
        if failure:  # after the model is saved: a script must see that it is no better
            raise UserError(failure)
    except KeyboardInterrupt:  # a second Ctrl-C, in the middle of anything
        # All processes must gather a sharded model; after a Ctrl-C, some may be gone.
        is_alone = run.context.distributed.world_size == 1
        if workspace.is_training and run.trainer.state.step > first_step and is_alone:
            open_trained(shell, run.checkpoint(), resumable=run.is_saved)
        if run.is_saved:
            screen.note(_("`:train resume` continues from here"))
        raise
    finally:
        workspace.is_training = False


def announce(shell: Shell, run: "TrainingRun") -> None:
    """Show what the user should know of a run before it starts."""
    for warning in run.warnings:
        shell.screen.warn(warning)
    for note in run.notes:
        shell.screen.note(note)
    if run.step_seconds is not None:
        shell.screen.note(describe_method(run.trainer, run.threads, run.step_seconds))
    shell.screen.note(safe_line(describe_run(run)))


def describe_run(run: "TrainingRun") -> str:
    """Return what is about to happen, in one line."""
    trainer, corpus = run.trainer, run.corpora.train
    config, train, val, plan = trainer.model.config, trainer.train, trainer.val, trainer.plan
    sizes = {"parameters": config.n_params, "arch": config.arch}
    if plan.lora_rank:
        description = _(
            "training {trained:,} parameters; the other {parameters:,} are frozen",
            trained=sum(each.numel() for each in trainer.trainable_parameters.values()),
            **sizes,
        )
    elif run.is_finetuning:
        description = _("further training: {parameters:,} parameters", **sizes)
    else:
        description = _("a new {arch} model: {parameters:,} parameters", **sizes)
    documents = _n("{n:,} document", "{n:,} documents", corpus.count)
    tokens = (
        _(
            "{tokens:,} training tokens, {held:,} validation tokens",
            tokens=len(train.ids),
            held=len(val.ids),
        )
        if val
        else _("{tokens:,} tokens", tokens=len(train.ids))
    )
    read_tokens = plan.steps * plan.batch_size * plan.context_length
    return " · ".join(
        [
            description,
            f"{corpus.name}: {documents}",
            tokens,
            _("{different:,} distinct", different=run.unique_tokens),
            _(
                "{steps:,} steps ({passes} passes over the text)",
                steps=plan.steps,
                passes=passes_text(read_tokens / len(train.ids)),
            ),
        ]
    )


def describe_method(trainer: "Trainer", threads: int, seconds: float) -> str:
    """Return how it is done, in one line; `seconds` is what forward and backward of a step take,
    if that is known.
    """
    from minillm_repl.training.defaults import estimate_memory

    plan, size = trainer.plan, trainer.distributed.world_size
    parallelism = (
        _n("{n} process", "{n} processes", size)
        if size > 1
        else _n("{n} thread", "{n} threads", threads)
        if threads
        else _("default threads")
    )
    parts = [
        _("batch {batch} × {context} tokens", batch=plan.batch_size, context=plan.context_length),
        _("AdamW, learning rate {lr:g}", lr=plan.lr)
        if plan.optimizer == "adamw"
        else _(
            "{name} and AdamW, learning rate {lr:g}", name=_OPTIMIZERS[plan.optimizer], lr=plan.lr
        ),
        f"{plan.precision}, {parallelism}",
        _("about {size:,.0f} MiB", size=estimate_memory(plan, trainer.model.config) / 2**20),
    ]
    if plan.grad_checkpointing == "on":
        parts.append(_("gradient checkpointing"))
    if size == 1:
        remaining = estimate_seconds(plan, seconds, *trainer.evaluator.token_counts)
        parts.append(
            _("about {time:.0f} s", time=remaining)
            if remaining < 90
            else _("about {time:.0f} min", time=remaining / 60)
            if remaining < 5400
            else _("about {time:.1f} h", time=remaining / 3600)
        )
    return " · ".join(parts)


def estimate_seconds(
    plan: TrainPlan, seconds: float, eval_tokens: int, final_eval_tokens: int
) -> float:
    """Return the seconds of a whole run, with its evaluations of `eval_tokens` each.

    `seconds` is the time of the forward and backward pass of one step.
    """
    from minillm_repl.training.defaults import OPTIMISER_FACTOR, step_cost
    from minillm_repl.training.evaluation import n_evals

    # An evaluation is a forward pass alone: a share of what a step costs.
    evaluated_tokens = n_evals(plan) * eval_tokens + final_eval_tokens
    return seconds * (
        plan.steps * OPTIMISER_FACTOR
        + evaluated_tokens / (plan.batch_size * plan.context_length) / step_cost(plan)
    )


def draw_run(
    shell: Shell,
    run: "TrainingRun",
    interrupted: Callable[[], bool],
    *,
    json: bool,
    save: bool = True,
) -> "TrainingFinished":
    """Train, and draw what happens or print it as JSON; return how it ended.

    With `save`, the run is saved on its way.
    """
    screen, events = shell.screen, run.events(interrupted, save=save)
    log = run.trainer.plan.log
    if log != "off" and save and run.context.distributed.rank == 0:
        from minillm_repl.training.log import logged

        events = logged(events, log, run.context.path, screen.warn)
    announce(shell, run)
    if json:
        from minillm_repl.render.json_lines import print_training_json

        return print_training_json(events, screen.out.file)
    from minillm_repl.render.training import TrainingView
    from minillm_repl.render.training_summary import summary

    watch, probes = _make_watch(shell, run), _make_probes(shell, run)
    # The time of an evaluation is proportional to its tokens.
    plan, (on_the_way, last) = run.trainer.plan, run.trainer.evaluator.token_counts
    with (
        TrainingView(screen, plan.steps, plan.eval_interval, last / on_the_way) as view,
        on_process_resume(view.redraw_below),
    ):
        finished = view.draw(events, lambda: _sample(shell, run, watch, probes, interrupted))
    if watch:
        shell.session.workspace.watch_view = watch.view()
    if finished.steps:
        screen.notes_console.print(summary(finished))
    return finished


def _make_watch(shell: Shell, run: "TrainingRun") -> "Watch | None":
    """Return the watch on the prompt of `:watch`, if there is one."""
    prompt = shell.session.workspace.watch_prompt
    if not prompt or run.trainer.plan.shard:  # No process has the whole of a sharded model.
        return None
    ids = run.start.tokenizer.encode(prompt)
    if not ids:
        shell.screen.warn(_("nothing is watched: no character of that prompt is in the vocabulary"))
        return None
    from minillm_repl.views.watch import Watch

    return Watch(run.start.tokenizer, ids)


def _make_probes(shell: Shell, run: "TrainingRun") -> "Probes | None":
    """Return what measures the probes of `:watch heads`, if there are any."""
    watched = shell.session.workspace.watched
    if not watched or run.trainer.plan.shard:
        return None
    from minillm_repl.training.probes import PROBES, Probes

    names = tuple(each for each in PROBES if each in watched)
    return Probes(run.trainer, names, run.start.tokenizer)


def _sample(
    shell: Shell,
    run: "TrainingRun",
    watch: "Watch | None",
    probes: "Probes | None",
    interrupted: Callable[[], bool],
) -> "RenderableType | None":
    """Return a text that the model writes now, below what it predicts after the watched prompt
    and, with `:verbose`, after the sample's start.

    None when interrupted.
    """
    from rich.console import Group
    from rich.text import Text

    from minillm_repl.generate import GenerationConfig
    from minillm_repl.render.generation import step_table
    from minillm_repl.tokenizer import decode

    if run.trainer.plan.shard:
        return None  # No process has the whole model.
    settings = shell.session.settings
    verbose = verbose_rows(settings) if settings.verbose else 0
    config = GenerationConfig(
        max_tokens=_SAMPLE_TOKENS, n_candidates=verbose, eos_token_ids=run.start.eos_token_ids
    )
    steps = _generate(run, config, interrupted)
    if interrupted():
        return None
    text = run.sample_heading + decode(run.start.tokenizer, [step.id for step in steps])
    parts: list[RenderableType] = []
    if watch:
        moment = watch.look(run.trainer.model, run.trainer.state.step)
        parts.append(moment.line(shell.session.workspace.watch_prompt))
    if probes and probes.measure():
        from minillm_repl.views.watch_curves import lines

        width = shell.screen.notes_console.width
        parts += lines(run.trainer.state.probes, probes.names, probes.best, width)
    if verbose:
        size = run.start.tokenizer.vocab_size
        width = shell.screen.notes_console.width
        parts.append(Text(_("after {text!r}", text=safe(run.sample_heading))))
        parts.append(step_table(steps[0], samplers_heading(config.sampling), width, size))
        return Group(*parts, Text(safe(text)))
    if not parts:
        return text
    return Group(*parts, Text(safe_line(text), MODEL, no_wrap=True, overflow="ellipsis"))


def _generate(
    run: "TrainingRun", config: "GenerationConfig", interrupted: Callable[[], bool]
) -> "list[Step]":
    """Return the steps of a sample, always with the same random numbers."""
    from minillm_repl.generate import Step
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.sampling import make_rng

    decoder, ids = TorchDecoder(run.trainer.model), run.sample_prompt_ids
    # One seed for all samples: they differ by what was learnt since, not by chance.
    events = generate(decoder, run.start.tokenizer, ids, config, make_rng(0), interrupted)
    return [event for event in events if isinstance(event, Step)]
