"""Checkpoint files that nobody should be able to open, made by code, family by family.

None of them is right.
"""

import copy
import gzip
import io
import json
import os
import pickle
import random
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy

from minillm_repl.checkpoint.native import config_to_json, to_metadata
from tests.small import random_checkpoint

Named = Iterator[tuple[str, bytes]]
Change = Callable[[dict], None]

_CHECKPOINT = random_checkpoint()
_FIELDS = {
    **to_metadata(_CHECKPOINT),
    "training": json.dumps(
        {
            "steps": 1,
            "tokens": 1,
            "train_loss": 1.0,
            "val_loss": None,
            "corpus": "",
            "corpus_sha256": "",
            "seed": 0,
            "versions": {},
            "curve": [[1, 1.0]],
            "val_curve": [],
        }
    ),
}
RIGHT = safetensors.numpy.save(dict(_CHECKPOINT.tensors), _FIELDS)
_LENGTH = struct.unpack("<Q", RIGHT[:8])[0]
_HEADER, _DATA = json.loads(RIGHT[8 : 8 + _LENGTH]), RIGHT[8 + _LENGTH :]
_TENSOR = "blocks.1.mlp.up.bias"
_LAST = max(
    (name for name in _HEADER if name != "__metadata__"),
    key=lambda name: _HEADER[name]["data_offsets"],
)
ESCAPES = "\x1b]0;owned\x07\x9b2J\u202e"
ODD = (None, True, -1, 0, 1.5, 2**40, 2**63, 10**100, "x", ESCAPES, [], [1], {}, {"a": 1})


