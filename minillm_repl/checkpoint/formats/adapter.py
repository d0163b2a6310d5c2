"""A LoRA adapter apart from its model: beside each of some matrices two thin ones, `up` · `down`,
in one small file.

The file names the model it belongs to by its path and by a digest of its weights (docs/format.md).
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minillm_repl.checkpoint.checkpoint import Adapter, Checkpoint
from minillm_repl.checkpoint.formats import version1
from minillm_repl.checkpoint.formats.header import (
    VERSION,
    Header,
    has_known_version,
    parse_field,
)
from minillm_repl.checkpoint.formats.native import check_replaceable, parse_training_record
from minillm_repl.checkpoint.weight_map import ReadOptions, SourceTensor, WeightMap
from minillm_repl.checkpoint.weights import locate_tensors, read_weights, resolve_dtype, serialise
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically

if TYPE_CHECKING:
    from minillm_repl.checkpoint.weights import Tensors

FORMAT = "minillm-adapter"
_TENSOR_NAME = re.compile(r"(?P<layer>[\w.]{1,200})\.(?P<side>up|down)", re.ASCII)


def weights_sha256(tensors: "Tensors") -> str:
    """Return the SHA-256 of weights as float32, tensor by tensor in order of version-1 names."""
    by_old_name = {version1.old_tensor_name(name): array for name, array in tensors.items()}
    hasher = hashlib.sha256()
    for name in sorted(by_old_name):
        hasher.update(name.encode() + b"\0")
        hasher.update(np.ascontiguousarray(by_old_name[name], dtype=np.float32).data)
    return hasher.hexdigest()


def printable_path(path: Path) -> str:
    """Return the absolute path as text: a name need not be UTF-8, but JSON must.

    The disk is not looked at.
    """
    # No file need have this name.
    return os.fsencode(os.path.abspath(path)).decode("utf-8", "replace")  # noqa: PTH100


def is_adapter(header: Header) -> bool:
    """Tell whether a file says that it is an adapter."""
    return header.metadata.get("format") == FORMAT


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write the adapter of a checkpoint to `path`, atomically. Raises UserError if it has none."""
    adapter = checkpoint.adapter
    if adapter is None:
        raise UserError(
            _(
                "no adapter to save: `:train … lora=8` creates one for a model that is "
                "saved in a file"
            )
        )
    base = {"path": printable_path(adapter.base), "sha256": adapter.sha256}
    metadata = {"format": FORMAT, "version": VERSION, "base": json.dumps(base, ensure_ascii=False)}
    if adapter.training is not None:
        metadata["training"] = json.dumps(dataclasses.asdict(adapter.training), ensure_ascii=False)
    check_replaceable(path)
    write_atomically(path, *serialise(adapter.tensors, metadata))


def find_base(header: Header, name: str) -> Path:
    """Return where an adapter's model lies: at the path that it names, or beside the adapter.

    Raises UserError.
    """
    if not has_known_version(header):
        raise UserError(
            _(
                "{name} is an adapter of an unknown version; a newer minillm-repl may support it",
                name=name,
            )
        )
    match parse_field(header, "base", name):
        case {"path": str(path), "sha256": str(_)}:
            for candidate in (Path(path), header.path.parent / Path(path).name):
                # Path's own raises for a name that is too long.
                if os.path.exists(candidate):  # noqa: PTH110
                    return candidate
            raise UserError(
                _(
                    "{name} is an adapter for {path:.200}, which is neither at that path "
                    "nor beside the adapter",
                    name=name,
                    path=safe_line(path),
                )
            )
    raise UserError(
        _(
            "{name} is an adapter that does not name its base model; see docs/format.md",
            name=name,
        )
    )


def merge(header: Header, base: Checkpoint, name: str, dtype: str = "auto") -> Checkpoint:
    """Return a checkpoint with a file's adapter added to its weights: float32 if `dtype` is auto.

    `base` has the weights as they are in its file. Raises UserError.
    """
    sha256 = weights_sha256(base.tensors)
    if parse_field(header, "base", name)["sha256"] != sha256:
        raise UserError(
            _(
                "{name} was made for other weights than those in {path}",
                name=name,
                path=safe_line(str(base.path)),
            )
        )
    sources, layers = {}, set()
    for tensor, entry in header.tensors.items():
        match = _TENSOR_NAME.fullmatch(tensor)
        weight = base.tensors.get(f"{match['layer']}.weight") if match else None
        if match is None or weight is None or weight.ndim != 2:
            raise UserError(
                _(
                    "{name} has a tensor that fits no matrix of its model: {tensor:.80}",
                    name=name,
                    tensor=safe_line(tensor),
                )
            )
        rows, columns = weight.shape
        rank = max(1, entry.shape[0 if match["side"] == "down" else -1]) if entry.shape else 1
        sources[tensor] = (
            SourceTensor(tensor, (rank, columns) if match["side"] == "down" else (rows, rank)),
        )
        layers.add(match["layer"])
    if not layers:
        raise UserError(_("{name} is an adapter without tensors", name=name))
    weight_map = WeightMap(sources)
    arrays = read_weights(
        weight_map, locate_tensors(weight_map, [header], name), name, ReadOptions("float32")
    )
    merged = {tensor: array.astype(np.float32) for tensor, array in base.tensors.items()}
    for layer in layers:
        weight = merged[f"{layer}.weight"]
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                weight += arrays[f"{layer}.up"] @ arrays[f"{layer}.down"]
        except (KeyError, ValueError):
            raise UserError(
                _(
                    "{name} has only half of the adapter of {layer}, or halves of different rank",
                    name=name,
                    layer=layer,
                )
            ) from None
        if not np.isfinite(weight).all():
            raise UserError(
                _(
                    "{name} is damaged: it makes {layer}.weight non-finite",
                    name=name,
                    layer=layer,
                )
            )
    assert base.path is not None
    record = parse_training_record(header, name)
    adapter = Adapter(arrays, base.path, sha256, record)
    target_dtype = resolve_dtype(dtype, {"F32"})
    tensors = {tensor: array.astype(target_dtype, copy=False) for tensor, array in merged.items()}
    training = record.append_to(base.training) if record else base.training
    return dataclasses.replace(
        base, tensors=tensors, path=header.path, adapter=adapter, training=training
    )
