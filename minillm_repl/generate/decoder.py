"""What generation needs of a model: the protocol that each backend fulfils, and prefill with it."""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.events import Prefill
from minillm_repl.tokenizer.truncation import truncate

if TYPE_CHECKING:  # A chat needs no torch.
    from minillm_repl.model.build import LanguageModel

_CHUNK_MULTIPLE = 16  # tokens; a tile of a matrix is multiplied with this many together
# Tokens per chunk: smaller ones stream all weights too often, and larger ones gain nothing.
_MIN_CHUNK, _MAX_CHUNK = 32, 128
_CHUNK_MULTIPLICATIONS = 18_000_000_000  # a tenth to a third of a second of two CPU cores

Logits = NDArray[np.float32]  # (vocab_size,)


def never_interrupted() -> bool:
    """Return False: the default where Ctrl-C has no effect."""
    return False


class Decoder(Protocol):
    """A model with its KV cache.

    Logits are float32 arrays (vocab_size,), valid until the next call.
    """

    context_length: int  # tokens that the model sees at once
    # The token that texts begin with. It stays visible when a text outgrows the context.
    bos_token_id: int | None
    prefill_chunk: int  # tokens of a long prompt to read between two looks for Ctrl-C

    @property
    def model(self) -> "LanguageModel":
        """The model in torch, with the same weights, to look inside."""

    @property
    def name(self) -> str:
        """What runs: "C kernels (avx2) on cpu, 2 threads", "torch on cuda"."""

    @property
    def backend_details(self) -> str:
        """Why this backend runs the model, or in what form its weights are."""

    @property
    def ids(self) -> list[int]:
        """The tokens whose keys and values are in the cache; not to be changed."""

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""

    @property
    def max_cache_bytes(self) -> int:
        """Memory that they take when the context is full."""

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read one or more tokens after those in the cache; return the logits after the last."""

    def decode(self, token: int) -> NDArray[np.float32]:
        """Read one token; return the logits after it."""

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens."""


def choose_prefill_chunk(parameters: int) -> int:
    """Return the tokens per prefill chunk on a CPU, for a model with this many parameters."""
    chunk = _CHUNK_MULTIPLICATIONS // parameters // _CHUNK_MULTIPLE * _CHUNK_MULTIPLE
    return min(_MAX_CHUNK, max(_MIN_CHUNK, chunk))


def common_prefix(decoder: Decoder, ids: Sequence[int]) -> tuple[list[int], int]:
    """Return the tokens of `ids` that the model sees, and how many of them the cache holds.

    When the window moves, all positions shift, and nothing is shared. The last token always counts
    as missing, because its logits are needed.
    """
    window_ids, cached_ids = list(ids), decoder.ids
    if len(ids) > decoder.context_length:
        window_ids = list(truncate(ids, decoder.context_length, decoder.bos_token_id).ids)
    most = min(len(window_ids) - 1, len(cached_ids))
    if window_ids[:most] == cached_ids[:most]:  # one comparison of lists is the usual case
        return window_ids, most
    differs = (place for place in range(most) if window_ids[place] != cached_ids[place])
    return window_ids, next(differs)


def prefill(
    decoder: Decoder, ids: Sequence[int], interrupted: Callable[[], bool] = never_interrupted
) -> Logits | None:
    """Make the cache hold exactly what the model sees of `ids`; return the logits after it.

    None if `interrupted`, which is asked between two chunks of a long text.
    """
    chunks = prefill_chunks(decoder, ids, interrupted)
    while True:
        try:
            next(chunks)
        except StopIteration as done:
            logits: Logits | None = done.value
            return logits


def prefill_chunks(
    decoder: Decoder, ids: Sequence[int], interrupted: Callable[[], bool] = never_interrupted
) -> Generator[Prefill, None, Logits | None]:
    """Do what `prefill` does; yield the progress between two chunks, and return the logits.

    The first tokens that the cache shares with `ids` are not computed again.
    """
    window_ids, n_cached = common_prefix(decoder, ids)
    if len(window_ids) == n_cached + 1 == len(decoder.ids) + 1:
        return decoder.decode(window_ids[-1])
    decoder.trim(n_cached)
    for start in range(n_cached, len(window_ids), decoder.prefill_chunk):
        if start > n_cached:
            yield Prefill(start, len(window_ids))
            if interrupted():
                return None
        logits = decoder.prefill(window_ids[start : start + decoder.prefill_chunk])
    return logits
