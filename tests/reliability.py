"""The figures of docs/reliability.md: `python -m tests.reliability
files|interrupts|resumes|saves|soak`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.model.config import LlamaConfig
from minillm_repl.tokenizer import CharacterTokenizer
from tests import faults, hostile
from tests.terminal import Terminal
from tests.test_training_runs import killed_again_and_again, with_text

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "models" / "nalssi.txt"
MEASURED = """
import json, resource, sys, time
from pathlib import Path
from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
import numpy, safetensors.numpy
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, started = peak(), time.perf_counter()
try:
    load(Path(sys.argv[1]))
    told = "opened"
except UserError as error:
    clean = str(error).isprintable() and len(str(error)) < 700
    told = "refused" if clean else "refused, but not in one clean line"
print(json.dumps([told, time.perf_counter() - started, (peak() - before) / 1024]))
"""


def files(_: argparse.Namespace, folder: Path) -> None:
    """Open each hostile file in a process of its own, so that time, memory and end are its own."""
    os.chdir(folder)
    (folder / "files").mkdir()
    every, answers = list(hostile.all_of(folder / "files")), []
    for name, path in every:
        command = [sys.executable, "-c", MEASURED, str(path)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                timeout=20,
                check=False,
            )
            told, seconds, mebibytes = (
                json.loads(done.stdout) if not done.returncode else ("crashed", 0, 0)
            )
        except subprocess.TimeoutExpired:
            told, seconds, mebibytes = "hung", 20, 0
        answers.append((told, seconds, mebibytes, name))
    for kind in sorted({answer[0] for answer in answers}):
        print(f"{kind}: {sum(answer[0] == kind for answer in answers)} of {len(answers)}")
    print(
        "families: "
        f"{', '.join(sorted({name.partition(':')[0] for name, _ in every if ':' in name}))}, "
        "no_files"
    )
    seconds = sorted(answers, key=lambda answer: -answer[1])
    usual = 1000 * median(answer[1] for answer in answers)
    print(f"median {usual:.1f} ms, slowest {seconds[0][1]:.2f} s ({seconds[0][3]})")
    most = max(answers, key=lambda answer: answer[2])
    print(f"most memory beyond the idle process: {most[2]:.0f} MiB ({most[3]})")


def saves(_: argparse.Namespace, __: Path) -> None:
    """Kill and refuse saves at every call of the system that Python makes."""
    for how, words in {
        "call": "killed at a call",
        "size": "killed in a write",
        "error": "refused (ENOSPC)",
    }.items():
        points = lost = 0
        for kind in faults.KINDS:
            command = [
                sys.executable,
                "-m",
                "tests.faults",
                how,
                kind,
                *(["28"] if how == "error" else []),
            ]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
            answer = json.loads(done.stdout)
            points, lost = points + answer["points"], lost + len(answer["lost"])
        print(f"saves {words}: {points} points, {lost} with anything lost or left")


@dataclass(frozen=True)
class Moment:
    """Something to interrupt: how it is begun, and how many seconds later Ctrl-C comes, at most."""

    name: str
    begin: Callable[[Terminal], None]
    latest: float


def line(text: str) -> Callable[[Terminal], None]:
    return lambda terminal: terminal.send(text)


def moments(folder: Path) -> list[Moment]:
    large, text = folder / "large.safetensors", "가나다라마바사아자차카타파하" * 12
    long = "가나다라마바사아자차카타파하" * 60
    return [
        Moment("typing", lambda terminal: terminal.type("날씨가 좋"), 0.3),
        Moment("searching history", lambda terminal: terminal.keys("ctrl-r"), 0.3),
        Moment("with the Enter", lambda terminal: terminal.type("날씨\r"), 0.0),
        Moment("generating", line("날씨"), 0.5),
        Moment("drawing tables", line(":verbose 10"), 0.0),
        Moment("drawing tables", line("날씨"), 0.5),
        Moment("drawing no more tables", line(":verbose off"), 0.0),
        Moment("getting ready to train", line(f":train {CORPUS} steps=100000"), 0.4),
        Moment("training", line(f":train {CORPUS} steps=100000"), 3.0),
        Moment("loading", line(f":load {large}"), 0.8),
        Moment("opening again", line(f":load {large}"), -1),  # waits to its end
        Moment("prefill", line(long), 1.0),
        Moment("generating, large", line("가"), 1.0),
        Moment("attention", line(f":attn {text}"), 2.0),
        Moment("lens", line(f":lens {text}"), 2.0),
        Moment("attribution", line(":why"), 2.0),
        Moment("saving", line(f":save {folder / 'copy.safetensors'}"), 0.8),
        Moment(
            "training, large",
            line(f":train {folder / 'text.txt'} steps=1000 context=64 batch=2"),
            6.0,
        ),
        Moment("opening the small one", line(":load nalssi"), -1),
    ]


def large_model(path: Path) -> None:
    """Save a model of 50 million numbers: with it each step takes long enough to come between."""
    characters = sorted(set("가나다라마바사아자차카타파하"))
    config = LlamaConfig(
        vocab_size=len(characters),
        context_length=1024,
        d_model=512,
        n_layers=16,
        n_heads=8,
        n_kv_heads=8,
        head_dim=64,
        d_mlp=1408,
    )
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in config.shapes()
    }
    save(Checkpoint(config=config, tokenizer=CharacterTokenizer(characters), tensors=tensors), path)


def interrupts(options: argparse.Namespace, folder: Path) -> None:
    """Press Ctrl-C at random moments of everything that goes on, and take the time until the
    next prompt line.
    """
    large_model(folder / "large.safetensors")
    (folder / "text.txt").write_text("가나다라마바사아자차카타파하" * 3_000, encoding="utf-8")
    environment = {name: os.environ[name] for name in ("PATH",)} | {
        "HOME": str(folder), "LANG": "C.UTF-8", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    choose, took = random.Random(options.seed), {}
    with Terminal(
        ("--ckpt", "nalssi", "--max-tokens", "1000000"), environment=environment, folder=folder
    ) as terminal:
        terminal.wait_for_prompt()
        for _ in range(options.rounds):
            for moment in moments(folder):
                seconds = one(terminal, moment, choose)
                took.setdefault(moment.name, []).append(seconds)
        terminal.keys("ctrl-c", "ctrl-d", "ctrl-d")
        assert terminal.wait_for_end() == 0, terminal
    del took["opening again"], took["opening the small one"], took["drawing no more tables"]
    for name, each in took.items():
        print(
            f"{name:24} {len(each):3} moments, median {1000 * median(each):5.0f} ms, longest "
            f"{1000 * max(each):5.0f} ms"
        )
    every = [seconds for each in took.values() for seconds in each]
    assert len(every) == options.rounds * (len(moments(folder)) - 3)
    print(
        f"{len(every)} moments, all back at the prompt; 95th percentile "
        f"{1000 * quantiles(every, n=20)[-1]:.0f} ms"
    )


def one(terminal: Terminal, moment: Moment, choose: random.Random) -> float:
    """Begin something, interrupt it, wait for an empty prompt line; return the seconds."""
    before = terminal.prompts
    moment.begin(terminal)
    until = time.monotonic() + choose.uniform(0, max(0, moment.latest))
    while moment.latest > 0 and time.monotonic() < until:
        terminal.pump(0.01)
    if moment.latest < 0:
        terminal.wait_for_prompt(before)
        return 0.0
    pressed = time.monotonic()
    terminal.interrupt()
    stays = moment.name in ("typing", "searching history")  # the prompt line itself does not end
    terminal.wait_for_prompt(0 if stays else before, timeout=20)
    took = time.monotonic() - pressed
    for _ in range(3):  # whatever else it still has to draw
        terminal.pump(0.05)
    terminal.wait_for(lambda terminal: terminal.at_empty_prompt)
    return took


def resumes(options: argparse.Namespace, folder: Path) -> None:
    """Kill runs of training at random moments, go on, and compare them with runs left alone."""
    resumed = 0
    for seed in range(options.rounds):
        (folder / str(seed)).mkdir()
        resumed += killed_again_and_again(with_text(folder / str(seed)), 15, options.seed + seed)
    print(f"{resumed} resume points in {options.rounds} runs, 0 differing bits")


def soak(options: argparse.Namespace, folder: Path) -> float:
    """Take thousands of turns in one visit; return the MiB that it grew after the first tenth."""
    process = subprocess.Popen(
        [sys.executable, "-m", "minillm_repl", "--ckpt", "nalssi", "--no-history", "-n", "20"],
        cwd=ROOT,
        env=os.environ | {"HOME": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    sizes = []
    for turn in range(options.turns):
        process.stdin.write("날씨\n:tokens 하늘이 맑고\n")
        process.stdin.flush()
        while not process.stdout.readline().endswith("bytes\n"):
            assert process.poll() is None
        if turn % (options.turns // 10) == options.turns // 10 - 1:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            sizes.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
    process.communicate("")
    print(
        f"{options.turns} turns; resident MiB after each tenth: "
        f"{', '.join(f'{size:.1f}' for size in sizes)}"
    )
    print(f"growth from the first tenth to the last: {sizes[-1] - sizes[0]:+.1f} MiB")
    return sizes[-1] - sizes[0]


def main() -> None:
    """Print the figures that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    whats = {each.__name__: each for each in (files, interrupts, resumes, saves, soak)}
    parser.add_argument("what", choices=whats)
    parser.add_argument(
        "--rounds",
        type=int,
        default=8,
        help="of the moments to interrupt, of runs to kill (default: 8)",
    )
    parser.add_argument("--turns", type=int, default=10_000, help="of the soak (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whats[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
