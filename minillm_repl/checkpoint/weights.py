"""Weights from safetensors files to the model, and back: read straight to where they are wanted.

The library's own reader keeps the file mapped, and a mapped file that is cut short later kills the
process. Here the strictly read header (header.py) says where each tensor lies, and its bytes are
read there and nowhere else.
"""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.formats.header import MAX_HEADER_BYTES, Header, TensorInfo
from minillm_repl.checkpoint.weight_map import AS_IS, ReadOptions, SourceTensor, WeightMap
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import Chunks
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.memory import check_memory

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Index = tuple[int, ...]
TensorLocation = tuple[Path, TensorInfo]  # where a tensor lies
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_READABLE_DTYPES = DTYPES | {  # what a file may hold, and what is read as float32
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_COMPARE_CHUNK = 8 << 20  # bytes of two tensors that are compared
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BY_NAME: dict[str, np.dtype[Any]] = {dtype.name: dtype for dtype in DTYPES.values()}


def locate_tensors(
    weight_map: WeightMap, headers: Iterable[Header], name: str
) -> dict[str, tuple[Path, TensorInfo]]:
    """Compare what files say they hold with what the recipe needs; return where tensors lie.

    Raises UserError with the first difference.
    """
    locations = find_tensors(headers, name)
    needed = {piece.name: piece for pieces in weight_map.sources.values() for piece in pieces}
    for tensor, piece in needed.items():
        if tensor not in locations:
            raise UserError(_("{name} has no tensor {tensor}", name=name, tensor=tensor))
        entry = locations[tensor][1]
        if entry.shape != piece.shape:
            raise UserError(
                _(
                    "{tensor} in {name} must have the shape {shape}, not {found}",
                    tensor=tensor,
                    name=name,
                    shape=list(piece.shape),
                    found=list(entry.shape),
                )
            )
        if entry.dtype not in _READABLE_DTYPES:
            raise UserError(
                _(
                    "{tensor} in {name} must have one of the dtypes {kinds}, not {found}",
                    tensor=tensor,
                    name=name,
                    kinds=", ".join(_READABLE_DTYPES),
                    found=entry.dtype,
                )
            )
    extra = sorted(
        tensor for tensor in set(locations) - set(needed) if not weight_map.ignored.search(tensor)
    )
    if extra:
        raise UserError(
            _(
                "{name} has a tensor that is not part of the model: {tensor:.80}",
                name=name,
                tensor=safe_line(extra[0]),
            )
        )
    return {tensor: locations[tensor] for tensor in needed}


def find_tensors(headers: Iterable[Header], name: str) -> dict[str, TensorLocation]:
    """Return where each tensor of some files lies. Raises UserError if one lies at two places."""
    locations: dict[str, TensorLocation] = {}
    for header in headers:
        for tensor, entry in header.tensors.items():
            if tensor in locations:
                raise UserError(
                    _(
                        "{name} contains the tensor {tensor:.80} twice",
                        name=name,
                        tensor=safe_line(tensor),
                    )
                )
            locations[tensor] = header.path, entry
    return locations


def tensors_equal(first: TensorLocation, second: TensorLocation, name: str) -> bool:
    """Tell whether two tensors hold the same numbers; a part of each is in memory at a time.

    Raises UserError.
    """
    (path, one), (other_path, other) = first, second
    if one.shape != other.shape or not {one.dtype, other.dtype} <= set(_READABLE_DTYPES):
        return False
    kinds, total = (
        (_READABLE_DTYPES[one.dtype], _READABLE_DTYPES[other.dtype]),
        math.prod(one.shape),
    )
    with open_regular(path) as file, open_regular(other_path) as other_file:
        for at in range(0, total, _COMPARE_CHUNK // 8):
            parts = [np.empty(min(_COMPARE_CHUNK // 8, total - at), kind) for kind in kinds]
            for opened, entry, part in zip((file, other_file), (one, other), parts, strict=True):
                _read_into(opened, entry.start + at * part.itemsize, part, name)
            if not _arrays_equal(*parts):
                return False
    return True


def _arrays_equal(one: Array, other: Array) -> bool:
    """Tell whether two arrays hold the same numbers, be it as different kinds; most often it is
    the same bytes.
    """
    if one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8)):
        return True
    return np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True)


def read_weights(
    weight_map: WeightMap, locations: Mapping[str, TensorLocation], name: str, options: ReadOptions
) -> dict[str, Array]:
    """Read all tensors of a recipe.

    What needs no rearranging is read in place, so that the weights are in memory once. Raises
    UserError if there is not enough memory for them, before any is taken, if the file is not what
    its header said, or, unless they are wanted, for numbers that are not finite.
    """
    dtype = resolve_dtype(options.dtype, {entry.dtype for _, entry in locations.values()})
    total, done = sum(entry.nbytes for _, entry in locations.values()), 0
    check_memory(
        sum(math.prod(entry.shape) for _, entry in locations.values()) * dtype.itemsize, name
    )
    weights: dict[str, Array] = {}
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(open_regular(path))
            for path in {path for path, _ in locations.values()}
        }
        for tensor, pieces in weight_map.sources.items():
            parts: list[Array] = []
            buffer = _allocate(pieces, dtype)
            row = 0
            for piece in pieces:
                path, entry = locations[piece.name]
                rows = buffer[row : row + piece.shape[0]] if buffer is not None else None
                part = _read_tensor(
                    files[path], entry, dtype, rows, (piece.name, name, options.allow_nonfinite)
                )
                parts.append(piece.layout.from_file(part))
                row += piece.shape[0]
                done += entry.nbytes
                options.progress(done / total)
            joined = (
                buffer
                if buffer is not None
                else np.concatenate(parts)
                if len(parts) > 1
                else parts[0]
            )
            weights[tensor] = np.ascontiguousarray(joined, dtype=dtype)
    return weights


def _read_tensor(
    file: BinaryIO,
    entry: TensorInfo,
    dtype: np.dtype[Any],
    rows: Array | None,
    source: tuple[str, str, bool],
) -> Array:
    """Read a tensor as the numbers that are wanted, to `rows` if these are given.

    Raises UserError.
    """
    tensor, name, nonfinite = source
    file_dtype = _READABLE_DTYPES[entry.dtype]
    array = rows if rows is not None else np.empty(entry.shape, dtype)
    part = array if file_dtype == dtype else np.empty(entry.shape, file_dtype)
    _read_into(file, entry.start, part, name)
    if not nonfinite:
        _check_finite(part, tensor, name)
    if part is array:
        return array
    with np.errstate(over="ignore"):  # it is looked at
        array[...] = part
    if not nonfinite and dtype.itemsize < file_dtype.itemsize and not _is_finite(array):
        raise UserError(
            _(
                "{tensor:.80} in {name} has values too large for {dtype}",
                tensor=safe_line(tensor),
                name=name,
                dtype=dtype.name,
            )
        )
    return array


def resolve_dtype(name: str, found: set[str]) -> np.dtype[Any]:
    """Return the kind of numbers of that name; for `auto`, the one that holds all the kinds
    found in a file.
    """
    if name != "auto":
        return _BY_NAME[name]
    only = found.pop() if len(found) == 1 else ""
    return DTYPES.get(only, DTYPES["F32"])


def _allocate(sources: tuple[SourceTensor, ...], dtype: np.dtype[Any]) -> Array | None:
    """Return memory for pieces that only have to be put one below the other; None where more is
    to be done.
    """
    if any(piece.layout is not AS_IS for piece in sources):
        return None
    return np.empty((sum(piece.shape[0] for piece in sources), *sources[0].shape[1:]), dtype)


def _read_into(file: BinaryIO, start: int, array: Array, name: str) -> None:
    file.seek(start)
    view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise UserError(_("{name} changed while it was being read", name=name))
        filled += count


def _check_finite(array: Array, tensor: str, name: str) -> None:
    """Raise UserError for a number that is not finite."""
    if not _is_finite(array):
        raise UserError(
            _(
                "{name} is damaged: {tensor:.80} has values that are not finite "
                "(--allow-nonfinite opens it anyway)",
                name=name,
                tensor=safe_line(tensor),
            )
        )


def _is_finite(array: Array) -> bool:
    """Tell whether all numbers are finite.

    Of numbers of one sign, read as whole numbers, all finite ones come before infinity, and all NaN
    after it: two maxima tell, which takes a seventh of the time that looking at each takes, and no
    memory.
    """
    bits = array.reshape(-1).view(f"u{array.itemsize}")
    above, below = np.array([np.inf, -np.inf], array.dtype).view(bits.dtype)
    return not bits.size or bool(
        bits.view(f"i{array.itemsize}").max() < above and bits.max() < below
    )


def serialise(tensors: Tensors, metadata: Mapping[str, str]) -> Chunks:
    """Return the parts of a safetensors file: its header, then the numbers of each tensor, as they
    lie in memory.

    The library's own `save` copies all of them twice, and cannot be interrupted. Raises UserError
    if the text is longer than a reader here takes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts, end = list[memoryview](), 0
    # so that each is aligned
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        array = np.ascontiguousarray(tensors[name])
        parts.append(memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise UserError(
            _(
                "the vocabulary is too large to share a file with the weights: save a "
                "folder with `:save NAME/`"
            )
        )
    return [len(text).to_bytes(8, "little") + text, *parts]


def to_file_layout(weight_map: WeightMap, tensors: Tensors) -> dict[str, Array]:
    """Return the tensors as a file that follows the recipe holds them."""
    theirs: dict[str, Array] = {}
    for tensor, pieces in weight_map.sources.items():
        row = 0
        for piece in pieces:
            rows = (
                tensors[tensor][row : row + piece.shape[0]] if len(pieces) > 1 else tensors[tensor]
            )
            theirs[piece.name] = np.ascontiguousarray(piece.layout.to_file(rows))
            row += piece.shape[0]
    return theirs


def locate_in_file(
    weight_map: WeightMap, tensor: str, shape: Index, index: Index
) -> tuple[str, Index]:
    """Return which tensor of a file that follows the recipe holds a number of one of ours, and
    where in it.
    """
    marked = np.zeros(shape, np.bool_)
    marked[index] = True
    parts = to_file_layout(WeightMap({tensor: weight_map.sources[tensor]}), {tensor: marked})
    name = next(name for name, part in parts.items() if part.any())
    return name, tuple(map(int, np.unravel_index(parts[name].argmax(), parts[name].shape)))
