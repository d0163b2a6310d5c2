"""Hugging Face folders: opened without the `transformers` library, and written so that it opens
them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.families.find import family_of
from minillm_repl.checkpoint.families.gpt import GPT2
from minillm_repl.checkpoint.formats import foreign
from minillm_repl.checkpoint.formats.folder import CONFIG, WEIGHTS, Folder
from minillm_repl.checkpoint.formats.tokenizer_files import (
    SETTINGS,
    TEMPLATE,
    TOKENIZER,
    read_chat,
    read_end,
    read_tokenizer,
)
from minillm_repl.checkpoint.weight_map import Reading
from minillm_repl.checkpoint.weights import (
    Array,
    Place,
    Tensors,
    check,
    equal,
    packed,
    places,
    read_weights,
    taken_apart,
)
from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.model.config import AnyConfig, GPTConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically, write_folder_atomically
from minillm_repl.storage.paths import SUFFIX
from minillm_repl.tokenizer.character import CharacterTokenizer
from minillm_repl.tokenizer.descriptions import characters
from minillm_repl.tokenizer.subword import SubwordTokenizer


def checkpoint(folder: Folder, how: Reading) -> Checkpoint:
    """Read a folder. Raises UserError naming what is missing, wrong, or not supported."""
    family, headers = folder.family, folder.headers()
    found = places(headers, folder.name)
    config, notes = _tied(folder, found)
    recipe = family.recipe(config, found)
    unused = family.unused(recipe, found)
    method = foreign.leftovers_of(unused)
    if method:
        raise foreign.refuse_quantised(folder.name, method)
    found = check(recipe, headers, folder.name)
    tokenizer = read_tokenizer(folder, config)
    chat, end = read_chat(folder), read_end(folder, config, tokenizer)
    tensors = read_weights(recipe, found, folder.name, how)
    notes = (*folder.notes, *notes, *_left_out(folder, unused))
    return Checkpoint(
        config, tokenizer, tensors, path=folder.path, chat=chat, end=end, recipe=recipe, notes=notes
    )


def _tied(folder: Folder, found: Mapping[str, Place]) -> tuple[AnyConfig, tuple[str, ...]]:
    """Return the config, not tied if the file has an output head that differs, and what the user is
    told of that.

    Raises UserError for a model without a head.
    """
    config = folder.config
    embedding, head = folder.family.ends(found)
    if not config.tied and head not in found and embedding in found:
        kind = foreign.headless(folder.config_fields)
        raise UserError(
            _(
                "{name} is {kind} and lacks the tensor {tensor}",
                name=folder.name,
                kind=kind,
                tensor=head,
            )
            if kind
            else _(
                "{name} lacks the tensor {tensor}, its output head; a model whose head is "
                "its embedding says so in"
                " {config}: tie_word_embeddings",
                name=folder.name,
                tensor=head,
                config=CONFIG,
            )
        )
    if (
        not config.tied
        or not {embedding, head} <= set(found)
        or equal(found[embedding], found[head], folder.name)
    ):
        return config, ()
    note = _(
        "{config} says that the output head is the embedding, but the file has another, "
        "{head}: it is used",
        config=CONFIG,
        head=head,
    )
    return replace(config, tied=False), (note,)


def _left_out(folder: Folder, unused: list[str]) -> tuple[str, ...]:
    """Return what the user is told of tensors that belong to no part of the model."""
    if not unused:
        return ()
    return (
        _n(
            "{family} has no place for {n} tensor of the file: {tensors:.160}",
            "{family} has no place for {n} tensors of the file: {tensors:.160}",
            len(unused),
            family=folder.family.title,
            tensors=safe_line(", ".join(unused[:3])) + (" …" if len(unused) > 3 else ""),
        ),
    )


def save(
    checkpoint: Checkpoint, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> Checkpoint:
    """Write a folder that the `transformers` library opens with equal logits, and return what lies
    there.

    It is whole or not there; a folder that is there already is written to only if it holds a model
    of the very same kind and sizes. Raises UserError, also when interrupted.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    family = family_of(config)
    if family is None and not isinstance(config, GPTConfig):
        raise UserError(
            _(
                "no family of the transformers library is like this model: save a file, "
                "`:save NAME{suffix}`",
                suffix=SUFFIX,
            )
        )
    if family is None:
        assert isinstance(config, GPTConfig)
        config, tensors = _as_gpt2(
            config, {name: array.astype(np.float32) for name, array in tensors.items()}
        )
        family = GPT2
    described = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "torch_dtype": next(iter(tensors.values())).dtype.name,
        **family.write(config),
        "bos_token_id": None,
        "eos_token_id": list(checkpoint.end) or None,
    }
    files = {
        CONFIG: _json(described),
        "generation_config.json": _json({"eos_token_id": list(checkpoint.end) or None}),
        **_tokenizer_files(checkpoint),
    }
    weights = packed(taken_apart(family.recipe(config), tensors), {"format": "pt"})
    if (path / CONFIG).exists():
        if Folder(path).text(CONFIG) != files[CONFIG].decode():
            raise UserError(
                _("{path} holds another model; save under another name", path=safe_line(str(path)))
            )
        write_atomically(path / WEIGHTS, *weights, interrupted=interrupted)
    else:
        parts = {name: [data] for name, data in files.items()}
        write_folder_atomically(path, {**parts, WEIGHTS: weights}, interrupted)
    return replace(checkpoint, path=path)


