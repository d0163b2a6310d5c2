"""A conversation that fits into what the model sees at once."""

from collections.abc import Sequence

from minillm_repl.chat.template import Message, Prompt, prompt
from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer


def fit(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    room: int,
    special: bool,
) -> tuple[Prompt, list[Message]]:
    """Return what the model is given of a conversation that fits into `room` tokens, and what of it
    is left.

    The oldest turns go first, the system prompt never. When any must go, a quarter of the room is
    made free with them, so that the next few turns find the start of the conversation as it is in
    the cache. Raises UserError if not even the last question fits.
    """
    kept = list(messages)
    given = prompt(template, tokenizer, kept, special)
    first = 1 if kept and kept[0].role == "system" else 0
    while len(given.ids) > (room if len(kept) == len(messages) else room * 3 // 4):
        if len(kept) <= first + 1:
            if len(given.ids) <= room:
                break
            raise UserError(
                _(
                    "this is too long: {count} tokens, and the model has room for {room} "
                    "before its answer",
                    count=len(given.ids),
                    room=room,
                )
            )
        del kept[first : first + 2]
        given = prompt(template, tokenizer, kept, special)
    return given, kept
