"""A limit on what a reasoning model thinks: after so many tokens, it answers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from minillm_repl.chat.thinking import (
    END_OF_THOUGHT,
    ThoughtSplitter,
    end_of_thought,
    splitter_after,
)
from minillm_repl.generate import AnswerEvent, Finished, GenerationEvent, Inserted, Step
from minillm_repl.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minillm_repl.repl.conversation import Conversation


def splitter_of(conversation: "Conversation", tokenizer: Tokenizer) -> ThoughtSplitter:
    """Return what tells thoughts from the answer in what the model writes next."""
    is_continued = bool(conversation.answer(tokenizer))
    return splitter_after(tokenizer, conversation.ids, is_continued=is_continued)


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
