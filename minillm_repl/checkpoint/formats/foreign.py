"""What a folder is that holds no model which opens here: told by its files' names and by what
its JSON files say.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint.formats.header import parse_json, read_header
from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import open_regular

ADAPTER, ADAPTER_WEIGHTS, PIPELINE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "model_index.json",
)
_MOST_FILES, _MOST_INNER = 10_000, 100  # names that are looked at, and folders in a folder
_LARGEST = 1 << 20  # bytes of a JSON file that describes something
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHERS = {  # endings of files of weights
    ".gguf": N_("a GGUF file, which is llama.cpp's ({file})"),
    ".onnx": N_("an ONNX file ({file})"),
    ".h5": N_("an HDF5 file, which is TensorFlow's ({file})"),
    ".msgpack": N_("a file of Flax ({file})"),
    ".tflite": N_("a file of TensorFlow Lite ({file})"),
    ".npz": N_("NumPy arrays ({file})"),
    "openvino_model.bin": N_("a model of OpenVINO ({file})"),
    ".engine": N_("an engine of TensorRT ({file})"),
    ".mlpackage": N_("a model of Core ML ({file})"),
    ".mlmodelc": N_("a model of Core ML ({file})"),
    ".pte": N_("a program of ExecuTorch ({file})"),
    ".distcp": N_(
        "the parts of a training run, as PyTorch keeps them for several machines ({file})"
    ),
}
_SHORT = ("gptq", "awq", "fp8", "mxfp4", "hqq", "eetq", "aqlm", "exl2", "exl3", "vptq")
_METHODS = {method: method.upper() for method in _SHORT}
_LEFTOVERS = {  # tensors that stand beside those of quantised layers
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
# of an adapter
_HALF = re.compile(r"\b(lora_(A|B|down|up|a|b|magnitude_vector)|lo[kh][ra]_w\d|hada_w\d)")
_VOCABULARIES = re.compile(
    r"tokenizer\.model.*|tekken\.json|.*\.tiktoken|tiktoken\.model|spiece\.model|spm\.model|sentencepiece.*\.model"
    r"|vocab\.(txt|bpe|json)|merges\.txt|encoder\.json|rwkv_vocab.*",
)
_READERS = re.compile(r".*bert|.*roberta|deberta.*|electra|longformer|mpnet|xlnet")
_PICTURES = re.compile(r"blip.*|clip.*|dino.*|siglip.*|vit.*|wav2vec2.*|hubert|whisper")


def quantised_by(fields: Mapping[str, Any]) -> str:
    """Return how weights are made smaller, as a config.json says it: `GPTQ, 4 bits`; empty if it
    does not.
    """
    for name in ("quantization_config", "quantization", "compression_config"):
        described = fields.get(name)
        if isinstance(described, dict) and described:
            method = str(described.get("quant_method") or described.get("quant_algo") or "")
            small = {"load_in_4bit": 4, "load_in_8bit": 8}
            bits = [
                described.get("bits", described.get("w_bit")),
                *(n for key, n in small.items() if described.get(key)),
            ]
            known = next((bit for bit in bits if type(bit) in (int, float)), None)
            method = _METHODS.get(method, method) or ("MLX" if "group_size" in described else name)
            return safe_line(method)[:40] + (_(", {bits} bits", bits=known) if known else "")
    return ""


def leftovers_of(names: Iterable[str]) -> str:
    """Return whose quantisation tensors of these names belong to; empty if nobody's."""
    last = {name.rpartition(".")[2] for name in names}
    return next((method for endings, method in _LEFTOVERS.items() if last & set(endings)), "")


def refuse_quantised(name: str, how: str) -> UserError:
    """Return the error for quantised weights."""
    return UserError(
        _(
            "{name} has quantised weights ({how}), which cannot be opened: take the model "
            "they were made from, in"
            " float32, bfloat16 or float16; `--quant int8` or `int4` makes it smaller here",
            name=name,
            how=how,
        )
    )


def purpose(fields: Mapping[str, Any]) -> str:
    """Return what a model is that is no language model which goes on with a text; empty if that
    is not known.
    """
    kind, part = safe_line(str(fields.get("model_type", "")))[:40], fields.get("_class_name")
    if isinstance(part, str):
        return _("{kind:.60}, a part of a diffusion pipeline", kind=safe_line(part))
    if _PICTURES.fullmatch(kind):
        return _("a model of pictures or sound ({kind})", kind=kind)
    if fields.get("is_encoder_decoder") is True:
        return _("an encoder with a decoder ({kind}), which makes another text of one", kind=kind)
    if _READERS.fullmatch(kind):
        return _("an encoder ({kind}), which reads a text and does not go on with it", kind=kind)
    return ""


