"""Descriptions of models and folders that this program cannot open.

File names and small JSON files identify them. A description completes the sentence `NAME is …`;
it is empty if nothing is known.
"""

import os
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint.header import read_header
from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import open_regular, parse_json
from minillm_repl.storage.stores import GGUF_SUFFIX

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT
PIPELINE = "model_index.json"  # of the diffusers library
_MAX_FILES = 10_000  # names per folder; a data set may have millions
_MAX_SUBFOLDERS = 100
_MAX_JSON_BYTES = 1 << 20  # of a JSON file; such files have a few kilobytes
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WEIGHT_FORMATS = {  # by the suffix of a weight file
    GGUF_SUFFIX: N_("a GGUF file of llama.cpp ({file})"),
    ".onnx": N_("an ONNX file ({file})"),
    ".h5": N_("a TensorFlow HDF5 file ({file})"),
    ".msgpack": N_("a Flax file ({file})"),
    ".tflite": N_("a TensorFlow Lite file ({file})"),
    ".npz": N_("NumPy arrays ({file})"),
    "openvino_model.bin": N_("an OpenVINO model ({file})"),
    ".engine": N_("a TensorRT engine ({file})"),
    ".mlpackage": N_("a Core ML model ({file})"),
    ".mlmodelc": N_("a Core ML model ({file})"),
    ".pte": N_("an ExecuTorch program ({file})"),
    ".distcp": N_("a distributed PyTorch training checkpoint ({file})"),
}
_SHORT = ("gptq", "awq", "fp8", "mxfp4", "hqq", "eetq", "aqlm", "exl2", "exl3", "vptq")
_METHODS = {method: method.upper() for method in _SHORT}
_QUANTISED_TENSORS = {  # the last parts of tensor names in quantised layers
    ("qweight", "qzeros", "g_idx"): "GPTQ/AWQ",
    ("absmax", "quant_map", "nested_absmax", "SCB"): "bitsandbytes",
    (
        "weight_packed",
        "weight_scale",
        "weight_scale_inv",
        "weight_scale_2",
        "input_scale",
    ): "FP8/compressed-tensors",
    ("q_weight", "q_groups", "q_invperm"): "EXL2",
    ("trellis", "suh", "svh"): "EXL3",
    ("W_q",): "HQQ",
    ("_data", "_scale"): "quanto",
    ("codes", "codebooks", "centroids"): "AQLM/VPTQ",
    ("scales", "biases"): "MLX",
}
# Names of tensors in LoRA adapters of several programs.
_LORA_TENSOR = re.compile(r"\b(lora_(A|B|down|up|a|b|magnitude_vector)|lo[kh][ra]_w\d|hada_w\d)")
_VOCABULARIES = re.compile(
    r"tokenizer\.model.*|tekken\.json|.*\.tiktoken|tiktoken\.model"
    r"|spiece\.model|spm\.model|sentencepiece.*\.model"
    r"|vocab\.(txt|bpe|json)|merges\.txt|encoder\.json|rwkv_vocab.*",
)
_ENCODERS = re.compile(r".*bert|.*roberta|deberta.*|electra|longformer|mpnet|xlnet")
_OTHER_MODALITIES = re.compile(r"blip.*|clip.*|dino.*|siglip.*|vit.*|wav2vec2.*|hubert|whisper")


def quantisation_of_config(fields: Mapping[str, Any]) -> str:
    """Return the quantisation that a config.json declares: `GPTQ, 4 bits`; empty if none."""
    for name in ("quantization_config", "quantization", "compression_config"):
        described = fields.get(name)
        if isinstance(described, dict) and described:
            method = str(described.get("quant_method") or described.get("quant_algo") or "")
            if not method:
                method = "MLX" if "group_size" in described else name
            flags = {"load_in_4bit": 4, "load_in_8bit": 8}  # of bitsandbytes
            bits = [
                described.get("bits", described.get("w_bit")),
                *(n for key, n in flags.items() if described.get(key)),
            ]
            known = next((bit for bit in bits if type(bit) in (int, float)), None)
            title = safe_line(_METHODS.get(method, method))[:40]
            return title + (_(", {bits} bits", bits=known) if known else "")
    return ""


def quantisation_of_tensors(names: Iterable[str]) -> str:
    """Return the quantisation method of tensors with these names; empty if there is none."""
    last = {name.rpartition(".")[2] for name in names}
    return next(
        (method for endings, method in _QUANTISED_TENSORS.items() if last & set(endings)), ""
    )


def quantised_error(name: str, how: str) -> UserError:
    """Return the error for quantised weights."""
    return UserError(
        _(
            "{name} is quantised ({how}), in a way that cannot be opened. Use a GGUF file of the "
            "model, or its folder that is not quantised, with `--quant int8` or `int4`",
            name=name,
            how=how,
        )
    )


def describe_architecture(fields: Mapping[str, Any]) -> str:
    """Describe the model of a config.json that is not a decoder-only language model."""
    kind = safe_line(str(fields.get("model_type", "")))[:40]
    part = fields.get("_class_name")
    if isinstance(part, str):
        return _("{kind:.60}, part of a diffusion pipeline", kind=safe_line(part))
    if _OTHER_MODALITIES.fullmatch(kind):
        return _("a model for images or sound ({kind})", kind=kind)
    if fields.get("is_encoder_decoder") is True:
        return _("an encoder-decoder model ({kind}), not a decoder-only language model", kind=kind)
    if _ENCODERS.fullmatch(kind):
        return _("an encoder ({kind}), which cannot generate text", kind=kind)
    return ""


