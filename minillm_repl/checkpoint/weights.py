"""Weights on their way from safetensors files to the model, and back.

The safetensors library reads the tensors, after header.py has checked the header of the file. It
uses its backend `pread`: a file that is cut short meanwhile is an error, and does not end the
process as with `mmap`. What the library does not do as well is done by hand: large tensors, 8-bit
floats, and writing (docs/decisions.md).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from minillm_repl.checkpoint.formats.header import MAX_HEADER_BYTES, Header, TensorInfo
from minillm_repl.checkpoint.weight_map import ReadOptions, WeightMap
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import Chunks
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
_COMPARE_CHUNK = 1 << 20  # values of two tensors that are widened at a time, to compare them
_NOT_IN_LIBRARY = ("F8_E4M3", "F8_E5M2")  # the library has no numpy dtypes for them (0.8)
# bytes; keys would wait while the library reads more, for it keeps the interpreter lock. From this
# size on numpy allocates huge pages, with which tokens come a quarter faster.
_LARGE_TENSOR = 4 << 20
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
    """Tell whether two tensors hold the same values, of any two dtypes. Raises UserError."""
    infos = first[1], second[1]
    if infos[0].shape != infos[1].shape or not all(
        info.dtype in _READABLE_DTYPES for info in infos
    ):
        return False
    with _open_files([first, second], name) as files:
        one, other = files.read(first).reshape(-1), files.read(second).reshape(-1)
    return all(
        _arrays_equal(one[at : at + _COMPARE_CHUNK], other[at : at + _COMPARE_CHUNK])
        for at in range(0, one.size, _COMPARE_CHUNK)
    )


def _arrays_equal(one: Array, other: Array) -> bool:
    if one.dtype == other.dtype and np.array_equal(one.view(np.uint8), other.view(np.uint8)):
        return True  # the usual case, and the fast one
    return np.array_equal(one.astype(np.float64), other.astype(np.float64), equal_nan=True)


class _TensorFiles:
    """Open safetensors files, whose headers were checked before."""

    def __init__(self, files: Mapping[Path, safe_open], name: str) -> None:
        self._files = files
        self._name = name

    def read(self, location: TensorLocation) -> Array:
        """Return a tensor, in the dtype and shape that its header states. Raises UserError."""
        path, info = location
        dtype = _READABLE_DTYPES[info.dtype]
        with _convert_read_errors(self._name):
            if info.nbytes >= _LARGE_TENSOR or info.dtype in _NOT_IN_LIBRARY:
                array = np.fromfile(path, dtype, math.prod(info.shape), offset=info.start)
                array = array.reshape(info.shape)
            else:
                array = self._files[path].get_tensor(info.name)
        if array.shape != info.shape or array.dtype != dtype:
            raise _changed_error(self._name)
        return array


@contextmanager
def _open_files(locations: Iterable[TensorLocation], name: str) -> Iterator[_TensorFiles]:
    with ExitStack() as stack:
        with _convert_read_errors(name):
            files = {
                path: stack.enter_context(safe_open(path, "numpy", backend="pread"))
                for path in {path for path, _info in locations}
            }
        yield _TensorFiles(files, name)


@contextmanager
def _convert_read_errors(name: str) -> Iterator[None]:
    """Turn an error of the library into UserError: the header was right a moment ago."""
    try:
        yield
    except (SafetensorError, OSError, ValueError):
        raise _changed_error(name) from None


def _changed_error(name: str) -> UserError:
    return UserError(_("{name} changed while it was being read", name=name))


def read_weights(
    weight_map: WeightMap, locations: Mapping[str, TensorLocation], name: str, options: ReadOptions
) -> dict[str, Array]:
    """Read all tensors of the model. The parts of one tensor at most are in memory twice.

    Raises UserError if there is not enough memory for them, before any is read; if a file changed
    after its header was read; and, without `allow_nonfinite`, for a value that is not finite.
    """
    dtype = resolve_dtype(options.dtype, {info.dtype for _path, info in locations.values()})
    sizes = [math.prod(info.shape) for _path, info in locations.values()]
    check_memory(sum(sizes) * dtype.itemsize, name)
    total = sum(info.nbytes for _path, info in locations.values())
    done = 0
    weights: dict[str, Array] = {}
    with _open_files(locations.values(), name) as files:
        for tensor, pieces in weight_map.sources.items():
            parts: list[Array] = []
            for piece in pieces:
                part = files.read(locations[piece.name])
                part = _convert(part, dtype, piece.name, name, options.allow_nonfinite)
                parts.append(piece.layout.from_file(part))
                done += locations[piece.name][1].nbytes
                options.progress(done / total)
            weights[tensor] = _join(parts, dtype)
    return weights


def _convert(
    array: Array, dtype: np.dtype[Any], tensor: str, name: str, allow_nonfinite: bool
) -> Array:
    """Return the array in another dtype. Raises UserError for a value that is not finite."""
    if not allow_nonfinite:
        _check_finite(array, tensor, name)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):  # the check below finds it
        converted = array.astype(dtype)
    if not allow_nonfinite and dtype.itemsize < array.itemsize and not _is_finite(converted):
        raise UserError(
            _(
                "{tensor:.80} in {name} has values too large for {dtype}",
                tensor=safe_line(tensor),
                name=name,
                dtype=dtype.name,
            )
        )
    return converted


def _join(parts: list[Array], dtype: np.dtype[Any]) -> Array:
    """Return the parts one below the other."""
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return np.ascontiguousarray(joined, dtype)


def resolve_dtype(name: str, found: set[str]) -> np.dtype[Any]:
    """Return the kind of numbers of that name; for `auto`, the one that holds all the kinds
    found in a file.
    """
    if name != "auto":
        return _BY_NAME[name]
    only = found.pop() if len(found) == 1 else ""
    return DTYPES.get(only, DTYPES["F32"])


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
    """Return the parts of a safetensors file: its header, then each tensor as it lies in memory.

    The library writes the same bytes, but Ctrl-C cannot stop it, and it orders the metadata anew
    each time (docs/decisions.md). Raises UserError if the header is too long for a reader here.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[memoryview] = []
    end = 0
    # the largest dtypes first, so that each tensor is aligned
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
