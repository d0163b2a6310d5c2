"""Conversations: rendered by a chat template as the text and ids that a model was trained on.

A template comes with a model and is untrusted. It runs in the sandbox.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.sandbox import run_sandboxed
from minillm_repl.tokenizer import Escapes, Span, Tokenizer
from minillm_repl.tokenizer.lookup import alternation_of

_BATCH_CHARACTERS = 1 << 20  # rendered in one process; its output has a limit
_TEMPLATE_OVERHEAD = 100  # characters that a template adds to a turn, about
_PRIVATE_USE = range(0xF0000, 0x110000)  # code points that texts do not use
_MATCH_NOTHING = re.compile("(?!)")
ROLE_TOKENS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TOOL_TOKEN = "<|tool|>"  # noqa: S105 - of a new model whose conversations have such messages

DEFAULT_CHAT_TEMPLATE = ChatTemplate(
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The template of a new model trained on conversations; ROLE_TOKENS are its special tokens."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


def parse_messages(messages: str | Sequence[Message | Mapping[str, str]]) -> list[Message]:
    """Return the messages that a program gives; a text is one of the user.

    Raises UserError if one is no message, or if the last is not of the user.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    try:
        parsed = [
            each if isinstance(each, Message) else Message(**each)  # type: ignore[arg-type]
            for each in messages
        ]
    except TypeError:
        parsed = []
    is_text = all(isinstance(each.content, str) for each in parsed)
    if not is_text or not parsed or parsed[-1].role != "user":
        raise UserError(
            _("each message has a role and a content, and the last one has the role user")
        )
    return parsed


TemplateInput = tuple[Sequence[Message], bool]
"""A conversation, and whether the start of an answer follows it."""


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as its template renders it."""

    text: str
    answer_spans: tuple[Span, ...] = ()  # marked by the template with {% generation %}
    escapes: Escapes = field(default_factory=dict)

    @property
    def unescaped(self) -> str:
        """The text with the escaped characters restored; every position is that of `text`."""
        return self.text.translate(self.escapes)


def render_texts(template: ChatTemplate, conversations: Sequence[TemplateInput]) -> list[str]:
    """Return the rendered texts of conversations.

    Raises UserError if the template refuses a conversation or breaks a limit of the sandbox.
    """
    return [each.text for each in _render_sandboxed(template, conversations)[0]]


def render_escaped(
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[TemplateInput]
) -> list[RenderedChat]:
    """Return the rendered conversations; names of special tokens in messages are escaped.

    Raises UserError as `render_texts` does.
    """
    return render_with_probes(template, tokenizer, conversations)[0]


def render_with_probes(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[TemplateInput],
    parse_special: bool = False,
    probes: Sequence[Sequence[Message]] = (),
) -> tuple[list[RenderedChat], list[str]]:
    """Return the rendered conversations, and the texts of probes (empty where refused).

    In a message, another character replaces the first one of a special token's name, so that the
    name is text and keeps its length. `parse_special` leaves the names as they are. A template may
    split an answer at such a name (`</think>`). If escaping changes its text, the answers are
    rendered again without escapes.
    """
    names = () if parse_special else tokenizer.special_names
    first_letters = re.compile(rf"(?={alternation_of(names)})(.)", re.DOTALL)
    escapers = [
        NameEscaper.for_messages(template, first_letters, messages)
        for messages, _begins in conversations
    ]
    escaped = [index for index, escaper in enumerate(escapers) if escaper.escapes]
    inputs = [
        (escaper.escape(messages), begins)
        for escaper, (messages, begins) in zip(escapers, conversations, strict=True)
    ]
    # A template may cut or compare texts, so an escaped name can change what it renders.
    # A conversation with escapes is rendered twice, to see whether they change the text.
    rendered, probe_texts = _render_sandboxed(
        template, [*inputs, *(conversations[index] for index in escaped)], probes
    )
    found = [
        replace(each, escapes=escaper.escapes)
        for each, escaper in zip(rendered, escapers, strict=False)
    ]
    originals = dict(zip(escaped, rendered[len(found) :], strict=True))
    changed = [index for index in escaped if found[index].unescaped != originals[index].text]
    retries = list[TemplateInput]()
    for index in changed:
        messages, begins = conversations[index]
        retries.append((escapers[index].escape(messages, except_role="assistant"), begins))
    # Escapes in the user's turns must stay: only answers may contain names that the template reads.
    for index, each in zip(changed, _render_sandboxed(template, retries)[0], strict=True):
        retried = replace(each, escapes=escapers[index].escapes)
        if retried.unescaped == originals[index].text:
            found[index] = retried
    return found, probe_texts


@dataclass(frozen=True)
class NameEscaper:
    """Escapes names of special tokens in messages: each gets another first character."""

    escapes: Escapes = field(default_factory=dict)
    pattern: re.Pattern[str] = _MATCH_NOTHING

    @classmethod
    def for_messages(
        cls, template: ChatTemplate, pattern: re.Pattern[str], messages: Sequence[Message]
    ) -> "NameEscaper":
        """Return the escaper of a conversation; `pattern` finds the first character of each name.

        The replacements are characters that neither the conversation nor the template contains.
        """
        contents = [message.content for message in messages]
        first = sorted({name[1] for content in contents for name in pattern.finditer(content)})
        if not first:
            return cls()
        used = set("".join([template.source, *map(str, template.variables.values()), *contents]))
        free = (point for point in _PRIVATE_USE if chr(point) not in used)
        return cls(dict(zip(free, first, strict=False)), pattern)

    def escape(self, messages: Sequence[Message], except_role: str = "") -> list[Message]:
        """Return the escaped messages; those of one role stay as they are."""
        placeholders = {character: chr(point) for point, character in self.escapes.items()}

        def escaped(text: str) -> str:
            return self.pattern.sub(lambda name: placeholders.get(name[1], name[1]), text)

        return [
            each if each.role == except_role else Message(each.role, escaped(each.content))
            for each in messages
        ]


def _render_sandboxed(
    template: ChatTemplate,
    conversations: Sequence[TemplateInput],
    probes: Sequence[Sequence[Message]] = (),
) -> tuple[list[RenderedChat], list[str]]:
    """Return the rendered conversations, and the texts of probes (empty where refused)."""
    rendered, probe_texts = list[RenderedChat](), list[str]()
    for batch in _batches(conversations):
        texts, probe_texts = run_sandboxed(
            "template",
            _("the chat template"),
            template=template.source,
            variables=dict(template.variables),
            conversations=[(list(map(asdict, messages)), begins) for messages, begins in batch],
            probes=[list(map(asdict, messages)) for messages in probes],
        )
        rendered += [RenderedChat(text, tuple(map(tuple, answers))) for text, answers in texts]
    return rendered, probe_texts


def _batches(conversations: Sequence[TemplateInput]) -> Iterator[list[TemplateInput]]:
    """Yield conversations in batches that stay below the sandbox's limit on output."""
    batch, length = list[TemplateInput](), 0  # characters
    for conversation in conversations:
        size = sum(len(message.content) + _TEMPLATE_OVERHEAD for message in conversation[0])
        if batch and length + size > _BATCH_CHARACTERS:
            yield batch
            batch, length = [], 0
        batch.append(conversation)
        length += size
    if batch:
        yield batch


