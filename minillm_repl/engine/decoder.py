"""What the engine needs of a model, and the choice of who does it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.native import Checkpoint


class Decoder(Protocol):
    """A model with its cache. Logits are float32 arrays (vocabulary,), valid until the next call."""

    name: str  # what runs: "numba on cpu", "torch on cuda"
    context: int  # how many tokens it can see at once

    @property
    def ids(self) -> list[int]:
        """The tokens whose keys and values are in the cache; not to be changed."""

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read one or more tokens after those in the cache; return the logits after the last."""

    def decode(self, token: int) -> NDArray[np.float32]:
        """Read one token; return the logits after it."""

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""


def make_decoder(checkpoint: Checkpoint, device: str = "auto") -> Decoder:
    """Return the decoder for a device: compiled by numba on the CPU, torch's on a GPU or where numba is missing.

    `device` is auto, cpu, cuda or mps; auto is the CPU, where models of this size answer fastest.
    """
    if device in ("auto", "cpu"):
        try:
            from minillm_repl.engine.numba_decoder import NumbaDecoder

            return NumbaDecoder(checkpoint)
        except (ImportError, RuntimeError):  # no numba here, or nowhere to keep what it compiles: torch serves, slower
            device = "cpu"
    from minillm_repl.engine.torch_decoder import TorchDecoder
    from minillm_repl.model.device import pick_device
    from minillm_repl.model.gpt import GPT

    return TorchDecoder(GPT.from_tensors(checkpoint.config, checkpoint.tensors).to(pick_device(device)))


def read(decoder: Decoder, ids: Sequence[int]) -> NDArray[np.float32]:
    """Make the cache hold exactly the last `context` tokens of `ids`; return the logits after them.

    What the cache already shares with them from the start is not computed again. Past the context every position
    shifts by one, so nothing is shared, and the whole window is read anew, as the study note does.
    """
    window = list(ids[-decoder.context :])
    cached = decoder.ids
    if len(window) == len(cached) + 1 and window[:-1] == cached:
        return decoder.decode(window[-1])
    shared = 0
    for ours, theirs in zip(window[:-1], cached, strict=False):  # the last token is read anyway, for its logits
        if ours != theirs:
            break
        shared += 1
    decoder.rewind(shared)
    return decoder.prefill(window[shared:])
