"""The tensors of a GGUF file that is written: float32, 16 bits, or the blocks of Q8_0 and Q4_0."""

import numpy as np

from minillm_repl.checkpoint.gguf.architectures import EMBEDDING, HEAD
from minillm_repl.checkpoint.weights import Array
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import BFLOAT16, convert, is_finite, to_float32

_BLOCK = 32  # weights that share a scale in Q8_0 and Q4_0


def to_blocks(name: str, array: Array, kind: str) -> tuple[str, memoryview]:
    """Return the type of a tensor in a file, and its bytes. Raises UserError."""
    # A router in fewer bits would send tokens elsewhere; llama.cpp has it in float32 too.
    is_small = ".ffn_gate_inp." in name or ".shortconv.conv." in name
    if kind == "f32" or array.ndim == 1 or name.startswith("position_embd") or is_small:
        return "F32", as_bytes(to_float32(array))
    if kind == "q4_0" and name in (EMBEDDING, HEAD):
        kind = "q8_0"
    if kind.startswith("q") and array.shape[-1] % _BLOCK:
        kind = "f16"
    match kind:
        case "q8_0":
            return "Q8_0", as_bytes(quantise_q8_0(to_float32(array)))
        case "q4_0":
            return "Q4_0", as_bytes(quantise_q4_0(to_float32(array)))
    with np.errstate(over="ignore"):  # the check below finds it
        rounded = convert(array, BFLOAT16 if kind == "bf16" else np.dtype(np.float16))
    if not is_finite(rounded):
        raise UserError(
            _("{name} has values too large for {kind}: use type=bf16", name=name, kind=kind)
        )
    return kind.upper(), as_bytes(rounded)


def quantise_q8_0(array: Array) -> Array:
    """Return the blocks of Q8_0 of a matrix: a float16 scale, and 32 whole numbers."""
    groups = array.reshape(-1, _BLOCK)
    scale = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    scaled = groups * _inverse(scale)
    # Halves are rounded away from zero, as in llama.cpp.
    numbers = (np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))).astype(np.int8)
    return np.concatenate([_half(scale), numbers.view(np.uint8)], axis=1)


def quantise_q4_0(array: Array) -> Array:
    """Return the blocks of Q4_0 of a matrix: a float16 scale, and 32 numbers of 4 bits."""
    groups = array.reshape(-1, _BLOCK)
    largest = np.abs(groups).argmax(axis=1)[:, None]
    scale = np.take_along_axis(groups, largest, axis=1) / np.float32(-8)
    # Summed in float64 and cut in float32, as llama.cpp's own package does.
    shifted = groups.astype(np.float64) * _inverse(scale) + 8.5
    numbers = np.clip(np.trunc(shifted.astype(np.float32)), 0, 15).astype(np.uint8)
    return np.concatenate([_half(scale), numbers[:, :16] | numbers[:, 16:] << 4], axis=1)


def _inverse(scale: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _half(scale: Array) -> Array:
    return scale.astype("<f2").view(np.uint8)


def as_bytes(array: Array) -> memoryview:
    """Return the bytes of an array, in its order."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)  # type: ignore[arg-type]
