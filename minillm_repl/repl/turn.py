"""One prompt, continuation or second try."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minillm_repl.chat.template import Message


@dataclass(frozen=True)
class Turn:
    """One prompt, continuation or second try: what was there before it, and what the model was
    given.
    """

    before: tuple[int, ...]
    said_before: "tuple[Message, ...]"
    given: tuple[int, ...]
    asked: "tuple[Message, ...]" = ()  # the conversation that the model is to answer; () completes
    begun: str = ""  # what it has answered already
    seed: int = 0  # of the last that was drawn for it
    seed_set: int | None = None  # the setting then

    def next_seed(self, setting: int | None) -> int | None:
        """Return the seed of another try, with the seed that is set now; None is any that nobody
        has set.

        A seed that was set after the turn was drawn is taken as it is, unless the turn was drawn
        with it.
        """
        if setting is None:
            return None
        return (self.seed + 1) % 2**63 if setting in (self.seed_set, self.seed) else setting
