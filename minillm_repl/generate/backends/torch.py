"""The readable decoder, and the definition of the other: the torch model itself, with its KV
cache.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from minillm_repl.generate.backends.cuda_graph import RecordedStep
from minillm_repl.generate.decoder import piece_of
from minillm_repl.language import N_, _
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.hooks import Tap, untapped
from minillm_repl.model.kv_cache import KVCache

_PIECE_ELSEWHERE = 2_048  # tokens: what a processor takes seconds for, a GPU does in no time


class TorchDecoder:
    """Runs a model on the device it is on; a tap may change what it thinks."""

    def __init__(
        self, model: LanguageModel, tap: Tap = untapped, why: str = N_("what it thinks is changed")
    ) -> None:
        first = next(model.parameters())
        self._device = first.device
        self.model, self._tap = model, tap
        self._cache = KVCache(model.config, self._device)
        # a tap is Python, which cannot be recorded
        self._records = first.is_cuda and tap is untapped
        self._step: RecordedStep | None = None
        self.ids: list[int] = []
        self.start: int | None = None
        self.piece = (
            piece_of(model.config.parameters) if first.device.type == "cpu" else _PIECE_ELSEWHERE
        )
        self._why = why

    @property
    def name(self) -> str:
        """What runs, and where."""
        if self._records:
            return _("torch on {device}, each token one CUDA graph", device=self._device.type)
        return _("torch on {device}", device=self._device.type)

    @property
    def why(self) -> str:
        """Why torch runs the model."""
        return _(self._why)

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        return self._cache.nbytes

    @property
    def full_cache_bytes(self) -> int:
        """Memory that keys and values take when the context is full."""
        return self._cache.full_nbytes

    @property
    def context(self) -> int:
        """How many tokens it can see at once."""
        return self._cache.most

    @context.setter
    def context(self, tokens: int) -> None:
        self._cache.most = tokens

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens after those in the cache; return the logits after the last."""
        logits = self.model(
            torch.tensor([list(ids)], device=self._device), self._cache, self._tap, last=True
        )
        self.ids.extend(ids)
        return logits[0, -1].cpu().numpy()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def decode(self, token: int) -> NDArray[np.float32]:
        """Read one token; return the logits after it."""
        if not self._records:
            return self.prefill([token])
        cache, place = self._cache, self._cache.length
        cache.make_room(place + 1)
        if self._step is None or self._step.room != cache.room:
            self._step = None  # its memory is free for the next
            try:
                self._step = RecordedStep(self.model, cache)
            except RuntimeError:  # nothing can be recorded here, or there is no memory for it
                self._records, cache.length = False, place
                return self.prefill([token])
        logits = self._step(token, place)
        cache.length = place + 1
        self.ids.append(token)
        return logits

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._cache.length = length
        del self.ids[length:]
