"""The header of a GGUF file, checked strictly: it is untrusted bytes.

A file is the magic `GGUF`, a version, the numbers of tensors and of metadata values, the values, a
description of each tensor, and the tensors themselves, each aligned. All numbers are little-endian.
"""

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minillm_repl.checkpoint.gguf.cursor import ARRAY, Cursor
from minillm_repl.checkpoint.header import TensorInfo
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import SIGNATURE_BYTES, describe_file, open_regular
from minillm_repl.storage.stores import GGUF_SUFFIX

MAGIC = b"GGUF"
ALIGNMENT = 32  # bytes, unless general.alignment names another
VERSIONS = (2, 3)  # they differ in nothing that a little-endian file shows

_MAX_KEYS = 10_000  # a file has about 40
_MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 4  # of ggml
_MAX_ALIGNMENT = 1 << 16
_MAX_PARTS = 1_000  # of a split file

TYPES = {  # of ggml, by number: name, values in a block, bytes of a block
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip
_BLOCKS = {name: (values, size) for name, values, size in TYPES.values()}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)
_KEY = re.compile(r"[\w.\-/: ]+", re.ASCII)


@dataclass(frozen=True)
class BlockTensorInfo(TensorInfo):
    """One tensor in a GGUF file: rows of blocks. `dtype` is ggml's name of the type."""

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        values, size = _BLOCKS[self.dtype]
        return math.prod(self.shape) // values * size


@dataclass(frozen=True)
class GGUFHeader:
    """The header of a file: its metadata, and its tensors by name.

    A value is a bool, int, float or str, or a list of one of these.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_gguf_header(path: Path, *, keep_strings: bool = True) -> GGUFHeader:
    """Read the header of a GGUF file. Raises UserError naming the file.

    Without `keep_strings` arrays of strings are empty: a vocabulary takes the longest.
    """
    with open_regular(path) as file:
        return parse_gguf_header(file, path, keep_strings=keep_strings)


def is_gguf(path: Path) -> bool:
    """Tell whether a path is a regular file that begins as a GGUF file does."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except UserError:
        return False


def read_split_headers(path: Path, *, keep_strings: bool = True) -> list[GGUFHeader]:
    """Return the header of a file; of a split file, those of all its parts, in their order.

    The user may have named any part. Without `keep_strings` arrays of strings are empty. Raises
    UserError.
    """
    header = read_gguf_header(path, keep_strings=keep_strings)
    count = header.metadata.get("split.count", 1)
    if count in (0, 1):
        return [header]
    name = safe_line(str(path))
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match["count"]) != count or count > _MAX_PARTS:
        raise UserError(
            _("{name} is a part of a split file: its name must be …-00001-of-00003.gguf", name=name)
        )
    paths = [
        path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}{GGUF_SUFFIX}")
        for number in range(1, count + 1)
    ]
    headers = [
        header if each == path else read_gguf_header(each, keep_strings=keep_strings)
        for each in paths
    ]
    for number, each in enumerate(headers):
        if (each.metadata.get("split.no"), each.metadata.get("split.count")) != (number, count):
            raise UserError(
                _(
                    "{name} is not part {number} of {count} of its split file",
                    name=safe_line(str(each.path)),
                    number=number + 1,
                    count=count,
                )
            )
    total = sum(len(each.tensors) for each in headers)
    if headers[0].metadata.get("split.tensors.count") != total:
        raise UserError(_("the parts of {name} do not have all of its tensors", name=name))
    return headers


