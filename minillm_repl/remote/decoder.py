"""A model on a server as a decoder: where the server tells all, its logits are sampled from here,
as those of a model in this process are; else the server samples, and the decoder yields its events.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minillm_repl.errors import UserError
from minillm_repl.generate import (
    AnswerEvent,
    GenerationConfig,
    TokenScore,
    never_interrupted,
)
from minillm_repl.generate.scoring import read_window, score_logits
from minillm_repl.language import _
from minillm_repl.remote import Entry
from minillm_repl.remote.engines import Engine, no_scores
from minillm_repl.remote.events import remote_events
from minillm_repl.remote.tokenizer import RemoteTokenizer

if TYPE_CHECKING:
    from minillm_repl.model.build import LanguageModel

UNKNOWN_CONTEXT = 1 << 30  # tokens, where the server does not tell
MOST_LISTED = 20  # tokens to list with a given one: below them, a rank is not known
MAX_FULL_VOCAB = 1 << 15  # ids; more than that would be several MB of numbers for each token


class RemoteDecoder:
    """Runs a model on a server."""

    backend_details = ""
    cache_bytes = max_cache_bytes = 0  # on this machine

    def __init__(self, engine: Engine, tokenizer: RemoteTokenizer) -> None:
        self.engine, self._tokenizer, facts = engine, tokenizer, engine.facts
        self.context_length = facts.context_length or UNKNOWN_CONTEXT
        self.bos_token_id = facts.start_ids[0] if facts.start_ids else None
        self.prefill_chunk = UNKNOWN_CONTEXT  # one request reads all
        self.vocab_size = facts.vocab_size or 0
        self.ids: list[int] = []
        self.interrupted: Callable[[], bool] = never_interrupted
        self.samples_here = facts.is_full and self.vocab_size <= MAX_FULL_VOCAB

    @property
    def name(self) -> str:
        """The engine and its address."""
        return self.engine.facts.source

    @property
    def model(self) -> "LanguageModel":
        """Raise UserError: the weights are on the server."""
        raise UserError(weights_elsewhere(self.name))

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after one or more tokens more. Raises UserError without any."""
        if not self.engine.facts.is_full:
            raise UserError(
                _("{source} does not tell the probability of every token", source=self.name)
            )
        found = self.engine.logits([*self.ids, *ids], self.interrupted)
        self.ids.extend(ids)
        return np.array(found, np.float32)

    def decode(self, token: int) -> NDArray[np.float32]:
        """Return the logits after one token more."""
        return self.prefill((token,))

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.ids[length:]

    def score(
        self,
        ids: Sequence[int],
        since: int = 1,
        n_candidates: int = 0,
        interrupted: Callable[[], bool] = never_interrupted,
    ) -> Iterator[TokenScore]:
        """Yield the score of each token of `ids` from position `since` on, as the server has it.

        Tokens beyond the context are scored after the window that the model sees. Raises
        UserError for a server that does not tell them.
        """
        if not self._tokenizer.has_server_ids(ids):
            raise UserError(no_scores(self.name))
        whole = min(len(ids), self.context_length)
        if since < whole or not self.engine.facts.is_full:
            n_listed = max(n_candidates, min(MOST_LISTED, self.engine.facts.n_listed))
            for entry in self.engine.score(ids[:whole], since, n_listed, interrupted):
                yield self._token_score(entry, n_candidates)
        self.interrupted = interrupted
        for position in range(max(since, whole), len(ids)):
            logits = read_window(self, ids[:position], interrupted)  # (vocab,)
            yield from score_logits(logits[None], ids[position : position + 1], n_candidates)

    def _token_score(self, entry: Entry | None, n_candidates: int) -> TokenScore:
        if (
            entry is None
            or entry.token.id is None
            or entry.token.logprob is None
            or (n_candidates and not entry.top)
        ):
            raise UserError(no_scores(self.name))
        self._tokenizer.learn([entry.token, *entry.top])
        top = [(each.id, each.logprob) for each in entry.top if each.id is not None]
        places = [place for place, (token, _p) in enumerate(top, 1) if token == entry.token.id]
        return TokenScore(
            id=entry.token.id,
            logprob=entry.token.logprob,
            rank=entry.rank or next(iter(places), None),
            top=tuple((token, logprob) for token, logprob in top if logprob is not None),
        )

    def generate(
        self,
        ids: Sequence[int],
        config: GenerationConfig,
        rng: np.random.Generator,
        interrupted: Callable[[], bool],
    ) -> Iterator[AnswerEvent] | None:
        """Return the events of a text that the server samples; None if it is sampled here."""
        self.interrupted = interrupted
        if self.samples_here:
            return None
        seed = int(rng.integers(1 << 31))
        return remote_events(self.engine, self._tokenizer, ids, config, seed, interrupted)


def weights_elsewhere(source: str) -> str:
    """Return what to say where a view needs the weights of a model on a server."""
    return _(
        "this needs the weights, which stay on the server ({source}); :verbose, :prob, :choose, "
        ":surprise, :eval, :branch, :step and :sampler work",
        source=source,
    )
