"""Saving loses nothing, and loading believes nothing."""

import dataclasses
import gzip
import json
import math
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from safetensors import safe_open

from minillm_repl.checkpoint import weights
from minillm_repl.checkpoint.load_save import load, read_text
from minillm_repl.checkpoint.load_save import save as save_any
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.checkpoint.serialise import serialise
from minillm_repl.checkpoint.weights import DTYPES
from minillm_repl.errors import UserError
from minillm_repl.model.bfloat16 import convert, dtype_name, is_finite, to_float32
from minillm_repl.model.build import to_torch
from minillm_repl.storage import atomic
from minillm_repl.storage.paths import find_checkpoint, is_shipped, shipped_names
from tests.small import random_checkpoint


@pytest.fixture
def saved(tmp_path):
    return save(random_checkpoint(), tmp_path / "model.safetensors")


def test_what_is_saved_is_loaded(tmp_path):
    record = TrainingRecord(
        steps=3,
        tokens=99,
        train_loss=1.5,
        val_loss=None,
        corpus="글.txt",
        corpus_sha256="ab" * 32,
        seed=7,
        versions={"torch": "2"},
        curve=((1, 2.5), (3, 1.5)),
    )
    before = save(
        dataclasses.replace(random_checkpoint(), training=record), tmp_path / "모델.safetensors"
    )
    after = load(tmp_path / "모델.safetensors")
    assert after.config == before.config
    assert after.training == before.training
    assert after.tokenizer.to_json() == before.tokenizer.to_json()
    assert set(after.tensors) == set(before.tensors)
    assert all(np.array_equal(after.tensors[name], before.tensors[name]) for name in after.tensors)


def test_the_file_is_what_the_format_says(saved):
    with safe_open(saved.path, "np") as file:
        metadata = file.metadata()
        assert (metadata["format"], metadata["version"]) == ("minillm", "2")
        assert json.loads(metadata["config"])["arch"] == "gpt"
        assert {
            "token_embedding.weight",
            "blocks.0.attention.qkv.weight",
            "blocks.1.mlp.up.weight",
        } <= set(file.keys())


@pytest.mark.parametrize("kind", DTYPES.values(), ids=str)
def test_what_is_written_are_the_bytes_that_the_library_writes(kind):
    rng = np.random.default_rng(0)
    shapes = {
        "b": (3, 5),
        "a.weight": (7,),
        "a": (2, 3, 4),
        "one": (1, 1),
        "none": (0, 4),
        "층": (2, 2),
    }
    tensors = {name: convert(rng.normal(size=shape), kind) for name, shape in shapes.items()}
    metadata = {"format": 'an "accent", a line\nand 한글'}
    in_torch = {name: to_torch(array) for name, array in tensors.items()}
    assert b"".join(serialise(tensors, metadata)) == safetensors.torch.save(in_torch, metadata)


