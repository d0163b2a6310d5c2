"""Hugging Face folders: opened without the `transformers` library, and written so that it opens them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minillm_repl.checkpoint import foreign
from minillm_repl.checkpoint.atomic import write_atomically, write_folder_atomically
from minillm_repl.checkpoint.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.checkpoint.families import family_of
from minillm_repl.checkpoint.folder import CONFIG, WEIGHTS, Folder
from minillm_repl.checkpoint.gpt_families import GPT2
from minillm_repl.checkpoint.names import SUFFIX
from minillm_repl.checkpoint.recipe import Reading
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
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer, IdTokenizer
from minillm_repl.tokenizer.subword import SubwordTokenizer, byte_level_bpe, characters

_TOKENIZER, _TEMPLATE = "tokenizer.json", "chat_template.jinja"
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


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
    settings = folder.fields("tokenizer_config.json")
    roles = _roles(folder, settings)
    found = check(recipe, headers, folder.name)
    tokenizer = _tokenizer(folder, config, settings, roles)
    chat, end = _chat(folder, settings, roles), _end(folder, config, tokenizer, roles)
    tensors = read_weights(recipe, found, folder.name, how)
    notes = (*folder.notes, *notes, *_left_out(folder, unused))
    return Checkpoint(config, tokenizer, tensors, path=folder.path, chat=chat, end=end, recipe=recipe, notes=notes)


def _tied(folder: Folder, found: Mapping[str, Place]) -> tuple[AnyConfig, tuple[str, ...]]:
    """Return the config, not tied if the file has an output head that differs, and what the user is told of that.

    Raises UserError for a model without a head.
    """
    config = folder.config
    embedding, head = folder.family.ends(found)
    if not config.tied and head not in found and embedding in found:
        raise UserError(
            _(
                "{name} lacks the tensor {tensor}, its output head; a model whose head is its embedding says so in"
                " {config}: tie_word_embeddings",
                name=folder.name,
                tensor=head,
                config=CONFIG,
            )
        )
    if not config.tied or not {embedding, head} <= set(found) or equal(found[embedding], found[head], folder.name):
        return config, ()
    note = _(
        "{config} says that the output head is the embedding, but the file has another, {head}: it is used",
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


def _roles(folder: Folder, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens by their roles: `{"bos_token": "<s>", ...}`."""
    said = {**folder.fields("special_tokens_map.json"), **settings}
    contents = {role: said.get(role) for role in _ROLES}
    contents = {role: each.get("content") if isinstance(each, dict) else each for role, each in contents.items()}
    return {role: each for role, each in contents.items() if isinstance(each, str) and each}


def _tokenizer(folder: Folder, config: AnyConfig, settings: Mapping[str, Any], roles: Mapping[str, str]) -> Tokenizer:
    try:
        description = folder.json(_TOKENIZER)
        if description is None:
            description = _from_merges(folder, settings, roles)
        if description is None:
            return IdTokenizer(config.vocab)  # bare weights, as researchers save them: tokens are numbers
        if not isinstance(description, dict):
            raise UserError(_("it is not a JSON object"))
        return SubwordTokenizer(description, roles, config.vocab)
    except UserError as error:
        raise UserError(_("the tokenizer of {name}: {error}", name=folder.name, error=error)) from None


