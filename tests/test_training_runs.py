"""Runs of training as what they are, processes: killed, told to end, resumed, and several that
train one model.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minillm_repl.checkpoint.load_save import load
from tests.conftest import ROOT
from tests.terminal import Terminal

PROGRAM = [sys.executable, "-m", "minillm_repl"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node=2",
    "-m",
    "minillm_repl",
]
SIZES = [
    *(
        "--arch",
        "llama",
        "--width",
        "16",
        "--layers",
        "1",
        "--heads",
        "2",
        "--context",
        "16",
        "--batch",
        "4",
    ),
    *("--precision", "float32", "--threads", "1"),
]
WORDS = [
    "하늘이",
    "맑고",
    "바람이",
    "시원하다",
    "the",
    "sky",
    "is",
    "clear",
    "and",
    "cool",
    "산책을",
    "가고",
    "싶다",
    "park",
]


def with_text(folder):
    """Put a text into a folder, long enough that a tenth of it is held out; return the folder."""
    choose = random.Random(0)
    text = " ".join(choose.choice(WORDS) + choose.choice([".\n", "", "", ""]) for _ in range(4_000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path):
    return with_text(tmp_path)


def environment(folder):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINILLM_")}
    homes = {
        f"XDG_{kind}_HOME": str(folder / "home" / kind.lower())
        for kind in ("CONFIG", "STATE", "CACHE", "DATA")
    }
    return {
        **kept,
        **homes,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def start(folder, *words, command=PROGRAM):
    return subprocess.Popen(
        [*command, *map(str, words)],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def strict(line):
    """Read a line of JSON as those read it that know no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON: {line}")

    return json.loads(line, parse_constant=refuse)


def run(folder, *words, command=PROGRAM, code=0):
    """Run to the end; return the events and what was said beside them."""
    process = start(folder, *words, command=command)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, (process.returncode, err)
    assert "Traceback" not in err
    return [strict(line) for line in out.splitlines()], err


def train(folder, name="m", *words, steps=60, **more):
    given = [
        "--ckpt",
        f"{name}.safetensors",
        "--train",
        "text.txt",
        "--json",
        "--steps",
        steps,
        *SIZES,
    ]
    return run(folder, *given, *words, **more)


def losses(events):
    return [event["loss"] for event in events if event["event"] == "train_step"]


def same_bits(one, other):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def until(process, event, count):
    """Read events until the last of so many of a kind."""
    for line in process.stdout:
        count -= strict(line)["event"] == event
        if not count:
            return
    raise AssertionError((process.wait(), process.stderr.read()))


# -- one process


def killed_again_and_again(folder, kills, seed):
    """Kill a run at random moments, go on each time; return how often it could go on."""
    choose, steps = random.Random(seed), 40 * kills
    settings = ["--steps", steps, "--save-steps", 7, "--every", 50, *SIZES]
    run(folder, "--ckpt", "whole.safetensors", "--train", "text.txt", "--json", *settings)
    anew = ["--ckpt", "cut.safetensors", "--train", "text.txt", "--json", *settings]
    path, file, resumed = folder / "cut.safetensors", folder / "cut.resume.safetensors", 0
    for _ in range(kills):
        resumed += file.exists()
        process = start(
            folder, *(["--ckpt", path.name, "--resume", "--json"] if file.exists() else anew)
        )
        until(process, "train_step", choose.randint(1, 60))
        time.sleep(choose.random() / 50)
        process.kill()
        process.communicate()
        if path.exists():
            assert load(path).training.steps % 7 == 0
    run(folder, *(["--ckpt", path.name, "--resume", "--json"] if file.exists() else anew))
    same_bits(folder / "whole.safetensors", path)
    assert load(path).training.steps == steps
    # a kill in the middle of a write
    left = [name for name in files(folder) if not name.startswith(".minillm-")]
    assert left == ["cut.safetensors", "text.txt", "whole.safetensors"]
    return resumed


