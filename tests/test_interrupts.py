"""Ctrl-C any time: back to the prompt, with what is made; a second is stronger, a third leaves."""

import argparse
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("termios")

from minillm_repl.checkpoint.huggingface import save_folder
from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.errors import UserError
from minillm_repl.model.build import build_trainable
from minillm_repl.repl.signals import interruptible, run_interruptibly
from minillm_repl.training import Cancelled
from minillm_repl.training import trainer as training
from minillm_repl.training.evaluation import evenly_spaced_starts
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.splits import Split
from tests import reliability
from tests.small import random_checkpoint
from tests.test_terminal import CORPUS, models, visit  # noqa: F401 - fixtures


def press():
    os.kill(os.getpid(), signal.SIGINT)


PRESSED_WHILE_IT_ASKS = """
import os, signal, threading
from minillm_repl.sandbox import run_sandboxed
signal.signal(signal.SIGINT, lambda *_: None)
done = threading.Event()
def press():
    while not done.wait(0.01):
        os.killpg(0, signal.SIGINT)  # as a terminal does
threading.Thread(target=press).start()
try:
    said = [([{"role": "user", "content": "hello"}], True)]
    what = {"template": "{{ messages[0].content }}", "variables": {}, "probes": []}
    print(run_sandboxed("template", "it", conversations=said, **what))
finally:
    done.set()
"""


def test_ctrl_c_does_not_end_the_process_that_reads_a_template_or_a_tokenizer():
    command = [sys.executable, "-c", PRESSED_WHILE_IT_ASKS]
    done = subprocess.run(
        command, capture_output=True, text=True, start_new_session=True, timeout=60, check=False
    )
    assert "hello" in done.stdout, done.stderr


def test_the_first_asks_the_second_is_stronger_the_third_leaves():
    with interruptible() as interrupted:
        assert not interrupted()
        press()
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            press()
        with pytest.raises(SystemExit) as leaving:
            press()
        assert leaving.value.code == 130
    with interruptible(is_interrupted=True) as interrupted:
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_no_press_leaves_what_is_unsaved_nor_breaks_in_on_what_was_learnt():
    learning = False
    with interruptible(has_unsaved=lambda: True, is_training=lambda: learning) as interrupted:
        press()
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                press()
        assert interrupted.wants_exit
        learning = True
        press()
        learning = False
        with pytest.raises(KeyboardInterrupt):
            press()


@pytest.mark.parametrize(
    "presses", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_ctrl_c_however_often_keeps_what_was_learnt_and_never_leaves_it(visit, presses):
    terminal = visit()
    terminal.wait_for_prompt()
    terminal.send(f":train {CORPUS} new steps=1000000 width=8 layers=1 heads=1")
    terminal.wait_for(" left", timeout=60)
    before = terminal.prompts
    terminal.type("\x03" * presses)
    terminal.wait_for_prompt(before)
    terminal.wait_for_toolbar("new model (not saved)")
    assert "the trained weights are not saved: `:save PATH` keeps them" in terminal.text
    terminal.do(":max-tokens 1000000")
    before = terminal.prompts
    terminal.send("날씨")
    terminal.wait_for(lambda terminal: len(terminal.screen.gone) > 60)
    for _ in range(presses):
        terminal.interrupt()
    terminal.wait_for_prompt(before)
    terminal.wait_for_toolbar("new model (not saved)")
    assert re.search(r"[1-9][\d,]* steps, [\d,]+ tokens", terminal.do(":model"))


@pytest.mark.parametrize(
    ("line", "moving", "said"),
    [
        (
            ":circuit 날씨가 맑다 -> 날씨가 좋다 ig=100",
            "looking for the circuit",
            "stopped while",
        ),
        (":heads", "measuring the heads", "stopped while: measuring the heads"),
    ],
)
def test_ctrl_c_in_a_scan_comes_back_and_says_how_far_it_was(visit, line, moving, said):
    # Two threads wait for each other for seconds where other programs work.
    terminal = visit(ckpt="nalssi", variables={"OMP_NUM_THREADS": "1"})
    terminal.wait_for_prompt()
    terminal.do(":load hangul", timeout=60)
    before = terminal.prompts
    terminal.send(line)
    terminal.wait_for(re.compile(moving + r"  [1-9]"), timeout=60)
    terminal.interrupt()
    terminal.wait_for_prompt(before)
    assert said in terminal.text
    assert "맑" in terminal.do(":tokens 맑")  # it goes on


@pytest.mark.slow
def test_a_second_ctrl_c_ends_training_from_the_shell_with_what_was_learnt_in_its_file(tmp_path):
    command = [
        sys.executable,
        "-m",
        "minillm_repl",
        "--ckpt",
        "m.safetensors",
        "--train",
        str(CORPUS),
        "--width",
        "8",
    ]
    command += ["--layers", "1", "--heads", "1", "--steps", "1000000", "--every", "3"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path)
    while not re.match(rb"step +3 ", started.stderr.readline()):
        assert started.poll() is None
    for _ in range(3):
        started.send_signal(signal.SIGINT)
    started.communicate(timeout=60)
    assert started.returncode == 130
    assert load(tmp_path / "m.safetensors").training.steps >= 3


def test_what_cannot_be_interrupted_is_not_waited_for():
    assert run_interruptibly(lambda: 3, lambda: False) == 3
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 / 0, lambda: False)
    with pytest.raises(UserError, match="stopped"):
        run_interruptibly(signal.pause, lambda: True)


