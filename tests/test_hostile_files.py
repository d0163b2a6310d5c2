"""Hundreds of files that nobody should be able to open: each is refused in one clean line, and
nothing else happens.
"""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("resource")  # Unix: FIFOs, sockets and devices are among them

from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.errors import UserError
from minillm_repl.storage.files import available_bytes, check_memory
from tests.hostile import RIGHT, all_of, sparse
from tests.small import random_checkpoint


def test_the_file_that_the_hostile_ones_are_made_from_opens(tmp_path):
    (tmp_path / "right.safetensors").write_bytes(RIGHT)
    assert load(tmp_path / "right.safetensors").config.vocab_size == 11


def test_every_hostile_file_is_refused_in_one_clean_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count, wrong = 0, []
    for name, path in all_of(tmp_path):
        count += 1
        try:
            load(path)
            wrong.append((name, "was opened"))
        except UserError as error:
            if not str(error).isprintable() or len(str(error)) > 700:
                wrong.append((name, str(error)))
    assert not wrong
    assert count > 700


def test_a_visit_survives_all_hostile_files_with_its_model_unchanged(tmp_path):
    (tmp_path / "files").mkdir()
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        paths = [path for _, path in all_of(tmp_path / "files")]
    finally:
        os.chdir(before)
    script = ":temp 0\n날씨\n" + "".join(f":load {path}\n" for path in paths) + "날씨\n:model\n"
    done = subprocess.run(
        [sys.executable, "-m", "minillm_repl", "--ckpt", "nalssi", "--no-history", "-n", "12"],
        input=script.encode(),
        capture_output=True,
        check=False,
    )
    errors = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert [line for line in errors if "bug" in line or "Traceback" in line] == []
    assert sum(line.startswith("error: ") for line in errors) == len(paths)
    assert b"\x1b" not in done.stdout + done.stderr
    _, first, second, *card = done.stdout.decode().splitlines()
    assert first == second
    assert first.startswith("날씨")
    assert any("207,020" in line for line in card)


def test_weights_that_no_memory_holds_are_refused_before_any_is_taken(tmp_path):
    with pytest.raises(
        UserError, match=r"needs [\d.,]+ GiB of memory, but .* is free; nothing was changed"
    ):
        load(sparse(tmp_path / "huge.safetensors", 2_000_000, 2**16, 1))


def test_as_much_memory_as_there_is_may_be_used():
    there = available_bytes()
    assert there
    check_memory(there // 2, "half of it")
    with pytest.raises(UserError, match="twice as much needs"):
        check_memory(2 * there, "twice as much")


@pytest.fixture
def damaged(tmp_path):
    checkpoint = random_checkpoint()
    tensors = {**checkpoint.tensors, "ln_f.bias": np.full(12, np.nan, np.float32)}
    save(
        dataclasses.replace(checkpoint, tensors=tensors),
        tmp_path / "damaged.safetensors",
    )
    return tmp_path / "damaged.safetensors"


def test_numbers_that_are_not_finite_open_when_asked_for_and_are_named_when_used(damaged):
    with pytest.raises(
        UserError, match=r"ln_f.bias has values that are not finite \(--allow-nonfinite opens it"
    ):
        load(damaged)
    assert np.isnan(load(damaged, allow_nonfinite=True).tensors["ln_f.bias"]).all()
    command = [
        sys.executable,
        "-m",
        "minillm_repl",
        "--no-history",
        "--ckpt",
        str(damaged),
        "-p",
        "가",
    ]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "--allow-nonfinite" in refused.stderr
    opened = subprocess.run(
        [*command, "--allow-nonfinite"], capture_output=True, text=True, check=False
    )
    assert opened.returncode == 1
    assert "the logits at token 1 are not finite" in opened.stderr
