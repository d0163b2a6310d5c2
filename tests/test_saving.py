"""A save that is killed or refused, at each call of the system in turn: the old file or the new
one is there, whole.
"""

import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("fcntl")  # Windows has neither these locks nor fork

from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.errors import UserError
from minillm_repl.storage.atomic import clear_abandoned, temporary_path
from minillm_repl.tokenizer import CharacterTokenizer
from tests.conftest import ROOT
from tests.faults import KINDS
from tests.small import random_checkpoint

NOBODY, SLOW = 65_534, pytest.mark.slow


def faults(*words):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # it forks
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_killed_at_any_call_loses_nothing_and_the_next_cleans_up(kind):
    found = faults("call", kind)
    assert found["lost"] == []
    assert found["points"] == found["of"] > 20


@pytest.mark.parametrize(
    "kind", ["old file", *(pytest.param(each, marks=SLOW) for each in KINDS if each != "old file")]
)
def test_a_save_killed_in_the_middle_of_a_write_loses_nothing(kind):
    found = faults("size", kind)
    assert found["lost"] == []
    assert found["points"] == found["of"] == 40


@pytest.mark.parametrize(
    "error", [errno.ENOSPC, *(pytest.param(each, marks=SLOW) for each in (errno.EIO, errno.EACCES))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_save_refused_at_any_call_says_so_and_leaves_the_old_and_no_litter(kind, error):
    found = faults("error", kind, error)
    assert found["lost"] == []
    assert 10 < found["refused"] < found["points"]


def test_what_a_living_process_writes_is_no_leftover(tmp_path):
    (tmp_path / ".minillm-0123456789abcdef.tmp").write_bytes(b"killed")
    (tmp_path / ".minillm-fedcba9876543210.tmp").mkdir()
    (tmp_path / ".minillm-fedcba9876543210.tmp" / "config.json").touch()
    others = [".minillm-notes.tmp", "model.tmp"]
    for name in others:
        (tmp_path / name).touch()
    with (
        temporary_path(tmp_path, lambda path: path.touch()) as file,
        temporary_path(tmp_path, type(tmp_path).mkdir) as folder,
    ):
        clear = (
            f"from {clear_abandoned.__module__} import *; clear_abandoned(Path({str(tmp_path)!r}))"
        )
        subprocess.run([sys.executable, "-c", clear], cwd=ROOT, check=True)
        assert sorted(os.listdir(tmp_path)) == sorted([*others, file.name, folder.name])
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def as_nobody(code, folder):
    """Run code in a process that has no special rights."""
    if os.geteuid():
        pytest.skip("needs to be started by root, to become somebody without rights")
    start = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from minillm_repl.checkpoint.native import save_native as save
from tests.small import random_checkpoint
# what it needs is imported now: Python may be root's alone
save(random_checkpoint(), Path({str(folder)!r}) / "first")
os.remove(Path({str(folder)!r}) / "first")
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.chdir({str(folder)!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, check=False
    )
    return done.stderr.strip().splitlines()[-1:]


@pytest.fixture
def open_folder():
    """A folder of everybody's: those of pytest are for one user."""
    folder = ROOT.__class__("/tmp") / f"minillm-test-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


def test_where_somebody_may_not_write_nothing_is_changed(open_folder):
    path = open_folder / "model.safetensors"
    save(random_checkpoint(), path)
    path.chmod(0o444)
    old = path.read_bytes()
    code = "save(random_checkpoint(seed=1), Path('model.safetensors'))"
    refused = "could not save model.safetensors: Permission denied; nothing was changed there"
    told = [f"minillm_repl.errors.UserError: {refused}"]
    assert as_nobody(code, open_folder) == told, "a file that was protected"
    path.chmod(0o666)
    open_folder.chmod(0o555)
    assert as_nobody(code, open_folder) == told, "a folder that is read-only"
    open_folder.chmod(0o700)
    code = code.replace("'model", f"'{open_folder}/model")
    (refused,) = as_nobody(code, "/")
    assert refused.startswith("minillm_repl.errors.UserError: "), (
        "a folder that cannot be looked into"
    )
    assert path.read_bytes() == old
    assert os.listdir(open_folder) == ["model.safetensors"]


def test_root_leaves_a_file_to_whom_it_belongs(open_folder):
    if os.geteuid():
        pytest.skip("only root can write for somebody else")
    path = open_folder / "model.safetensors"
    save(random_checkpoint(), path)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o640)
    save(random_checkpoint(seed=1), path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (NOBODY, NOBODY, 0o640)


def test_a_folder_that_vanishes_and_links_in_a_circle_are_told(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(UserError, match="could not save m.safetensors: No such file"):
        save(random_checkpoint(), type(tmp_path)("m.safetensors"))
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with pytest.raises(UserError, match="could not save .*Too many levels"):
        save(random_checkpoint(), tmp_path / "loop.safetensors")
    assert os.listdir(tmp_path) == ["loop.safetensors"]
    (tmp_path / "to.safetensors").symlink_to("new.safetensors")
    # to what is not there yet: there it goes
    save(random_checkpoint(), tmp_path / "to.safetensors")
    assert (tmp_path / "to.safetensors").is_symlink()
    assert load(tmp_path / "new.safetensors").config.vocab_size == 11


def test_a_vocabulary_that_could_not_be_read_again_is_not_written(tmp_path):
    class Wordy(CharacterTokenizer):
        def to_json(self):
            return {"type": "character", "characters": "x" * (17 << 20)}

    checkpoint = random_checkpoint()
    wordy = dataclasses.replace(checkpoint, tokenizer=Wordy(list("가나다")))
    with pytest.raises(UserError, match="too large to share a file"):
        save(wordy, tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == []
    assert np.isfinite(checkpoint.tensors["ln_f.bias"]).all()
