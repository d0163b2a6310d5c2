"""A conversation as the text that the model was trained to see: its chat template, the context it must fit into."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.subword import SubwordTokenizer
from minillm_repl.untrusted.ask import ask

_GUARD = "\ue000"  # a private character, put into what must not be taken for a special token


@dataclass(frozen=True)
class Message:
    """One thing said."""

    role: Literal["system", "user", "assistant"]
    content: str


def render(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """Return the text that a conversation becomes, up to where the assistant's answer begins.

    The template comes with the model and is not trusted: it runs in Jinja's immutable sandbox, in a process of its own
    with limits on time, memory and output. Raises UserError if it refuses the conversation, or breaks a limit.
    """
    said = [asdict(message) for message in messages]
    variables = dict(template.variables)
    return str(ask("template", "the chat template", template=template.source, variables=variables, messages=said))


def encode(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], special: bool) -> list[int]:
    """Return the token ids of a conversation, up to where the answer begins. Raises UserError as `render` does.

    Special tokens come from the template alone: their names in what somebody said are text, unless `special`.
    """
    if not isinstance(tokenizer, SubwordTokenizer):
        return tokenizer.encode(render(template, messages))
    names = sorted(filter(None, tokenizer.special_names), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    if special or not any(pattern.search(message.content) for message in messages):
        return tokenizer.encode_rendered(render(template, messages))

    def guard(name: re.Match[str]) -> str:
        return _GUARD.join(name[0])

    guarded = [Message(message.role, pattern.sub(guard, message.content)) for message in messages]
    text, ids, place = render(template, guarded), list[int](), 0
    for name in pattern.finditer(text):  # those that are left are the template's own
        ids += tokenizer.encode(text[place : name.start()].replace(_GUARD, ""), start=False)
        ids += tokenizer.encode_rendered(name[0])
        place = name.end()
    return ids + tokenizer.encode(text[place:].replace(_GUARD, ""), start=False)


def fit(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], room: int, special: bool
) -> tuple[list[int], list[Message]]:
    """Return the ids of a conversation that fits into `room` tokens, and what of it is left.

    The oldest turns go first, the system prompt never. When any must go, a quarter of the room is made free with them,
    so that the next few turns find the start of the conversation as it is in the cache. Raises UserError if not even
    the last question fits.
    """
    kept = list(messages)
    ids = encode(template, tokenizer, kept, special)
    first = 1 if kept and kept[0].role == "system" else 0
    while len(ids) > (room if len(kept) == len(messages) else room * 3 // 4):
        if len(kept) <= first + 1:
            if len(ids) <= room:
                break
            raise UserError(f"this is too long: {len(ids)} tokens, and the model has room for {room} before its answer")
        del kept[first : first + 2]
        ids = encode(template, tokenizer, kept, special)
    return ids, kept