def describe_headless(fields: Mapping[str, Any]) -> str:
    """Describe the model of a config.json whose weights have no unembedding."""
    named = fields.get("architectures")
    kind = safe_line(str(named[0])) if named and isinstance(named, list) else ""
    if not kind or kind.endswith(("ForCausalLM", "LMHeadModel")):
        return ""
    return _("a model without an output head ({kind:.60}), which cannot generate text,", kind=kind)


def describe_without_config(folder: Path) -> str:
    """Describe a folder without a config.json."""
    files = _files(folder)
    if ADAPTER_CONFIG in files:
        return describe_adapter(folder)
    if PIPELINE in files:
        named = _read_small_json(folder / PIPELINE).get("_class_name", "")
        return _(
            "a diffusion pipeline ({kind:.60}), not a language model", kind=safe_line(str(named))
        )
    inner = next((file for file in files if os.path.lexists(folder / file / "config.json")), "")
    if inner:
        return _(
            "a folder without a config.json; open {inner:.80} in it, which has one",
            inner=safe_line(inner),
        )
    # Llama and Mistral publish their own format beside that of `transformers`.
    if "params.json" in files:
        return _(
            "weights in their original format (params.json): use the transformers version, "
            "with a config.json"
        )
    weights = [file for file in files if file.endswith(".safetensors")]
    if weights:
        return _describe_lora(folder / weights[0]) or _(
            "a folder without the config.json that gives the sizes of {file:.80}",
            file=safe_line(weights[0]),
        )
    return _adapter_within(folder, files) or describe_other_weights(folder)


def _adapter_within(folder: Path, files: Iterable[str]) -> str:
    """Describe a folder with an adapter in one of its folders."""
    inner = next((file for file in files if os.path.lexists(folder / file / ADAPTER_CONFIG)), "")
    if not inner:
        return ""
    kind = describe_adapter(folder / inner)
    return _(
        "a folder without a model; {inner:.80} in it is {kind}", inner=safe_line(inner), kind=kind
    )


def find_lora_tensor(names: Iterable[str]) -> str:
    """Return the name of a tensor of another program's LoRA adapter; empty if there is none."""
    return next((name for name in names if _LORA_TENSOR.search(name)), "")


def _describe_lora(path: Path) -> str:
    """Describe a weight file that is a LoRA adapter."""
    try:
        tensor = find_lora_tensor(read_header(path).tensors)
    except UserError:
        return ""
    if not tensor:
        return ""
    return _(
        "a LoRA adapter, not a complete model: {file:.80} holds {tensor:.80}",
        file=safe_line(path.name),
        tensor=safe_line(tensor),
    )


def describe_adapter(folder: Path) -> str:
    """Describe the adapter of another program in a folder."""
    described = _read_small_json(folder / ADAPTER_CONFIG)
    # MLX writes the same file name with other fields.
    if "peft_type" not in described and {"fine_tune_type", "lora_parameters"} & set(described):
        return _(
            "an MLX adapter for {base:.120}, not a complete model: open that model, or "
            "merge the two with `mlx_lm.fuse`",
            base=safe_line(str(described.get("model") or "?")),
        )
    kind = safe_line(str(described.get("peft_type") or "?"))
    base = safe_line(str(described.get("base_model_name_or_path") or "?"))
    return _(
        "a PEFT adapter ({kind:.20}) for {base:.120}, not a complete model: open that "
        "model, or merge the two with `merge_and_unload()` of the peft library",
        kind=kind,
        base=base,
    )


def find_adapter_folder(path: Path) -> Path | None:
    """Return the folder of the adapter that a path names; None if it names none.

    A folder that has a model too is that model, unless the path names a file of the adapter.
    """
    is_named = path.name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    folder = path.parent if is_named else path
    if "peft_type" not in _read_small_json(folder / ADAPTER_CONFIG):  # MLX has the same file name
        return None
    return folder if is_named or not os.path.lexists(folder / "config.json") else None


def describe_other_weights(folder: Path) -> str:
    """Describe a folder whose weights are in another format."""
    files = _files(folder)
    # Core ML, OpenVINO and ONNX exports keep the weights one folder deeper.
    files += [inner for file in files[:_MAX_SUBFOLDERS] for inner in _files(folder / file)]
    for ending, kind in _WEIGHT_FORMATS.items():
        file = next((file for file in files if file.lower().endswith(ending)), "")
        if file:
            what = _(kind, file=safe_line(file)[:80])
            if ending == GGUF_SUFFIX:
                return _("a folder whose weights are {what}; open that file by its name", what=what)
            return _(
                "a folder whose weights are {what}; look for .safetensors",
                what=what,
            )
    pickle = next((file for file in files if file.endswith(_PICKLES)), "")
    if not pickle:
        return ""
    return _(
        "a folder with pickled weights ({pickle:.80}), which can run code; it was not "
        "opened: look for .safetensors",
        pickle=safe_line(pickle),
    )


def find_vocabulary_file(folder: Path) -> str:
    """Return the name of a vocabulary file of any program in a folder; empty if there is none."""
    return next(filter(_VOCABULARIES.fullmatch, _files(folder)), "")


def _files(folder: Path) -> list[str]:
    """Return the sorted names in a folder, at most _MAX_FILES."""
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in islice(found, _MAX_FILES))
    except OSError:
        return []


def _read_small_json(path: Path) -> Mapping[str, Any]:
    """Return the object of a small JSON file; empty if it cannot be read."""
    try:
        with open_regular(path) as file:
            data = parse_json(file.read(_MAX_JSON_BYTES).removeprefix(b"\xef\xbb\xbf"), path.name)
    except UserError:
        return {}
    return data if isinstance(data, dict) else {}
