"""Care in a chat over HTTP: to a crisis the program answers, as in the REPL (repl/care.py).

A client sends the whole conversation with each question. What was said of a crisis before, and what
the program answered, is taken out of it: the model never sees it.
"""

from collections.abc import Sequence

from minillm_repl.chat import Message
from minillm_repl.repl.care import Help, find_help


def without_crises(messages: Sequence[Message]) -> tuple[tuple[Message, ...], Help | None]:
    """Return what the model may see of a conversation, and what to say in its place, if anything.

    The last message is the one that is answered.
    """
    kept, is_crisis, crisis_help = list[Message](), False, None
    for message in messages:
        if message.role == "user":
            crisis_help = find_help(message.content)
            is_crisis = crisis_help is not None
        # The answer to a crisis goes with it.
        if message.role == "system" or not is_crisis:
            kept.append(message)
    return tuple(kept), crisis_help


def care_choice(crisis_help: Help) -> dict[str, object]:
    """Return the choice of an answer that no model computed: no token, no probability."""
    return {
        "index": 0,
        "message": {"role": "assistant", "content": str(crisis_help), "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "care": crisis_help.as_json(),
    }


def care_chunks(crisis_help: Help) -> list[dict[str, object]]:
    """Return the choices of a stream that brings the same."""
    choice = care_choice(crisis_help)
    ends = {"finish_reason": "stop", "care": choice["care"]}
    chunk = {"index": 0, "logprobs": None, "finish_reason": None}
    content = {"role": "assistant", "content": str(crisis_help)}
    return [chunk | {"delta": content}, chunk | {"delta": {}} | ends]