@pytest.mark.slow
def test_a_run_killed_at_random_moments_goes_on_to_the_same_bits(folder):
    assert killed_again_and_again(folder, 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_run_killed_at_many_random_moments_goes_on_to_the_same_bits(folder, seed):
    assert killed_again_and_again(folder, 15, seed) >= 10


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=SLOW),
        pytest.param(signal.SIGINT, 130, marks=SLOW),
    ],
)
def test_a_run_told_to_end_saves_first_and_goes_on_exactly(folder, number, code):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(
            "these tests run where this signal is ignored, under nohup perhaps, and so it is by "
            "the run"
        )
    train(folder, "whole", steps=200)
    words = ["--ckpt", "cut.safetensors", "--train", "text.txt", "--json", "--steps", 200, *SIZES]
    process = start(folder, *words)
    until(process, "train_step", 20)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    finished = json.loads(out.splitlines()[-1])
    assert (finished["event"], finished["reason"]) == ("finished", "interrupt")
    assert 20 <= load(folder / "cut.safetensors").training.steps == finished["steps"] < 200
    run(folder, "--ckpt", "cut.safetensors", "--resume", "--json")
    same_bits(folder / "whole.safetensors", folder / "cut.safetensors")


@pytest.mark.slow
def test_going_on_with_nothing_or_with_another_text_is_refused_in_one_line(folder):
    def refused(*words, code=1):
        _, err = run(folder, *words, code=code)
        assert len(err.splitlines()) <= 2, err
        return err

    assert "no run to resume" in refused("--ckpt", "none.safetensors", "--resume")
    assert "use the settings of the run before" in refused(
        "--ckpt", "m.safetensors", "--resume", "--steps", "9", code=2
    )
    process = start(
        folder,
        "--ckpt",
        "m.safetensors",
        "--train",
        "text.txt",
        "--json",
        "--save-steps",
        5,
        "--steps",
        400,
        *SIZES,
    )
    until(process, "saved", 1)
    process.kill()
    process.communicate()
    (folder / "text.txt").write_text("another text", encoding="utf-8")
    assert "has changed" in refused("--ckpt", "m.safetensors", "--resume")
    (folder / "text.txt").unlink()
    assert "text.txt" in refused("--ckpt", "m.safetensors", "--resume")


def test_a_run_that_learns_nothing_says_what_to_try_keeps_good_weights_and_ends_with_1(folder):
    events, said = train(folder, "m", "--lr", "10", "--schedule", "constant", steps=40, code=1)
    assert (events[-1]["kept"], events[-1]["last_loss"]) == (0, events[-1]["first_loss"])
    assert "lr=10 may be too large; try lr=1" in said
    assert all(
        np.isfinite(array).all() for array in load(folder / "m.safetensors").tensors.values()
    )


SMALL_DISK = "mount -t tmpfs -o size=1M tmpfs disk; {}; code=$?; cp disk/* .; exit $code"


