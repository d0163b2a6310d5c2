"""nanoGPT's CPU run on tinyshakespeare, by characters: a plain loop of its settings beside
`--train` at the same size.

4 layers and 4 heads of width 128, context 64, batch 12, the last tenth held out. Losses are over
the whole of that tenth, cut into windows of 64, by the same code for both.
"""

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.measure import Bench, Row, Target, alternate
from benchmarks.program import ROOT, command, environment

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDTH, LAYERS, HEADS, CONTEXT, BATCH = 128, 4, 4, 64, 12
PLAIN_STEPS = 2_000
# nats: where nanoGPT's published run ends; wanted here after 1,000 steps
GOAL, LATER_GOAL = 1.88, 1.70
_RUNS = 1  # of each: the plain loop takes minutes
_SIZES = (
    ("width", WIDTH),
    ("layers", LAYERS),
    ("heads", HEADS),
    ("context", CONTEXT),
    ("batch", BATCH),
)


@dataclass(frozen=True)
class _Trained:
    # ours: the whole command; the plain loop: its steps alone, until the goal or the end
    seconds: float
    loss: float


def rows(bench: Bench) -> list[Row]:
    """Train 300, 500 and 1,000 steps by the command, and the plain loop until it is there or has
    done its 2,000.
    """
    text = bench.shakespeare
    if text is None:
        return []
    took = alternate(
        _RUNS,
        {
            "300": lambda: _train(bench.folder, text, 300),
            "500": lambda: _train(bench.folder, text, 500),
            "1,000": lambda: _train(bench.folder, text, 1_000),
            "plain": lambda: _train_plain(text),
        },
    )
    plain = took.pop("plain")
    peer = f"plain loop, until {GOAL} or {PLAIN_STEPS:,} steps: {plain[0].loss:.2f}"
    rows = []
    for steps, runs in took.items():
        seconds, losses = tuple(each.seconds for each in runs), tuple(each.loss for each in runs)
        theirs, goal = (
            tuple(each.seconds for each in plain),
            LATER_GOAL if steps == "1,000" else GOAL,
        )
        rows += [
            Row(
                f"tinyshakespeare: {steps} steps, the whole command",
                "s",
                seconds,
                peer,
                theirs,
                Target("≤", 0.4) if steps == "300" else None,
            ),
            Row(
                f"tinyshakespeare: {steps} steps, validation loss",
                "nats",
                losses,
                "wanted",
                (goal,),
                Target("≤", 1),
            ),
        ]
    return rows


def _train(folder: Path, text: Path, steps: int) -> _Trained:
    path = folder / "shakespeare.safetensors"
    path.unlink(missing_ok=True)
    sizes = [word for name, size in _SIZES for word in (f"--{name}", str(size))]
    arguments = command(
        "--ckpt", str(path), "--train", str(text.resolve()), "--steps", str(steps), *sizes, "--json"
    )
    started = perf_counter()
    done = subprocess.run(
        arguments,
        check=True,
        cwd=ROOT,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    seconds = perf_counter() - started
    said = json.loads(done.stdout.splitlines()[-1])["val_loss"]
    loss = _loss(path, text)
    if abs(said - loss) > 1e-3:
        raise SystemExit(
            f"the program says {said}, but its checkpoint has a validation loss of {loss}"
        )
    return _Trained(seconds, loss)


def _loss(path: Path, text: Path) -> float:
    """Return the validation loss of a checkpoint."""
    from minillm_repl.checkpoint.load_save import load
    from minillm_repl.model.build import build

    checkpoint = load(path)
    return _validation_loss(build(checkpoint.config, checkpoint.tensors), _halves(text)[1])


def _halves(text: Path) -> "tuple[Tensor, Tensor]":
    """Return the ids trained on and those held out; ids are places in the sorted characters."""
    import torch

    characters = text.read_text(encoding="utf-8")
    places = {character: place for place, character in enumerate(sorted(set(characters)))}
    ids = torch.tensor([places[character] for character in characters])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:]


def _validation_loss(model: "nn.Module", ids: "Tensor") -> float:
    import torch
    import torch.nn.functional as F  # noqa: N812

    count = (len(ids) - 1) // CONTEXT
    inputs, targets = (
        ids[place : place + count * CONTEXT].view(count, CONTEXT) for place in (0, 1)
    )
    with torch.no_grad():
        total = sum(
            F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
            for x, y in zip(torch.split(inputs, 64), torch.split(targets, 64), strict=True)
        )
    return float(total / targets.numel())


def _train_plain(text: Path) -> _Trained:
    """Train a GPT-2 of this size as nanoGPT does on a CPU: float32, AdamW, warm-up and cosine
    decay, nothing else.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    from minillm_repl.model.config import GPTConfig
    from minillm_repl.model.gpt import GPT

    torch.manual_seed(1337)
    train, held = _halves(text)
    vocab = int(max(train.max(), held.max())) + 1
    model = GPT(
        GPTConfig(
            vocab_size=vocab,
            context_length=CONTEXT,
            d_model=WIDTH,
            n_layers=LAYERS,
            n_heads=HEADS,
            tie_word_embeddings=True,
            lm_head_bias=False,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            last = name.endswith(("proj.weight", "down.weight"))
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.99),
    )
    windows, seconds, loss = train.unfold(0, CONTEXT + 1, 1), 0.0, math.inf
    for step in range(1, PLAIN_STEPS + 1):
        started = perf_counter()
        share = min(
            step / 100,
            0.1 + 0.45 * (1 + math.cos(math.pi * max(0, step - 100) / (PLAIN_STEPS - 100))),
        )
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * share
        batch = windows[torch.randint(len(windows), (BATCH,))]
        summed = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        summed.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += perf_counter() - started
        if step % 250 == 0 and (loss := _validation_loss(model, held)) <= GOAL:
            break
    return _Trained(seconds, loss)
