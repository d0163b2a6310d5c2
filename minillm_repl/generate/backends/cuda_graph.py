"""One token on a GPU: what is done for it, recorded as a CUDA graph, and played again for each
token.

A step of a small model is hundreds of operations of a few microseconds each. Launched one by one
from Python they take ten times as long as the GPU needs for them.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from minillm_repl.model.build import LanguageModel
from minillm_repl.model.kv_cache import KVCache

_TRIED = 3  # times, before it is recorded: libraries get ready at the first


class RecordedStep:
    """Reads one token with a model on a GPU, as long as the cache has the room that it has now.

    Leaves the cache's `length` to who calls. Raises RuntimeError if it cannot be recorded.
    """

    def __init__(self, model: LanguageModel, cache: KVCache) -> None:
        self.room = cache.room
        device = next(model.parameters()).device
        self._input = torch.zeros(2, dtype=torch.int64, device=device)  # the token, and its place
        self._given = torch.tensor([0, cache.length]).pin_memory()
        self._input.copy_(self._given)
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(_TRIED):
                self._logits = self._step(model, cache)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # another thread may load a model
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = self._step(model, cache)
        self._answer = torch.empty(self._logits.shape).pin_memory()

    def _step(self, model: LanguageModel, cache: KVCache) -> torch.Tensor:
        with cache.one_at(self._input[1:]):
            logits: torch.Tensor = model(self._input[None, :1], cache, last=True)
            return logits[0, -1]

    def __call__(self, token: int, place: int) -> NDArray[np.float32]:
        """Return the logits after a token at a place of the cache: (vocabulary,), valid until
        the next call.
        """
        self._given[0], self._given[1] = token, place
        self._input.copy_(self._given, non_blocking=True)
        self._graph.replay()
        self._answer.copy_(self._logits, non_blocking=True)
        torch.cuda.current_stream(self._logits.device).synchronize()
        return self._answer.numpy()
