"""The header of a safetensors file, checked strictly: it is untrusted text."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import (
    SIGNATURE_BYTES,
    describe_file,
    is_text,
    open_regular,
    parse_json,
)

FORMAT, VERSION, VERSION_1 = "minillm", "2", "1"
_FORMATS = (FORMAT, f"{FORMAT}-adapter", f"{FORMAT}-resume")

MAX_HEADER_BYTES = 16 << 20  # 10,000 tensors and a vocabulary of 100,000 need a tenth of it
_MAX_HEADER_PARTS = 100_000  # values of a header: 12,000 tensors
_MAX_DIMENSIONS = 8

_BITS = {  # per number
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(
        ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
    ),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file."""

    name: str  # in the file; version 1 has other names
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return -(-math.prod(self.shape) * _BITS[self.dtype] // 8)  # rounded up


@dataclass(frozen=True)
class Header:
    """The header of a file: its metadata, and its tensors by name."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file. Raises UserError naming the file."""
    with open_regular(path) as file:
        return parse_header(file, path)


def is_native(header: Header) -> bool:
    """Tell whether a header is that of a native checkpoint."""
    return header.metadata.get("format") == FORMAT


def parse_field(header: Header, field: str, name: str) -> Any:
    """Return a parsed field of the metadata. Raises UserError if it is missing or not JSON."""
    if field not in header.metadata:
        raise UserError(_("{name} has no {field!r} in its metadata", name=name, field=field))
    data = parse_json(
        header.metadata[field], _("{field!r} in the metadata of {name}", field=field, name=name)
    )
    return renamed_field(field, data) if _is_version_1(header.metadata) else data


def has_known_version(header: Header) -> bool:
    """Tell whether this program reads the format version of a native file."""
    return header.metadata.get("version") in (VERSION_1, VERSION)


def _is_version_1(metadata: dict[str, str]) -> bool:
    return metadata.get("format") in _FORMATS and metadata.get("version") == VERSION_1


def parse_header(file: BinaryIO, path: Path) -> Header:
    """Read the header of an open file. `path` is its name in errors. Raises UserError."""
    name = safe_line(str(path))
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(SIGNATURE_BYTES)
    length = int.from_bytes(head[:8], "little")  # of the JSON text, in bytes
    # The first 8 bytes of any other file are a huge length, or no JSON follows them.
    if length > min(size - 8, MAX_HEADER_BYTES) or head[8:9] != b"{":
        kind = describe_file(head)
        if not kind and is_text(head):
            kind = _("a text, not a checkpoint; `:train FILE new` trains a model on it")
        raise UserError(
            _("{name} is {kind}", name=name, kind=kind)
            if kind
            else _(
                "{name} is not a safetensors file: it states a header of {length:,} bytes, "
                "but has {size:,} bytes in all",
                name=name,
                length=length,
                size=size,
            )
        )
    file.seek(8)
    data = parse_json(file.read(length), _("the header of {name}", name=name), _MAX_HEADER_PARTS)
    if not isinstance(data, dict):
        raise UserError(_("the header of {name} is not a JSON object", name=name))
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in metadata.values()
    ):
        raise UserError(_("the __metadata__ of {name} must map names to strings", name=name))
    tensors = {
        tensor: _parse_tensor_info(tensor, described, 8 + length, name)
        for tensor, described in data.items()
    }
    # As the format demands: no bytes may hide between tensors, or be in two of them.
    _check_offsets(list(tensors.values()), 8 + length, size, name)
    if _is_version_1(metadata):
        tensors = {renamed_tensor(tensor): info for tensor, info in tensors.items()}
    return Header(path, metadata, tensors)


def _parse_tensor_info(tensor: str, described: Any, data: int, name: str) -> TensorInfo:
    match described:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(start), int(stop)],
        } if (
            dtype in _BITS
            and len(shape) <= _MAX_DIMENSIONS
            and len(described) == 3  # no unknown keys
            and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop))
        ):
            entry = TensorInfo(tensor, dtype, tuple(shape), data + start)
            if entry.nbytes == stop - start:
                return entry
    raise UserError(
        _(
            "the header of {name} has an invalid dtype, shape or offset for tensor {tensor:.80}",
            name=name,
            tensor=safe_line(tensor),
        )
    )


def _check_offsets(entries: list[TensorInfo], start: int, size: int, name: str) -> None:
    """Raise UserError unless the tensors fill the file from `start`, without gaps or overlaps."""
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.nbytes)):
        if entry.start != start:
            raise UserError(_("the tensors of {name} leave gaps or overlap", name=name))
        start += entry.nbytes
    if start != size:
        raise UserError(
            _(
                "{name} has {size:,} bytes, but its tensors need {start:,}: the file is "
                "truncated or has extra data",
                name=name,
                size=size,
                start=start,
            )
        )


# -- format version 1: the same content under older names; nothing writes it (docs/format.md)

_CONFIG = {
    "vocab": "vocab_size",
    "context": "context_length",
    "width": "d_model",
    "layers": "n_layers",
    "heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "head_size": "head_dim",
    "hidden": "d_mlp",
    "tied": "tie_word_embeddings",
    "parallel": "parallel_residual",
    "windows": "sliding_windows",
    "head_bias": "lm_head_bias",
    "ff_bias": "mlp_bias",
}
_ROPE = {
    "share": "rotary_pct",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original": "original_max_position_embeddings",
}
_RUN = {"folder": "working_folder", "further": "is_finetuning", "base": "base_model"}
_STATE = {
    "measured": "last_eval_step",
    "best": "best_loss",
    "waited": "evals_since_best",
    "stretch": "recent_losses",
}
_FIELDS = {"config": _CONFIG, "run": _RUN, "state": _STATE}  # by the name of the metadata field


def renamed_field(field: str, data: Any) -> Any:
    """Return the parsed JSON of a version-1 metadata field with the names of version 2."""
    data = _renamed(data, _FIELDS.get(field, {}))
    if field == "config" and isinstance(data, dict) and "rope" in data:
        data["rope"] = _renamed(data["rope"], _ROPE)
    return data


def renamed_tensor(name: str) -> str:
    """Return the version-2 name of a version-1 tensor."""
    return name.replace(".ff.", ".mlp.")


def old_tensor_name(name: str) -> str:
    """Return the version-1 name of a tensor.

    Digests of weights include these names, so that older adapters and resume files still match
    their weights.
    """
    return name.replace(".mlp.", ".ff.")


def _renamed(data: Any, names: dict[str, str]) -> Any:
    if not isinstance(data, dict) or set(data) & set(names.values()):
        return data  # not of version 1: the reader refuses it
    return {names.get(key, key): value for key, value in data.items()}