def headless(fields: Mapping[str, Any]) -> str:
    """Return what a model without an output head is by its config.json, as words after `NAME
    is`; empty if unknown.
    """
    named = fields.get("architectures")
    kind = safe_line(str(named[0])) if named and isinstance(named, list) else ""
    if not kind or kind.endswith(("ForCausalLM", "LMHeadModel")):
        return ""
    return _(
        "a model without an output head, which does not go on with a text ({kind:.60}),", kind=kind
    )


def without_config(folder: Path) -> str:
    """Return what a folder without a config.json is, as words after `NAME is`; empty if nothing
    is known of it.
    """
    files = _files(folder)
    if ADAPTER in files:
        return adapter(folder)
    if PIPELINE in files:
        named = _described(folder / PIPELINE).get("_class_name", "")
        return _(
            "a diffusion pipeline ({kind:.60}) and no language model", kind=safe_line(str(named))
        )
    inner = next((file for file in files if os.path.lexists(folder / file / "config.json")), "")
    if inner:
        return _(
            "a folder without a config.json; {inner:.80} in it has one: open that",
            inner=safe_line(inner),
        )
    if "params.json" in files:
        return _(
            "weights as their makers run them (params.json): take those for transformers, with a "
            "config.json"
        )
    weights = [file for file in files if file.endswith(".safetensors")]
    if weights:
        return _lora(folder / weights[0]) or _(
            "a folder without a config.json, which says the sizes of {file:.80}",
            file=safe_line(weights[0]),
        )
    return _adapter_within(folder, files) or other_weights(folder)


def _adapter_within(folder: Path, files: Iterable[str]) -> str:
    """Return which adapter lies in a folder of a folder, as words after `NAME is`; empty if none
    does.
    """
    inner = next((file for file in files if os.path.lexists(folder / file / ADAPTER)), "")
    if not inner:
        return ""
    kind = adapter(folder / inner)
    return _(
        "a folder without a model; {inner:.80} in it is {kind}", inner=safe_line(inner), kind=kind
    )


def lora_in(names: Iterable[str]) -> str:
    """Return a tensor that is half of a LoRA adapter of another program; empty if there is none."""
    return next((name for name in names if _HALF.search(name)), "")


def _lora(path: Path) -> str:
    """Return what a folder is whose only weights are a LoRA adapter, as words after `NAME is`;
    empty if it is none.
    """
    try:
        half = lora_in(read_header(path).tensors)
    except UserError:
        return ""
    if not half:
        return ""
    file = safe_line(path.name)
    return _(
        "a LoRA adapter, and no model by itself: {file:.80} holds {tensor:.80}",
        file=file,
        tensor=safe_line(half),
    )


def adapter(folder: Path) -> str:
    """Return what the adapter of another program in a folder is, as words after `NAME is`."""
    described = _described(folder / ADAPTER)
    if "peft_type" not in described and {"fine_tune_type", "lora_parameters"} & set(described):
        return _(
            "an adapter of MLX for {base:.120}, and no model by itself: open that one, or "
            "merge the two with"
            " `mlx_lm.fuse`",
            base=safe_line(str(described.get("model") or "?")),
        )
    kind, base = (
        safe_line(str(described.get(key) or "?"))
        for key in ("peft_type", "base_model_name_or_path")
    )
    return _(
        "a PEFT adapter ({kind:.20}) for {base:.120}, and no model by itself: open that one, "
        "or merge the two with"
        " `merge_and_unload()` of the peft library",
        kind=kind,
        base=base,
    )


def other_weights(folder: Path) -> str:
    """Return which weights a folder holds that are not opened, as words after `NAME is`; empty
    for none.
    """
    files = _files(folder)
    files += [inner for file in files[:_MOST_INNER] for inner in _files(folder / file)]
    for ending, kind in _OTHERS.items():
        file = next((file for file in files if file.lower().endswith(ending)), "")
        if file:
            what = _(kind, file=safe_line(file)[:80])
            return _(
                "a folder whose weights are {what}: look for the version with .safetensors",
                what=what,
            )
    pickle = next((file for file in files if file.endswith(_PICKLES)), "")
    if not pickle:
        return ""
    return _(
        "a folder whose weights are a pickle ({pickle:.80}), which can run code: not opened; "
        "look for the version"
        " with .safetensors",
        pickle=safe_line(pickle),
    )


def vocabulary(folder: Path) -> str:
    """Return the file in a folder that holds a vocabulary, whichever program reads it; empty if
    there is none.
    """
    return next(filter(_VOCABULARIES.fullmatch, _files(folder)), "")


def _files(folder: Path) -> list[str]:
    """Return the names in a folder, in order; of very many, some."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                entry.name for entry, _place in zip(found, range(_MOST_FILES), strict=False)
            )
    except OSError:
        return []


def _described(path: Path) -> Mapping[str, Any]:
    """Return what a small JSON file says; nothing if it is none."""
    try:
        with open_regular(path) as file:
            data = parse_json(file.read(_LARGEST).removeprefix(b"\xef\xbb\xbf"), path.name)
    except UserError:
        return {}
    return data if isinstance(data, dict) else {}
