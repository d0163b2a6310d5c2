"""The model writes: what it was given and what it adds, on the screen, until it is stopped."""

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import MODEL
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.settings import samplers_heading
from minillm_repl.repl.signals import InterruptCounter
from minillm_repl.safetext import safe
from minillm_repl.tokenizer import decode

if TYPE_CHECKING:
    from minillm_repl.chat.thinking import ThoughtSplitter
    from minillm_repl.generate import AnswerEvent, Finished
    from minillm_repl.repl.shell import Shell


def respond(
    shell: "Shell", model: LoadedModel, prefix: str = "", *, echo: bool = True
) -> "Finished":
    """Let the model continue the session's text; draw what it was given and what it adds."""
    from minillm_repl.render.generation import draw_text, generation_summary
    from minillm_repl.render.running import draw_coloured, legend
    from minillm_repl.render.thoughts import draw_thinking
    from minillm_repl.repl.thinking import splitter_of

    session, screen, tokenizer = shell.session, shell.screen, model.checkpoint.tokenizer
    verbose, turn = session.settings.verbose, session.conversation.turns[-1]
    prompt_text = (
        session.conversation.answer(tokenizer)
        if turn.prompt_messages
        else decode(tokenizer, session.conversation.ids)
    )
    # Where nobody sits, and nothing is hidden, the text is as the model writes it: with its tags.
    is_apart = screen.interactive or session.settings.think == "hide"
    is_chat = bool(turn.prompt_messages) and not verbose
    splitter = splitter_of(session.conversation, tokenizer) if is_chat and is_apart else None
    was_interrupted = shell.interrupted()  # before it began: what waits was typed after it
    try:
        events = _start_generation(shell, model, _candidates(session.settings.verbose))
    except UserError:
        shell.echo(prompt_text if echo else "", "\n", prefix)
        raise
    if verbose and verbose != "colour":
        if screen.interactive and prompt_text:
            shell.echo(prompt_text, "\n", prefix)
        finished = _draw_steps(shell, events, prompt_text, tokenizer.vocab_size)
    else:
        if verbose:
            screen.notes_console.print(legend(screen))
        if echo:
            shell.echo(prompt_text, "", prefix)
        before = f"{prefix if screen.interactive else ''}{prompt_text}" if echo else ""
        try:
            if splitter:
                is_hidden = session.settings.think == "hide"
                finished = draw_thinking(events, screen, splitter, before, is_hidden=is_hidden)
            elif verbose:
                finished = draw_coloured(events, screen)
            else:
                finished = draw_text(events, screen, before)
        finally:
            screen.out.print()  # whatever happened, the next thing has a line of its own
    thoughts = _keep_thoughts(shell, splitter) if splitter else ""
    # What is asked may be any function of whoever runs the shell.
    by_escape = isinstance(shell.interrupted, InterruptCounter) and shell.interrupted.is_escape
    if finished.reason == "interrupt" and not by_escape and not was_interrupted:
        shell.drop_typed_ahead()  # as a terminal drops what was typed before Ctrl-C
    seed = session.conversation.seed
    screen.note(generation_summary(finished, seed, by_escape=by_escape, thoughts=thoughts))
    if finished.format_complete is False:
        screen.warn(_("the answer ended before its format was complete: it is cut"))
    note_unseen(shell, model)
    return finished


def _draw_steps(
    shell: "Shell", events: "Iterator[AnswerEvent]", prompt_text: str, vocab_size: int
) -> "Finished":
    """Draw each step as a line or a table, and the whole text below."""
    from minillm_repl.render.generation import draw_steps
    from minillm_repl.render.running import draw_lines

    screen, settings = shell.screen, shell.session.settings
    if settings.verbose == "line":
        finished = draw_lines(events, screen)
    else:
        finished = draw_steps(events, screen, prompt_text, samplers_heading(settings), vocab_size)
    text = Text.assemble(safe(prompt_text), (safe(finished.text), MODEL))
    screen.out.print(text, soft_wrap=True)
    return finished


def _keep_thoughts(shell: "Shell", splitter: "ThoughtSplitter") -> str:
    """Let `:scroll` show the thoughts of an answer; return how many there are, if any."""
    text = splitter.text.strip("\n")
    if not text:
        return ""
    from minillm_repl.render.thoughts import thought_count

    shell.last_view, shell.last_pinned = lambda _width: Text(safe(text)), (0, 0)
    return thought_count(splitter.n_tokens)


def _candidates(verbose: int | str) -> int:
    """Return how many candidates the steps list for a way of drawing them."""
    from minillm_repl.render.running import LINE_CANDIDATES

    return verbose if isinstance(verbose, int) else LINE_CANDIDATES if verbose == "line" else 0


def note_unseen(shell: "Shell", model: LoadedModel) -> None:
    """Say that the text exceeds the context, if the present turn made it so."""
    conversation = shell.session.conversation
    turn, context = conversation.turns[-1], model.decoder.context_length
    if turn.prompt_messages or len(conversation.ids) <= context:
        return
    is_continued = turn.prompt_ids[: len(turn.ids_before)] == turn.ids_before
    if is_continued and len(turn.ids_before) > context:
        return  # the turn before has said so
    from minillm_repl.render.generation import outgrown_context_note

    window = model.visible_window(conversation.ids)
    shell.screen.note(outgrown_context_note(len(conversation.ids), window))


def _start_generation(shell: "Shell", model: LoadedModel, top: int) -> "Iterator[AnswerEvent]":
    """Return the events from the first token on; until then, the screen shows how much of a long
    prompt is read.

    Raises UserError if the logits are not finite.
    """
    from minillm_repl.generate import Prefill

    def stopped() -> bool:
        # After Ctrl-C no keys are read here: they belong to the next line.
        if not shell.interrupted() and shell.escape_pressed():
            shell.interrupted.press_escape()
        return shell.interrupted()

    conversation, settings = shell.session.conversation, shell.session.settings
    events = conversation.generate(model, settings, stopped, top)
    # Errors come before anything is drawn: the first event is taken here.
    event = next(events)
    if isinstance(event, Prefill):
        with shell.screen.waiting(_("reading")) as update:
            while isinstance(event, Prefill):
                done, total = event.done, event.total
                update(_("read {done:,} of {of:,} tokens", done=done, of=total))
                event = next(events)
    return chain([event], events)