# A short conversation shows which token the template writes after an answer.
_PROBE = (Message("user", "question"), Message("assistant", "answer"))


@dataclass(frozen=True)
class Prompt:
    """The input of a model in a chat."""

    ids: list[int]
    eos_token_ids: tuple[int, ...]  # the token that ends an answer in the template, if any


def make_prompt(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], parse_special: bool
) -> Prompt:
    """Return the ids of a conversation, up to the start of an answer, and the end of that.

    Names of special tokens in messages are text, unless `parse_special`. Raises UserError if the
    template refuses the conversation or breaks a limit, or for a token without an embedding.
    """
    return make_prompts(template, tokenizer, [messages], parse_special)[0]


def make_prompts(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    parse_special: bool,
) -> list[Prompt]:
    """Return what `make_prompt` does for each of several conversations, in one process."""
    if template.remote is not None:
        return [
            template.remote(messages, parse_special, template.variables)
            for messages in conversations
        ]
    rendered, probe_texts = render_with_probes(
        template, tokenizer, [(each, True) for each in conversations], parse_special, [_PROBE]
    )
    closing = re.compile(rf"{_PROBE[-1].content}\s*({alternation_of(tokenizer.added_names)})")
    names = [found[1] for found in closing.finditer(probe_texts[0])]
    end = tokenizer.token_to_id(names[-1]) if names else None
    ends = () if end is None else (end,)
    return [Prompt(tokenizer.encode_rendered(each.text, each.escapes), ends) for each in rendered]


def apply_chat_template(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], parse_special: bool
) -> list[int]:
    """Return only the token ids of `make_prompt`. Raises UserError as it does."""
    return make_prompt(template, tokenizer, messages, parse_special).ids


def fit_messages(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    max_tokens: int,
    parse_special: bool,
) -> tuple[Prompt, list[Message]]:
    """Return the prompt of a conversation in at most `max_tokens` tokens, and its messages.

    The oldest turns are dropped first, the system prompt never. Once a turn must go, turns go
    until a quarter of the tokens is free: then the KV cache fits the next few turns too. Raises
    UserError if even the last question does not fit.
    """
    remaining = list(messages)
    prompt = make_prompt(template, tokenizer, remaining, parse_special)
    first = 1 if remaining and remaining[0].role == "system" else 0
    limit = max_tokens
    while len(prompt.ids) > limit:
        if len(remaining) <= first + 1 and len(prompt.ids) <= max_tokens:
            break
        if len(remaining) <= first + 1:
            raise UserError(
                _(
                    "too long: {count} tokens, but the model has room for {room} before its answer",
                    count=len(prompt.ids),
                    room=max_tokens,
                )
            )
        del remaining[first : first + 2]  # a question and its answer
        prompt = make_prompt(template, tokenizer, remaining, parse_special)
        # From now on, stop only when a quarter is free.
        limit = max_tokens * 3 // 4
    return prompt, remaining
