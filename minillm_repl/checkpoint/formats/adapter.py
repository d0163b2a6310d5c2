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
from minillm_repl.checkpoint.formats.header import Header, field_of
from minillm_repl.checkpoint.formats.native import check_replaceable, training_of
from minillm_repl.checkpoint.weight_map import Piece, Reading, Recipe
from minillm_repl.checkpoint.weights import as_dtype, check, packed, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically

if TYPE_CHECKING:
    from minillm_repl.checkpoint.weights import Tensors

FORMAT, _VERSION = "minillm-adapter", "1"
_NAME = re.compile(r"(?P<layer>[\w.]{1,200})\.(?P<side>up|down)", re.ASCII)


def digest(tensors: "Tensors") -> str:
    """Return the SHA-256 of weights as float32, tensor by tensor in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + b"\0")
        found.update(np.ascontiguousarray(tensors[name], dtype=np.float32).data)
    return found.hexdigest()


def printable_path(path: Path) -> str:
    """Return the absolute path as text: a name need not be UTF-8, but JSON must.

    The disk is not looked at.
    """
    return os.fsencode(os.path.abspath(path)).decode("utf-8", "replace")  # noqa: PTH100 - no file need have this name


def is_adapter(header: Header) -> bool:
    """Tell whether a file says that it is an adapter."""
    return header.metadata.get("format") == FORMAT


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write the adapter of a checkpoint to `path`, atomically. Raises UserError if it has none."""
    adapter = checkpoint.adapter
    if adapter is None:
        raise UserError(
            _(
                "there is no adapter to save: `:train … lora=8` on a model that lies in a "
                "file makes "
                "one"
            )
        )
    base = {"path": printable_path(adapter.base), "sha256": adapter.sha256}
    metadata = {"format": FORMAT, "version": _VERSION, "base": json.dumps(base, ensure_ascii=False)}
    if adapter.training is not None:
        metadata["training"] = json.dumps(dataclasses.asdict(adapter.training), ensure_ascii=False)
    check_replaceable(path)
    write_atomically(path, *packed(adapter.tensors, metadata))


def base_of(header: Header, name: str) -> Path:
    """Return where the model lies that an adapter belongs to: at the path it names, or beside the
    adapter.

    Raises UserError.
    """
    if header.metadata.get("version") != _VERSION:
        raise UserError(
            _(
                "{name} is an adapter of a version not known here; a newer minillm-repl may know "
                "it",
                name=name,
            )
        )
    match field_of(header, "base", name):
        case {"path": str(path), "sha256": str(_)}:
            for there in (Path(path), header.path.parent / Path(path).name):
                if os.path.exists(there):  # noqa: PTH110 - Path's own raises for a name that is too long
                    return there
            raise UserError(
                _(
                    "{name} is an adapter for {path:.200}, which is not there, and not beside it",
                    name=name,
                    path=safe_line(path),
                )
            )
    raise UserError(
        _(
            "{name} is an adapter that does not say what it belongs to; see docs/format.md",
            name=name,
        )
    )


def merge(header: Header, base: Checkpoint, name: str, dtype: str = "auto") -> Checkpoint:
    """Return a checkpoint with the adapter of a file added to its weights: float32 if `dtype` is
    auto.

    `base` has the weights as they are in its file. Raises UserError.
    """
    sha256 = digest(base.tensors)
    if field_of(header, "base", name)["sha256"] != sha256:
        raise UserError(
            _(
                "{name} is an adapter for other weights than those in {path}",
                name=name,
                path=safe_line(str(base.path)),
            )
        )
    pieces, layers = {}, set()
    for tensor, entry in header.tensors.items():
        match = _NAME.fullmatch(tensor)
        weight = base.tensors.get(f"{match['layer']}.weight") if match else None
        if match is None or weight is None or weight.ndim != 2:
            raise UserError(
                _(
                    "{name} has a tensor that belongs to no matrix of its model: {tensor:.80}",
                    name=name,
                    tensor=safe_line(tensor),
                )
            )
        rows, columns = weight.shape
        rank = max(1, entry.shape[0 if match["side"] == "down" else -1]) if entry.shape else 1
        pieces[tensor] = (
            Piece(tensor, (rank, columns) if match["side"] == "down" else (rows, rank)),
        )
        layers.add(match["layer"])
    if not layers:
        raise UserError(_("{name} is an adapter without tensors", name=name))
    recipe = Recipe(pieces)
    arrays = read_weights(recipe, check(recipe, [header], name), name, Reading("float32"))
    merged = {tensor: array.astype(np.float32) for tensor, array in base.tensors.items()}
    for layer in layers:
        weight = merged[f"{layer}.weight"]
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                weight += arrays[f"{layer}.up"] @ arrays[f"{layer}.down"]
        except (KeyError, ValueError):
            raise UserError(
                _(
                    "{name} lacks half of the adapter of {layer}, or its halves differ in rank",
                    name=name,
                    layer=layer,
                )
            ) from None
        if not np.isfinite(weight).all():
            raise UserError(
                _(
                    "{name} is damaged: with it {layer}.weight holds numbers that are not finite",
                    name=name,
                    layer=layer,
                )
            )
    assert base.path is not None
    record = training_of(header, name)
    adapter = Adapter(arrays, base.path, sha256, record)
    wanted = as_dtype(dtype, {"F32"})
    tensors = {tensor: array.astype(wanted, copy=False) for tensor, array in merged.items()}
    training = record.after(base.training) if record else base.training
    return dataclasses.replace(
        base, tensors=tensors, path=header.path, adapter=adapter, training=training
    )
