"""LoRA adapters in the folders of the PEFT library: opened over their base model.

Each adapted matrix W becomes W + scale · B · A, where the scale is alpha / rank, or alpha / √rank
(rsLoRA). The matrices are stored here under the names of this program, as adapter.py has them.
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minillm_repl.checkpoint import (
    TRANSPOSED,
    Adapter,
    Checkpoint,
    Layout,
    ReadOptions,
    SourceTensor,
    WeightMap,
)
from minillm_repl.checkpoint.adapter import merge_arrays, weights_sha256
from minillm_repl.checkpoint.families import family_of
from minillm_repl.checkpoint.families.fields import ConfigFields
from minillm_repl.checkpoint.folder import CONFIG, Folder
from minillm_repl.checkpoint.foreign import ADAPTER_CONFIG, ADAPTER_WEIGHTS, describe_adapter
from minillm_repl.checkpoint.header import read_header
from minillm_repl.checkpoint.weights import locate_tensors, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import exists, find_checkpoint

if TYPE_CHECKING:
    from minillm_repl.checkpoint.weights import Array

_SIDES = {".lora_A.weight": "down", ".lora_B.weight": "up"}
# What changes the product above, or other weights than a matrix: not followed here.
_UNSUPPORTED = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication",
    "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "arrow_config",
)  # fmt: skip
_INITS = (True, False, "gaussian", "eva", "orthogonal")  # which leave the base model as it is


def find_base(folder: Path, base: Path | None) -> Path:
    """Return the model of an adapter: `base`, or what adapter_config.json names. Raises UserError.

    A name is a path, as it is or beside the adapter, or a model in Hugging Face's cache.
    """
    if base is not None:
        return base
    named = Folder(folder).fields(ADAPTER_CONFIG).get("base_model_name_or_path")
    if isinstance(named, str) and named:
        # Path(named).name: the folder may have moved together with the adapter.
        places = (find_checkpoint(named), folder / named, folder.parent / Path(named).name)
        for place in places:
            if exists(place) and place.resolve() != folder.resolve():
                return place
    if os.path.lexists(folder / CONFIG):
        return folder / CONFIG
    raise UserError(
        _(
            "{name} is {kind}; its base model was not found here: --base PATH says where it is",
            name=safe_line(str(folder)),
            kind=describe_adapter(folder),
        )
    )


@dataclass(frozen=True)
class _Target:
    """Where the matrix of a module is in the model's weights."""

    layer: str  # our name, without `.weight`
    first: int  # row at which the module's rows begin
    rows: int
    inputs: int
    layout: Layout


def merge_folder(folder: Path, base: Checkpoint, dtype: str) -> Checkpoint:
    """Return the model `base` with a folder's adapter added to its weights.

    The result is float32 if `dtype` is auto. Raises UserError.
    """
    name = safe_line(str(folder))
    described = Folder(folder).fields(ADAPTER_CONFIG)
    _check_supported(described, name, folder)
    targets = _targets(base)
    header = read_header(folder / ADAPTER_WEIGHTS)
    sources, parts = dict[str, tuple[SourceTensor, ...]](), dict[str, dict[str, str]]()
    for tensor, entry in header.tensors.items():
        ending = next((each for each in _SIDES if tensor.endswith(each)), None)
        module = tensor.removesuffix(ending or "").removeprefix("base_model.model.")
        target = _find(targets, module) if ending else None
        if target is None or ending is None or len(entry.shape) != 2:
            raise UserError(
                _(
                    "{name} has a tensor that fits no matrix of its model: {tensor:.80}",
                    name=name,
                    tensor=safe_line(tensor),
                )
            )
        is_down = _SIDES[ending] == "down"
        rank = max(1, entry.shape[0 if is_down else 1])
        shape = (rank, target.inputs) if is_down else (target.rows, rank)
        sources[tensor] = (SourceTensor(tensor, shape),)
        parts.setdefault(module, {})[_SIDES[ending]] = tensor
    if not sources:
        raise UserError(_("{name} is an adapter without tensors", name=name))
    weight_map = WeightMap(sources)
    locations = locate_tensors(weight_map, [header], name)
    read = read_weights(weight_map, locations, name, ReadOptions("float32"))
    arrays = _stacked(
        {
            module: (targets_of, read[sides["down"]], read[sides["up"]] * scale)
            for module, sides, targets_of, scale in _scaled(parts, targets, described, read, name)
        },
        base,
    )
    assert base.path is not None
    weights, rank = base.arrays(), max(min(array.shape) for array in read.values())
    adapter = Adapter(arrays, base.path, weights_sha256(weights), rank=rank)
    return merge_arrays(base, weights, adapter, folder, dtype)


