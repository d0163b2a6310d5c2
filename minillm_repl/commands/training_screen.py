"""A training run on the screen or as JSON lines, with samples; its model is opened and saved."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import MODEL
from minillm_repl.repl.job_control import on_process_resume
from minillm_repl.repl.settings import samplers_heading
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe, safe_line

if TYPE_CHECKING:  # The prompt line starts without torch.
    from rich.console import RenderableType

    from minillm_repl.checkpoint import Checkpoint
    from minillm_repl.generate import GenerationConfig, Step
    from minillm_repl.training import TrainingFinished
    from minillm_repl.training.run import TrainingRun
    from minillm_repl.views.learning import Watch

_SAMPLE_TOKENS = 40  # of the model's own text


def run_on_screen(
    shell: Shell, run: "TrainingRun", interrupted: Callable[[], bool], *, json: bool
) -> None:
    """Draw a run to its end, and open what was learnt, also after a second Ctrl-C.

    Raises UserError at the end of a run that learnt nothing.
    """
    from minillm_repl.training.record import describe_failure

    screen, workspace = shell.screen, shell.session.workspace
    first_step = run.trainer.state.step
    workspace.is_training = True
    try:
        finished = draw_run(shell, run, interrupted, json=json)
        if not finished.steps:
            raise UserError(_("stopped before the first step; nothing was changed"))
        _finish(shell, run, finished)
        failure = describe_failure(finished, run.trainer.plan)
        if failure:  # after the model is saved: a script must see that it is no better
            raise UserError(failure)
    except KeyboardInterrupt:  # a second Ctrl-C, in the middle of anything
        # All processes must gather a sharded model; after a Ctrl-C, some may be gone.
        is_alone = run.context.distributed.world_size == 1
        if workspace.is_training and run.trainer.state.step > first_step and is_alone:
            _open_trained(shell, run.checkpoint(), resumable=run.is_saved)
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
    shell.screen.note(safe_line(run.title))


def _finish(shell: Shell, run: "TrainingRun", finished: "TrainingFinished") -> None:
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
        _open_trained(shell, checkpoint, resumable=resumable)
    finally:  # also of a model that could not be saved
        if checkpoint.record and run.context.distributed.rank == 0:
            saved = shell.session.workspace.writable_path
            add_run(checkpoint.record, printable_path(saved) if saved else "")
    if not is_stopped:
        with suppress(OSError):  # Not before the weights are saved: until then it is what there is.
            resume_path(path).unlink()


def _open_trained(shell: Shell, checkpoint: "Checkpoint", *, resumable: bool = False) -> None:
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
    if run.trainer.plan.log == "csv" and save and run.context.distributed.rank == 0:
        from minillm_repl.training.log import logged

        events = logged(events, run.context.path.with_suffix(".csv"), screen.warn)
    announce(shell, run)
    if json:
        from minillm_repl.render.json_lines import print_training_json

        return print_training_json(events, screen.out.file)
    from minillm_repl.render.training import TrainingView, summary

    watch = _make_watch(shell, run)
    # The time of an evaluation is proportional to its tokens.
    plan, (on_the_way, last) = run.trainer.plan, run.trainer.evaluator.token_counts()
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
    if not prompt or run.trainer.plan.shard:  # No process has the whole of a sharded model.
        return None
    ids = run.start.tokenizer.encode(prompt)
    if not ids:
        shell.screen.warn(_("nothing is watched: no character of that prompt is in the vocabulary"))
        return None
    from minillm_repl.views.learning import Watch

    return Watch(run.start.tokenizer, ids)


def _sample(
    shell: Shell, run: "TrainingRun", watch: "Watch | None", interrupted: Callable[[], bool]
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
    verbose = shell.session.settings.verbose
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
    if verbose:
        width = shell.screen.notes_console.width
        parts.append(Text(_("after {text!r}", text=safe(run.sample_heading))))
        parts.append(step_table(steps[0], samplers_heading(config.sampling), width))
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
