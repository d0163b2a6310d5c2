"""Quantised safetensors that open: MLX's affine groups, and 8-bit floats with a scale per block.

A stored tensor and its scales become one tensor of float32, of the shape that the model has. What
follows, the checks of shapes and the reading of weights, sees only that one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_repl.checkpoint.header import Header, TensorInfo
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

if TYPE_CHECKING:  # The first prompt needs no numpy.
    import numpy as np
    from numpy.typing import NDArray

_MLX_BITS = (2, 4, 8)  # that divide a word of 32 bits
_MAX_GROUP = 1 << 16  # weights that share a scale
_AT_ONCE = 1 << 20  # weights that are unpacked at once, so that it takes little memory
_FLOATS = ("F32", "F16", "BF16")  # of scales


Location = tuple[Path, TensorInfo]
"""The file of a tensor, and its entry in the header."""


@dataclass(frozen=True, kw_only=True)
class ScaledTensorInfo(TensorInfo):
    """A quantised tensor: `shape` and `dtype` are what it becomes, the rest is what a file has."""

    stored: TensorInfo
    scales: Location
    biases: Location | None = None  # of MLX: weight = number · scale + bias
    block: tuple[int, int] = (1, 1)  # rows and inputs that share a scale
    bits: int = 8  # per weight

    @property
    def nbytes(self) -> int:
        """The size in bytes, in the file."""
        parts = (part for part in (self.scales, self.biases) if part is not None)
        return self.stored.nbytes + sum(info.nbytes for _path, info in parts)


def is_supported(fields: Mapping[str, Any]) -> bool:
    """Tell whether a config.json declares a quantisation that opens here."""
    return _is_mlx(fields) or _is_fp8(fields)


def describe(headers: Iterable[Header], fields: Mapping[str, Any]) -> list[Header]:
    """Return headers in which each quantised tensor is one of float32, without its scales.

    Raises UserError for shapes that do not fit.
    """
    headers = list(headers)
    if not is_supported(fields):
        return headers
    make = _mlx_info if _is_mlx(fields) else _fp8_info
    # The scales of a tensor may lie in another shard.
    locations = {
        name: (header.path, info) for header in headers for name, info in header.tensors.items()
    }
    made = {name: info for name in locations if (info := make(name, locations, fields))}
    parts = {part[1].name for info in made.values() for part in (info.scales, info.biases) if part}
    return [
        replace(
            header,
            tensors={
                name: made.get(name, info)
                for name, info in header.tensors.items()
                if name not in parts
            },
        )
        for header in headers
    ]


# -- MLX


def _is_mlx(fields: Mapping[str, Any]) -> bool:
    """Tell whether a config declares affine groups of MLX."""
    declared = _declared_mlx(fields)
    return "group_size" in declared and "quant_method" not in declared and _is_affine(declared)


def _declared_mlx(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    declared = fields.get("quantization") or fields.get("quantization_config")
    return declared if isinstance(declared, dict) else {}


def _is_affine(declared: Mapping[str, Any]) -> bool:
    return declared.get("mode", "affine") == "affine" and declared.get("bits") in _MLX_BITS


def _mlx_info(
    name: str, tensors: Mapping[str, Location], fields: Mapping[str, Any]
) -> ScaledTensorInfo | None:
    """Return the tensor that 32-bit words, scales and biases make; None for another tensor."""
    layer, (_path, stored) = name.removesuffix(".weight"), tensors[name]
    scales, biases = (tensors.get(f"{layer}.{part}") for part in ("scales", "biases"))
    if layer == name or stored.dtype != "U32":
        return None
    if scales is None or biases is None:
        raise UserError(
            _("the quantised tensor {name:.80} has no scales or no biases", name=safe_line(name))
        )
    declared = _declared_mlx(fields)
    # One layer may have a group and bits of its own, under its name.
    own = declared.get(layer)
    declared = {**declared, **own} if isinstance(own, dict) else declared
    bits, group = declared.get("bits"), declared.get("group_size")
    if type(bits) is not int or type(group) is not int or not 0 < group <= _MAX_GROUP:
        raise _unsupported(name, declared)
    if not _is_affine(declared):
        raise _unsupported(name, declared)
    rows, words = stored.shape if len(stored.shape) == 2 else (0, 0)
    inputs = words * 32 // bits
    fits = rows > 0 and inputs > 0 and inputs % group == 0
    if not fits or {scales[1].shape, biases[1].shape} != {(rows, inputs // group)}:
        raise _misshapen(name)
    _check_floats(scales, biases)
    return ScaledTensorInfo(
        name, "F32", (rows, inputs), stored.start,
        stored=stored, scales=scales, biases=biases, block=(1, group), bits=bits,
    )  # fmt: skip


# -- 8-bit floats


def _is_fp8(fields: Mapping[str, Any]) -> bool:
    """Tell whether a config declares 8-bit floats with a scale for each block."""
    declared = fields.get("quantization_config")
    return (
        isinstance(declared, dict)
        and declared.get("quant_method") == "fp8"
        and declared.get("fmt", "e4m3") == "e4m3"
        and _is_block(declared.get("weight_block_size"))
    )


def _is_block(sizes: Any) -> bool:
    return (
        isinstance(sizes, list)
        and len(sizes) == 2
        and all(type(size) is int and 0 < size <= _MAX_GROUP for size in sizes)
    )


def _fp8_info(
    name: str, tensors: Mapping[str, Location], fields: Mapping[str, Any]
) -> ScaledTensorInfo | None:
    """Return the tensor that 8-bit floats and the scales of blocks make; None for another."""
    (_path, stored), scales = tensors[name], tensors.get(f"{name}_scale_inv")
    if stored.dtype != "F8_E4M3" or scales is None:
        return None
    rows, inputs = fields["quantization_config"]["weight_block_size"]
    if len(stored.shape) != 2:
        raise _misshapen(name)
    if scales[1].shape != (-(-stored.shape[0] // rows), -(-stored.shape[1] // inputs)):
        raise _misshapen(name)
    _check_floats(scales)
    return ScaledTensorInfo(
        name, "F32", stored.shape, stored.start,
        stored=stored, scales=scales, block=(rows, inputs),
    )  # fmt: skip


# -- errors


def _check_floats(*tensors: Location) -> None:
    for _path, each in tensors:
        if each.dtype not in _FLOATS:
            raise UserError(
                _(
                    "the scales {tensor:.80} must have one of the dtypes {kinds}, not {found}",
                    tensor=safe_line(each.name),
                    kinds=", ".join(_FLOATS),
                    found=each.dtype,
                )
            )


def _misshapen(name: str) -> UserError:
    return UserError(
        _("the shapes of the quantised tensor {name:.80} do not fit", name=safe_line(name))
    )


def _unsupported(name: str, declared: Mapping[str, Any]) -> UserError:
    how = ", ".join(f"{key} {declared.get(key)}" for key in ("mode", "bits", "group_size"))
    return UserError(
        _(
            "the quantised tensor {name:.80} cannot be opened ({how:.80}): use a GGUF file of the "
            "model, or its folder that is not quantised",
            name=safe_line(name),
            how=safe_line(how),
        )
    )


# -- reading


def dequantise(
    info: ScaledTensorInfo, path: Path, read: "Callable[[Location], NDArray[Any]]"
) -> "NDArray[np.float32]":
    """Return the weights of a quantised tensor in float32: number · scale (+ bias).

    `read` returns a tensor of the file at `path`, or another, as it is stored; 8-bit floats are
    float32.
    """
    import numpy as np

    from minillm_repl.model.bfloat16 import to_float32

    # A scale of a damaged file may be infinite; the weights are checked by who reads them.
    with np.errstate(invalid="ignore", over="ignore"):
        stored, scales = read((path, info.stored)), to_float32(read(info.scales))
        if info.biases is None:
            return _scale_blocks(stored, scales, info.block)
        return _scale_groups(stored, scales, to_float32(read(info.biases)), info)


def _scale_blocks(
    weights: "NDArray[np.float32]", scales: "NDArray[np.float32]", block: tuple[int, int]
) -> "NDArray[np.float32]":
    """Return weights (rows, inputs), each times the scale of its block."""
    import numpy as np

    for number, of_row in enumerate(scales):
        rows = slice(number * block[0], (number + 1) * block[0])
        weights[rows] *= np.repeat(of_row, block[1])[: weights.shape[1]]
    return weights


def _scale_groups(
    words: "NDArray[np.uint32]",
    scales: "NDArray[np.float32]",
    biases: "NDArray[np.float32]",
    info: ScaledTensorInfo,
) -> "NDArray[np.float32]":
    """Return the numbers in words (rows, n), times the scale of their group, plus its bias."""
    import numpy as np

    weights = np.empty(info.shape, np.float32)
    groups = weights.reshape(*scales.shape, -1)  # (rows, groups, weights)
    step = max(1, _AT_ONCE // info.shape[1])
    for first in range(0, len(weights), step):
        rows = slice(first, first + step)
        numbers = _unpacked(words[rows], info.bits).reshape(groups[rows].shape)
        np.multiply(numbers, scales[rows, :, None], out=groups[rows])
        groups[rows] += biases[rows, :, None]
    return weights


def _unpacked(words: "NDArray[np.uint32]", bits: int) -> "NDArray[np.float32]":
    """Return the numbers in words of 32 bits, the lowest bits first: (rows, words) -> (rows, n)."""
    import numpy as np

    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = words[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    return numbers.reshape(len(words), -1).astype(np.float32)
