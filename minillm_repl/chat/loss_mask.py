"""Conversations as training examples: token ids, and a loss mask that selects the answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile

from minillm_repl.chat import (
    Message,
    RenderedChat,
    render_escaped,
    render_texts,
)
from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer import Span, Tokenizer
from minillm_repl.tokenizer.lookup import alternation_of

Example = tuple[list[int], list[bool]]
"""The token ids of a conversation, and which of them the loss counts."""


@dataclass(frozen=True, kw_only=True)
class _AssistantTurn:
    """One answer of the assistant."""

    conversation_number: int
    prompt_messages: Sequence[Message]  # before the answer
    content: str
    prompt: RenderedChat  # up to the start of the answer
    completed: RenderedChat  # with the answer


def encode_with_loss_mask(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    first: int = 1,
) -> list[list[Example]]:
    """Return the examples of each complete conversation: its token ids, and their loss mask.

    The loss counts the spans that the template marks (`{% generation %}`). Without marks it counts
    each answer and the token that the template writes after it. A template may render earlier
    turns differently once later ones follow, such as without their thoughts. Such a conversation
    becomes several examples, one for each answer as the model would have given it.

    `first` is the number of the first conversation, for messages. Raises UserError as `encode`
    does, and for a template that does not render an answer after its prompt.
    """
    inputs = [
        each
        for number, conversation in enumerate(conversations, first)
        for each in _template_inputs(conversation, number)
    ]
    # All renderings at once: each call of the sandbox starts a process.
    texts = iter(render_escaped(template, tokenizer, inputs))
    wholes = list[RenderedChat]()
    turns = list[_AssistantTurn]()
    for number, conversation in enumerate(conversations, first):
        wholes.append(next(texts))
        for index in _assistant_indices(conversation):
            turn = _AssistantTurn(
                conversation_number=number,
                prompt_messages=conversation[:index],
                content=conversation[index].content,
                prompt=next(texts),
                completed=next(texts),
            )
            turns.append(turn)
    closing = re.compile(alternation_of(tokenizer.added_names))
    starts = _answer_starts(template, turns)
    turn_spans = [
        (turn, _loss_spans(turn, start, closing)) for turn, start in zip(turns, starts, strict=True)
    ]
    by_conversation = groupby(turn_spans, lambda each: each[0].conversation_number)
    examples = list[list[tuple[RenderedChat, list[Span]]]]()
    for whole, (_number, group) in zip(wholes, by_conversation, strict=True):
        answers = [(turn.completed, spans) for turn, spans in group]
        # One example per conversation trains every answer at the cost of one pass.
        if _is_append_only(whole, answers):
            examples.append([(whole, [span for _completed, spans in answers for span in spans])])
        else:
            examples.append(answers)
    return [
        [
            tokenizer.encode_with_mask(rendered.text, spans, rendered.escapes)
            for rendered, spans in conversation_examples
        ]
        for conversation_examples in examples
    ]


def _assistant_indices(conversation: Sequence[Message]) -> list[int]:
    return [index for index, message in enumerate(conversation) if message.role == "assistant"]


def _template_inputs(
    conversation: Sequence[Message], number: int
) -> list[tuple[Sequence[Message], bool]]:
    """Return the renderings of a conversation: complete, then up to and with each answer.

    Raises UserError for a conversation without an answer.
    """
    indices = _assistant_indices(conversation)
    if not indices:
        raise UserError(
            _(
                "conversation {number:,} has no assistant turn: there is nothing to learn from it",
                number=number,
            )
        )
    inputs: list[tuple[Sequence[Message], bool]] = [(conversation, False)]
    for index in indices:
        inputs += [(conversation[:index], True), (conversation[: index + 1], False)]
    return inputs


def _answer_starts(template: ChatTemplate, turns: Sequence[_AssistantTurn]) -> list[int]:
    """Return the position of each answer in its rendered text, in characters.

    An answer begins where its prompt ends. Some templates end a prompt with an opening (`<think>`)
    that they leave out of a finished answer. Then an answer begins where the renderings of two
    different answers ("0" and "a") begin to differ. Raises UserError if there is no such position.
    """
    starts = [
        len(turn.prompt.text) if turn.completed.unescaped.startswith(turn.prompt.unescaped) else -1
        for turn in turns
    ]
    opened = [index for index, start in enumerate(starts) if start < 0]
    answers = [[Message("assistant", content)] for content in "0a"]
    inputs = [
        ([*turns[index].prompt_messages, *answer], False)
        for index in opened
        for answer in ([], *answers)
    ]
    texts = iter(render_texts(template, inputs))
    for index in opened:
        turn = turns[index]
        prefix, one, other = next(texts), next(texts), next(texts)
        pairs = ((turn.prompt.unescaped, turn.completed.unescaped), (one, other))
        # Otherwise the template reorders turns, and no position is that of the answer.
        if not all(text.startswith(prefix) for pair in pairs for text in pair):
            raise UserError(
                _(
                    "the chat template does not render the turns of conversation "
                    "{number:,} one after the other",
                    number=turn.conversation_number,
                )
            )
        starts[index] = min(map(_common_prefix_length, pairs))
    return starts


def _common_prefix_length(texts: tuple[str, str]) -> int:
    """Return how many of the first characters of two texts are the same."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    return len(list(same))


def _loss_spans(turn: _AssistantTurn, start: int, closing: re.Pattern[str]) -> list[Span]:
    """Return the spans of a turn that the loss counts: the marked ones, or the whole answer."""
    # Marks of earlier turns are in the text too.
    if turn.completed.answer_spans:
        return [span for span in turn.completed.answer_spans if span[1] > start]
    return [(start, _answer_end(turn, start, closing))]


def _answer_end(turn: _AssistantTurn, start: int, closing: re.Pattern[str]) -> int:
    """Return the position after an answer's content and the token that closes it.

    If the template changed the content, the token that ends the text closes it.
    """
    text = turn.completed.text
    unescaped = turn.completed.unescaped
    content = turn.content.strip()
    closed = re.compile(rf"\s*(?:{closing.pattern})")
    found = unescaped.find(content, start)
    while found >= 0:  # a short content may occur in the turn's header too
        if match := closed.match(text, found + len(content)):
            return match.end()
        found = unescaped.find(content, found + 1)
    last = [each.end() for each in closing.finditer(text, start) if not text[each.end() :].strip()]
    return last[0] if last else len(text)


def _is_append_only(
    whole: RenderedChat, turns: Sequence[tuple[RenderedChat, Sequence[Span]]]
) -> bool:
    """Tell whether the complete text has every answer as the model would have given it."""
    spans = [span for _completed, turn_spans in turns for span in turn_spans]
    if any(before[1] > after[0] for before, after in pairwise(spans)):
        return False
    return all(
        whole.unescaped.startswith(completed.unescaped[: turn_spans[-1][1]])
        for completed, turn_spans in turns
        if turn_spans
    )
