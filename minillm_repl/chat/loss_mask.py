"""Whole conversations as token ids, and which of them are to be learnt: the assistant's answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile

from minillm_repl.chat.template import (
    Message,
    RenderedChat,
    alternation_of,
    render_escaped,
    render_texts,
)
from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Span, Tokenizer


@dataclass(frozen=True)
class _AssistantTurn:
    """One answer of the assistant."""

    conversation_number: int  # of its conversation
    prompt_messages: Sequence[Message]  # what it answers
    content: str
    prompt: RenderedChat  # with the start of an answer
    completed: RenderedChat  # with the answer


def encode_with_loss_mask(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    first: int = 1,
) -> list[tuple[list[int], list[bool]]]:
    """Return the token ids of whole conversations, and of each whether it is to be learnt.

    Learnt is what the template marks as an answer (`{% generation %}`), or else what the assistant
    says, and the token that the template writes after it; not what is said to it, nor what
    announces its turn. Where a template writes earlier turns otherwise once there are later ones
    (it may drop their thoughts), a conversation becomes several, one for each turn of the assistant
    as the model would have given it. Raises UserError as `encode` does, and for a template in which
    an answer does not follow what it answers; it names a conversation by its number, of which that
    of the first is `first`.
    """
    numbered = list(enumerate(conversations, first))
    wanted = [
        asked
        for number, conversation in numbered
        for asked in _template_inputs(conversation, number)
    ]
    texts = iter(render_escaped(template, tokenizer, wanted))
    wholes, turns = list[RenderedChat](), list[_AssistantTurn]()
    for number, conversation in numbered:
        wholes.append(next(texts))
        for place in _assistant_indices(conversation):
            content = conversation[place].content
            turns.append(
                _AssistantTurn(number, conversation[:place], content, next(texts), next(texts))
            )
    closing = re.compile(alternation_of(tokenizer.added_names))
    turn_spans = [
        (turn, _loss_spans(turn, start, closing))
        for turn, start in zip(turns, _answer_starts(template, turns), strict=True)
    ]
    found = list[tuple[list[int], list[bool]]]()
    for whole, (_number, group) in zip(
        wholes, groupby(turn_spans, lambda each: each[0].conversation_number), strict=True
    ):
        its = [(turn.completed, spans) for turn, spans in group]
        parts = (
            [(whole, [span for _, spans in its for span in spans])]
            if _is_append_only(whole, its)
            else its
        )
        found += [
            tokenizer.encode_with_mask(each.text, spans, each.escapes) for each, spans in parts
        ]
    return found


def _assistant_indices(conversation: Sequence[Message]) -> list[int]:
    return [place for place, message in enumerate(conversation) if message.role == "assistant"]


def _template_inputs(
    conversation: Sequence[Message], number: int
) -> list[tuple[Sequence[Message], bool]]:
    """Return what is to be rendered: the whole, and up to each answer and after it."""
    places = _assistant_indices(conversation)
    if not places:
        raise UserError(
            _(
                "conversation {number:,} has no assistant turn: there is nothing to learn from it",
                number=number,
            )
        )
    parts = [((conversation[:place], True), (conversation[: place + 1], False)) for place in places]
    return [(conversation, False), *(each for pair in parts for each in pair)]


def _answer_starts(template: ChatTemplate, turns: Sequence[_AssistantTurn]) -> list[int]:
    """Return where in its text the answer of each turn begins.

    That is where what the model is given ends. Some templates open an answer in a way (`<think>`)
    in which they do not write it afterwards; there it is where two answers that have nothing in
    common begin to differ.
    """
    starts = [
        len(turn.prompt.text) if turn.completed.unescaped.startswith(turn.prompt.unescaped) else -1
        for turn in turns
    ]
    opened = [place for place, start in enumerate(starts) if start < 0]
    answers = [[Message("assistant", said)] for said in "0a"]
    wanted = [
        ([*turns[place].prompt_messages, *more], False)
        for place in opened
        for more in ([], *answers)
    ]
    texts = iter(render_texts(template, wanted) if wanted else [])
    for place in opened:
        turn, prefix, one, other = turns[place], next(texts), next(texts), next(texts)
        if not all(
            text.startswith(prefix)
            for text in (turn.prompt.unescaped, turn.completed.unescaped, one, other)
        ):
            raise UserError(
                _(
                    "the chat template does not render the turns of conversation "
                    "{number:,} one after the other",
                    number=turn.conversation_number,
                )
            )
        pairs = ((turn.prompt.unescaped, turn.completed.unescaped), (one, other))
        starts[place] = min(map(_common_prefix_length, pairs))
    return starts


def _common_prefix_length(texts: tuple[str, str]) -> int:
    """Return how many characters two texts begin with that are the same."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    return sum(1 for _ in same)


def _loss_spans(turn: _AssistantTurn, start: int, closing: re.Pattern[str]) -> list[Span]:
    """Return what is learnt of a turn: what the template marks, or else from its start to the
    token that closes it.
    """
    if turn.completed.answer_spans:
        return [span for span in turn.completed.answer_spans if span[1] > start]
    return [(start, _answer_end(turn, start, closing))]


def _answer_end(turn: _AssistantTurn, start: int, closing: re.Pattern[str]) -> int:
    """Return where what is learnt of a turn ends: after its content, and a token that closes it.

    A template may have changed the content; then a token that closes the text closes it too.
    """
    text, true, content = turn.completed.text, turn.completed.unescaped, turn.content.strip()
    ended = re.compile(rf"\s*(?:{closing.pattern})")
    place = true.find(content, start)
    while place >= 0:  # a short content may stand in the turn's announcement too
        if closed := ended.match(text, place + len(content)):
            return closed.end()
        place = true.find(content, place + 1)
    last = [each.end() for each in closing.finditer(text, start) if not text[each.end() :].strip()]
    return last[0] if last else len(text)


def _is_append_only(
    whole: RenderedChat, turns: Sequence[tuple[RenderedChat, Sequence[Span]]]
) -> bool:
    """Tell whether a conversation holds each of its answers as the model would have given it."""
    spans = [span for _, its in turns for span in its]
    if not all(end <= start for (_, end), (start, _) in pairwise(spans)):
        return False
    return all(
        whole.unescaped.startswith(each.unescaped[: its[-1][1]]) for each, its in turns if its
    )
