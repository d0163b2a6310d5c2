"""LoRA adapters in files of their own (Hu et al. 2021): W becomes W + up · down.

The file names its model by the path and by a digest of the weights (docs/format.md).
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minillm_repl.checkpoint import (
    TRANSPOSED,
    Adapter,
    Checkpoint,
    ReadOptions,
    SourceTensor,
    WeightMap,
)
from minillm_repl.checkpoint.folder import find_folder
from minillm_repl.checkpoint.foreign import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from minillm_repl.checkpoint.header import (
    VERSION,
    Header,
    has_known_version,
    old_tensor_name,
    parse_field,
)
from minillm_repl.checkpoint.native import check_replaceable
from minillm_repl.checkpoint.record import parse_training_record
from minillm_repl.checkpoint.serialise import serialise
from minillm_repl.checkpoint.weights import locate_tensors, read_weights, resolve_dtype
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import convert, to_float32
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically, write_folder_atomically
from minillm_repl.storage.paths import SUFFIX

if TYPE_CHECKING:
    from minillm_repl.checkpoint.weights import Array, Tensors


FORMAT = "minillm-adapter"
_TENSOR_NAME = re.compile(r"(?P<layer>[\w.]{1,200})\.(?P<side>up|down)", re.ASCII)


def weights_sha256(tensors: "Tensors") -> str:
    """Return the SHA-256 of the weights as float32, in the order of their version-1 names."""
    by_old_name = {old_tensor_name(name): array for name, array in tensors.items()}
    hasher = hashlib.sha256()
    for name in sorted(by_old_name):
        hasher.update(name.encode() + b"\0")
        # float32, so that the dtype in which the model was opened does not matter.
        hasher.update(np.ascontiguousarray(to_float32(by_old_name[name])).data)
    return hasher.hexdigest()


def printable_path(path: Path) -> str:
    """Return the absolute path as text for JSON; bytes that are not UTF-8 become `�`."""
    # Path.resolve would read the disk, and fail for some names.
    return os.fsencode(os.path.abspath(path)).decode("utf-8", "replace")  # noqa: PTH100


def is_adapter(header: Header) -> bool:
    """Tell whether a header is that of an adapter."""
    return header.metadata.get("format") == FORMAT


def save_adapter(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint's adapter to `path` atomically. Raises UserError if it has none."""
    adapter = _require_adapter(checkpoint)
    check_replaceable(path)
    write_atomically(path, *serialise(adapter.tensors, _metadata(adapter)))


