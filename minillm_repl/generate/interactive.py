"""Generation one token at a time, with every way open: another token, a text of one's own, a
step back.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from minillm_repl.errors import UserError
from minillm_repl.generate.decoder import Decoder
from minillm_repl.generate.events import Step
from minillm_repl.generate.generate import generate, never
from minillm_repl.generate.options import Sampling
from minillm_repl.generate.sampling import numbers
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Tokenizer


class Walk:
    """A text that grows and shrinks by hand.

    Where it stands depends on its tokens alone, not on how it came there: the token at a place is
    drawn with that place's number of the seed, so that a walk which always takes what is drawn
    writes what a generation would.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        sampling: Sampling,
        seed: int,
        *,
        end: Collection[int] = (),
        top: int = 10,
    ) -> None:
        self._decoder, self._tokenizer, self._sampling = decoder, tokenizer, sampling
        self._seed, self._end, self._top = seed, end, top
        self._start = len(ids)
        self.ids = list(ids)

    @property
    def added(self) -> list[int]:
        """The tokens after the text that it began with."""
        return self.ids[self._start :]

    def look(self, interrupted: Callable[[], bool] = never) -> Step:
        """Return the step that a generation would take here; nothing is taken.

        Raises UserError, also if stopped.
        """
        place = len(self.ids) - self._start
        events = generate(
            self._decoder, self._tokenizer, self.ids, self._sampling, numbers(self._seed, place),
            max_tokens=1, end=self._end, top=self._top, interrupted=interrupted,
        )  # fmt: skip
        step = next(events)
        if not isinstance(step, Step):
            raise UserError(_("stopped"))
        return replace(step, index=place)

    def take(self, *tokens: int) -> bool:
        """Go on with these tokens; tell whether the text goes on, which it does not after one
        that ends it.
        """
        if self._end and tokens[-1] in self._end:
            return False
        self.ids += tokens
        return True

    def back(self) -> bool:
        """Take the last token back; tell whether there was one."""
        if len(self.ids) == self._start:
            return False
        self.ids.pop()
        return True