def parse_gguf_header(file: BinaryIO, path: Path, *, keep_strings: bool = True) -> GGUFHeader:
    """Read the header of an open file. `path` is its name in errors. Raises UserError."""
    name = safe_line(str(path))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    _check_magic(file.read(SIGNATURE_BYTES), name)
    file.seek(len(MAGIC))
    cursor = Cursor(file, size, name, keep_strings=keep_strings)
    version = cursor.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise UserError(
            _("{name} is a big-endian GGUF file; only little-endian ones open", name=name)
            if swapped in VERSIONS
            else _(
                "{name} is a GGUF file of version {version}; versions 2 and 3 open",
                name=name,
                version=version,
            )
        )
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    # A key with its value takes at least 13 bytes, a tensor 32.
    cursor.check_count(n_keys, 13, _MAX_KEYS)
    cursor.check_count(n_tensors, 32, _MAX_TENSORS)
    metadata = _read_metadata(cursor, n_keys)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    # bool is an int: True would be an alignment of 1.
    is_power = type(alignment) is int and alignment > 0 and not alignment & (alignment - 1)
    if not is_power or alignment > _MAX_ALIGNMENT:
        raise cursor.damaged(_("general.alignment must be a power of two"))
    described = [_read_tensor(cursor) for _number in range(n_tensors)]
    data = _aligned(cursor.position, alignment)
    tensors = dict[str, TensorInfo]()
    for tensor, dtype, shape, offset in described:
        if tensor in tensors:
            raise cursor.damaged(_("the tensor {tensor} twice", tensor=safe_line(tensor)))
        if offset % alignment:
            raise cursor.damaged(_("{tensor} is not aligned", tensor=safe_line(tensor)))
        tensors[tensor] = BlockTensorInfo(tensor, dtype, shape, data + offset)
    _check_layout(list(tensors.values()), data, alignment, size, cursor)
    return GGUFHeader(path, metadata, tensors)


def _check_magic(head: bytes, name: str) -> None:
    """Raise UserError unless a file begins as a GGUF file does."""
    if head[: len(MAGIC)] == MAGIC:
        return
    kind = describe_file(head)
    raise UserError(
        _("{name} is {kind}", name=name, kind=kind)
        if kind
        else _("{name} is not a GGUF file", name=name)
    )


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata = dict[str, Any]()
    for _number in range(count):
        key = cursor.name()
        if not _KEY.fullmatch(key):
            raise cursor.damaged(_("a key {key!r:.80}", key=safe_line(key)))
        # Two readers of one file could take different values of a repeated key.
        if key in metadata:
            raise cursor.damaged(_("the key {key:.80} twice", key=key))
        kind = cursor.number("I")
        metadata[key] = cursor.array(key) if kind == ARRAY else cursor.value(kind, key)
    return metadata


def _read_tensor(cursor: Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """Return the name, type, shape and offset of the next tensor.

    A file has the innermost dimension first; the shape here has it last, as in numpy.
    """
    name = cursor.name()
    n_dims = cursor.number("I")
    if not 1 <= n_dims <= _MAX_DIMENSIONS:
        raise cursor.damaged(_("{tensor:.80} of {n} dimensions", tensor=safe_line(name), n=n_dims))
    shape = tuple(cursor.number("Q") for _dimension in range(n_dims))[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in TYPES:
        raise cursor.damaged(
            _("{tensor:.80} of the unknown type {kind}", tensor=safe_line(name), kind=kind)
        )
    dtype, values, _size = TYPES[kind]
    # A block is a part of one row.
    if not all(0 < n < 2**48 for n in shape) or math.prod(shape) >= 2**48 or shape[-1] % values:
        raise cursor.damaged(
            _(
                "{tensor:.80} with the shape {shape:.80}, which {dtype} cannot have",
                tensor=safe_line(name),
                shape=str(list(shape)),
                dtype=dtype,
            )
        )
    return name, dtype, shape, offset


def _check_layout(
    entries: list[TensorInfo], data: int, alignment: int, size: int, cursor: Cursor
) -> None:
    """Raise UserError unless the tensors follow each other up to the end of the file.

    Between two of them there are only the bytes that align the second.
    """
    end = data
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start != _aligned(end, alignment):
            raise cursor.damaged(_("tensors that leave gaps, or overlap"))
        end = entry.start + entry.nbytes
    # The last tensor may be padded too, and the header of a file without tensors need not be.
    if entries and not end <= size <= _aligned(end, alignment):
        raise UserError(
            _(
                "{name} has {size:,} bytes, but its tensors need {start:,}: the file is "
                "truncated or has extra data",
                name=cursor.name_of_file,
                size=size,
                start=end,
            )
        )


def _aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment
