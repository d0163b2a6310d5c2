"""A conversation as the prompt of a model: token ids that fit the context."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minillm_repl.chat.template import Message, alternation_of, render_with_probes
from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer

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
    rendered, probe_texts = render_with_probes(
        template, tokenizer, [(messages, True)], parse_special, [_PROBE]
    )
    closing = re.compile(rf"{_PROBE[-1].content}\s*({alternation_of(tokenizer.added_names)})")
    names = [found[1] for found in closing.finditer(probe_texts[0])]
    end = tokenizer.token_to_id(names[-1]) if names else None
    return Prompt(
        tokenizer.encode_rendered(rendered[0].text, rendered[0].escapes),
        () if end is None else (end,),
    )


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
        if len(remaining) <= first + 1:
            if len(prompt.ids) <= max_tokens:
                break
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
