"""Tokens per second of `nalssi`, past its context and within it, beside the reference script's."""

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.measure import Bench, Row, Target, alternate
from benchmarks.program import command, json_finished, peak

if TYPE_CHECKING:
    from minillm_repl.generate import Decoder
    from minillm_repl.tokenizer import Tokenizer

MODEL, PROMPT = "nalssi", "날씨"
LONG, SHORT = 500, 30  # with the prompt's two, 30 are the most that fit into the context of 32
_TARGETS = {"kernels": 40, "bare": 100}  # times the reference
_AT_LEAST = 0.2  # seconds of our own work per figure: 30 tokens are over in milliseconds


def rows(bench: Bench) -> list[Row]:
    """Measure the C kernels, torch's, and the whole command."""
    from minillm_repl.checkpoint.load_save import load
    from minillm_repl.generate.backends import make_decoder
    from minillm_repl.generate.backends.torch import TorchDecoder
    from minillm_repl.model.build import build
    from minillm_repl.storage.paths import find_checkpoint

    checkpoint = load(find_checkpoint(MODEL))
    ids = checkpoint.tokenizer.encode(PROMPT)
    decoders: dict[str, Decoder] = {
        "kernels": make_decoder(checkpoint),
        "torch": TorchDecoder(build(checkpoint.config, checkpoint.tensors)),
    }

    def engine(name: str, tokens: int) -> Callable[[], float]:
        return lambda: tokens_per_second(decoders[name], checkpoint.tokenizer, ids, tokens)

    def whole_command() -> float:
        finished = json_finished(bench.folder, *asked(LONG))
        return float(finished["tokens"] / finished["seconds"])

    def bare() -> float:
        return bare_tokens_per_second(decoders["kernels"], ids)

    long = {
        "kernels": engine("kernels", LONG),
        "command": whole_command,
        "torch": engine("torch", LONG),
    }
    short = {"kernels": engine("kernels", SHORT), "bare": bare, "torch": engine("torch", SHORT)}
    return [*_compared(bench, LONG, long), *_compared(bench, SHORT, short)]


def asked(tokens: int) -> tuple[str, ...]:
    """Return the flags of a command that writes so many tokens."""
    return "--ckpt", MODEL, "-p", PROMPT, "-n", str(tokens), "--temp", "1"


def tokens_per_second(
    decoder: "Decoder", tokenizer: "Tokenizer", ids: list[int], tokens: int
) -> float:
    """Generate at temperature 1, events and all, from an empty cache, again and again until it
    can be timed.
    """
    import numpy as np

    from minillm_repl.generate import GenerationConfig, Sampling
    from minillm_repl.generate.generate import generate

    rng, made, started = np.random.default_rng(0), 0, perf_counter()
    while perf_counter() - started < _AT_LEAST:
        decoder.trim(0)
        for _event in generate(
            decoder,
            tokenizer,
            ids,
            GenerationConfig(max_tokens=tokens, sampling=Sampling(temp=1.0)),
            rng,
        ):
            pass
        made += tokens
    return made / (perf_counter() - started)


def bare_tokens_per_second(decoder: "Decoder", ids: list[int]) -> float:
    """Draw from the model at temperature 1 and tell nobody, as the reference does, from an empty
    cache each time.
    """
    import numpy as np

    from minillm_repl.generate.sampling import sample_token, softmax

    rng, made, started = np.random.default_rng(0), 0, perf_counter()
    while perf_counter() - started < _AT_LEAST:
        decoder.trim(0)
        logits = decoder.prefill(ids)
        for _ in range(SHORT):
            logits = decoder.decode(sample_token(softmax(logits)[0], rng.random()))
        made += SHORT
    return made / (perf_counter() - started)


def _compared(bench: Bench, tokens: int, measures: dict[str, Callable[[], float]]) -> list[Row]:
    """Measure ours and the reference in turn; only the C kernels, which is what chats,
    has a target.
    """
    reference = bench.reference
    peer = (
        {"reference": lambda: reference.run(steps=1, tokens=tokens).tokens_per_second}
        if reference
        else {}
    )
    took = alternate(bench.runs, {**measures, **peer})
    memory = (
        peak(bench.folder, *command(*asked(tokens), "--json")),
        peak(bench.folder, *reference.command(steps=1, tokens=tokens)) if reference else None,
    )
    names = {
        "kernels": f"{tokens} tokens, C kernels, events",
        "bare": f"{tokens} tokens, C kernels, no events",
        "torch": f"{tokens} tokens, torch decoder, events",
        "command": f"{tokens} tokens, -p {PROMPT} --json, events of 10 candidates",
    }
    return [
        Row(
            f"generate: {names[each]}",
            "tokens/s",
            took[each],
            "reference script",
            took.get("reference", ()),
            Target("≥", _TARGETS[each]) if each in _TARGETS else None,
            memory if each == "command" else None,
        )
        for each in measures
    ]
