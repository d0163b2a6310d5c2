"""A conversation as the text that the model was trained to see, which its chat template writes, and as token ids."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.untrusted.ask import ask

_GUARD = "\ue000"  # a private character, put into what must not be taken for a special token
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
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]
) -> list[tuple[list[int], list[bool]]]:
    """Return the token ids of whole conversations, and of each whether it is to be learnt.

    Learnt is what the assistant says, and the special token that the template writes right after it; not what is said
    to it, nor what announces its turn. Raises UserError as `encode` does, and for a template that writes earlier turns
    otherwise once there are later ones.
    """
    wanted, turns = list[tuple[Sequence[Message], bool]](), list[list[int]]()
    for number, conversation in enumerate(conversations, 1):
        guarded = _guarded(tokenizer, conversation)
        turns.append([place for place, message in enumerate(guarded) if message.role == "assistant"])
        if not turns[-1]:
            raise UserError(f"conversation {number:,} has no turn of the assistant: there is nothing to learn from it")
        for place in turns[-1]:
            wanted += [(guarded[:place], True), (guarded[: place + 1], False)]
        wanted.append((guarded, False))
    texts = iter(render(template, wanted))
    found = []
    for number, (conversation, places) in enumerate(zip(conversations, turns, strict=True), 1):
        learnt = list[tuple[int, int]]()
        for place in places:
            before, after = next(texts), next(texts)
            if not after.startswith(before):
                raise UserError(f"the chat template does not write conversation {number:,} one turn after the other")
            content = _guarded(tokenizer, conversation[place : place + 1])[0].content.strip()
            learnt.append((len(before), _end(tokenizer, after, after.find(content, len(before)), content)))
        found.append(_marked(tokenizer, next(texts), learnt, number))
    return found


def _end(tokenizer: Tokenizer, text: str, start: int, content: str) -> int:
    """Return where what is learnt of a turn ends: after its content, and a special token that follows at once."""
    if start < 0:
        return len(text)
    end = start + len(content)
    name = _names(tokenizer).match(text, end)
    return name.end() if name else end


def _marked(
    tokenizer: Tokenizer, text: str, learnt: Sequence[tuple[int, int]], number: int
) -> tuple[list[int], list[bool]]:
    ids, marks, place = list[int](), list[bool](), 0
    for start, end in (*learnt, (len(text), len(text))):
        if start < place or end > len(text):
            raise UserError(f"the chat template does not write conversation {number:,} one turn after the other")
        for part, mark in ((text[place:start], False), (text[start:end], True)):
            new = _ids(tokenizer, part)
            ids += new
            marks += [mark] * len(new)
        place = end
    return ids, marks


def render(template: ChatTemplate, conversations: Sequence[tuple[Sequence[Message], bool]]) -> list[str]:
    """Return the texts that conversations become; with True, up to where the assistant's answer begins.

    The template comes with the model and is not trusted: it runs in Jinja's immutable sandbox, in a process of its own
    with limits on time, memory and output. Raises UserError if it refuses a conversation, or breaks a limit.
    """
    said = [([asdict(message) for message in messages], prompt) for messages, prompt in conversations]
    variables = dict(template.variables)
    texts = ask("template", "the chat template", template=template.source, variables=variables, conversations=said)
    return [str(text) for text in texts]


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
