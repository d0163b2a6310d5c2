"""Weights between the model and safetensors files: found, read and checked.

header.py checks the header of a file; then the safetensors library reads the tensors. Its backend
`pread` raises an error if the file becomes shorter meanwhile, where `mmap` would kill the process.
Large tensors, bfloat16 and 8-bit floats are read by hand (docs/decisions.md says why).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from minillm_repl.checkpoint import ReadOptions, SourceTensor, WeightMap
from minillm_repl.checkpoint.dequantise import ScaledTensorInfo, dequantise
from minillm_repl.checkpoint.gguf.header import GGUFHeader
from minillm_repl.checkpoint.header import Header, TensorInfo
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import BFLOAT16, convert, dtype_name, float8_to_float32, is_finite
from minillm_repl.model.quantised import BlockMatrix
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import check_memory

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Weight = Array | BlockMatrix
Weights = Mapping[str, Weight]
"""Tensors of a model by name; matrices may be in the blocks of a file."""
TensorLocation = tuple[Path, TensorInfo]
"""The file of a tensor, and its entry in the header."""
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
}
_READABLE_DTYPES = DTYPES | {  # these become float32
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(np.uint8),  # their bits, until they are float32
    "F8_E5M2": np.dtype(np.uint8),
}
_STORED_DTYPES = _READABLE_DTYPES | {"U32": np.dtype(np.uint32)}  # of packed numbers
_COMPARE_CHUNK = 1 << 20  # values that are converted at a time to compare two tensors
_BY_HAND = ("BF16", "F8_E4M3", "F8_E5M2")  # the library cannot return them as arrays
# Bytes from which numpy reads a tensor. The library keeps the interpreter lock, so typed keys would
# wait. numpy also allocates huge pages from this size on, which make tokens a quarter faster.
_LARGE_TENSOR = 4 << 20


def locate_tensors(
    weight_map: WeightMap,
    headers: Iterable[Header | GGUFHeader],
    name: str,
    readable: Iterable[str] = tuple(_READABLE_DTYPES),
) -> dict[str, TensorLocation]:
    """Return the locations of the tensors that a weight map needs.

    `readable` are the dtypes that can be read. Raises UserError if a tensor is missing, has
    another shape or dtype, or is not in the map.
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
        if entry.dtype not in readable:
            raise UserError(
                _(
                    "{tensor} in {name} must have one of the dtypes {kinds}, not {found}",
                    tensor=tensor,
                    name=name,
                    kinds=", ".join(readable),
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


def find_tensors(headers: Iterable[Header | GGUFHeader], name: str) -> dict[str, TensorLocation]:
    """Return the location of each tensor of some files. Raises UserError for a repeated name."""
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
    info, other_info = first[1], second[1]
    if info.shape != other_info.shape:
        return False
    if info.dtype not in _READABLE_DTYPES or other_info.dtype not in _READABLE_DTYPES:
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
    exact = np.dtype(np.float64)  # it holds every value of the other dtypes
    return np.array_equal(convert(one, exact), convert(other, exact), equal_nan=True)


class _TensorFiles:
    """Open safetensors files with checked headers."""

    def __init__(self, files: Mapping[Path, safe_open], name: str) -> None:
        self._files = files
        self._name = name

    def read(self, location: TensorLocation, index: int | None = None) -> Array:
        """Return a tensor in the shape and dtype of its header; 8-bit floats become float32.

        With an index, it is that one of the matrices that are stacked. Raises UserError.
        """
        path, info = location
        if isinstance(info, ScaledTensorInfo):
            whole = dequantise(info, path, self.read)
            return whole if index is None else whole[index]
        dtype = _STORED_DTYPES[info.dtype]
        shape = info.shape if index is None else info.shape[1:]
        is_by_hand = path not in self._files or info.dtype in _BY_HAND or index is not None
        with convert_read_errors(self._name):
            if is_by_hand or info.nbytes >= _LARGE_TENSOR:
                count = math.prod(shape)
                start = info.start + (index or 0) * count * dtype.itemsize
                array = np.fromfile(path, dtype, count, offset=start).reshape(shape)
            else:
                array = self._files[path].get_tensor(info.name)
        if array.shape != shape or array.dtype != dtype:
            raise _changed_error(self._name)
        return float8_to_float32(array, info.dtype) if dtype == np.uint8 else array


@contextmanager
def _open_files(locations: Iterable[TensorLocation], name: str) -> Iterator[_TensorFiles]:
    with ExitStack() as stack:
        with convert_read_errors(name):
            files = {
                path: stack.enter_context(safe_open(path, "numpy", backend="pread"))
                for path in {path for path, _info in locations}
            }
        yield _TensorFiles(files, name)


@contextmanager
def convert_read_errors(name: str) -> Iterator[None]:
    """Turn an error of the library into a UserError: the header was valid before."""
    try:
        yield
    except (SafetensorError, OSError, ValueError):
        raise _changed_error(name) from None


def _changed_error(name: str) -> UserError:
    return UserError(_("{name} changed while it was being read", name=name))


def read_weights(
    weight_map: WeightMap, locations: Mapping[str, TensorLocation], name: str, options: ReadOptions
) -> dict[str, Array]:
    """Read all tensors of a model. At most one tensor is in memory twice.

    Raises UserError if the memory is too small, before any tensor is read; if a file changed after
    its header was read; and, without `allow_nonfinite`, for a value that is not finite.
    """
    dtype = resolve_dtype(options.dtype, {info.dtype for _path, info in locations.values()})
    sizes = [math.prod(info.shape) for _path, info in locations.values()]
    check_memory(sum(sizes) * dtype.itemsize, name)
    # Progress counts bytes, not tensors: the embedding may be half of a small model.
    total = sum(info.nbytes for _path, info in locations.values())
    done = 0.0
    weights: dict[str, Array] = {}
    with _open_files(locations.values(), name) as files:
        for tensor, pieces in weight_map.sources.items():
            parts: list[Array] = []
            for piece in pieces:
                part = files.read(locations[piece.name], piece.index)
                part = convert_finite(part, dtype, piece.name, name, options.allow_nonfinite)
                parts.append(piece.layout.from_file(part))
                done += share_of_bytes(piece, locations[piece.name])
                options.progress(done / total)
            # The pieces are rows of the tensor, one below the other.
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            weights[tensor] = np.ascontiguousarray(joined)
    return weights


def share_of_bytes(piece: SourceTensor, location: TensorLocation) -> float:
    """Return the bytes in a file that a piece takes: of a stack, an equal share."""
    return location[1].nbytes / (1 if piece.index is None else piece.shape[0])


def convert_finite(
    array: Array, dtype: np.dtype[Any], tensor: str, name: str, allow_nonfinite: bool
) -> Array:
    """Return the array in another dtype. Raises UserError for a value that is not finite."""
    if not allow_nonfinite:
        check_finite(is_finite(array), tensor, name)
    with np.errstate(over="ignore"):  # the check below finds it
        converted = convert(array, dtype)
    if not allow_nonfinite and dtype.itemsize < array.itemsize and not is_finite(converted):
        raise UserError(
            _(
                "{tensor:.80} in {name} has values too large for {dtype}",
                tensor=safe_line(tensor),
                name=name,
                dtype=dtype_name(dtype),
            )
        )
    return converted


def resolve_dtype(name: str, found: set[str]) -> np.dtype[Any]:
    """Return the dtype of that name; for `auto`, the one in the file, or float32 for a mixture."""
    if name != "auto":
        return next(dtype for dtype in DTYPES.values() if dtype_name(dtype) == name)
    only = next(iter(found)) if len(found) == 1 else ""
    return DTYPES.get(only, DTYPES["F32"])


def check_finite(all_finite: bool, tensor: str, name: str) -> None:
    """Raise UserError unless all values of a tensor are finite."""
    if not all_finite:
        raise UserError(
            _(
                "{name} is damaged: {tensor:.80} has values that are not finite "
                "(--allow-nonfinite opens it anyway)",
                name=name,
                tensor=safe_line(tensor),
            )
        )
