"""A training run on the screen, or as JSON lines, with samples of what the model has learnt."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from minillm_repl.language import _
from minillm_repl.render.console import MODEL
from minillm_repl.repl.job_control import on_process_resume
from minillm_repl.repl.settings import samplers_heading
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe, safe_line

if TYPE_CHECKING:  # The prompt line starts without torch.
    from rich.console import RenderableType

    from minillm_repl.generate.events import Step
    from minillm_repl.generate.options import GenerationConfig
    from minillm_repl.training.events import TrainingFinished
    from minillm_repl.training.run import TrainingRun
    from minillm_repl.views.learning import Watch

_SAMPLE_TOKENS = 40  # of the model's own text


def announce(shell: Shell, run: "TrainingRun") -> None:
    """Show what the user should know of a run before it starts."""
    for warning in run.warnings:
        shell.screen.warn(warning)
    for note in run.notes:
        shell.screen.note(note)
    shell.screen.note(safe_line(run.title))


def draw_training(
    shell: Shell, run: "TrainingRun", interrupted: Callable[[], bool], *, json: bool
) -> "TrainingFinished":
    """Train, and draw what happens or print it as JSON; return how it ended."""
    screen, events = shell.screen, run.events(interrupted)
    if json:
        from minillm_repl.render.json_lines import print_training_json

        return print_training_json(events, screen.out.file)
    from minillm_repl.render.training import TrainingView, summary

    watch = _make_watch(shell, run)
    plan, (on_the_way, last) = run.plan, run.trainer.evaluator.token_counts()
    with (
        TrainingView(screen, plan.steps, plan.eval_interval, last / on_the_way) as view,
        on_process_resume(view.redraw_below),
    ):
        finished = view.draw(events, lambda: _sample(shell, run, watch, interrupted))
    if watch:
        shell.session.workspace.watch_view = watch.view()
    if finished.steps:
        screen.notes_console.print(summary(finished))
    return finished


def _make_watch(shell: Shell, run: "TrainingRun") -> "Watch | None":
    """Return the watch on the prompt of `:watch`, if there is one."""
    prompt = shell.session.workspace.watch_prompt
    if not prompt or run.plan.shard:  # No process has the whole of a sharded model.
        return None
    ids = run.tokenizer.encode(prompt)
    if not ids:
        shell.screen.warn(_("nothing is watched: no character of that prompt is in the vocabulary"))
        return None
    from minillm_repl.views.learning import Watch

    return Watch(run.tokenizer, ids)


def _sample(
    shell: Shell, run: "TrainingRun", watch: "Watch | None", interrupted: Callable[[], bool]
) -> "RenderableType | None":
    """Return a text that the model writes now, below what it predicts after the watched prompt
    and, with `:verbose`, after the sample's start.

    None when interrupted.
    """
    from rich.console import Group
    from rich.text import Text

    from minillm_repl.generate.options import GenerationConfig
    from minillm_repl.render.generation import step_table
    from minillm_repl.tokenizer.base import decode

    if run.plan.shard:
        return None  # No process has the whole model.
    verbose = shell.session.settings.verbose
    config = GenerationConfig(max_tokens=_SAMPLE_TOKENS, n_candidates=verbose)
    steps = _generate(run, config, interrupted)
    if interrupted():
        return None
    start = run.sample_prompt_ids
    text = decode(run.tokenizer, start + [step.id for step in steps])
    parts: list[RenderableType] = []
    if watch:
        moment = watch.look(run.trainer.model, run.trainer.state.step)
        parts.append(moment.line(shell.session.workspace.watch_prompt))
    if verbose:
        width = shell.screen.notes_console.width
        parts.append(Text(_("after {text!r}", text=safe(decode(run.tokenizer, start)))))
        parts.append(step_table(steps[0], samplers_heading(config.sampling), width))
        return Group(*parts, Text(safe(text)))
    if not parts:
        return text
    return Group(*parts, Text(safe_line(text), MODEL, no_wrap=True, overflow="ellipsis"))


def _generate(
    run: "TrainingRun", config: "GenerationConfig", interrupted: Callable[[], bool]
) -> "list[Step]":
    """Return the steps of a sample, always with the same random numbers."""
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.generate.events import Step
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.sampling import make_rng

    decoder, ids = TorchDecoder(run.trainer.model), run.sample_prompt_ids
    events = generate(decoder, run.tokenizer, ids, config, make_rng(0), interrupted)
    return [event for event in events if isinstance(event, Step)]