def _from_merges(folder: Folder, settings: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the description of a tokenizer that lies there as GPT-2's two files; None if there are none."""
    vocabulary, merges = folder.json("vocab.json"), folder.text("merges.txt")
    if vocabulary is None or merges is None:
        if (folder.path / "tokenizer.model").exists():
            raise UserError(_("tokenizer.model is not read; tokenizer.json is, or vocab.json with merges.txt"))
        return None
    kind = settings.get("tokenizer_class", "GPT2Tokenizer")
    if kind not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise UserError(
            _(
                "vocab.json and merges.txt of a {kind:.40} need a {tokenizer}",
                kind=safe_line(str(kind)),
                tokenizer=_TOKENIZER,
            )
        )
    if not isinstance(vocabulary, dict) or not all(type(token) is int for token in vocabulary.values()):
        raise UserError(_("vocab.json does not map tokens to ids"))
    added = settings.get("added_tokens_decoder", {})
    special = [each["content"] for each in added.values() if each.get("special")] if isinstance(added, dict) else []
    bos = roles.get("bos_token", "<|endoftext|>") if settings.get("add_bos_token") else None
    return byte_level_bpe(
        vocabulary,
        merges.split("\n"),
        [*special, *roles.values(), "<|endoftext|>"],
        start=bos,
        add_prefix_space=settings.get("add_prefix_space") is True,
    )


def _chat(folder: Folder, settings: Mapping[str, Any], roles: Mapping[str, str]) -> ChatTemplate | None:
    source: Any = folder.text(_TEMPLATE)
    if source is None:
        source = settings.get("chat_template")
    if isinstance(source, list):  # several, each with a name
        named = {each.get("name"): each.get("template") for each in source if isinstance(each, dict)}
        source = named.get("default")
    return ChatTemplate(source, roles) if isinstance(source, str) and source.strip() else None


def _end(folder: Folder, config: AnyConfig, tokenizer: Tokenizer, roles: Mapping[str, str]) -> tuple[int, ...]:
    """Return the tokens that end a text or a turn."""
    said = folder.fields("generation_config.json").get("eos_token_id", folder.config_fields.get("eos_token_id"))
    ends: list[Any] = said if isinstance(said, list) else [said]
    if isinstance(tokenizer, SubwordTokenizer):
        ends = [*ends, tokenizer.named(roles.get("eos_token", ""))]
    known = (token for token in ends if type(token) is int and 0 <= token < config.vocab)
    return tuple(dict.fromkeys(known))


def save(checkpoint: Checkpoint, path: Path, interrupted: Callable[[], bool] = lambda: False) -> Checkpoint:
    """Write a folder that the `transformers` library opens with equal logits, and return what lies there.

    It is whole or not there; a folder that is there already is written to only if it holds a model of the very same
    kind and sizes. Raises UserError, also when interrupted.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    family = family_of(config)
    if family is None and not isinstance(config, GPTConfig):
        raise UserError(
            _(
                "no family of the transformers library is like this model: save a file, `:save NAME{suffix}`",
                suffix=SUFFIX,
            )
        )
    if family is None:
        assert isinstance(config, GPTConfig)
        config, tensors = _as_gpt2(config, {name: array.astype(np.float32) for name, array in tensors.items()})
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
            raise UserError(_("{path} holds another model; save under another name", path=safe_line(str(path))))
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
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles}
    files = {_TOKENIZER: _json(description), "tokenizer_config.json": _json(settings)}
    if checkpoint.chat is not None:
        files[_TEMPLATE] = checkpoint.chat.source.encode()
    return files


def _json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()


def _as_gpt2(config: GPTConfig, tensors: Tensors) -> tuple[GPTConfig, dict[str, Array]]:
    """Return the same function in the shape of GPT-2, which has biases on its queries but none on its head.

    To carry the head's bias, the stream is doubled: its second half is a copy, so that the norms divide by what they
    divided by before. Nothing reads the copy but the last norm, which makes one number of it 1: the head's bias is the
    weight of that number.
    """
    width = config.width
    zeros = np.zeros(3 * width, np.float32)

    def wider(array: Array) -> Array:  # its last dimension, by what nobody reads
        return np.concatenate([array, np.zeros_like(array[..., :width])], axis=-1)

    def twice(array: Array) -> Array:  # what is written to the stream is written to both halves
        return np.concatenate([array, array])

    def heads(array: Array) -> Array:  # as many heads again, which find nothing
        parts = array.reshape(3, width, -1)
        return np.concatenate([parts, np.zeros_like(parts)], axis=1).reshape(6 * width, *array.shape[1:])

    doubled: dict[str, Array] = {}
    for name, shape in replace(config, qkv_bias=True).shapes():
        array = tensors[name] if name in tensors else zeros[: shape[0]]
        stem = name.split(".", 2)[-1].rpartition(".")[0] if name.startswith("blocks.") else name.rpartition(".")[0]
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
        config, width=2 * width, heads=2 * config.heads, hidden=hidden, qkv_bias=True, head_bias=False, tied=False
    )
    return wide, doubled
