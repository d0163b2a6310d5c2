"""Training on the note's sentences by `--train`, beside the reference script's own 1,000 steps."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.measure import Bench, Row, Target, alternate
from benchmarks.program import CORPUS, ROOT, command, environment, peak
from benchmarks.reference import Reference

STEPS, REFERENCE_STEPS = 100, 1000
_FILE = "nalssi.safetensors"


@dataclass(frozen=True)
class _Trained:
    command: float  # seconds of the whole process; 0 where the script does more than train
    seconds: float  # of the steps alone
    loss: float  # over every window of the text, in nats per token


def rows(bench: Bench) -> list[Row]:
    """Train both to the end, and measure both models in the same way."""
    reference = bench.reference
    peer = {"reference": lambda: _train_reference(bench.folder, reference)} if reference else {}
    took = alternate(bench.runs, {"ours": lambda: _train(bench.folder), **peer})
    (bench.folder / _FILE).unlink()
    memory = (
        peak(bench.folder, *_command(bench.folder)),
        peak(bench.folder, *reference.command(steps=20, tokens=1)) if reference else None,
    )
    ours, theirs = took["ours"], took.get("reference", ())
    peer_name = f"reference, {REFERENCE_STEPS:,} steps"
    return [
        Row(
            f"train: {STEPS} steps",
            "s",
            tuple(each.seconds for each in ours),
            peer_name,
            tuple(each.seconds for each in theirs),
            Target("≤", 1 / 6),
        ),
        Row(
            f"train: the whole command, {STEPS} steps",
            "s",
            tuple(each.command for each in ours),
            f"{peer_name}, its loop alone",
            tuple(each.seconds for each in theirs),
            memory=memory,
        ),
        Row(
            "train: loss over the whole text",
            "nats",
            tuple(each.loss for each in ours),
            peer_name,
            tuple(each.loss for each in theirs),
            Target("≤", 1),
        ),
    ]


def _command(folder: Path) -> list[str]:
    flags = (
        "--ckpt",
        str(folder / _FILE),
        "--train",
        str(CORPUS.relative_to(ROOT)),
        "--steps",
        str(STEPS),
        "--json",
    )
    return command(*flags)


def _train(folder: Path) -> _Trained:
    path = folder / _FILE
    path.unlink(missing_ok=True)
    started = perf_counter()
    done = subprocess.run(
        _command(folder),
        check=True,
        cwd=ROOT,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    command_seconds = perf_counter() - started
    return _Trained(
        command_seconds, json.loads(done.stdout.splitlines()[-1])["seconds"], _loss(path)
    )


def _train_reference(folder: Path, reference: Reference) -> _Trained:
    path = folder / "reference.safetensors"
    seconds = reference.run(steps=REFERENCE_STEPS, tokens=1, save=path).train_seconds
    return _Trained(0.0, seconds, _loss(path))


def _loss(path: Path) -> float:
    """Return the loss of a checkpoint, ours or the reference's, over all windows of the text."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from minillm_repl.checkpoint.load_save import load, read_vocabulary
    from minillm_repl.model.build import build

    checkpoint = load(path, read_vocabulary(CORPUS))
    model = build(checkpoint.config, checkpoint.tensors)
    ids = torch.tensor(checkpoint.tokenizer.encode(CORPUS.read_text(encoding="utf-8")))
    windows = ids.unfold(0, checkpoint.config.context_length + 1, 1)
    with torch.no_grad():
        return F.cross_entropy(
            model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
        ).item()
