"""What the engine needs of a model, and the choice of who does it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.window import find_bos_token_id, truncate

if TYPE_CHECKING:  # torch is imported for who looks inside
    from minillm_repl.model.build import LanguageModel

_CHUNK_MULTIPLE = 12  # tokens that compiled products work on together: a piece is a multiple of it,
# and so many tokens; with fewer, going through all weights for each piece takes too much time
_MIN_CHUNK, _MAX_CHUNK = 24, 132
_CHUNK_MULTIPLICATIONS = (
    9_000_000_000  # multiplications: a tenth of a second of a processor, or two
)
_QUANT_BITS = {"off": 0, "int8": 8, "int4": 4}


class Decoder(Protocol):
    """A model with its cache.

    Logits are float32 arrays (vocabulary,), valid until the next call.
    """

    context_length: int  # how many tokens it can see at once
    # the token that texts begin with, which it goes on seeing when they outgrow the context
    bos_token_id: int | None
    prefill_chunk: (
        int  # how many tokens of a long text it reads before anybody looks whether to stop
    )

    @property
    def model(self) -> "LanguageModel":
        """The model in torch, with the same weights, to look inside."""

    @property
    def name(self) -> str:
        """What runs: "numba on cpu, 2 threads", "torch on cuda"."""

    @property
    def backend_details(self) -> str:
        """Why this one runs the model, for who asks."""

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


def make_decoder(
    checkpoint: Checkpoint,
    device: str = "auto",
    context_length: int = 0,
    *,
    threads: int = 0,
    quant: str = "off",
) -> Decoder:
    """Return a device's decoder: compiled by numba on the CPU where that works, else torch's.

    `device` is auto, cpu, cuda or mps; auto is the CPU, where models of this size answer fastest.
    `context` limits how many tokens the model sees at once; 0 is all it allows. `threads` 0
    chooses. `quant` int8 keeps all matrices in 8 bits, int4 those of the layers in 4. Raises
    UserError if the device is not there, or if what was asked for needs numba and it fails.
    """
    decoder = _select_decoder(checkpoint, device, threads, quant)
    decoder.context_length = min(context_length or decoder.context_length, decoder.context_length)
    decoder.bos_token_id = find_bos_token_id(checkpoint.tokenizer)
    return decoder


def _select_decoder(checkpoint: Checkpoint, device: str, threads: int, quant: str) -> Decoder:
    backend_details = f"--device {device}"
    if device in ("auto", "cpu"):
        try:
            return _compiled_decoder(checkpoint, threads, quant)
        except (UserError, MemoryError):
            raise  # which torch would need as well
        # Whatever keeps numba from compiling here, torch can do the work.
        except Exception as error:  # noqa: BLE001
            message = safe_line(str(error).strip().partition("\n")[0])
            backend_details = _(
                "numba does not work here: {error:.100}", error=message or type(error).__name__
            )
        device = "cpu"
    if quant != "off":
        raise UserError(
            _(
                "--quant {quant} needs the compiled decoder, but this model runs in torch "
                "({why}): use --quant off",
                quant=quant,
                why=backend_details,
            )
        )
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.model.build import build
    from minillm_repl.model.device import pick_device

    return TorchDecoder(
        build(checkpoint.config, checkpoint.tensors).to(pick_device(device)),
        backend_details=backend_details,
    )


def _compiled_decoder(checkpoint: Checkpoint, threads: int, quant: str) -> Decoder:
    from minillm_repl.generate.backends.compiled.decoder import CompiledDecoder

    return CompiledDecoder(checkpoint, threads, _QUANT_BITS[quant])


def choose_prefill_chunk(parameters: int) -> int:
    """Return how many tokens a processor reads at once with a model of so many parameters."""
    return min(
        _MAX_CHUNK,
        max(_MIN_CHUNK, _CHUNK_MULTIPLICATIONS // parameters // _CHUNK_MULTIPLE * _CHUNK_MULTIPLE),
    )


def common_prefix(decoder: Decoder, ids: Sequence[int]) -> tuple[list[int], int]:
    """Return what the model sees of `ids`, and how many of these tokens the cache has.

    When the window moves, positions shift and nothing is shared. The last token is read anyway, for
    its logits.
    """
    fits = len(ids) <= decoder.context_length
    window_ids, cached_ids = (
        list(ids if fits else truncate(ids, decoder.context_length, decoder.bos_token_id).ids),
        decoder.ids,
    )
    max_shared = min(len(window_ids) - 1, len(cached_ids))
    if window_ids[:max_shared] == cached_ids[:max_shared]:
        return window_ids, max_shared
    return window_ids, next(
        position for position in range(max_shared) if window_ids[position] != cached_ids[position]
    )


def prefill(
    decoder: Decoder,
    ids: Sequence[int],
    interrupted: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], object] = lambda _done, _of: None,
) -> NDArray[np.float32] | None:
    """Make the cache hold exactly what the model sees of `ids`; return the logits after it.

    What the cache already shares with them from the start is not computed again. A long text is
    read in pieces; between two, `progress` is told how many of the tokens are done, and None is
    returned if `interrupted`.
    """
    window_ids, n_cached = common_prefix(decoder, ids)
    if len(window_ids) == n_cached + 1 == len(decoder.ids) + 1:
        return decoder.decode(window_ids[-1])
    decoder.trim(n_cached)
    for start in range(n_cached, len(window_ids), decoder.prefill_chunk):
        if start > n_cached:
            progress(start, len(window_ids))
            if interrupted():
                return None
        logits = decoder.prefill(window_ids[start : start + decoder.prefill_chunk])
    return logits