def packed(header: bytes | str, data: bytes = _DATA, length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def changed(change: Change) -> bytes:
    """The right file with its parsed header changed."""
    header = copy.deepcopy(_HEADER)
    change(header)
    return packed(json.dumps(header))


def lengths() -> Named:
    header = json.dumps(_HEADER)
    for length in (
        0,
        1,
        2,
        _LENGTH - 1,
        _LENGTH // 2,
        len(RIGHT),
        len(RIGHT) - 7,
        2**24 + 1,
        2**31,
        2**32,
        2**63,
    ):
        yield f"a header of {length} bytes", packed(header, length=length)
    yield "the longest length", packed(header, length=2**64 - 1)
    for size in (*range(1, 10), 16, 100):
        yield f"the first {size} bytes", RIGHT[:size]
    for place in range(1, 30):
        yield f"cut at {place}/30", RIGHT[: len(RIGHT) * place // 30]
    for more in (1, 8, 4096):
        yield f"{more} bytes too many", RIGHT + bytes(more)


def texts() -> Named:
    """What stands in the header's place and is not JSON, or is not what it must be."""
    text = json.dumps(_HEADER)
    for place in range(1, 20):
        yield f"JSON cut at {place}/20", packed(text[: len(text) * place // 20])
    for name, wrong in {
        "a list": "[]",
        "a string": '"a"',
        "a number": "1",
        "null": "null",
        "true": "true",
        "nothing": "",
        "a brace": "{",
        "two objects": "{}{}",
        "single quotes": "{'a': 1}",
        "a comment": "/* */{}",
        "a key without quotes": "{a: 1}",
        "a comma too many": '{"a": 1,}',
        "NaN": '{"a": NaN}',
        "Infinity": '{"a": Infinity}',
        "minus": '{"a": -Infinity}',
        "a lone surrogate": '{"__metadata__": {"a": "\\ud800"}}',
        "a raw newline": '{"a\n": 1}',
        "a NUL": '{"a": 1}\0',
        "the same key": '{"a": 1, "a": 1}',
        "the same metadata": '{"__metadata__": {}, "__metadata__": {}}',
        "a number of 10,000 digits": '{"a": ' + "9" * 10_000 + "}",
        "deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "rather deep": '{"a": ' + "[" * 500 + "]" * 500 + "}",
        "deep objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
        "a million lists": '{"a": [' + "[]," * 1_000_000 + "1]}",
        "a string without end": '{"' + '\\"' * 500_000,
        "a million keys": "{" + ",".join(f'"{n}":0' for n in range(1_000_000)) + "}",
        "empty": "{}",
    }.items():
        yield f"a header that is {name}", packed(wrong)
    for place in (0, 1, 10, 1000, len(text) - 1):
        yield (
            f"no UTF-8 at {place}",
            packed(text.encode()[:place] + b"\xff\xfe" + text.encode()[place:]),
        )
    yield "UTF-16", packed(text.encode("utf-16"))
    yield "a byte order mark", packed(b"\xef\xbb\xbf" + text.encode())
    twice = text.replace('"shape": ', '"shape": [1], "shape": ', 1)
    yield "a shape twice", packed(twice)
    yield (
        "a tensor twice",
        packed(text[:-1] + f', "{_TENSOR}": {json.dumps(_HEADER[_TENSOR])}' + "}"),
    )


def entries() -> Named:
    """One tensor described wrongly."""
    for key in ("dtype", "shape", "data_offsets"):
        for odd in (
            *ODD,
            "f32",
            "F32 ",
            "F4",
            "I128",
            [-1],
            [1.5],
            ["1"],
            [True],
            [[1]],
            [2**63, 2**63],
            [0] * 1000,
        ):
            yield (
                f"{key} {odd!r:.30}",
                changed(lambda h, key=key, odd=odd: h[_TENSOR].update({key: odd})),
            )
        yield f"no {key}", changed(lambda h, key=key: h[_TENSOR].pop(key))
    start, stop = _HEADER[_TENSOR]["data_offsets"]
    for name, offsets in {
        "backwards": [stop, start],
        "one later": [start + 1, stop + 1],
        "four less": [start, stop - 4],
        "before the file": [-4, stop - start - 4],
        "after the file": [2**40, 2**40 + stop - start],
        "at its neighbour": [0, stop - start],
        "three": [start, stop, stop],
        "one": [start],
        "of text": [str(start), stop],
    }.items():
        yield (
            f"offsets {name}",
            changed(lambda h, offsets=offsets: h[_TENSOR].update(data_offsets=offsets)),
        )
    yield "a product beyond 64 bits", changed(lambda h: h[_TENSOR].update(shape=[2**62, 2**62]))
    yield (
        "a product that wraps to the right size",
        changed(lambda h: h[_TENSOR].update(shape=[2**32, 2**32, 48])),
    )
    yield (
        "nothing of everything",
        changed(lambda h: h[_TENSOR].update(shape=[2**62, 0], data_offsets=[start, start])),
    )
    yield "an entry that is a list", changed(lambda h: h.update({_TENSOR: []}))
    yield "an entry with a fourth field", changed(lambda h: h[_TENSOR].update(more=1))
    yield "a name that steers", changed(lambda h: h.update({ESCAPES: h.pop(_TENSOR)}))


def tensors() -> Named:
    """A model with a tensor missing, of another shape or kind, or with numbers that are none."""
    arrays = dict(_CHECKPOINT.tensors)
    for name, array in arrays.items():
        left = {other: each for other, each in arrays.items() if other != name}
        yield f"without {name}", safetensors.numpy.save(left, _FIELDS)
        yield (
            f"with a longer {name}",
            safetensors.numpy.save({**left, name: np.resize(array, array.size + 1)}, _FIELDS),
        )
        yield (
            f"with {name} as int64",
            safetensors.numpy.save({**left, name: array.astype(np.int64)}, _FIELDS),
        )
        for bad in (np.nan, np.inf, -np.inf):
            spoilt = array.copy()
            spoilt.flat[-1] = bad
            yield f"{bad} in {name}", safetensors.numpy.save({**left, name: spoilt}, _FIELDS)
        half = {**arrays, name: arrays[name].astype(np.float16)}
        half[name].flat[0] = np.nan
        yield f"NaN in {name} of halves", safetensors.numpy.save(half, _FIELDS)
    yield (
        "a tensor too many",
        safetensors.numpy.save({**arrays, "more": np.zeros(3, np.float32)}, _FIELDS),
    )
    many = {"__metadata__": _FIELDS} | {
        f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(25_000)
    }
    yield "more tensors than anyone has", packed(json.dumps(many), b"")
    claim = "blocks.999.attention.heads.1023.query.weight"
    names = (
        "blocks.0.attention.heads.0.query.weight",
        claim,
        "token_embedding.weight",
        "position_embedding.weight",
    )
    note = {name: {"dtype": "F32", "shape": [0, 65_536], "data_offsets": [0, 0]} for name in names}
    yield "the note's model of a million heads", packed(json.dumps(note), b"")


def metadata() -> Named:
    """Text fields that are missing, of another kind, or say what cannot be."""
    for odd in ODD[:-2]:
        yield f"__metadata__ = {odd!r:.30}", changed(lambda h, odd=odd: h.update(__metadata__=odd))
    for field in ("format", "version", "config", "tokenizer", "training"):
        for odd in (
            None,
            1,
            [],
            "",
            "{",
            "[]",
            "\x1b[31m",
            '{"a": 1, "a": 1}',
            "[" * 10_000,
            '"' * 1_000,
        ):
            if (field, odd) != ("training", None):
                yield (
                    f"{field} {odd!r:.30}",
                    changed(lambda h, f=field, odd=odd: h["__metadata__"].update({f: odd})),
                )
    for field in ("config", "tokenizer", "training"):
        right = json.loads(_FIELDS[field])
        for key in right:
            if key not in ("val_curve", "normalization", "d_mlp"):
                yield (
                    f"{field} without {key}",
                    _field(field, {k: v for k, v in right.items() if k != key}),
                )
            for odd in ODD:
                if odd != right[key] and not _may_be(key, odd):
                    yield f"{field}.{key} = {odd!r:.30}", _field(field, right | {key: odd})
    for size, most in {
        "n_layers": 10**6,
        "vocab_size": 2**40,
        "d_model": 2**30,
        "context_length": 2**40,
        "n_heads": 2**20,
    }.items():
        yield f"{size} of {most}", _field("config", json.loads(_FIELDS["config"]) | {size: most})
    for deep in (70, 900, 9_000):
        yield (
            f"a config {deep} deep",
            changed(lambda h, d=deep: h["__metadata__"].update(config="[" * d + "]" * d)),
        )


def _may_be(key: str, odd: object) -> bool:
    """Tell whether an odd value is a possible one of the record."""
    counts, losses, words = (
        ("steps", "tokens", "seed"),
        ("train_loss", "val_loss"),
        ("corpus", "corpus_sha256"),
    )
    number = type(odd) in (int, float) and 0 <= odd < 1e9
    return (
        (key in counts and type(odd) is int and 0 <= odd < 2**63)
        or (key in losses and number)
        or (key in words and isinstance(odd, str))
        or (key == "versions" and odd == {})
        or (key in ("curve", "val_curve") and odd == [])
        or (key == "d_mlp" and type(odd) is int and odd == 0)  # 4 * d_model, as it is
    )


def _field(field: str, data: object) -> bytes:
    return changed(lambda h: h["__metadata__"].update({field: json.dumps(data)}))


def other_kinds() -> Named:
    """Files that are something else."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    yield (
        "a pointer of Git LFS",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
    )
    for start in (
        "<!DOCTYPE html>",
        "<html>",
        "\n  <HTML lang=ko>",
        "<?xml version='1.0'?>",
        "\ufeff<!doctype html>",
    ):
        yield f"a page: {start!r}", (start + "<body>404</body>").encode()
    for protocol in range(6):
        yield f"a pickle of protocol {protocol}", pickle.dumps({"a": list(range(99))}, protocol)
    yield "a ZIP", zipped.getvalue()
    yield "a GGUF", b"GGUF" + struct.pack("<IQQ", 3, 10, 10) + bytes(1000)
    yield "gzip", gzip.compress(RIGHT, mtime=0)
    for start in (
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ\x00",
        b"\x89HDF\r\n\x1a\n",
        b"\x93NUMPY\x01\x00",
        b"\x7fELF",
        b"%PDF-1.7",
    ):
        yield f"{start!r}", start + bytes(200)
    yield "a script", b"#!/bin/sh\nexit\n"
    yield "an answer", b'{"error": "Repository not found"}'
    yield "a text", "날씨가 좋다. ".encode() * 99
    yield "nothing", b""
    for size in (8, 100, 5_000):
        yield f"{size} zeros", bytes(size)
    for seed in range(20):
        yield f"noise {seed}", random.Random(seed).randbytes(3_000)


def no_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """What is no regular file, or is larger than any memory while it takes no room on disk."""
    os.mkfifo(folder / "fifo")
    yield "a FIFO", folder / "fifo"
    (folder / "folder").mkdir()
    yield "a folder", folder / "folder"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket"))  # its path must be short
    yield "a socket", folder / "socket"
    for target in ("none", "loop", "folder"):
        link = folder / ("loop" if target == "loop" else f"to-{target}")
        link.symlink_to(target)
        yield f"a link to {target}", link
    yield "a device", Path("/dev/zero")
    yield "another device", Path("/dev/null")
    yield "a name too long", folder / ("x" * 300)
    yield "a file that is not there", folder / "nowhere"
    for name, sizes in {
        "64 GiB": (2**18, 2**16, 1),
        "a terabyte": (2_000_000, 2**16, 1),
        "a thousand layers": (11, 2**12, 1_000),
    }.items():
        yield f"{name} that take no room", sparse(folder / f"{name}.safetensors", *sizes)


def sparse(path: Path, vocab: int, width: int, layers: int) -> Path:
    """A file whose header is right in everything, of a model that no memory can hold; its
    weights are one hole.
    """
    from minillm_repl.model.config import GPTConfig

    config = GPTConfig(
        vocab_size=vocab, context_length=8, d_model=width, n_layers=layers, n_heads=4
    )
    header, place = {"__metadata__": _FIELDS | {"config": json.dumps(config_to_json(config))}}, 0
    if vocab > 11:
        header["__metadata__"]["tokenizer"] = json.dumps({"type": "ids", "size": vocab})
    for name, shape in config.shapes():
        size = 4 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return path


def all_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write every file into a folder, and yield what it is and where."""
    for family in (lengths, texts, entries, tensors, metadata, other_kinds):
        for number, (name, data) in enumerate(family()):
            path = folder / f"{family.__name__}-{number}.safetensors"
            path.write_bytes(data)
            yield f"{family.__name__}: {name}", path
    yield from no_files(folder)