def save_peft(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint's adapter as a folder that the `peft` library opens over its model.

    The model must be a Hugging Face folder, for the names of its matrices. Raises UserError.
    """
    adapter = _require_adapter(checkpoint)
    folder = find_folder(adapter.base)
    if folder is None or folder.weight_file is not None:
        raise UserError(
            _(
                "{base} is no Hugging Face folder, and the peft library opens adapters of those "
                "only: save a file, {name}{suffix}",
                base=safe_line(str(adapter.base)),
                name=safe_line(path.name),
                suffix=SUFFIX,
            )
        )
    weight_map, tensors = folder.family.weight_map(folder.config), dict[str, "Array"]()
    for layer in {name.rpartition(".")[0] for name in adapter.tensors}:
        down, up, row = adapter.tensors[f"{layer}.down"], adapter.tensors[f"{layer}.up"], 0
        for piece in weight_map.sources[f"{layer}.weight"]:  # q, k and v are one matrix here
            is_transposed = piece.layout is TRANSPOSED
            rows = piece.shape[1 if is_transposed else 0]
            part = up[row : row + rows]  # (rows, rank)
            module = f"base_model.model.{piece.name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = down
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(
                part if is_transposed else piece.layout.to_file(part)
            )
            row += rows
    rank = max(each.shape[0] for name, each in tensors.items() if "lora_A" in name)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": printable_path(adapter.base),
        "r": rank,
        "lora_alpha": rank,  # the product is added as it is: its scale is alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": folder.family.model_type == "gpt2",
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "inference_mode": True,
    }
    files = {
        ADAPTER_CONFIG: [(json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()],
        ADAPTER_WEIGHTS: serialise(tensors, _metadata(adapter) | {"format": "pt"}),
    }
    write_folder_atomically(path, files)


def _require_adapter(checkpoint: Checkpoint) -> Adapter:
    if checkpoint.adapter is None:
        raise UserError(
            _(
                "no adapter to save: `:train … lora=8` creates one for a model that is "
                "saved in a file"
            )
        )
    return checkpoint.adapter


def _metadata(adapter: Adapter) -> dict[str, str]:
    """Return the metadata of an adapter's file: its model, and its training."""
    # The path finds the model, the digest proves that it is the same one.
    base = {"path": printable_path(adapter.base), "sha256": adapter.sha256}
    metadata = {"format": FORMAT, "version": VERSION, "base": json.dumps(base, ensure_ascii=False)}
    if adapter.training is not None:
        metadata["training"] = json.dumps(dataclasses.asdict(adapter.training), ensure_ascii=False)
    if adapter.start:
        metadata["start"] = json.dumps(adapter.start)
    return metadata


def find_base(header: Header, name: str) -> Path:
    """Return the path of an adapter's model: the path in its header, or beside the adapter.

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
        case {"path": str(path), "sha256": str()}:
            for candidate in (Path(path), header.path.parent / Path(path).name):
                # Path.exists raises for a name that is too long.
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
    """Return the model `base` with a file's adapter added to its weights.

    `base` has the weights of its file, unchanged. The result is float32 if `dtype` is auto.
    Raises UserError.
    """
    assert base.path is not None
    arrays_of_base = base.arrays()
    sha256 = weights_sha256(arrays_of_base)
    if parse_field(header, "base", name)["sha256"] != sha256:
        raise UserError(
            _(
                "{name} was made for other weights than those in {path}",
                name=name,
                path=safe_line(str(base.path)),
            )
        )
    # The tensors are checked by names and shapes before any is read.
    weight_map = _adapter_weight_map(header, base, name)
    locations = locate_tensors(weight_map, [header], name)
    arrays = read_weights(weight_map, locations, name, ReadOptions("float32"))
    start = parse_field(header, "start", name) if "start" in header.metadata else ""
    if not isinstance(start, str):
        raise UserError(_("the start token of {name} is not a text", name=name))
    record = parse_training_record(header, name)
    adapter = Adapter(arrays, base.path, sha256, record, start)
    return merge_arrays(base, arrays_of_base, adapter, header.path, dtype)


def merge_arrays(
    base: Checkpoint, weights: "Tensors", adapter: Adapter, path: Path, dtype: str
) -> Checkpoint:
    """Return the model `base` with an adapter added to its weights, the arrays of its tensors.

    `path` is the adapter's. The result is float32 if `dtype` is auto. Raises UserError.
    """
    # In float32: the product is small beside the weights, and 16 bits would round most of it away.
    merged = {tensor: to_float32(array, copy=True) for tensor, array in weights.items()}
    for layer in {tensor.rpartition(".")[0] for tensor in adapter.tensors}:
        _add_product(merged[f"{layer}.weight"], adapter.tensors, layer, safe_line(str(path)))
    target_dtype, record = resolve_dtype(dtype, {"F32"}), adapter.training
    return dataclasses.replace(
        base,
        tokenizer=base.tokenizer.with_start(adapter.start),
        tensors={tensor: convert(array, target_dtype) for tensor, array in merged.items()},
        path=path,
        adapter=adapter,
        training=record.append_to(base.training) if record else base.training,
    )


def _adapter_weight_map(header: Header, base: Checkpoint, name: str) -> WeightMap:
    """Return the weight map of a file's `up` and `down` matrices.

    Raises UserError for a tensor that belongs to no matrix of the model.
    """
    sources = dict[str, tuple[SourceTensor, ...]]()
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
        is_down = match["side"] == "down"
        # The rank comes from the file; the other dimension must be that of the weight.
        rank = max(1, entry.shape[0 if is_down else -1]) if entry.shape else 1
        shape = (rank, columns) if is_down else (rows, rank)
        sources[tensor] = (SourceTensor(tensor, shape),)
    if not sources:
        raise UserError(_("{name} is an adapter without tensors", name=name))
    return WeightMap(sources)


def _add_product(weight: "Array", arrays: "Tensors", layer: str, name: str) -> None:
    """Add up · down to a layer's weight, (rows, columns), in place.

    Raises UserError if one of the two is missing, or the sum is not finite.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            # (rows, rank) @ (rank, columns) -> (rows, columns)
            weight += arrays[f"{layer}.up"] @ arrays[f"{layer}.down"]
    except (KeyError, ValueError):
        raise UserError(
            _(
                "{name} has only half of the adapter of {layer}, or halves of different rank",
                name=name,
                layer=layer,
            )
        ) from None
    # Finite factors may have an infinite product.
    if not np.isfinite(weight).all():
        raise UserError(
            _("{name} is damaged: it makes {layer}.weight non-finite", name=name, layer=layer)
        )
