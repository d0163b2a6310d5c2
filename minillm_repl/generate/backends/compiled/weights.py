"""Where a model's weights lie, for compiled code that serves every model: a table of addresses.

A matrix stays where the checkpoint has it, in the kind of numbers it has. Made anew are those of a
small model, as panels of 32 rows turned over, and quantised ones. In 4 bits are those of the
layers; the embedding and the output matrix, which lose more by it, are then in 8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.generate.backends.compiled.quantised import quantise
from minillm_repl.generate.backends.compiled.room import aligned
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.quantised import PANEL_ROWS, QuantisedMatrix

Array = NDArray[Any]

# The columns of the table. A row for each layer, and a last one for what is outside the layers.
(
    NORM1, NORM1_BIAS, QKV, QKV_SCALE, QKV_BIAS, Q_NORM, K_NORM, PROJ, PROJ_SCALE, PROJ_BIAS,
    NORM2, NORM2_BIAS, UP, UP_SCALE, UP_BIAS, DOWN, DOWN_SCALE, DOWN_BIAS,
) = range(18)  # fmt: skip
COLUMNS = 18
TOKENS, TOKENS_SCALE, POSITIONS, NORM_F, NORM_F_BIAS, HEAD, HEAD_SCALE, HEAD_BIAS = range(8)

_IN_A_LAYER = {
    NORM1: ("norm1.weight", "ln1.weight"),
    NORM1_BIAS: ("ln1.bias",),
    QKV: ("attention.qkv.weight",),
    QKV_BIAS: ("attention.qkv.bias",),
    Q_NORM: ("attention.q_norm.weight",),
    K_NORM: ("attention.k_norm.weight",),
    PROJ: ("attention.proj.weight",),
    PROJ_BIAS: ("attention.proj.bias",),
    NORM2: ("norm2.weight", "ln2.weight"),
    NORM2_BIAS: ("ln2.bias",),
    UP: ("mlp.gate_up.weight", "mlp.up.weight"),
    UP_BIAS: ("mlp.gate_up.bias", "mlp.up.bias"),
    DOWN: ("mlp.down.weight",),
    DOWN_BIAS: ("mlp.down.bias",),
}
_OUTSIDE = {
    TOKENS: ("token_embedding.weight",),
    POSITIONS: ("position_embedding.weight",),
    NORM_F: ("norm_f.weight", "ln_f.weight"),
    NORM_F_BIAS: ("ln_f.bias",),
    HEAD: ("lm_head.weight",),
    HEAD_BIAS: ("lm_head.bias",),
}
_LEARNED = "position_embedding.weight"  # of which only rows are read
_OUTSIDE_BITS = 8  # of quantised matrices outside the layers


@dataclass(frozen=True)
class Weights:
    """Addresses (layers + 1, columns), 0 for what a model has not; and the arrays they are in."""

    addresses: NDArray[np.uint64]
    kind: str  # of the matrices of layers: float32, bfloat16, float16, turned, int8 or int4
    outside: str  # of those outside the layers
    arrays: tuple[Array, ...]

    @property
    def nbytes(self) -> int:
        """Memory that all of them take."""
        return sum(array.nbytes for array in self.arrays)


def quantised(tensors: Mapping[str, Array], bits: int) -> dict[str, Array | QuantisedMatrix]:
    """Return a model's tensors with the matrices in 8 or 4 bits."""
    return {
        name: array
        if array.ndim == 1 or name == _LEARNED
        else quantise(array, bits if name.startswith("blocks.") else _OUTSIDE_BITS)
        for name, array in tensors.items()
    }


def lay_out(
    config: AnyConfig,
    tensors: Mapping[str, Array | QuantisedMatrix],
    bits: int = 0,
    *,
    turned: bool = False,
) -> Weights:
    """Return the table for a model's tensors: matrices as they are, or turned over; `bits` are
    those of quantised ones.

    All the rest is in float32, as are matrices that are turned over.
    """
    addresses = np.zeros((config.n_layers + 1, COLUMNS), np.uint64)
    arrays: list[Array] = []

    def put(row: int, column: int, array: Array) -> None:
        arrays.append(np.ascontiguousarray(array))
        assert arrays[-1].ndim < 3 or arrays[-1].ctypes.data % 64 == 0
        addresses[row, column] = arrays[-1].ctypes.data

    def fill(row: int, prefix: str, columns: Mapping[int, tuple[str, ...]]) -> None:
        for column, names in columns.items():
            name = next((prefix + name for name in names if prefix + name in tensors), None)
            if name is None:
                continue
            array = tensors[name]
            if isinstance(array, QuantisedMatrix):
                put(row, column, array.packed_weights)
                put(row, column + 1, array.scales)
            elif array.ndim == 1 or name == _LEARNED:
                put(row, column, array.astype(np.float32, copy=False))
            elif turned:
                put(row, column, _in_panels(array))
            else:
                put(row, column, array)

    for layer in range(config.n_layers):
        fill(layer, f"blocks.{layer}.", _IN_A_LAYER)
    fill(config.n_layers, "", _OUTSIDE)
    if config.tie_word_embeddings:
        addresses[-1, HEAD : HEAD + 2] = addresses[-1, TOKENS : TOKENS + 2]
    embedding = tensors["token_embedding.weight"]
    if isinstance(embedding, QuantisedMatrix):
        kind, outside = f"int{bits}", f"int{_OUTSIDE_BITS}"
    else:
        kind = outside = "turned" if turned else embedding.dtype.name
    return Weights(addresses, kind, outside, tuple(arrays))


def _in_panels(array: Array) -> NDArray[np.float32]:
    """Return a matrix (rows, inputs) as (panels, inputs, 32) float32, filled up with zeros."""
    rows, inputs = array.shape
    panels = aligned((-(-rows // PANEL_ROWS), inputs, PANEL_ROWS), np.float32)
    whole = rows // PANEL_ROWS
    panels[:whole] = (
        array[: whole * PANEL_ROWS].reshape(whole, PANEL_ROWS, inputs).transpose(0, 2, 1)
    )
    panels[whole:, :, : rows % PANEL_ROWS] = array[whole * PANEL_ROWS :].T
    return panels
