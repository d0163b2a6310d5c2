"""A limit on what a reasoning model thinks: after so many tokens, it answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minillm_repl.chat.thinking import (
    END_OF_THOUGHT,
    ThoughtSplitter,
    end_of_thought,
    splitter_after,
    with_variables,
    without_thought,
)
from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.generate import AnswerEvent, Finished, GenerationEvent, Inserted, Step
from minillm_repl.language import _
from minillm_repl.repl.settings import Settings
from minillm_repl.tokenizer import FIRST_OWN_ID, Tokenizer

if TYPE_CHECKING:
    from minillm_repl.repl.conversation import Conversation


_THINKS = {"on": True, "off": False}


def splitter_of(conversation: "Conversation", tokenizer: Tokenizer) -> ThoughtSplitter:
    """Return what tells thoughts from the answer in what the model writes next."""
    is_continued = bool(conversation.answer(tokenizer))
    return splitter_after(tokenizer, conversation.ids, is_continued=is_continued)


def check_limit(ids: Sequence[int], source: str) -> None:
    """Raise UserError where a server answers messages: such an answer cannot be continued."""
    if ids and ids[0] >= FIRST_OWN_ID:
        raise UserError(
            _(
                "{source} cannot be told when to end its thoughts: `:think auto` lets it, "
                "`:think off` asks for none",
                source=source,
            )
        )


def chosen_template(template: ChatTemplate, settings: Settings) -> ChatTemplate:
    """Return a chat template with the variables that are set, that for thinking included."""
    return with_variables(template, settings.template, thinks=_THINKS.get(str(settings.think)))


def finish_prompt(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    thinks: bool,
    has_format: bool,
) -> list[int]:
    """Return a rendered prompt up to where the answer begins: after an empty block for a model
    that shall not think, and after the end of one that the prompt opens, if the answer has a
    format: it begins with what is written next.
    """
    prompt = list(ids) if thinks else without_thought(template, tokenizer, ids)
    is_open = has_format and splitter_after(tokenizer, prompt).is_thinking
    return prompt + end_of_thought(tokenizer) if is_open else prompt


def limit_thought(
    run: Callable[[int], Iterator[GenerationEvent]],
    splitter: ThoughtSplitter,
    limit: int,
    tokenizer: Tokenizer,
) -> Iterator[AnswerEvent]:
    """Yield the events of a generation whose thoughts have at most `limit` tokens.

    `run(done)` continues the text after `done` tokens of this generation; whoever takes the events
    adds the tokens to it. The tokens that end the thoughts come as `Inserted`.
    """
    text, done, events = "", 0, run(0)
    for event in events:
        if isinstance(event, Step):
            text, done = text + event.text, done + 1
            splitter.feed(event.text, event.id)
        yield event
        if splitter.is_thinking and splitter.n_tokens >= limit:
            break
    if not splitter.is_thinking or splitter.n_tokens < limit:
        return
    ids = tuple(end_of_thought(tokenizer))
    inserted = Inserted(ids=ids, text=END_OF_THOUGHT)
    text, done = text + inserted.text, done + len(ids)
    yield inserted
    for event in run(done):
        if isinstance(event, Step):
            yield replace(event, index=event.index + done)
        elif isinstance(event, Finished):
            yield replace(event, text=text + event.text, tokens=event.tokens + done)
        else:
            yield event