def _check_supported(described: Mapping[str, Any], name: str, folder: Path) -> None:
    """Raise UserError for an adapter that is more than the product of two matrices."""
    kind = described.get("peft_type")
    bias, init = described.get("bias", "none"), described.get("init_lora_weights", True)
    wrong = next((f"{key} = {described[key]}" for key in _UNSUPPORTED if described.get(key)), "")
    if kind != "LORA":
        wrong = f"peft_type = {kind}"
    elif bias != "none":
        wrong = f"bias = {bias}"
    elif init not in _INITS:
        wrong = f"init_lora_weights = {init}"
    if wrong:
        raise UserError(
            _(
                "{name} is {kind}: it has {setting:.60}, which is not supported",
                name=name,
                kind=describe_adapter(folder),
                setting=safe_line(wrong),
            )
        )


def _targets(base: Checkpoint) -> dict[str, _Target]:
    """Return where each matrix of the `transformers` library is here, without the outer prefix."""
    family = family_of(base.config, base.model_type)
    if family is None:
        raise UserError(
            _("{name} has no names that an adapter of PEFT knows", name=safe_line(str(base.path)))
        )
    targets = {}
    for tensor, pieces in family.weight_map(base.config).sources.items():
        first = 0
        for piece in pieces:
            if not tensor.endswith(".weight") or len(piece.shape) != 2:
                continue
            shape = piece.shape[::-1] if piece.layout is TRANSPOSED else piece.shape
            module = piece.name.removesuffix(".weight").removeprefix(family.prefix)
            layer = tensor.removesuffix(".weight")
            targets[module] = _Target(layer, first, *shape, piece.layout)
            first += shape[0]
    return targets


def _find(targets: Mapping[str, _Target], module: str) -> _Target | None:
    """Return the target of a module; wrappers put prefixes before its name."""
    while module not in targets and "." in module:
        module = module.partition(".")[2]
    return targets.get(module)


def _scaled(
    parts: Mapping[str, Mapping[str, str]],
    targets: Mapping[str, _Target],
    described: Mapping[str, Any],
    read: "Mapping[str, Array]",
    name: str,
) -> list[tuple[str, Mapping[str, str], _Target, np.float32]]:
    """Return the scale of each module. Raises UserError if a module has half an adapter."""
    fields = ConfigFields(described, {"use_rslora": False})
    usual, is_rslora = fields.number("lora_alpha", 8.0), fields.boolean("use_rslora")
    found = []
    for module, sides in parts.items():
        target = _find(targets, module)
        assert target is not None
        ranks = {read[tensor].shape[side == "up"] for side, tensor in sides.items()}
        if len(sides) != 2 or len(ranks) != 1:
            raise UserError(
                _(
                    "{name} has only half of the adapter of {layer}, or halves of different rank",
                    name=name,
                    layer=safe_line(module),
                )
            )
        rank = ranks.pop()
        alpha = _alpha(fields, module, usual)
        found.append(
            (module, sides, target, np.float32(alpha / (rank**0.5 if is_rslora else rank)))
        )
    return found


def _alpha(fields: ConfigFields, module: str, usual: float) -> float:
    """Return the alpha of a module: that of the first pattern that is the end of its name."""
    patterns = fields.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        patterns = {"alpha_pattern": None}
    for key, value in patterns.items():
        literal = str(key).removeprefix("^").removesuffix("$").replace("\\.", ".")
        # PEFT takes any regular expression; an untrusted one may take for ever.
        if not literal.replace(".", "").replace("_", "").isalnum() or type(value) not in (
            int,
            float,
        ):
            raise UserError(
                _("alpha_pattern {key!r:.60} is not supported", key=safe_line(str(key)))
            )
        if module == literal or (module.endswith(f".{literal}") and not str(key).startswith("^")):
            return float(value)
    return usual


def _stacked(
    modules: "Mapping[str, tuple[_Target, Array, Array]]", base: Checkpoint
) -> "dict[str, Array]":
    """Return `LAYER.down` and `LAYER.up` of each of our matrices.

    Where modules share a matrix, as q, k and v do, their `down` matrices stand below each other,
    and each of the `up` matrices has rows and columns of its own.
    """
    by_layer: dict[str, list[tuple[_Target, Array, Array]]] = defaultdict(list)
    for each in modules.values():
        by_layer[each[0].layer].append(each)
    arrays: dict[str, Array] = {}
    for layer, parts in by_layer.items():
        ranks = [len(down) for _target, down, _up in parts]
        up = np.zeros((base.tensors[f"{layer}.weight"].shape[0], sum(ranks)), np.float32)
        column = 0
        for (target, _down, part), rank in zip(parts, ranks, strict=True):
            # The rows of `up` are outputs: a transposed file has them as we do.
            rows = part if target.layout is TRANSPOSED else target.layout.from_file(part)
            up[target.first : target.first + target.rows, column : column + rank] = rows
            column += rank
        arrays[f"{layer}.down"] = np.concatenate([down for _target, down, _up in parts])
        arrays[f"{layer}.up"] = up
    return arrays
