"""A checkpoint as a GGUF file, which llama.cpp and ollama open."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from minillm_repl.checkpoint import Checkpoint, to_file_layout
from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.gguf.architectures import (
    ARCHITECTURE,
    ARCHITECTURES,
    ROPE_FACTORS,
    Architecture,
    gguf_weight_map,
)
from minillm_repl.checkpoint.gguf.config import llama3_factors, parse_gguf_config, with_rope_factors
from minillm_repl.checkpoint.gguf.header import ALIGNMENT, MAGIC, TYPES, is_gguf
from minillm_repl.checkpoint.gguf.quantise import to_blocks
from minillm_repl.checkpoint.gguf.vocabulary import EXTRA_LOGIT, Vocabulary, make_vocabulary
from minillm_repl.checkpoint.huggingface import as_family
from minillm_repl.checkpoint.recommended import to_gguf
from minillm_repl.checkpoint.weights import Array, Tensors
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import to_float32
from minillm_repl.model.config import AnyConfig, GPTConfig, LlamaConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.paths import exists

_FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q8_0": 7,
    "bf16": 32,
}  # of llama.cpp, for general.file_type
_NUMBERS = {name: number for number, (name, _values, _size) in TYPES.items()}
_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = range(4, 10)  # types of metadata


def save_gguf(
    checkpoint: Checkpoint,
    path: Path,
    kind: str = "auto",
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Write a GGUF file with matrices of one of GGUF_TYPES; vectors are float32.

    `auto` is bf16 for weights in bfloat16, else f16. Rows that no block fits are f16;
    with q4_0, the embedding and the unembedding are in Q8_0, as they lose more than the layers.
    Raises UserError for what llama.cpp could not run, also when `interrupted` returns True.
    """
    if exists(path) and path.stat().st_size and not is_gguf(path):
        raise UserError(
            _(
                "{name} exists and is no GGUF file; save under another name",
                name=safe_line(str(path)),
            )
        )
    family, config, tensors = as_family(checkpoint)
    architecture = next(
        (each for each in ARCHITECTURES if each.model_type == family.model_type), None
    )
    if architecture is None or _is_beyond_llama_cpp(architecture, config):
        raise _no_architecture(family)
    vocabulary = make_vocabulary(checkpoint, converted=config is not checkpoint.config)
    config, tensors = _with_extra_tokens(config, tensors, vocabulary)
    if kind == "auto":
        kind = "bf16" if checkpoint.dtype == "bfloat16" else "f16"
    fields = family.write_config(config)
    metadata = {
        ARCHITECTURE: architecture.name,
        "general.name": path.stem,
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        **_sizes(architecture, config, fields),
        **vocabulary.metadata,
        **to_gguf(checkpoint.recommended),
    }
    tensors = {
        name: to_float32(array) if array.ndim == 1 else array for name, array in tensors.items()
    }
    theirs: dict[str, Array] = to_file_layout(gguf_weight_map(architecture, config), tensors)
    if config.rope is not None and config.rope.scaling == "llama3":
        theirs[ROPE_FACTORS] = llama3_factors(config.rope, config.head_dim)
    shapes = {name: array.shape for name, array in theirs.items()}
    # What the metadata cannot say, llama.cpp would do in its usual way: windows, multipliers.
    read = with_rope_factors(parse_gguf_config(metadata, shapes), theirs.get(ROPE_FACTORS))
    if _in_float32(asdict(read)) != _in_float32(asdict(config)):
        raise _no_architecture(family)
    blocks = {name: to_blocks(name, array, kind) for name, array in theirs.items()}
    header = _header(metadata, shapes, blocks)
    parts = [part for name in theirs for part in (blocks[name][1], _padding(blocks[name][1]))]
    write_atomically(path, header, *parts, interrupted=interrupted)


def save_control_vector(path: Path, vectors: Mapping[int, Array], model_type: str) -> None:
    """Write a control vector of llama.cpp: for each layer, what `--control-vector` adds after it.

    `vectors` are (d_model,) by layer, in float32. Layer 0 is left out: llama.cpp has none.
    """
    arrays = {f"direction.{layer}": each for layer, each in vectors.items() if layer}
    metadata = {
        ARCHITECTURE: "controlvector",
        "controlvector.model_hint": model_type,
        "controlvector.layer_count": len(arrays),
    }
    blocks = {
        name: ("F32", memoryview(np.ascontiguousarray(each, np.float32).tobytes()))
        for name, each in arrays.items()
    }
    header = _header(metadata, {name: each.shape for name, each in arrays.items()}, blocks)
    parts = [part for _dtype, data in blocks.values() for part in (data, _padding(data))]
    write_atomically(path, header, *parts)


def _in_float32(value: Any) -> Any:
    """Return a value of a config with every number rounded as a file has it."""
    match value:
        case float():
            return float(np.float32(value))
        case dict():
            return {key: _in_float32(each) for key, each in value.items()}
        case tuple():
            return tuple(map(_in_float32, value))
    return value


