"""SmolLM2-135M on a GPU, where there is one: beside `transformers` and what its memory allows."""

from contextlib import ExitStack
from functools import partial
from statistics import median
from time import perf_counter

from benchmarks import machine
from benchmarks.measure import Bench, Row, alternate
from benchmarks.program import json_finished
from benchmarks.smollm2 import FAR, NEAR, PROMPT, Contender

_KINDS = ("bfloat16", "float32")
_PEERS = ("transformers", "operations")
_READ = 2**32  # bytes, far more than any cache holds
_TIMES = 20


def missing() -> list[str]:
    """Return what cannot be measured, and what it lacks."""
    return [] if machine.gpu() else ["a GPU (torch finds none)"]


def rows(bench: Bench) -> list[Row]:
    """Measure decoding, reading a prompt, and the whole program."""
    if bench.smollm2 is None or missing():
        return []
    result = []
    weights = (bench.smollm2 / "model.safetensors").stat().st_size  # in bfloat16
    bandwidth = _bandwidth()
    with ExitStack() as stack:
        for kind in _KINDS:
            contenders = {
                program: Contender(program, kind, bench.smollm2, "cuda")
                for program in ("ours", *_PEERS)
            }
            for contender in contenders.values():
                stack.callback(contender.close)
            decoded, near = {}, f"decode {NEAR}"
            for question in (f"prefill {PROMPT}", f"prefill {FAR}", f"decode {FAR}", near):
                for each in contenders.values():
                    each.ask(question)  # libraries get ready, and steps are recorded
                took = alternate(
                    bench.runs,
                    {name: partial(each.ask, question) for name, each in contenders.items()},
                )
                memory = {name: each.ask("memory") for name, each in contenders.items()}
                decoded[question] = took["ours"]
                result += [
                    Row(
                        f"SmolLM2 on the GPU, {question} tokens, {kind}",
                        "tokens/s",
                        took["ours"],
                        peer,
                        took[peer],
                        memory=(memory["ours"], memory[peer]),
                    )
                    for peer in (_PEERS if question.startswith("decode") else _PEERS[:1])
                ]
            bound = bandwidth / (weights * (1 if kind == "bfloat16" else 2))
            name = f"SmolLM2 on the GPU, decode {{}} tokens, {kind}"
            result.append(
                Row(name.format(NEAR), "tokens/s", decoded[near], "all weights read once", (bound,))
            )
            far = decoded[f"decode {FAR}"]
            result.append(Row(name.format(FAR), "tokens/s", far, f"at {NEAR}", decoded[near]))
    return [*result, _whole_program(bench)]


def _whole_program(bench: Bench) -> Row:
    """Return what the program itself writes, samplers, events and JSON included."""

    def said(device: str) -> float:
        finished = json_finished(
            bench.folder, "--ckpt", str(bench.smollm2), "--device", device, "-p",
            "Once upon a time", "--chat", "off", "-n", "400", "--seed", "1",
        )  # fmt: skip
        return float(finished["tokens"] / finished["seconds"])

    took = alternate(bench.runs, {device: partial(said, device) for device in ("cuda", "cpu")})
    name = "SmolLM2, the whole program with --json and --device cuda, 400 tokens, bfloat16"
    return Row(name, "tokens/s", took["cuda"], "--device cpu", took["cpu"])


def _bandwidth() -> float:
    """Return how fast the GPU reads its memory, bytes/s: the median of several sums of more than
    a cache holds.
    """
    import torch

    numbers = torch.rand(_READ // 4, device="cuda")
    seconds = []
    for _ in range(_TIMES):
        torch.cuda.synchronize()
        started = perf_counter()
        numbers.sum().item()
        seconds.append(perf_counter() - started)
    return _READ / median(seconds)
