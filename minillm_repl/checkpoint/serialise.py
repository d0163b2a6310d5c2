"""Weights from the model to a safetensors file, arranged as the file wants them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from minillm_repl.checkpoint.formats.header import MAX_HEADER_BYTES
from minillm_repl.checkpoint.weight_map import WeightMap
from minillm_repl.checkpoint.weights import DTYPES, Array, Tensors
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.storage.atomic import Chunks

Index = tuple[int, ...]
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def serialise(tensors: Tensors, metadata: Mapping[str, str]) -> Chunks:
    """Return the parts of a safetensors file: the header, then the memory of each tensor.

    The library writes the same bytes, but Ctrl-C cannot stop it, and the order of its metadata
    changes (docs/decisions.md). Raises UserError if the header exceeds MAX_HEADER_BYTES.
    """
    # The format: 8 bytes with the length of the JSON, the JSON, the values of all tensors.
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[memoryview] = []
    end = 0
    # The largest dtypes come first, so that each tensor is aligned.
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        array = np.ascontiguousarray(tensors[name])
        parts.append(memoryview(array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
        start = end
        end += array.nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[array.dtype],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    if len(text) > MAX_HEADER_BYTES:
        raise UserError(
            _(
                "the vocabulary is too large to share a file with the weights: save a "
                "folder with `:save NAME/`"
            )
        )
    return [len(text).to_bytes(8, "little") + text, *parts]


def to_file_layout(weight_map: WeightMap, tensors: Tensors) -> dict[str, Array]:
    """Return the tensors of the file that a weight map describes."""
    theirs: dict[str, Array] = {}
    for tensor, pieces in weight_map.sources.items():
        row = 0
        for piece in pieces:
            rows = tensors[tensor]
            if len(pieces) > 1:
                rows = rows[row : row + piece.shape[0]]
            theirs[piece.name] = np.ascontiguousarray(piece.layout.to_file(rows))
            row += piece.shape[0]
    return theirs


def locate_in_file(
    weight_map: WeightMap, tensor: str, shape: Index, index: Index
) -> tuple[str, Index]:
    """Return the tensor of a file, and the index in it, of one value of a model's tensor.

    A boolean array with one True goes through the same conversions as the weights.
    """
    marked = np.zeros(shape, np.bool_)
    marked[index] = True
    parts = to_file_layout(WeightMap({tensor: weight_map.sources[tensor]}), {tensor: marked})
    name = next(name for name, part in parts.items() if part.any())
    return name, tuple(map(int, np.unravel_index(parts[name].argmax(), parts[name].shape)))
