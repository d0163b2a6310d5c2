"""One prompt, continuation or second try."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minillm_repl.chat.template import Message


@dataclass(frozen=True)
class Turn:
    """One prompt, continuation or second try: what was before it, and what the model was given."""

    ids_before: tuple[int, ...]
    messages_before: "tuple[Message, ...]"
    prompt_ids: tuple[int, ...]
    # the conversation that the model is to answer; () completes
    prompt_messages: "tuple[Message, ...]" = ()
    assistant_prefix: str = ""  # what it has answered already
    seed: int = 0  # of the last that was drawn for it
    seed_setting: int | None = None  # the setting then

    def next_seed(self, setting: int | None) -> int | None:
        """Return the seed of another try, with the seed set now; None is any that nobody set.

        A seed that was set after the turn was drawn is taken as it is, unless the turn was drawn
        with it.
        """
        if setting is None:
            return None
        return (self.seed + 1) % 2**63 if setting in (self.seed_setting, self.seed) else setting