def test_numbers_of_all_kinds_are_written_aligned_and_read_by_the_library():
    tensors = {kind.__name__: np.arange(3, dtype=kind) for kind in (np.float16, np.float32)}
    data = b"".join(
        serialise({**tensors, "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}, {})
    )
    read = safetensors.numpy.load(data)
    assert all(
        read[name].dtype == array.dtype and (read[name] == array).all()
        for name, array in tensors.items()
    )
    assert read["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("kind", DTYPES.values(), ids=str)
def test_every_number_that_is_not_finite_is_found_and_no_other(kind):
    whole = np.dtype(f"u{kind.itemsize}")
    random = np.random.default_rng(0).integers(0, 2**32, 4_000, np.uint32)
    bits = np.arange(2**16, dtype=whole) if whole.itemsize == 2 else random
    edges = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0], np.float32)
    edges = convert(edges, kind).view(whole)
    every = np.concatenate([bits, edges, edges + whole.type(1), edges - whole.type(1)]).view(kind)
    beside = convert(np.array([1, 1, -1], np.float32), kind)
    for place, number in enumerate(to_float32(every)):
        numbers = beside.copy()
        numbers[1] = every[place]
        assert is_finite(numbers) == math.isfinite(number)
    assert is_finite(np.empty((0, 3), kind))


def test_two_saves_of_one_model_are_the_same_bytes(tmp_path):
    first, second = (
        save(random_checkpoint(), tmp_path / name).path.read_bytes() for name in ("1.st", "2.st")
    )
    assert first == second


def rewritten(saved, tmp_path, metadata=None, tensors=None, **changed):
    """The saved file with parts of it replaced; None removes a part."""
    with safe_open(saved.path, "np") as file:
        fields = {**file.metadata(), **(metadata or {}), **changed}
    arrays = {**safetensors.numpy.load_file(saved.path), **(tensors or {})}
    path = tmp_path / "changed.safetensors"
    safetensors.numpy.save_file(
        {name: array for name, array in arrays.items() if array is not None},
        path,
        {name: text for name, text in fields.items() if text is not None},
    )
    return path


CONFIG = {
    "arch": "gpt",
    "vocab_size": 11,
    "context_length": 8,
    "d_model": 12,
    "n_layers": 2,
    "n_heads": 3,
}
RECORD = {
    "steps": 1,
    "tokens": 1,
    "train_loss": 1.0,
    "val_loss": None,
    "corpus": "",
    "corpus_sha256": "",
    "seed": 0,
    "versions": {},
    "curve": [],
}
WRONG = {
    "a newer version": ({"version": "3"}, {}, "version '3'; this program reads version 1, 2"),
    "no config": ({"config": None}, {}, "no 'config'"),
    "config no JSON": ({"config": "{"}, {}, "not valid JSON"),
    "config NaN": ({"config": '{"arch": NaN}'}, {}, "NaN is not"),
    "config twice": ({"config": '{"arch": 1, "arch": 2}'}, {}, "twice"),
    "config deep": ({"config": "[" * 100_000}, {}, "nested too deeply"),
    "config a list": ({"config": "[]"}, {}, "arch = gpt"),
    "another arch": ({"config": json.dumps(CONFIG | {"arch": "\x1b[31mrwkv"})}, {}, "arch = gpt"),
    "a size too many": ({"config": json.dumps(CONFIG | {"depth": 1})}, {}, "arch = gpt"),
    "no layers": ({"config": json.dumps(CONFIG | {"n_layers": 0})}, {}, "n_layers must be from 1"),
    "a million layers": (
        {"config": json.dumps(CONFIG | {"n_layers": 10**6})},
        {},
        "n_layers must be from 1",
    ),
    "a giant vocabulary": (
        {"config": json.dumps(CONFIG | {"vocab_size": 2**40})},
        {},
        "vocab_size must be from 1",
    ),
    "a size that is true": (
        {"config": json.dumps(CONFIG | {"n_heads": True})},
        {},
        "n_heads must be from 1",
    ),
    "heads that do not fit": (
        {"config": json.dumps(CONFIG | {"n_heads": 5})},
        {},
        "d_model 12 is not divisible by 5 heads",
    ),
    "another width": ({"config": json.dumps(CONFIG | {"d_model": 15})}, {}, "must have the shape"),
    "another vocabulary": (
        {"config": json.dumps(CONFIG | {"vocab_size": 12})},
        {},
        "has 11 tokens, but its config says 12",
    ),
    "no tokenizer": ({"tokenizer": None}, {}, "no 'tokenizer'"),
    "an unknown tokenizer": ({"tokenizer": '{"type": "magic"}'}, {}, "newer minillm-repl"),
    "a broken record": ({"training": '{"steps": "many"}'}, {}, "training record"),
    "a record beyond float": (
        {"training": json.dumps(RECORD | {"train_loss": 10**400})},
        {},
        "training record",
    ),
    "a record of truth": (
        {"training": json.dumps(RECORD | {"steps": True})},
        {},
        "training record",
    ),
    "a record of less than nothing": (
        {"training": json.dumps(RECORD | {"tokens": -1})},
        {},
        "training record",
    ),
    "a curve of strings": (
        {"training": json.dumps(RECORD | {"curve": [[1, "x"]]})},
        {},
        "training record",
    ),
    "a missing tensor": ({}, {"ln_f.bias": None}, "has no tensor ln_f.bias"),
    "a tensor too many": (
        {},
        {"\x1b]0;x\x07": np.zeros(1, np.float32)},
        "a tensor that is not part of the model",
    ),
    "a wrong shape": ({}, {"ln_f.bias": np.zeros(13, np.float32)}, r"shape \[12\], not \[13\]"),
    "a wrong type": (
        {},
        {"ln_f.bias": np.zeros(12, np.int32)},
        "must have one of the dtypes F32, F16, BF16, .*, not I32",
    ),
    "a NaN": (
        {},
        {"ln_f.bias": np.full(12, np.nan, np.float32)},
        "ln_f.bias has values that are not finite",
    ),
    "no format": ({"format": None}, {}, "neither a minillm checkpoint"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_checkpoint_is_refused_in_one_clean_line(what, saved, tmp_path):
    metadata, tensors, message = WRONG[what]
    path = rewritten(saved, tmp_path, metadata, tensors)
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert "changed.safetensors" in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("large", [False, True], ids=["by the library", "by offset"])
@pytest.mark.parametrize("change", ["cut", "other shapes", "gone"])
def test_a_file_that_changes_after_its_header_was_read_is_refused(
    change, large, saved, tmp_path, monkeypatch
):
    path = tmp_path / "changing.safetensors"
    path.write_bytes(saved.path.read_bytes())
    monkeypatch.setattr(weights, "_LARGE_TENSOR", 0 if large else 1 << 40)

    def alter(needed, name):
        if change == "cut":
            path.write_bytes(saved.path.read_bytes()[:-4])
        elif change == "other shapes":
            arrays = safetensors.numpy.load_file(saved.path)
            shorter = {name: array.reshape(-1)[:1] for name, array in arrays.items()}
            safetensors.numpy.save_file(shorter, path)
        else:
            path.unlink()

    monkeypatch.setattr(weights, "check_memory", alter)  # between the header and the tensors
    with pytest.raises(UserError, match=r"changing\.safetensors changed while it was being read"):
        load(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_library_and_reading_by_offset_give_the_same_weights(
    dtype, saved, tmp_path, monkeypatch
):
    def read(large):
        monkeypatch.setattr(weights, "_LARGE_TENSOR", large)
        return load(saved.path, dtype=dtype).tensors

    by_library, by_offset = read(1 << 40), read(0)
    assert by_library.keys() == by_offset.keys()
    for name, array in by_library.items():
        assert dtype_name(array.dtype) == dtype == dtype_name(by_offset[name].dtype)
        assert array.tobytes() == by_offset[name].tobytes()
        assert array.flags.writeable
        assert array.flags.c_contiguous


def test_every_truncation_and_many_flipped_bytes_are_refused_or_load(saved, tmp_path):
    data = saved.path.read_bytes()
    path = tmp_path / "broken.safetensors"
    rng = np.random.default_rng(0)
    cuts = [data[:length] for length in (*range(0, 2000, 37), *rng.integers(0, len(data), 50))]
    flips = []
    for _ in range(300):
        flipped = bytearray(data)
        flipped[rng.integers(0, 3000)] = rng.integers(0, 256)
        flips.append(bytes(flipped))
    refused = 0
    for broken in (*cuts, *flips):
        path.write_bytes(broken)
        try:
            load(path)
        except UserError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused >= len(cuts)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"\x00" * 8, "is not a safetensors file"),
        (b"\xff" * 100, "is not a safetensors file"),
        ((2**40).to_bytes(8, "little"), "is not a safetensors file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a Git LFS pointer; run `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (pickle.dumps({"a": 1}), "is a pickle, which can run code"),
        (b"PK\x03\x04" + bytes(99), "is a ZIP archive, like the files of PyTorch"),
        (b"GGUF\x03\0\0\0" + bytes(99), "is a GGUF file"),
        (gzip.compress(b"a", mtime=0), "is compressed"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_of_another_kind_is_named_for_what_it_is(data, what, name, saved, tmp_path):
    folder = tmp_path / "folder"
    save_any(load(saved.path), folder, folder=True)
    (folder / name).write_bytes(data)
    if what.startswith("is not"):
        what = what if name == "model.safetensors" else "is not"
    with pytest.raises(UserError, match=what) as raised:
        load(folder)
    assert name in str(raised.value)


@pytest.mark.parametrize("text", ["Once upon a time", "# 제목\r\n\t글", "가" * 1_000, '{"a": 1}'])
def test_a_text_is_called_one(text, tmp_path):
    (tmp_path / "글.txt").write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError,
        match=r"글\.txt is a text, not a checkpoint; `:train FILE new` trains a model on it",
    ):
        load(tmp_path / "글.txt")


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "is a folder without config.json"),
        (tmp_path / "pipe", "is a FIFO"),
        (tmp_path / "none", "No such file"),
        (Path("/dev/null"), "is a device"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\0b", "invalid file name"),
    ):
        with pytest.raises(UserError, match=message):
            load(path)


def test_a_file_cut_short_after_loading_does_no_harm(saved):
    checkpoint = load(saved.path)
    saved.path.write_bytes(b"")
    assert np.array_equal(checkpoint.tensors["lm_head.weight"], saved.tensors["lm_head.weight"])


def test_saving_keeps_permissions_and_links(saved, tmp_path):
    saved.path.chmod(0o640)
    link = tmp_path / "link.safetensors"
    link.symlink_to(saved.path)
    save(random_checkpoint(seed=1), link)
    assert link.is_symlink()
    assert stat.S_IMODE(saved.path.stat().st_mode) == 0o640
    assert not np.array_equal(load(saved.path).tensors["ln_f.bias"], saved.tensors["ln_f.bias"])
    assert sorted(os.listdir(tmp_path)) == ["link.safetensors", "model.safetensors"]


def test_a_new_file_gets_the_users_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        save(random_checkpoint(), tmp_path / "m.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_whole_and_no_litter(
    call, saved, tmp_path, monkeypatch
):
    old = saved.path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os if call == "fsync" else atomic.Path, call, full)
    with pytest.raises(UserError, match="No space left on device; nothing was changed"):
        save(random_checkpoint(seed=1), saved.path)
    assert saved.path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match="not a regular file"):
            save(random_checkpoint(), tmp_path / name)
    with pytest.raises(UserError, match="could not save"):
        save(random_checkpoint(), tmp_path / "none" / "m.safetensors")
    with pytest.raises(UserError, match="could not save"):
        save(random_checkpoint(), tmp_path / ("x" * 300))
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_a_name_of_255_bytes_can_be_saved_to(tmp_path):
    path = tmp_path / ("x" * 255)
    save(random_checkpoint(), path)
    assert load(path).config.vocab_size == 11


def test_a_foreign_file_is_refused_from_its_header_alone(tmp_path):
    path = tmp_path / "foreign.safetensors"
    header = json.dumps(
        {"model.embed": {"dtype": "F32", "shape": [2**20, 2**18], "data_offsets": [0, 2**40]}}
    ).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        # a terabyte that takes no room on disk: nobody could read it
        file.truncate(8 + len(header) + 2**40)
    with pytest.raises(UserError, match="neither a minillm checkpoint"):
        load(path)


def test_shipped_checkpoints_are_found_by_name(tmp_path, monkeypatch):
    assert "nalssi" in shipped_names()
    assert is_shipped(find_checkpoint("nalssi"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nalssi").touch()
    assert not is_shipped(find_checkpoint("nalssi"))  # a file of the user's own comes first
    assert find_checkpoint("x" * 300).name == "x" * 300
    assert find_checkpoint("a\0b").name == "a\0b"


def test_text_is_read_as_utf_8_with_any_line_ends(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeff가\r\n나\r다\n".encode())
    assert read_text(path) == "가\n나\n다\n"
    path.write_bytes("né".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text: byte 0xe9 at 1 of 2"):
        read_text(path)
