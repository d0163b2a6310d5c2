"""A conversation as the text that the model was trained to see, which its chat template writes, and as token ids."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.untrusted.ask import ask

_GUARD = "\ue000"  # a private character, put into what must not be taken for a special token
_AT_ONCE, _WRITTEN_AROUND = 1 << 20, 100  # characters: rendered together, and beside what is said in a turn, about
ROLES = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

PLAIN = ChatTemplate(
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template of a new model that is trained on conversations; its special tokens are `ROLES`."""


@dataclass(frozen=True)
class Message:
    """One thing said."""

    role: Literal["system", "user", "assistant"]
    content: str


def encode(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], special: bool) -> list[int]:
    """Return the token ids of a conversation, up to where the assistant's answer begins.

    Special tokens come from the template alone: their names in what somebody said are text, unless `special`.
    Raises UserError if the template refuses the conversation, or breaks a limit.
    """
    guarded = messages if special else _guarded(tokenizer, messages)
    return _ids(tokenizer, render(template, [(guarded, True)])[0])


def trained_ids(
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], first: int = 1
) -> list[tuple[list[int], list[bool]]]:
    """Return the token ids of whole conversations, and of each whether it is to be learnt.

    Learnt is what the assistant says, and the special token that the template writes after it; not what is said to it,
    nor what announces its turn. Where a template writes earlier turns otherwise once there are later ones (it may drop
    their thoughts), a conversation becomes several, one for each turn of the assistant as the model would have given
    it. Raises UserError as `encode` does, and for a template in which an answer does not follow what it answers; it
    names a conversation by its number, of which that of the first is `first`.
    """
    wanted, turns = list[tuple[Sequence[Message], bool]](), list[list[int]]()
    for number, conversation in enumerate(conversations, first):
        guarded = _guarded(tokenizer, conversation)
        turns.append([place for place, message in enumerate(guarded) if message.role == "assistant"])
        if not turns[-1]:
            raise UserError(
                _(
                    "conversation {number:,} has no turn of the assistant: there is nothing to learn from it",
                    number=number,
                )
            )
        wanted.append((guarded, False))
        for place in turns[-1]:
            wanted += [(guarded[:place], True), (guarded[: place + 1], False)]
    texts = iter(render(template, wanted))
    found = []
    for number, (conversation, places) in enumerate(zip(conversations, turns, strict=True), first):
        whole, given, learnt = next(texts), list[str](), list[tuple[int, int]]()
        for place in places:
            before, after = next(texts), next(texts)
            if not after.startswith(before):
                raise UserError(
                    _(
                        "the chat template does not write conversation {number:,} one turn after the other",
                        number=number,
                    )
                )
            content = _guarded(tokenizer, conversation[place : place + 1])[0].content.strip()
            learnt.append((len(before), _end(tokenizer, after, len(before), content)))
            given.append(after)
        follow = all(end <= start for (_, end), (start, _) in pairwise(learnt))
        if follow and all(whole.startswith(text[:end]) for text, (_, end) in zip(given, learnt, strict=True)):
            found.append(_marked(tokenizer, whole, learnt))
        else:
            found += [_marked(tokenizer, text, [turn]) for text, turn in zip(given, learnt, strict=True)]
    return found


def _end(tokenizer: Tokenizer, text: str, start: int, content: str) -> int:
    """Return where what is learnt of a turn ends: after its content, and a special token that follows."""
    closing = re.compile(rf"\s*(?:{_names(tokenizer).pattern})")
    place, end = text.find(content, start), len(text)
    while place >= 0:  # a short content may stand in the turn's announcement too
        end = place + len(content)
        if closed := closing.match(text, end):
            return closed.end()
        place = text.find(content, place + 1)
    return end


def _marked(tokenizer: Tokenizer, text: str, learnt: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    ids, marks, place, before = list[int](), list[bool](), 0, ""
    for start, end in (*learnt, (len(text), len(text))):
        for part, mark in ((text[place:start], False), (text[start:end], True)):
            new = _following(tokenizer, before, part)
            ids += new
            marks += [mark] * len(new)
            before = part or before
        place = end
    return ids, marks


def _following(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Return the ids of a text that goes on from another: some tokenizers put a space before a text that does not."""
    known, both = _ids(tokenizer, before), _ids(tokenizer, before + text)
    return both[len(known) :] if both[: len(known)] == known else _ids(tokenizer, text)


def render(template: ChatTemplate, conversations: Sequence[tuple[Sequence[Message], bool]]) -> list[str]:
    """Return the texts that conversations become; with True, up to where the assistant's answer begins.

    The template comes with the model and is not trusted: it runs in Jinja's immutable sandbox, in a process of its own
    with limits on time, memory and output. Raises UserError if it refuses a conversation, or breaks a limit.
    """
    texts, variables = list[str](), dict(template.variables)
    for group in _groups(conversations):
        said = [([asdict(message) for message in messages], prompt) for messages, prompt in group]
        made = ask(
            "template", _("the chat template"), template=template.source, variables=variables, conversations=said
        )
        texts += map(str, made)
    return texts


def _groups(
    conversations: Sequence[tuple[Sequence[Message], bool]],
) -> Iterator[list[tuple[Sequence[Message], bool]]]:
    """Yield conversations in groups for which the other process has room."""
    group, length = list[tuple[Sequence[Message], bool]](), 0
    for conversation in conversations:
        size = sum(len(message.content) + _WRITTEN_AROUND for message in conversation[0])
        if group and length + size > _AT_ONCE:
            yield group
            group, length = [], 0
        group.append(conversation)
        length += size
    if group:
        yield group


def _names(tokenizer: Tokenizer) -> re.Pattern[str]:
    names = sorted(filter(None, tokenizer.special_names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _guarded(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Message]:
    """Return messages in which the names of special tokens are no longer whole."""

    def guard(name: re.Match[str]) -> str:
        return _GUARD.join(name[0])

    pattern = _names(tokenizer)
    return [Message(message.role, pattern.sub(guard, message.content)) for message in messages]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of what a template wrote; what was guarded is text."""
    if _GUARD not in text:
        return tokenizer.encode_rendered(text)
    ids, place = list[int](), 0
    for name in _names(tokenizer).finditer(text):  # those that are left are the template's own
        ids += tokenizer.encode(text[place : name.start()].replace(_GUARD, ""), start=False)
        ids += tokenizer.encode_rendered(name[0])
        place = name.end()
    return ids + tokenizer.encode(text[place:].replace(_GUARD, ""), start=False)
