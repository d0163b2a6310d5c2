"""The torch backend: the readable model with its KV cache, which defines every number.

On a GPU, the operations of a token are recorded as a CUDA graph, and replayed for each token: a
step of a small model is hundreds of operations of a few microseconds each, and launched one by one
from Python they take ten times as long as the GPU needs for them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from minillm_repl.generate import choose_prefill_chunk
from minillm_repl.generate.scoring import score
from minillm_repl.language import N_, _
from minillm_repl.model.attention import KVCache
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.hooks import Hook, no_hook

_WARMUP_RUNS = 3  # before the recording: libraries allocate their workspaces in the first
_GPU_CHUNK = 2_048  # tokens per prefill chunk on a GPU, which reads them without a noticeable wait


class TorchDecoder:
    """Runs a model on the device that it is on; a hook may change its activations."""

    def __init__(
        self,
        model: LanguageModel,
        hook: Hook = no_hook,
        backend_details: str = N_("an intervention is active"),
        *,
        has_cache: bool = True,
    ) -> None:
        first_parameter = next(model.parameters())
        self._device = first_parameter.device
        self.model, self._hook = model, hook
        self._cache = KVCache(model.config, self._device)
        # A hook is Python code, which a CUDA graph cannot record; and which experts are computed
        # depends on the token.
        is_same_each_time = hook is no_hook and not model.config.n_experts
        self._uses_cuda_graph = first_parameter.is_cuda and is_same_each_time
        self._graph_step: CudaGraphStep | None = None
        self.ids: list[int] = []
        self.bos_token_id: int | None = None
        self.vocab_size = model.config.vocab_size
        self.prefill_chunk = (
            choose_prefill_chunk(model.config.n_params)
            if first_parameter.device.type == "cpu"
            else _GPU_CHUNK
        )
        self._backend_details = backend_details
        self._has_cache = has_cache  # else each pass reads the whole text

    @property
    def name(self) -> str:
        """What runs, and where."""
        if self._uses_cuda_graph:
            return _("torch on {device}, one CUDA graph per token", device=self._device.type)
        return _("torch on {device}", device=self._device.type)

    @property
    def backend_details(self) -> str:
        """Why torch runs the model."""
        return _(self._backend_details)

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""
        return self._cache.nbytes

    @property
    def max_cache_bytes(self) -> int:
        """Memory that keys and values take when the context is full."""
        return self._cache.max_nbytes

    @property
    def context_length(self) -> int:
        """The number of tokens that it can see at once."""
        return self._cache.max_length

    @context_length.setter
    def context_length(self, tokens: int) -> None:
        self._cache.max_length = tokens

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens after those in the cache; return the logits after the last."""
        return self._read(ids, last_only=True)[-1].cpu().numpy()

    @torch.inference_mode()
    def prefill_all(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read tokens after those in the cache; return the logits (len(ids), vocab_size)."""
        return self._read(ids)[-len(ids) :].cpu().numpy()

    def _read(self, ids: Sequence[int], *, last_only: bool = False) -> torch.Tensor:
        """Return the logits of new tokens; without a cache, of the whole text or of its last."""
        cache = self._cache if self._has_cache else None
        read = ids if self._has_cache else [*self.ids, *ids]
        tokens = torch.tensor([list(read)], device=self._device)
        logits: torch.Tensor = self.model(tokens, cache, self._hook, last_only=last_only)
        self.ids.extend(ids)
        return logits[0]

    @torch.inference_mode()
    def decode(self, token: int) -> NDArray[np.float32]:
        """Read one token; return the logits after it."""
        if not self._uses_cuda_graph:
            return self.prefill([token])
        cache, position = self._cache, self._cache.length
        cache.reserve(position + 1)
        if self._graph_step is None or self._graph_step.capacity != cache.capacity:
            self._graph_step = None  # frees its memory for the next one
            try:
                self._graph_step = CudaGraphStep(self.model, cache)
            except RuntimeError:  # this GPU records nothing, or has no memory for it
                self._uses_cuda_graph, cache.length = False, position
                return self.prefill([token])
        logits = self._graph_step(token, position)
        cache.length = position + 1
        self.ids.append(token)
        return logits

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._cache.length = length
        del self.ids[length:]

    score = score


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
