"""The system prompt that a chat template writes where a conversation has none."""

from minillm_repl.chat import Message, render_texts
from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.errors import UserError

_PROBE = "probe-of-a-system-prompt"
_QUESTION = Message("user", "question")


def default_system_prompt(template: ChatTemplate) -> str:
    """Return the template's own system prompt; empty if it has none.

    A conversation is rendered with a system prompt and without: the template's own stands where
    ours stood. The template runs in the sandbox.
    """
    try:
        ours, theirs = render_texts(
            template, [([Message("system", _PROBE), _QUESTION], True), ([_QUESTION], True)]
        )
    except UserError:  # one that refuses system prompts
        return ""
    before, found, after = ours.partition(_PROBE)
    if not found or len(theirs) < len(before) + len(after):
        return ""
    if not theirs.startswith(before) or not theirs.endswith(after):
        return ""
    return theirs[len(before) : len(theirs) - len(after)].strip()
