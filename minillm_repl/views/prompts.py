"""Prompts of views that compare two: as plain text, or as the first message of a chat."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from minillm_repl.language import _
from minillm_repl.repl.arguments import Choice
from minillm_repl.repl.conversation import is_chatting, reserved_answer_tokens
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.views.base import inspect_ids, text_ids
from minillm_repl.views.inspected_text import InspectedText

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

CHAT = Choice("chat", name="chat")
"""A word before a text: the text is the first message of a chat, in the model's template."""

_LONG = 5.0  # seconds: below, the time that is left is no news


def chat_ids(shell: "Shell", model: LoadedModel, text: str) -> list[int]:
    """Return the ids of a text as the first message of a chat, up to where the model answers.

    Raises UserError if the model has no chat template, or the text is too long.
    """
    from minillm_repl.chat import Message, fit_messages

    is_chatting(model, setting=True)  # or an error
    settings, template = shell.session.settings, model.checkpoint.chat_template
    assert template is not None
    system = [Message("system", settings.system)] if settings.system else []
    context = model.decoder.context_length
    size = context - reserved_answer_tokens(context, settings)
    messages = [*system, Message("user", text)]
    prompt, _kept = fit_messages(
        template, model.checkpoint.tokenizer, messages, size, settings.special
    )
    return list(prompt.ids)


def prompt_ids(shell: "Shell", model: LoadedModel, text: str, *, chat: bool = False) -> list[int]:
    """Return the ids of a text, or with `chat` of the text as a message. Raises UserError."""
    return chat_ids(shell, model, text) if chat else text_ids(shell, model, text)


def inspect_prompt(shell: "Shell", text: str, *, chat: bool = False) -> InspectedText:
    """Return the open model and a text, or with `chat` the text as a message. Raises UserError."""
    model = shell.require_model()
    ids = prompt_ids(shell, model, text, chat=chat)
    return inspect_ids(shell, model, ids, None if chat else text)


def lead_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids before each text: the start token and a line break, if there are such tokens.

    Position 0 is where attention goes that has nothing to do. Models keep one large vector there,
    whatever the token, so no token of a text may be at position 0.
    """
    names: dict[str, str] = getattr(tokenizer, "special_tokens_map", {})
    start = tokenizer.token_to_id(names.get("bos_token", ""))
    newline = [] if tokenizer.find_unknown("\n") else tokenizer.encode("\n", add_special=False)
    return (*([] if start is None else [start]), *(newline if len(newline) == 1 else []))


def with_time_left(update: Callable[[str], None], what: str) -> Callable[[float], None]:
    """Return a function that shows a share that is done (0 to 1), and how long the rest takes."""
    started = time.monotonic()

    def progress(share: float) -> None:
        shown = f"{what}  {share:.0%}"
        left = (time.monotonic() - started) * (1 / share - 1) if share else 0.0
        if left >= _LONG:
            shown += " · " + _("{n:.0f} s left", n=left)
        update(shown)

    return progress