def test_ctrl_c_in_one_write_with_the_enter_before_it_stops_what_the_enter_began(visit):
    terminal = visit()
    terminal.wait_for_prompt()
    terminal.do("가")  # now the model is open
    terminal.do(":max-tokens 1000000")
    for count, typed in enumerate(("가\r\x03", "가\r\x03나"), 1):
        # before, the terminal itself takes Ctrl-C
        terminal.wait_for(lambda terminal: terminal.at_empty_prompt)
        terminal.type(typed)
        terminal.wait_for(
            lambda terminal, count=count: terminal.text.count("stopped by Ctrl-C") == count
        )
    # what was typed after it is kept
    terminal.wait_for(lambda terminal: terminal.line.startswith(">>> 나"))
    terminal.keys("ctrl-c")
    terminal.do(":max-tokens 4")
    assert ">>> 가나다라마" in terminal.do("가")


def test_a_save_that_is_stopped_changes_nothing(tmp_path):
    path = tmp_path / "m.safetensors"
    save(random_checkpoint(), path)
    old = path.read_bytes()
    with pytest.raises(UserError, match=r"stopped: .* was not saved and is unchanged"):
        save(random_checkpoint(seed=1), path, lambda: True)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_is_stopped_in_the_middle_is_not_there(tmp_path):
    asked = iter([False, False, True])
    with pytest.raises(UserError, match=r"stopped: .* was not saved"):
        save_folder(random_checkpoint(), tmp_path / "folder", lambda: next(asked))
    assert not os.listdir(tmp_path)


@pytest.fixture
def trainers(monkeypatch):
    """Makes trainers of one and the same run, whose model counts as large."""
    monkeypatch.setattr("minillm_repl.training.evaluation._EVAL_MULTIPLICATIONS", 0)
    monkeypatch.setattr("minillm_repl.training.machine._MIN_CANCELLABLE_WORK", 0)
    plan = TrainPlan(
        steps=9,
        batch_size=4,
        context_length=8,
        lr=0.01,
        precision="float32",
        optimizer="adamw",
        dropout=0.1,
        eval_interval=9,
    )
    ids = np.random.default_rng(0).integers(0, 11, 400).astype(np.uint16)

    def make():
        torch.manual_seed(0)
        checkpoint, part = random_checkpoint(vocab=11, context=8), Split(ids, None, 8)
        trainer = training.Trainer(
            build_trainable(checkpoint.config, checkpoint.tensors), part, part, plan
        )
        trainer._started = 0.0
        return trainer

    return make


# after each of two blocks, and again on the way back
@pytest.mark.parametrize("asked", [1, 2, 3, 4])
def test_a_step_of_a_large_model_that_is_stopped_half_way_leaves_no_trace(asked, trainers):
    runs = []
    for stopped in (False, True):
        trainer = trainers()
        trainer.step()
        if stopped:
            answers = iter([False] * (asked - 1) + [True])
            with pytest.raises(Cancelled):
                trainer.step(lambda answers=answers: next(answers))
            assert trainer.state.step == 1
            assert not any(block._forward_hooks for block in trainer.model.blocks)
        trainer.step()
        runs.append((trainer.trainable_parameters, torch.get_rng_state()))
    (one, random), (other, random_too) = runs
    assert torch.equal(random, random_too)
    assert all(torch.equal(one[name], each) for name, each in other.items())


def test_a_measurement_is_stopped_between_two_groups_of_windows(trainers):
    trainer, asked = trainers(), []
    with pytest.raises(Cancelled):
        trainer.evaluator.mean_loss(
            trainer.train,
            evenly_spaced_starts(trainer.train, 400),
            lambda: len(asked) > 3 or asked.append(1),
        )
    assert len(asked) == 4
    assert np.isfinite(
        trainer.evaluator.mean_loss(trainer.train, evenly_spaced_starts(trainer.train, 400))
    )


@pytest.mark.slow
def test_a_large_model_tells_how_far_it_has_read_and_ctrl_c_ends_that(visit, tmp_path):
    reliability.large_model(tmp_path / "large.safetensors")
    terminal = visit("--ckpt", str(tmp_path / "large.safetensors"), "--max-tokens", "4")
    terminal.wait_for_prompt()
    terminal.do("가")  # now the model is open
    terminal.send("가나다라마바사아자차카타파하" * 60)
    terminal.wait_for(lambda terminal: re.search(r"read [1-9]\d* of 840 tokens", terminal.text))
    terminal.interrupt()
    terminal.wait_for(lambda terminal: "stopped by Ctrl-C" in terminal.text)
    assert " of 840 tokens" not in terminal.text
    terminal.do(":undo")
    assert "4 tokens" in terminal.do("가나다")


@pytest.mark.slow
def test_ctrl_c_at_a_hundred_random_moments_of_everything_comes_back(tmp_path):
    reliability.interrupts(argparse.Namespace(rounds=7, seed=1), tmp_path)