def _is_beyond_llama_cpp(architecture: Architecture, config: AnyConfig) -> bool:
    """Tell whether llama.cpp refuses sizes that its architecture could name."""
    has_usual_heads = config.n_kv_heads == config.n_heads and not config.tie_word_embeddings
    return architecture.name == "olmoe" and not has_usual_heads


def _no_architecture(family: Family) -> UserError:
    return UserError(
        _(
            "llama.cpp has no architecture for this model ({family}): save a file with "
            "`:save NAME.safetensors` or a folder with `:save NAME/`",
            family=family.title,
        )
    )


# -- the model


def _with_extra_tokens(
    config: AnyConfig, tensors: Tensors, vocabulary: Vocabulary
) -> tuple[AnyConfig, Tensors]:
    """Return the model with a row for each token that only llama.cpp needs.

    Such a token is read as `<unk>` is, and is never sampled: it has the logit of `<unk>`, or, in a
    GPT-2 that was made of a model of the note, one far below all others.
    """
    if not vocabulary.n_extra:
        return config, tensors
    like = vocabulary.like if vocabulary.like is not None else 0
    rows, tensors = [like] * vocabulary.n_extra, dict(tensors)
    for name in ("token_embedding.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = np.concatenate([tensors[name], tensors[name][rows]])
    if vocabulary.like is None:
        # The second half of the stream is a copy; the last norm makes its first number 1.
        middle = config.d_model // 2
        tensors["ln_f.bias"] = tensors["ln_f.bias"].copy()
        tensors["ln_f.bias"][middle] = 1
        tensors["lm_head.weight"][-vocabulary.n_extra :] = 0
        tensors["lm_head.weight"][-vocabulary.n_extra :, middle] = EXTRA_LOGIT
    return replace(config, vocab_size=config.vocab_size + vocabulary.n_extra), tensors


def _sizes(
    architecture: Architecture, config: AnyConfig, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the metadata that the fields of a config.json become."""
    name = architecture.name
    sizes = {
        f"{name}.{key}": fields[field]
        for field, key in architecture.keys.items()
        if fields.get(field) is not None
    }
    sizes[f"{name}.vocab_size"] = config.vocab_size
    if config.rope is not None:
        sizes[f"{name}.rope.dimension_count"] = int(config.head_dim * config.rope.rotary_pct)
        if config.rope.scaling == "linear":
            sizes |= {
                f"{name}.rope.scaling.type": "linear",
                f"{name}.rope.scaling.factor": config.rope.factor,
            }
    if config.attention_layers != tuple(range(config.n_layers)):  # one number for each layer
        sizes[f"{name}.attention.head_count_kv"] = [
            0 if config.is_conv(layer) else config.n_kv_heads for layer in range(config.n_layers)
        ]
    if isinstance(config, LlamaConfig):
        # Gemma 3's fields have the two by layer type.
        sizes[f"{name}.rope.freq_base"] = config.rope.theta
        if config.sliding_rope is not None:
            sizes[f"{name}.rope.freq_base_swa"] = config.sliding_rope.theta
        if config.rope_layers and not any(config.rope_layers):
            sizes[f"{name}.rope.scaling.finetuned"] = False
    if isinstance(config, GPTConfig):
        # llama.cpp knows only the tanh approximation of GELU; this program reads what is right.
        if not config.activation.startswith("gelu"):
            raise UserError(
                _(
                    "llama.cpp has no {name} with the activation {activation}",
                    name=name,
                    activation=config.activation,
                )
            )
        sizes["minillm.activation"] = config.activation
    else:
        sizes[f"{name}.attention.value_length"] = config.head_dim
    return sizes


def _padding(data: memoryview) -> bytes:
    return bytes(-data.nbytes % ALIGNMENT)


# -- the header


def _header(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    blocks: Mapping[str, tuple[str, memoryview]],
) -> bytes:
    header = MAGIC + struct.pack("<IQQ", _VERSION, len(blocks), len(metadata))
    header += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for name, (dtype, data) in blocks.items():
        shape = shapes[name][::-1]  # innermost first
        header += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", _NUMBERS[dtype], offset)
        offset += data.nbytes + len(_padding(data))
    return header + bytes(-len(header) % ALIGNMENT)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Return a value with its type before it: a bool, int, float, text, or list of these."""
    if not isinstance(value, list):
        kind, data = _element(value)
        return struct.pack("<I", kind) + data
    kind, _data = _element(value[0] if value else "")
    if kind == _STRING:
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(map(_text, value))
    # A list of whole numbers is one of int32, as those of llama.cpp are.
    kind, code = {_UINT32: (_INT32, "i"), _FLOAT32: (_FLOAT32, "f")}[kind]
    return struct.pack(f"<IIQ{len(value)}{code}", _ARRAY, kind, len(value), *value)


def _element(value: Any) -> tuple[int, bytes]:
    """Return the type of a value that is no list, and its bytes."""
    match value:
        case bool():
            return _BOOL, struct.pack("<B", value)
        case int():
            return _UINT32, struct.pack("<I", value)
        case float():
            return _FLOAT32, struct.pack("<f", value)
    return _STRING, _text(value)