def _tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, CharacterTokenizer):
        description, roles = characters(tokenizer.characters, tokenizer.specials), {}
    elif isinstance(tokenizer, SubwordTokenizer):
        description, roles = tokenizer.description, tokenizer.names
    else:
        return {}  # token ids need none
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    files = {TOKENIZER: _json(description), SETTINGS: _json(settings)}
    if checkpoint.chat is not None:
        files[TEMPLATE] = checkpoint.chat.source.encode()
    return files


def _json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()


def _as_gpt2(config: GPTConfig, tensors: Tensors) -> tuple[GPTConfig, dict[str, Array]]:
    """Return the same function in the shape of GPT-2, which has biases on its queries but none on
    its head.

    To carry the head's bias, the stream is doubled: its second half is a copy, so that the norms
    divide by what they divided by before. Nothing reads the copy but the last norm, which makes one
    number of it 1: the head's bias is the weight of that number.
    """
    width = config.width
    zeros = np.zeros(3 * width, np.float32)

    def wider(array: Array) -> Array:  # its last dimension, by what nobody reads
        return np.concatenate([array, np.zeros_like(array[..., :width])], axis=-1)

    def twice(array: Array) -> Array:  # what is written to the stream is written to both halves
        return np.concatenate([array, array])

    def heads(array: Array) -> Array:  # as many heads again, which find nothing
        parts = array.reshape(3, width, -1)
        return np.concatenate([parts, np.zeros_like(parts)], axis=1).reshape(
            6 * width, *array.shape[1:]
        )

    doubled: dict[str, Array] = {}
    for name, shape in replace(config, qkv_bias=True).shapes():
        array = tensors[name] if name in tensors else zeros[: shape[0]]
        stem = (
            name.split(".", 2)[-1].rpartition(".")[0]
            if name.startswith("blocks.")
            else name.rpartition(".")[0]
        )
        match stem:
            case "token_embedding" | "position_embedding":
                array = twice(array.T).T
            case "attention.qkv":
                array = heads(array) if array.ndim == 1 else wider(heads(array))
            case "attention.proj":
                array = twice(array) if array.ndim == 1 else twice(wider(array))
            case "ff.up":
                array = array if array.ndim == 1 else wider(array)
            case "ff.down":
                array = twice(array)
            case "lm_head" if array.ndim == 1:
                continue
            case _:  # norms, and the head's matrix
                array = wider(array)
        doubled[name] = np.ascontiguousarray(array)
    if config.head_bias:
        doubled["ln_f.bias"][width] = 1
        doubled["lm_head.weight"][:, width] = tensors["lm_head.bias"]
    hidden = config.ff_width
    wide = replace(
        config,
        width=2 * width,
        heads=2 * config.heads,
        hidden=hidden,
        qkv_bias=True,
        head_bias=False,
        tied=False,
    )
    return wide, doubled
