"""Weights as the bytes of a safetensors file."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from minillm_repl.checkpoint.header import MAX_HEADER_BYTES
from minillm_repl.checkpoint.weights import DTYPES, Tensors
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.storage.atomic import Chunks

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
