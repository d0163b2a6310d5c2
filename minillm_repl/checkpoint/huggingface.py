"""Hugging Face folders: read without the `transformers` library, and written for it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint import Checkpoint, ReadOptions, foreign, to_file_layout
from minillm_repl.checkpoint.families import family_of
from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.gpt import GPT2
from minillm_repl.checkpoint.folder import CONFIG, WEIGHTS, Folder
from minillm_repl.checkpoint.gpt2 import convert_to_gpt2
from minillm_repl.checkpoint.recommended import from_generation_config, to_generation_config
from minillm_repl.checkpoint.serialise import serialise
from minillm_repl.checkpoint.tokenizer_files import (
    GENERATION,
    SETTINGS,
    TEMPLATE,
    TOKENIZER,
    read_chat_template,
    read_eos_token_ids,
    read_tokenizer,
)
from minillm_repl.checkpoint.weights import (
    TensorLocation,
    Tensors,
    find_tensors,
    locate_tensors,
    read_weights,
    tensors_equal,
)
from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.model.bfloat16 import dtype_name, to_float32
from minillm_repl.model.config import AnyConfig, GPTConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically, write_folder_atomically
from minillm_repl.storage.paths import SUFFIX
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.tokenizer.description import with_bos_token
from minillm_repl.tokenizer.library import character_level
from minillm_repl.tokenizer.subword import SubwordTokenizer


def read_folder(folder: Folder, options: ReadOptions) -> Checkpoint:
    """Read a folder. Raises UserError naming what is missing, wrong, or not supported."""
    family = folder.family
    headers = folder.headers()
    locations = find_tensors(headers, folder.name)
    config, notes = _resolve_tied_embeddings(folder, locations)
    weight_map = family.weight_map(config, locations)
    # Quantised layers have extra tensors, which give a clearer error than missing ones.
    unused = family.unused(weight_map, locations)
    method = foreign.quantisation_of_tensors(unused)
    if method:
        raise foreign.quantised_error(folder.name, method)
    locations = locate_tensors(weight_map, headers, folder.name)
    tokenizer = read_tokenizer(folder, config)
    chat_template = read_chat_template(folder)
    eos_token_ids = read_eos_token_ids(folder, config, tokenizer)
    # The weights take the longest: every other error comes before them.
    tensors = read_weights(weight_map, locations, folder.name, options)
    return Checkpoint(
        config=config,
        tokenizer=tokenizer,
        tensors=tensors,
        path=folder.path,
        chat_template=chat_template,
        eos_token_ids=eos_token_ids,
        weight_map=weight_map,
        model_type=family.model_type,
        recommended=from_generation_config(folder.fields(GENERATION), config.vocab_size),
        notes=(*folder.notes, *notes, *_unused_tensor_notes(folder, unused)),
    )


def _resolve_tied_embeddings(
    folder: Folder, locations: Mapping[str, TensorLocation]
) -> tuple[AnyConfig, tuple[str, ...]]:
    """Return the config, untied if the file has an unembedding of its own, and a note on that.

    Raises UserError for a model without an unembedding.
    """
    config = folder.config
    embedding, head = folder.family.embedding_and_head_names(locations)
    if not config.tie_word_embeddings and head not in locations and embedding in locations:
        kind = foreign.describe_headless(folder.config_fields)
        raise UserError(
            _(
                "{name} is {kind} and has no tensor {tensor}",
                name=folder.name,
                kind=kind,
                tensor=head,
            )
            if kind
            else _(
                "{name} has no tensor {tensor}, its unembedding. If it is tied to the "
                "embedding, {config} must set tie_word_embeddings",
                name=folder.name,
                tensor=head,
                config=CONFIG,
            )
        )
    # A tied model may save the matrix twice; a file of merged weights may have two different ones.
    if (
        not config.tie_word_embeddings
        or not {embedding, head} <= set(locations)
        or tensors_equal(locations[embedding], locations[head], folder.name)
    ):
        return config, ()
    note = _(
        "{config} ties the unembedding to the embedding, but the file has a separate one, "
        "{head}: that one is used",
        config=CONFIG,
        head=head,
    )
    return replace(config, tie_word_embeddings=False), (note,)


def _unused_tensor_notes(folder: Folder, unused: list[str]) -> tuple[str, ...]:
    """Return a note for the user on tensors that the model does not use."""
    if not unused:
        return ()
    return (
        _n(
            "{family} does not use {n} tensor of the file: {tensors:.160}",
            "{family} does not use {n} tensors of the file: {tensors:.160}",
            len(unused),
            family=folder.family.title,
            tensors=safe_line(", ".join(unused[:3])) + (" …" if len(unused) > 3 else ""),
        ),
    )


def as_family(checkpoint: Checkpoint) -> tuple[Family, AnyConfig, Tensors]:
    """Return a family that has a field for everything in a model, and the model as one of it.

    Raises UserError if there is none.
    """
    config, tensors = checkpoint.config, checkpoint.arrays()
    if config.has_canon_layers:
        raise UserError(
            _(
                "neither transformers nor llama.cpp has this model's Canon layers: save "
                "a file with `:save NAME{suffix}`. A model that is to leave this program is "
                "trained with arch=llama",
                suffix=SUFFIX,
            )
        )
    # One that has a field for everything in the config: the model's own, if nothing changed it.
    family = family_of(config, checkpoint.model_type)
    # A GPT always fits: convert_to_gpt2 handles what GPT-2 lacks.
    if family is None and not isinstance(config, GPTConfig):
        raise UserError(
            _(
                "no architecture of the transformers library matches this model: save a "
                "file with `:save NAME{suffix}`",
                suffix=SUFFIX,
            )
        )
    if family is None:
        assert isinstance(config, GPTConfig)
        as_float32 = {name: to_float32(array) for name, array in tensors.items()}
        config, tensors = convert_to_gpt2(config, as_float32)
        family = GPT2
    return family, config, tensors


def save_folder(
    checkpoint: Checkpoint, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> Checkpoint:
    """Write a folder that `transformers` opens with equal logits; return the checkpoint in it.

    A new folder appears atomically. In an existing folder only the weights are replaced, and only
    if its config.json is the same. Raises UserError, also when `interrupted` returns True.
    """
    family, config, tensors = as_family(checkpoint)
    config_fields = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "torch_dtype": dtype_name(next(iter(tensors.values())).dtype),
        **family.write_config(config),
        "bos_token_id": None,  # the start token is in tokenizer.json, if there is one
        "pad_token_id": None,  # the library's default may be outside of this vocabulary
        "eos_token_id": list(checkpoint.eos_token_ids) or None,
    }
    files = {
        CONFIG: _json(config_fields),
        GENERATION: _json(
            {
                "eos_token_id": list(checkpoint.eos_token_ids) or None,
                **to_generation_config(checkpoint.recommended),
            }
        ),
        **_tokenizer_files(checkpoint),
    }
    # `transformers` refuses a file without this metadata.
    weights = serialise(to_file_layout(family.weight_map(config), tensors), {"format": "pt"})
    # The other files of an existing folder may be the user's: only the weights are replaced.
    if (path / CONFIG).exists():
        if Folder(path).text(CONFIG) != files[CONFIG].decode():
            raise UserError(
                _(
                    "{path} contains another model; save under another name",
                    path=safe_line(str(path)),
                )
            )
        write_atomically(path / WEIGHTS, *weights, interrupted=interrupted)
    else:
        parts = {name: [data] for name, data in files.items()}
        write_folder_atomically(path, {**parts, WEIGHTS: weights}, interrupted)
    return replace(checkpoint, path=path)


def _tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, CharacterTokenizer):
        plain = character_level(
            tokenizer.characters, tokenizer.specials, has_bytes=tokenizer.has_bytes
        )
        description: Mapping[str, Any] = with_bos_token(plain, tokenizer.start)
        roles = {"bos_token": tokenizer.start} if tokenizer.start else {}
    elif isinstance(tokenizer, SubwordTokenizer):
        description = tokenizer.description
        roles = tokenizer.special_tokens_map
    else:
        return {}  # bare ids
    settings = {
        # This class reads any tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Otherwise `decode` would remove the spaces before punctuation.
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    files = {TOKENIZER: _json(description), SETTINGS: _json(settings)}
    if checkpoint.chat_template is not None:
        files[TEMPLATE] = checkpoint.chat_template.source.encode()
    return files


def _json(data: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
