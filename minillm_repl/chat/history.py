"""A conversation that fits into what the model sees at once."""

from collections.abc import Sequence

from minillm_repl.chat.template import Message, Prompt, make_prompt
from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer


def fit_messages(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    max_tokens: int,
    allow_special: bool,
) -> tuple[Prompt, list[Message]]:
    """Return what the model is given of a conversation within `room` tokens, and what is left.

    The oldest turns go first, the system prompt never. When any must go, a quarter of the room is
    made free with them, so that the next few turns find the start of the conversation as it is in
    the cache. Raises UserError if not even the last question fits.
    """
    remaining = list(messages)
    rendered = make_prompt(template, tokenizer, remaining, allow_special)
    first = 1 if remaining and remaining[0].role == "system" else 0
    while len(rendered.ids) > (
        max_tokens if len(remaining) == len(messages) else max_tokens * 3 // 4
    ):
        if len(remaining) <= first + 1:
            if len(rendered.ids) <= max_tokens:
                break
            raise UserError(
                _(
                    "too long: {count} tokens, but the model has room for {room} before its answer",
                    count=len(rendered.ids),
                    room=max_tokens,
                )
            )
        del remaining[first : first + 2]
        rendered = make_prompt(template, tokenizer, remaining, allow_special)
    return rendered, remaining
