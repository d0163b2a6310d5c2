"""A conversation as the text that the model was trained to see, which its chat template writes,
and as token ids.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.language import _
from minillm_repl.sandbox.run import run_sandboxed
from minillm_repl.tokenizer.base import Escapes, Span, Tokenizer

# characters: rendered together, and beside what is said in a turn, about
_BATCH_CHARACTERS, _TEMPLATE_OVERHEAD = 1 << 20, 100
_PRIVATE_USE = range(
    0xF0000, 0x110000
)  # code points; one that nobody wrote can stand for a character
_MATCH_NOTHING = re.compile("(?!)")
ROLE_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

DEFAULT_CHAT_TEMPLATE = ChatTemplate(
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template of a new model that is trained on conversations; its special tokens are `ROLES`."""


@dataclass(frozen=True)
class Message:
    """One thing said."""

    role: Literal["system", "user", "assistant"]
    content: str


TemplateInput = tuple[Sequence[Message], bool]
"""A conversation, and whether the assistant's answer is to begin after it."""


@dataclass(frozen=True)
class Prompt:
    """What a model is given in a chat."""

    ids: list[int]
    eos_token_ids: tuple[
        int, ...
    ]  # the token that the template writes after an answer, if there is one


@dataclass(frozen=True)
class RenderedChat:
    """What a template made of a conversation."""

    text: str
    answer_spans: tuple[Span, ...] = ()  # those that the template marks
    escapes: Escapes = field(default_factory=dict)

    @property
    def unescaped(self) -> str:
        """The text as it was said; each character is at its place in `text`."""
        return self.text.translate(self.escapes)


_PROBE = (Message("user", "question"), Message("assistant", "answer"))


def make_prompt(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], parse_special: bool
) -> Prompt:
    """Return the ids of a conversation, up to the assistant's answer, and what ends that.

    Special tokens come from the template alone: their names in what somebody said are text, unless
    `special`. Raises UserError if the template refuses the conversation, or breaks a limit, or if
    the model has no row for a token.
    """
    rendered_chats, probe_texts = _render_escaped(
        template, tokenizer, [(messages, True)], parse_special, [_PROBE]
    )
    *_, closing = [
        None,
        *re.finditer(
            rf"{_PROBE[-1].content}\s*({alternation_of(tokenizer.added_names)})", probe_texts[0]
        ),
    ]
    end = tokenizer.token_to_id(closing[1]) if closing else None
    return Prompt(
        tokenizer.encode_rendered(rendered_chats[0].text, rendered_chats[0].escapes),
        () if end is None else (end,),
    )


def apply_chat_template(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], parse_special: bool
) -> list[int]:
    """Return the token ids of `prompt` alone."""
    return make_prompt(template, tokenizer, messages, parse_special).ids


def render_texts(template: ChatTemplate, conversations: Sequence[TemplateInput]) -> list[str]:
    """Return the texts that conversations become; with True, up to the assistant's answer.

    Raises UserError if the template refuses a conversation, or breaks a limit.
    """
    return [each.text for each in _render_sandboxed(template, conversations)[0]]


def render_escaped(
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[TemplateInput]
) -> list[RenderedChat]:
    """Return what `render` does, with what is needed to make tokens of it: special names that
    were said are text.
    """
    return _render_escaped(template, tokenizer, conversations)[0]


