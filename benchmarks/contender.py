"""One program that generates, in a process of its own, asked for one figure after the other.

python -m benchmarks.contender ours|operations|transformers|llama.cpp KIND PATH DEVICE

`operations` is ours on a GPU without a recorded step. KIND is float32, bfloat16, int8 or int4;
llama.cpp's is in its file. DEVICE is cpu or cuda. Each line of stdin is `decode N` (tokens/s after
N tokens), `prefill N` (tokens/s of reading N tokens) or `memory` (the peak, MiB, of the process, or
of what torch took of the GPU); each answer is a line.
"""

import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

THREADS = 2
_DECODED = 32  # tokens per figure
_CONTEXT = 4_096

Reader = Callable[[list[int]], Any]
"""Reads more tokens, and has the logits after them."""


def ours(
    kind: str, path: str, device: str, *, recorded: bool = True
) -> tuple[Reader, Callable[[int], Any]]:
    """Return how our decoder reads tokens, and forgets all but the first few."""
    from minillm_repl.checkpoint.load_save import load
    from minillm_repl.generate.backends import make_decoder

    quantised = kind.startswith("int")
    checkpoint = load(Path(path), dtype="auto" if quantised else kind)
    decoder = make_decoder(checkpoint, device, threads=THREADS, quant=kind if quantised else "off")

    def read(ids: list[int]) -> object:
        return decoder.decode(ids[0]) if len(ids) == 1 and recorded else decoder.prefill(ids)

    return read, decoder.trim


def transformers(kind: str, path: str, device: str) -> tuple[Reader, Callable[[int], Any]]:
    """Return the same of the `transformers` library, with its cache."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(THREADS)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, kind))
    model.to(device).eval()
    cache = DynamicCache()

    @torch.inference_mode()
    def read(ids: list[int]) -> None:
        model(
            torch.tensor([ids], device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits.cpu()

    def forget(length: int) -> None:
        surplus = int(cache.get_seq_length()) - length
        if surplus > 0:
            cache.crop(-surplus)

    return read, forget


def llama_cpp(_kind: str, path: str, _device: str) -> tuple[Reader, Callable[[int], Any]]:
    """Return the same of llama.cpp, through llama-cpp-python."""
    from llama_cpp import Llama

    model = Llama(path, n_ctx=_CONTEXT, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)

    def forget(length: int) -> None:
        model.n_tokens = length  # what comes next takes the places after these in the cache

    read: Reader = model.eval
    return read, forget


PROGRAMS: dict[str, Callable[[str, str, str], tuple[Reader, Callable[[int], Any]]]] = {
    "ours": ours,
    "operations": partial(ours, recorded=False),
    "transformers": transformers,
    "llama.cpp": llama_cpp,
}


def main() -> None:
    """Answer what stdin asks for."""
    program, kind, path, device = sys.argv[1:]
    read, forget = PROGRAMS[program](kind, path, device)
    ids = [100 + place * 7919 % 40_000 for place in range(_CONTEXT)]
    known = 0  # tokens read of `ids`
    read(ids[:8])
    forget(0)
    print("ready", flush=True)
    for line in sys.stdin:
        what, *number = line.split()
        if what == "memory":
            print(_peak(device), flush=True)
            continue
        length = int(number[0])
        forget(0 if what == "prefill" else min(known, length))
        known = 0 if what == "prefill" else min(known, length)
        started = perf_counter()
        if known < length:
            read(ids[known:length])
            known = length
        if what == "decode":
            started = perf_counter()
            for token in ids[:_DECODED]:
                read([token])
        count = length if what == "prefill" else _DECODED
        print(count / (perf_counter() - started), flush=True)


def _peak(device: str) -> float:
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


if __name__ == "__main__":
    main()
