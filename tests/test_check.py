"""`:train CORPUS check` says what would be learnt, and trains nothing."""

import json
import subprocess
import sys

import pytest

from minillm_repl.render.export import plain_text
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import start_run
from minillm_repl.training.run import RunContext
from minillm_repl.views.check import compute

NAMES = [f"{first}{second}{third}" for first in "bcdf" for second in "aeiou" for third in "lmnrst"]
TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def checked(folder, corpus, **settings):
    plan = TrainPlan(context_length=32, d_model=16, n_layers=1, batch_size=4, steps=10, **settings)
    context = RunContext(path=folder / "m.safetensors", device="cpu", threads=1)
    return compute(start_run(None, str(corpus), plan, context))


def test_the_figures_are_those_of_the_text(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join([*NAMES, *NAMES[:30], "a" * 40, *["bob"] * 100]))
    view = checked(tmp_path, path, val="off")
    assert view.files == (("text", 1),)
    assert (view.documents, view.duplicates) == (251, 30 + 99)
    assert view.lengths == (4, 4, 4, 41), "each with its end"
    assert (view.longer, view.context_length) == (1, 32)
    assert view.train_tokens == view.targets == 250 * 4 + 41 + 1
    assert view.passes == pytest.approx(10 * 4 * 32 / view.train_tokens)
    assert (view.val_tokens, view.overlap) == (0, None)
    assert "251" in plain_text(view, 80)


def test_what_is_not_learnt_is_told_apart_and_what_stands_in_both_splits(tmp_path):
    talks = tmp_path / "talks.jsonl"
    talks.write_text((json.dumps({"messages": TALK}) + "\n") * 400)
    view = checked(tmp_path, talks, val=str(talks))
    assert view.duplicates == 399
    assert view.overlap == pytest.approx(1, abs=0.01)
    assert view.targets / view.train_tokens == 3 / 11, "`hi` and the token that ends it"
    piece = view.pieces[0]
    shown = zip(piece.tokens, piece.is_target, strict=True)
    assert {token.text for token, counts in shown if counts} == {"h", "i", "<|end|>"}
    text, unlike = tmp_path / "a.txt", tmp_path / "b.txt"
    text.write_text("".join(f"{n * 7919 % 10007} " for n in range(9_000)))
    unlike.write_text("".join(f"{n * 7907 % 10009} " for n in range(900)))
    assert checked(tmp_path, text, val=str(unlike)).overlap < 0.05


def test_the_program_shows_it_and_leaves_no_model_behind(tmp_path):
    names = "\n".join(NAMES * 9)
    command = [sys.executable, "-m", "minillm_repl", "--ckpt", "m.safetensors", "--check"]
    done = subprocess.run(
        [*command, "--train", "-", "--json", "--lang", "en"],
        cwd=tmp_path, input=names, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    view = json.loads(done.stdout)
    assert (view["view"], view["documents"]) == ("check", len(NAMES) * 9)
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "--check is a training setting and needs --train CORPUS" in done.stderr