@pytest.mark.parametrize(("width", "code"), [(64, 0), (128, 1)])
def test_a_run_survives_a_disk_of_a_megabyte_and_loses_no_weights(folder, width, code):
    """Its resume file does not fit there, and of the wider model the weights do not either."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.call([*command, "true"], stderr=-3):
        pytest.skip("this system lets nobody mount a disk")
    (folder / "disk").mkdir()
    words = ["--ckpt", "disk/m.safetensors", "--train", "text.txt", "--steps", 30, *SIZES]
    words += ["--save-steps", 7, "--width", width, "--layers", 2]
    line = " ".join(map(str, [*PROGRAM, *words]))
    process = start(folder, SMALL_DISK.format(line), command=command)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert err.count("No space left on device") == 1 + code
    assert "training goes on, and saving is tried again" in " ".join(err.split())
    if code:
        (path,) = (folder / "home" / "state").rglob("rescued/*.safetensors")
        assert f"The trained weights are in {path}" in err
    else:
        path = folder / "m.safetensors"
        assert "the weights alone are saved" in " ".join(err.split())
    assert load(path).training.steps == 30


NEW = {
    "byte pairs": ["--tokenizer", "bpe:300", "--arch", "llama"],
    "few characters": ["--tokenizer", "char:20", "--arch", "gpt"],
    "a file held out": ["--val", "held.txt"],
}


@pytest.mark.parametrize("kind", NEW)
def test_a_new_model_is_trained_saved_opened_and_completes(folder, kind):
    (folder / "held.txt").write_text(" ".join(WORDS[::-1]) * 30, encoding="utf-8")
    _, said = train(folder, "m", *NEW[kind], steps=10)
    assert "not in the vocabulary" not in said
    checkpoint = load(folder / "m.safetensors")
    assert checkpoint.tokenizer.vocab_size == {"byte pairs": 300, "few characters": 20 + 256}.get(
        kind, checkpoint.tokenizer.vocab_size
    )
    assert checkpoint.training.val_loss > 0
    events, _ = run(
        folder, "--ckpt", "m.safetensors", "-p", "바람이", "--json", "--max-tokens", "5"
    )
    assert 0 < events[-1]["tokens"] <= 5  # the model of byte pairs may draw the end token


def test_remade_from_the_shell_the_weights_are_the_same_and_others_are_named(folder):
    train(folder, "m", steps=20)
    words = ["--ckpt", "m.safetensors", "--remake", "--json"]
    before = (folder / "m.safetensors").read_bytes()
    events, said = run(folder, *words)
    assert events[0]["event"] == "started"
    assert "the same weights, bit for bit" in said
    other = load_file(folder / "m.safetensors")
    other["norm_f.weight"][0] += 1
    with safe_open(folder / "m.safetensors", "np") as file:
        save_file(other, folder / "m.safetensors", file.metadata())
    assert "the weights are not the same" in run(folder, *words, code=1)[1]
    assert before != (folder / "m.safetensors").read_bytes()


def test_out_is_where_a_trained_model_goes_and_what_is_opened_stays(folder):
    train(folder, "m", steps=10)
    before = (folder / "m.safetensors").read_bytes()
    words = ["--ckpt", "m.safetensors", "--train", "text.txt", "--json", "--steps", 6]
    run(folder, *words, "--out", "n.safetensors")
    assert load(folder / "n.safetensors").training.steps == 16
    run(folder, *words, "--out", "tuned/")
    assert (folder / "tuned" / "config.json").exists()
    assert (
        load(folder / "tuned").tokenizer.vocab_size
        == load(folder / "m.safetensors").config.vocab_size
    )
    assert "not an empty folder" in run(folder, *words, "--out", "tuned/", code=1)[1]
    folder_words = ["--ckpt", "tuned", *words[2:]]
    assert "--out FOLDER/" in run(folder, *folder_words, code=1)[1]
    _, said = run(folder, *folder_words, "--lora", 2, "--save-steps", 2, "--out", "small/")
    assert "adapter saved to small/" in said
    assert not (folder / "small.resume.safetensors").exists()
    run(folder, *words, "--lora", 2, "--out", "small.safetensors")
    assert (folder / "small.safetensors").stat().st_size < len(before)
    assert load(folder / "small.safetensors").adapter is not None
    assert (folder / "m.safetensors").read_bytes() == before
    missing = ["--ckpt", "no.safetensors", *words[2:], "--out", "x.safetensors"]
    assert "no.safetensors does not exist" in run(folder, *missing, code=1)[1]


@pytest.mark.slow
def test_a_folder_of_texts_and_talks_is_trained_on(folder):
    talks = folder / "talks"
    talks.mkdir()
    talk = [{"role": "user", "content": "날씨?"}, {"role": "assistant", "content": "맑다."}]
    for name in "ab":
        (talks / f"{name}.jsonl").write_text(
            (json.dumps({"messages": talk}) + "\n") * 40, encoding="utf-8"
        )
    run(folder, "--ckpt", "talk.safetensors", "--train", "talks", "--json", "--steps", "80", *SIZES)
    process = start(folder, "--ckpt", "talk.safetensors", "-p", "날씨?", "--temp", "0")
    out, err = process.communicate(timeout=60)
    assert out.strip() == "맑다.", err


@pytest.mark.slow
def test_ctrl_c_in_the_repl_comes_back_and_going_on_is_exact(folder):
    train(folder, "whole", steps=1000)
    words = ["--ckpt", "cut.safetensors", "--no-history"]
    settings = " ".join(
        f"{name[2:]}={value}" for name, value in zip(SIZES[::2], SIZES[1::2], strict=True)
    )
    settings = settings.replace(" threads=1", "")
    with Terminal(
        words, environment={**environment(folder), "TERM": "xterm-256color"}, folder=folder
    ) as terminal:
        terminal.wait_for_prompt()
        before = terminal.prompts
        terminal.send(f":train text.txt steps=1000 {settings}")
        terminal.wait_for(re.compile(r"step +1\d\d "))
        terminal.keys("ctrl-c")
        terminal.wait_for_prompt(before)
        assert "stopped by Ctrl-C" in terminal.text
        assert "`:train resume` continues from here" in terminal.text
        assert load(folder / "cut.safetensors").training.steps < 1000
        answer = terminal.do(":train resume", timeout=60)
        assert "continues after step" in answer
        assert "saved to cut.safetensors" in answer
        same_bits(folder / "whole.safetensors", folder / "cut.safetensors")


EVENTS = {
    "started": {
        *("step", "plan", "corpus", "corpus_sha256", "val_sha256", "training_tokens"),
        *("validation_tokens", "parameters", "start_sha256", "threads", "processes"),
        *("versions", "machine"),
    },
    "train_step": {"step", "loss", "lr", "grad_norm", "tokens", "seconds"},
    "evaluating": {"step"},
    "evaluated": {"step", "train_loss", "val_loss", "bits_per_character", "best"},
    "saved": {"step"},
    "finished": {
        *(
            "reason",
            "steps",
            "tokens",
            "seconds",
            "step_seconds",
            "kept",
            "first_loss",
            "last_loss",
            "train_loss",
            "val_loss",
        ),
        *("bits_per_character", "curve", "val_curve"),
    },
}


def test_events_have_the_fields_of_the_format(folder):
    events, said = train(folder, "m", "--every", 5, "--save-steps", 20)
    for event in events:
        assert event.keys() - {"event"} == EVENTS[event["event"]]
    assert [event["step"] for event in events if event["event"] == "train_step"] == list(
        range(1, 61)
    )
    assert [event["step"] for event in events if event["event"] == "evaluated"] == list(
        range(0, 61, 5)
    )
    assert [event["step"] for event in events if event["event"] == "saved"] == [20, 40, 60]
    assert [event["event"] for event in events].index("finished") == len(events) - 1
    assert (events[-1]["reason"], events[-1]["steps"]) == ("done", 60)
    assert said.splitlines()[-1] == "saved to m.safetensors"


def test_ctrl_c_while_a_long_text_is_read_comes_back_with_one_line(folder):
    with (folder / "long.txt").open("w", encoding="utf-8") as file:
        for number in range(200):
            file.write(" ".join(f"{word}{number}" for word in WORDS) * 1_000 + "\n")
    environ = {**environment(folder), "TERM": "xterm-256color"}
    with Terminal(["--no-history"], environment=environ, folder=folder) as terminal:
        terminal.wait_for_prompt()
        before = terminal.prompts
        terminal.send(":train long.txt new tokenizer=bpe:2000")
        terminal.wait_for("reading the text")
        terminal.keys("ctrl-c")
        terminal.wait_for_prompt(before)
        assert "error: stopped" in terminal.text
        assert "Traceback" not in terminal.text
    assert not list((folder / "home").rglob("*.ids"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_a_text_of_a_gigabyte_needs_little_memory_and_is_tokenised_once(folder):
    choose = random.Random(0)
    lines = [" ".join(choose.choices(WORDS, k=12)) + ".\n" for _ in range(20_000)]
    path, size, number = folder / "long.txt", 0, 0
    words = ["--train", "long.txt", "--steps", 20, *SIZES]
    try:
        with path.open("wb") as file:
            while size < 1_000_000_000:
                size += file.write(f"{number} {''.join(choose.choices(lines, k=300))}".encode())
                number += 1
        found = []
        for name in ("first", "second"):
            process = start(folder, "--ckpt", f"{name}.safetensors", *words)
            # MiB; what the system tells at the end counts the memory of pytest, which forked
            peak = 0.0
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
                peak = max(
                    [peak, *(int(kib) / 1024 for kib in re.findall(r"VmHWM:\s+(\d+)", status))]
                )
                time.sleep(0.02)
            _, err = process.communicate()
            assert process.returncode == 0, err
            assert 100 < peak < 700
            (tokens,) = (folder / "home" / "cache").rglob("*.ids")
            found.append((tokens.stat().st_ino, tokens.stat().st_mtime_ns, tokens.stat().st_size))
        assert found[0] == found[1]
        assert found[0][2] > 500_000_000
        same_bits(folder / "first.safetensors", folder / "second.safetensors")
    finally:
        path.unlink()
        shutil.rmtree(folder / "home")


# -- several processes


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_and_only_one_speaks(folder):
    """They sum in another order, and rounding grows from step to step."""
    (events, _), (both, _) = (
        train(folder, name, "--lr", "0.003", steps=50, command=command)
        for name, command in (("one", PROGRAM), ("two", TORCHRUN))
    )
    one, two = losses(events), losses(both)
    assert len(one) == len(two) == 50
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)
    for name, array in load(folder / "one.safetensors").tensors.items():
        np.testing.assert_allclose(
            load(folder / "two.safetensors").tensors[name], array, rtol=0, atol=1e-3
        )
    assert abs(events[-1]["val_loss"] - both[-1]["val_loss"]) < 1e-4


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_on_conversations_in_parts(folder):
    choose = random.Random(1)
    with (folder / "text.txt").with_suffix(".jsonl").open("w", encoding="utf-8") as file:
        for _ in range(300):
            question, answer = (
                " ".join(choose.choices(WORDS, k=choose.randint(1, 9))) for _ in range(2)
            )
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    words = [
        "--train",
        "text.jsonl",
        "--json",
        "--steps",
        50,
        "--accumulate",
        2,
        "--optimizer",
        "adamw",
        *SIZES,
    ]
    one, _ = run(folder, "--ckpt", "one.safetensors", *words)
    two, _ = run(folder, "--ckpt", "two.safetensors", *words, command=TORCHRUN)
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-5)


def children(process):
    """The ids of the processes that torchrun has started."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return list(map(int, found.stdout.split()))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_the_last_save_goes_on(folder):
    words = [
        "--ckpt",
        "m.safetensors",
        "--train",
        "text.txt",
        "--json",
        "--steps",
        2_000,
        "--save-steps",
        20,
        *SIZES,
    ]
    process = start(folder, *words, command=TORCHRUN)
    until(process, "saved", 2)
    os.kill(children(process)[-1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    steps = load(folder / "m.safetensors").training.steps
    assert steps >= 40  # torchrun tells the other to end, which may save once more
    process = start(folder, "--ckpt", "m.safetensors", "--resume", "--json")
    until(process, "saved", 1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert load(folder / "m.safetensors").training.steps >= steps + 20


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_together_after_a_save_and_they_go_on_exactly(folder, number):
    train(folder, "whole", steps=300, command=TORCHRUN)
    words = ["--ckpt", "cut.safetensors", "--train", "text.txt", "--json", "--steps", 300, *SIZES]
    process = start(folder, *words, command=TORCHRUN)
    until(process, "train_step", 30)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as the terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert 30 <= load(folder / "cut.safetensors").training.steps < 300, err
    run(folder, "--ckpt", "cut.safetensors", "--resume", "--json", command=TORCHRUN)
    same_bits(folder / "whole.safetensors", folder / "cut.safetensors")


@pytest.mark.slow
def test_weights_in_shares_have_the_losses_of_one_process_and_are_saved_whole(folder):
    one, _ = train(folder, "one", "--lr", "0.003", steps=50)
    two, _ = train(
        folder, "two", "--lr", "0.003", "--shard", "--save-steps", "20", steps=50, command=TORCHRUN
    )
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-4)
    assert load(folder / "one.safetensors").config == load(folder / "two.safetensors").config
    events, _ = run(
        folder, "--ckpt", "two.safetensors", "-p", "바람이", "--json", "--max-tokens", "5"
    )
    assert events[-1]["tokens"] == 5


@pytest.mark.slow
def test_an_adapter_is_trained_by_two_processes_as_by_one(folder):
    train(folder, "base", steps=30)
    found = []
    for name, command in (("one", PROGRAM), ("two", TORCHRUN)):
        (folder / f"{name}.safetensors").write_bytes((folder / "base.safetensors").read_bytes())
        words = [
            "--train",
            "text.txt",
            "--json",
            "--steps",
            50,
            "--lora",
            4,
            "--batch",
            4,
            "--optimizer",
            "adamw",
        ]
        events, _ = run(folder, "--ckpt", f"{name}.safetensors", *words, command=command)
        found.append(losses(events))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_has_the_same_losses(folder):
    if subprocess.run(
        ["sh", "-c", "command -v cc c++ g++"], capture_output=True, check=False
    ).returncode:
        pytest.skip("no compiler here")
    one, _ = train(folder, "one", "--lr", "0.003", steps=50)
    two, _ = train(folder, "two", "--lr", "0.003", "--compile", steps=50)
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_where_there_is_no_compiler_that_is_said_in_one_line(folder):
    nothing = {
        "PATH": str(folder),
        "CXX": "none",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
    }
    words = ["--ckpt", "m.safetensors", "--train", "text.txt", "--compile", *SIZES]
    done = subprocess.run(
        [*PROGRAM, *words],
        cwd=folder,
        env={**environment(folder), **nothing},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be compiled here" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (folder / "m.safetensors").exists()
