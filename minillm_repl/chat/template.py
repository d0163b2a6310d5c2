"""A conversation as the text that the model was trained to see, which its chat template writes,
and as token ids.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.language import _
from minillm_repl.sandbox.ask import ask
from minillm_repl.tokenizer.base import Span, Tokenizer, Typed

# characters: rendered together, and beside what is said in a turn, about
_AT_ONCE, _WRITTEN_AROUND = 1 << 20, 100
_PRIVATE = range(0xF0000, 0x110000)  # code points; one that nobody wrote can stand for a character
_NONE = re.compile("(?!)")
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


Asked = tuple[Sequence[Message], bool]
"""A conversation, and whether the assistant's answer is to begin after it."""


@dataclass(frozen=True)
class Prompt:
    """What a model is given in a chat."""

    ids: list[int]
    end: tuple[int, ...]  # the token that the template writes after an answer, if there is one


@dataclass(frozen=True)
class Rendered:
    """What a template made of a conversation."""

    text: str
    answers: tuple[Span, ...] = ()  # those that the template marks
    typed: Typed = field(default_factory=dict)

    @property
    def true(self) -> str:
        """The text as it was said; each character is at its place in `text`."""
        return self.text.translate(self.typed)


_TRIED = (Message("user", "question"), Message("assistant", "answer"))


def prompt(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], special: bool
) -> Prompt:
    """Return the token ids of a conversation, up to where the assistant's answer begins, and what
    ends that.

    Special tokens come from the template alone: their names in what somebody said are text, unless
    `special`. Raises UserError if the template refuses the conversation, or breaks a limit, or if
    the model has no row for a token.
    """
    made, tried = _rendered(template, tokenizer, [(messages, True)], special, [_TRIED])
    *_, closing = [
        None,
        *re.finditer(rf"{_TRIED[-1].content}\s*({any_of(tokenizer.added_names)})", tried[0]),
    ]
    end = tokenizer.named(closing[1]) if closing else None
    return Prompt(
        tokenizer.encode_rendered(made[0].text, made[0].typed), () if end is None else (end,)
    )


def encode(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], special: bool
) -> list[int]:
    """Return the token ids of `prompt` alone."""
    return prompt(template, tokenizer, messages, special).ids


def render(template: ChatTemplate, conversations: Sequence[Asked]) -> list[str]:
    """Return the texts that conversations become; with True, up to where the assistant's answer
    begins.

    Raises UserError if the template refuses a conversation, or breaks a limit.
    """
    return [each.text for each in _ask(template, conversations)[0]]


def rendered(
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[Asked]
) -> list[Rendered]:
    """Return what `render` does, with what is needed to make tokens of it: special names that
    were said are text.
    """
    return _rendered(template, tokenizer, conversations)[0]


def _rendered(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[Asked],
    special: bool = False,
    tried: Sequence[Sequence[Message]] = (),
) -> tuple[list[Rendered], list[str]]:
    """Return what a template makes of conversations, and of those that are only tried: it may
    refuse them.

    Where the name of a special token was said, another character stands for its first one: so the
    template measures what was said, and its own names are known from those. A template that takes
    apart what the assistant said (at a
    `</think>` that is a special token) is shown that as it is.
    """
    begins = re.compile(rf"(?={any_of(() if special else tokenizer.special_names)})(.)", re.DOTALL)
    guards = [Guard.of(template, begins, said) for said, _ in conversations]
    hidden = [place for place, guard in enumerate(guards) if guard.typed]
    asked = [
        (guard.hide(said), begun)
        for guard, (said, begun) in zip(guards, conversations, strict=True)
    ]
    made, extra = _ask(template, [*asked, *(conversations[place] for place in hidden)], tried)
    found = [replace(each, typed=guard.typed) for each, guard in zip(made, guards, strict=False)]
    true = dict(zip(hidden, made[len(found) :], strict=True))
    other = [place for place in hidden if found[place].true != true[place].text]
    again = [
        (guards[place].hide(conversations[place][0], but="assistant"), conversations[place][1])
        for place in other
    ]
    for place, each in zip(other, _ask(template, again)[0] if again else [], strict=True):
        shown = replace(each, typed=guards[place].typed)
        found[place] = shown if shown.true == true[place].text else found[place]
    return found, extra


@dataclass(frozen=True)
class Guard:
    """Hides the names of special tokens in what is said, each behind another first character."""

    typed: Typed = field(default_factory=dict)
    pattern: re.Pattern[str] = _NONE

    @classmethod
    def of(
        cls, template: ChatTemplate, pattern: re.Pattern[str], said: Sequence[Message]
    ) -> "Guard":
        """Return what hides names in a conversation, by characters that neither it nor the template
        has.

        `pattern` finds the first character of each name.
        """
        first = sorted({name[1] for message in said for name in pattern.finditer(message.content)})
        if not first:
            return cls()
        written = set(
            "".join(
                [template.source, *template.variables.values(), *(each.content for each in said)]
            )
        )
        free = (point for point in _PRIVATE if chr(point) not in written)
        return cls(dict(zip(free, first, strict=False)), pattern)

    def hide(self, said: Sequence[Message], but: str = "") -> list[Message]:
        """Return a conversation without the names, except in what one role said."""
        stands = {character: chr(point) for point, character in self.typed.items()}

        def hidden(text: str) -> str:
            return self.pattern.sub(lambda name: stands.get(name[1], name[1]), text)

        return [
            each if each.role == but else Message(each.role, hidden(each.content)) for each in said
        ]


def any_of(names: Iterable[str]) -> str:
    """Return the expression of the longest of these names."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, ordered)) or '(?!)'})"


def _ask(
    template: ChatTemplate, conversations: Sequence[Asked], tried: Sequence[Sequence[Message]] = ()
) -> tuple[list[Rendered], list[str]]:
    """Have conversations rendered, and try others.

    The template comes with the model and is not trusted: it runs in Jinja's immutable sandbox, in a
    process of its own with limits on time, memory and output.
    """
    made, extra, variables = list[Rendered](), list[str](), dict(template.variables)
    more = [[asdict(message) for message in messages] for messages in tried]
    for group in _groups(conversations):
        said = [([asdict(message) for message in messages], begun) for messages, begun in group]
        texts, extra = ask(
            "template", _("the chat template"),
            template=template.source, variables=variables, conversations=said, tried=more,
        )  # fmt: skip
        made += [Rendered(text, tuple(map(tuple, answers))) for text, answers in texts]
    return made, extra


def _groups(conversations: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Yield conversations in groups for which the other process has room."""
    group, length = list[Asked](), 0
    for conversation in conversations:
        size = sum(len(message.content) + _WRITTEN_AROUND for message in conversation[0])
        if group and length + size > _AT_ONCE:
            yield group
            group, length = [], 0
        group.append(conversation)
        length += size
    if group:
        yield group