def _render_escaped(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[TemplateInput],
    parse_special: bool = False,
    probes: Sequence[Sequence[Message]] = (),
) -> tuple[list[RenderedChat], list[str]]:
    """Return what a template makes of conversations, and of those only tried: it may refuse them.

    Where the name of a special token was said, another character stands for its first one: so the
    template measures what was said, and its own names are known from those. A template that takes
    apart what the assistant said (at a
    `</think>` that is a special token) is shown that as it is.
    """
    begins = re.compile(
        rf"(?={alternation_of(() if parse_special else tokenizer.special_names)})(.)", re.DOTALL
    )
    guards = [NameEscaper.for_messages(template, begins, said) for said, _ in conversations]
    hidden = [place for place, guard in enumerate(guards) if guard.escapes]
    inputs = [
        (guard.escape(said), begun)
        for guard, (said, begun) in zip(guards, conversations, strict=True)
    ]
    made, extra = _render_sandboxed(
        template, [*inputs, *(conversations[place] for place in hidden)], probes
    )
    found = [
        replace(each, escapes=guard.escapes) for each, guard in zip(made, guards, strict=False)
    ]
    originals = dict(zip(hidden, made[len(found) :], strict=True))
    changed = [place for place in hidden if found[place].unescaped != originals[place].text]
    retries = [
        (
            guards[place].escape(conversations[place][0], except_role="assistant"),
            conversations[place][1],
        )
        for place in changed
    ]
    for place, each in zip(
        changed, _render_sandboxed(template, retries)[0] if retries else [], strict=True
    ):
        shown = replace(each, escapes=guards[place].escapes)
        found[place] = shown if shown.unescaped == originals[place].text else found[place]
    return found, extra


@dataclass(frozen=True)
class NameEscaper:
    """Hides the names of special tokens in what is said, each behind another first character."""

    escapes: Escapes = field(default_factory=dict)
    pattern: re.Pattern[str] = _MATCH_NOTHING

    @classmethod
    def for_messages(
        cls, template: ChatTemplate, pattern: re.Pattern[str], messages: Sequence[Message]
    ) -> "NameEscaper":
        """Return what hides names in a conversation, by characters not in it or the template.

        `pattern` finds the first character of each name.
        """
        first = sorted(
            {name[1] for message in messages for name in pattern.finditer(message.content)}
        )
        if not first:
            return cls()
        written = set(
            "".join(
                [
                    template.source,
                    *template.variables.values(),
                    *(each.content for each in messages),
                ]
            )
        )
        free = (point for point in _PRIVATE_USE if chr(point) not in written)
        return cls(dict(zip(free, first, strict=False)), pattern)

    def escape(self, messages: Sequence[Message], except_role: str = "") -> list[Message]:
        """Return a conversation without the names, except in what one role said."""
        placeholders = {character: chr(point) for point, character in self.escapes.items()}

        def hidden(text: str) -> str:
            return self.pattern.sub(lambda name: placeholders.get(name[1], name[1]), text)

        return [
            each if each.role == except_role else Message(each.role, hidden(each.content))
            for each in messages
        ]


def alternation_of(names: Iterable[str]) -> str:
    """Return the expression of the longest of these names."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, ordered)) or '(?!)'})"


def _render_sandboxed(
    template: ChatTemplate,
    conversations: Sequence[TemplateInput],
    probes: Sequence[Sequence[Message]] = (),
) -> tuple[list[RenderedChat], list[str]]:
    """Have conversations rendered, and try others.

    The template comes with the model and is not trusted: it runs in Jinja's immutable sandbox, in a
    process of its own with limits on time, memory and output.
    """
    rendered_chats, extra, variables = list[RenderedChat](), list[str](), dict(template.variables)
    more = [[asdict(message) for message in messages] for messages in probes]
    for group in _batches(conversations):
        batch = [([asdict(message) for message in messages], begun) for messages, begun in group]
        texts, extra = run_sandboxed(
            "template", _("the chat template"),
            template=template.source, variables=variables, conversations=batch, probes=more,
        )  # fmt: skip
        rendered_chats += [
            RenderedChat(text, tuple(map(tuple, answers))) for text, answers in texts
        ]
    return rendered_chats, extra


def _batches(conversations: Sequence[TemplateInput]) -> Iterator[list[TemplateInput]]:
    """Yield conversations in groups for which the other process has room."""
    group, length = list[TemplateInput](), 0
    for conversation in conversations:
        size = sum(len(message.content) + _TEMPLATE_OVERHEAD for message in conversation[0])
        if group and length + size > _BATCH_CHARACTERS:
            yield group
            group, length = [], 0
        group.append(conversation)
        length += size
    if group:
        yield group
