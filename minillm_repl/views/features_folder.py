"""The folder of a sparse autoencoder or transcoder that SAELens reads and writes."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically, write_folder_atomically
from minillm_repl.storage.files import parse_json, read_utf8
from minillm_repl.views.features_dictionary import Dictionary, Examples, Figures

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.config import AnyConfig

CONFIG, WEIGHTS, EXAMPLES = "cfg.json", "sae_weights.safetensors", "minillm_examples.safetensors"
# SAELens has no TopK transcoder: it refuses ours by their name, instead of computing another thing.
_ARCHITECTURES = {
    name: name.rpartition("_")[0] or "standard" if is_transcoder else name
    for is_transcoder, names in (
        (False, ("topk", "standard", "jumprelu")),
        (True, ("transcoder", "topk_transcoder", "jumprelu_transcoder")),
    )
    for name in names
}
_MAX_CONFIG = 1 << 20  # bytes
_MAX_FEATURES = 1 << 18
_HOOK = re.compile(r"blocks\.(\d{1,4})\.hook_resid_(post|pre)")
_MLP = re.compile(r"blocks\.(\d{1,4})\.mlp\.hook_(in)")  # after the norm, as the MLP reads it
_OURS = "minillm"  # the key of our own figures in the metadata


def files_of(dictionary: Dictionary, model: str) -> dict[str, Any]:
    """Return the content of the files of a folder: SAELens's two, and ours with the examples."""
    import numpy as np

    from minillm_repl.checkpoint.serialise import serialise

    ours: dict[str, Any] = {"steps": dictionary.steps, "source": dictionary.source}
    if dictionary.figures:
        ours["figures"] = vars(dictionary.figures)
    layer = dictionary.layer
    # Without a version SAELens takes the file for one of before 6.0, and drops the rest of this.
    metadata = {"sae_lens_version": "6.0.0", "model_name": model,
                "hook_name": f"blocks.{layer}.hook_resid_post",
                **(_mlp_hooks(layer) if dictionary.is_transcoder else {}),
                **dictionary.metadata, _OURS: ours}  # fmt: skip
    jump = dictionary.threshold is not None
    config: dict[str, Any] = {
        "architecture": _architecture(dictionary),
        "d_in": dictionary.encoder.shape[0],
        "d_sae": dictionary.size,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.subtracts_bias,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if dictionary.is_transcoder:
        config["d_out"] = dictionary.decoder.shape[1]
    if dictionary.k and not jump:
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    tensors = {"W_enc": dictionary.encoder, "W_dec": dictionary.decoder,
               "b_enc": dictionary.encoder_bias, "b_dec": dictionary.decoder_bias}  # fmt: skip
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    files: dict[str, Any] = {CONFIG: [text.encode()], WEIGHTS: serialise(arrays, {})}
    if dictionary.examples:
        # float32 holds every id below 2^24 exactly, and our files have no whole numbers.
        found = {name: each.astype(np.float32) for name, each in vars(dictionary.examples).items()}
        files[EXAMPLES] = serialise(found, {})
    return files


def _mlp_hooks(layer: int) -> dict[str, str]:
    """Return what TransformerLens calls the places of a transcoder."""
    return {"hook_name": f"blocks.{layer}.mlp.hook_in",
            "hook_name_out": f"blocks.{layer}.hook_mlp_out"}  # fmt: skip


def _architecture(dictionary: Dictionary) -> str:
    kind = "jumprelu" if dictionary.threshold is not None else "topk" if dictionary.k else ""
    if dictionary.is_transcoder:
        return f"{kind}_transcoder" if kind else "transcoder"
    return kind or "standard"


def save(dictionary: Dictionary, folder: Path, model: str, *, replace_files: bool = False) -> None:
    """Write a folder; with `replace_files`, over one of ours that is there. Raises UserError."""
    files = files_of(dictionary, model)
    if not replace_files:
        write_folder_atomically(folder, files)
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically(folder / name, *data)


def load(folder: Path, config: "AnyConfig") -> Dictionary:
    """Return the dictionary of a folder, which is untrusted, for a model with this config.

    Raises UserError naming the folder.
    """
    name = safe_line(str(folder))
    data = parse_json(read_utf8(folder / CONFIG, _MAX_CONFIG), safe_line(str(folder / CONFIG)))
    found = data if isinstance(data, dict) else {}
    metadata = found.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    architecture, k, features = found.get("architecture"), found.get("k", 0), found.get("d_sae")
    kind = _ARCHITECTURES.get(architecture, "") if isinstance(architecture, str) else ""
    if not kind:
        raise UserError(
            _("{name} has an architecture that does not open here: {kind:.40} ({names} do)",
              name=name, kind=safe_line(str(architecture)), names=", ".join(_ARCHITECTURES))
        )  # fmt: skip
    is_transcoder = str(architecture).endswith("transcoder")
    for key in ("normalize_activations", "reshape_activations"):
        if found.get(key, "none") != "none":
            raise UserError(_("{name} needs {key}, which is not done here", name=name, key=key))
    if type(features) is not int or not 0 < features <= _MAX_FEATURES:
        raise UserError(_("{name} has no valid {key}", name=name, key="d_sae"))
    if kind == "topk" and (type(k) is not int or not 0 < k <= features):
        raise UserError(_("{name} has no valid {key}", name=name, key="k"))
    if any(found.get(key, config.d_model) != config.d_model for key in ("d_in", "d_out")):
        raise UserError(
            _("{name} is for streams of another width than that of this model, {width}",
              name=name, width=config.d_model)
        )  # fmt: skip
    layer = _layer(found, metadata, config, name, is_transcoder=is_transcoder)
    weights = _read(folder / WEIGHTS, _shapes(kind, config.d_model, features))
    dictionary = Dictionary(
        layer=layer,
        k=k if kind == "topk" else 0,
        encoder=weights["W_enc"],
        decoder=weights["W_dec"],
        encoder_bias=weights["b_enc"],
        decoder_bias=weights["b_dec"],
        threshold=weights.get("threshold"),
        subtracts_bias=not is_transcoder and found.get("apply_b_dec_to_input", True) is True,
        is_transcoder=is_transcoder,
        metadata={key: value for key, value in metadata.items() if key != _OURS},
    )
    if kind == "topk" and found.get("rescale_acts_by_decoder_norm") is True:
        norms = dictionary.decoder.norm(dim=-1)  # (features,); folded in, the rest is the same
        dictionary = replace(
            dictionary,
            encoder=dictionary.encoder * norms,
            encoder_bias=dictionary.encoder_bias * norms,
            decoder=dictionary.decoder / norms.clamp(min=1e-12)[:, None],
        )
    return _with_ours(dictionary, metadata.get(_OURS), folder)


def _shapes(kind: str, width: int, features: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (width, features), "W_dec": (features, width), "b_enc": (features,),
        "b_dec": (width,),
    }  # fmt: skip
    return shapes | ({"threshold": (features,)} if kind == "jumprelu" else {})


def _layer(
    found: Any, metadata: Any, config: "AnyConfig", name: str, *, is_transcoder: bool
) -> int:
    """Return the layer after which the stream is that of the folder, or whose MLP it is.

    Raises UserError.
    """
    hook = metadata.get("hook_name", found.get("hook_name"))  # older folders have it outside
    pattern = _MLP if is_transcoder else _HOOK
    match = pattern.fullmatch(hook) if isinstance(hook, str) else None
    layer = int(match[1]) - (match[2] == "pre") if match else -1
    if not 0 <= layer < config.n_layers:
        raise UserError(
            _("{name} is not for a residual stream or an MLP of this model: its place is "
              "{hook:.60}", name=name, hook=safe_line(str(hook)))
        )  # fmt: skip
    return layer


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> "dict[str, Tensor]":
    """Return the tensors of a file, of which each must have its shape. Raises UserError."""
    import torch

    from minillm_repl.checkpoint import ReadOptions, SourceTensor, WeightMap
    from minillm_repl.checkpoint.header import read_header
    from minillm_repl.checkpoint.weights import locate_tensors, read_weights

    weight_map = WeightMap({each: (SourceTensor(each, shape),) for each, shape in shapes.items()})
    name = safe_line(str(path))
    locations = locate_tensors(weight_map, [read_header(path)], name)
    arrays = read_weights(weight_map, locations, name, ReadOptions("float32"))
    return {each: torch.from_numpy(array) for each, array in arrays.items()}


def _with_ours(dictionary: Dictionary, ours: Any, folder: Path) -> Dictionary:
    """Return a dictionary with what this program has written beside it; what is odd is left out."""
    from minillm_repl.checkpoint.header import read_header

    match ours:
        case {"steps": int(steps), "source": str(source)}:
            dictionary = replace(dictionary, steps=max(0, steps), source=safe_line(source[:200]))
    figures = ours.get("figures") if isinstance(ours, dict) else None
    names = set(Figures.__dataclass_fields__)
    if (
        isinstance(figures, dict)
        and figures.keys() == names
        and all(map(_is_number, figures.values()))
    ):
        dictionary = replace(dictionary, figures=Figures(**figures))
    path = folder / EXAMPLES
    if not path.is_file():
        return dictionary
    shape = read_header(path).tensors["ids"].shape if "ids" in read_header(path).tensors else ()
    if len(shape) != 3 or shape[0] != dictionary.size or shape[1] * shape[2] > 1 << 12:
        raise UserError(_("{name} does not fit its features", name=safe_line(str(path))))
    pair = shape[:2]
    arrays = _read(path, {"ids": shape, "marked": pair, "values": pair, "density": shape[:1]})
    numbers = {name: each.numpy() for name, each in arrays.items()}
    for name in ("ids", "marked"):
        numbers[name] = numbers[name].astype("int64")
    return replace(dictionary, examples=Examples(**numbers))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)
