"""One token on a GPU: its operations are recorded as a CUDA graph, and replayed for each token.

A step of a small model is hundreds of operations of a few microseconds each. Launched one by one
from Python, they take ten times as long as the GPU needs for them.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from minillm_repl.model.attention import KVCache
from minillm_repl.model.build import LanguageModel

_WARMUP_RUNS = 3  # before the recording: libraries allocate their workspaces in the first


class CudaGraphStep:
    """Reads one token with a model on a GPU, while the cache has its present capacity.

    The caller updates the cache's `length`. Raises RuntimeError if nothing can be recorded.
    """

    def __init__(self, model: LanguageModel, cache: KVCache) -> None:
        self.capacity = cache.capacity
        device = next(model.parameters()).device
        self._input = torch.zeros(2, dtype=torch.int64, device=device)  # the token, and its place
        self._pinned_input = torch.tensor([0, cache.length]).pin_memory()
        self._input.copy_(self._pinned_input)
        warmup_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        warmup_stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(warmup_stream):
            for _run in range(_WARMUP_RUNS):
                self._logits = self._forward(model, cache)
        torch.cuda.current_stream(device).wait_stream(warmup_stream)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may load a model meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = self._forward(model, cache)
        self._pinned_logits = torch.empty(self._logits.shape).pin_memory()

    def _forward(self, model: LanguageModel, cache: KVCache) -> torch.Tensor:
        with cache.static(self._input[1:]):
            logits: torch.Tensor = model(self._input[None, :1], cache, last_only=True)
            return logits[0, -1]

    def __call__(self, token: int, position: int) -> NDArray[np.float32]:
        """Return the logits (vocab_size,) after a token; they are valid until the next call."""
        self._pinned_input[0], self._pinned_input[1] = token, position
        self._input.copy_(self._pinned_input, non_blocking=True)
        self._graph.replay()
        self._pinned_logits.copy_(self._logits, non_blocking=True)
        torch.cuda.current_stream(self._logits.device).synchronize()
        return self._pinned_logits.numpy()
