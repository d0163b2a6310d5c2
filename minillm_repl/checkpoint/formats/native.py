"""The native format (docs/format.md): weights, config, tokenizer and training record in a file."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint.checkpoint import ChatTemplate, Checkpoint, TrainingRecord
from minillm_repl.checkpoint.formats.header import (
    FORMAT,
    VERSION,
    Header,
    parse_config,
    parse_field,
    parse_header,
)
from minillm_repl.checkpoint.serialise import serialise
from minillm_repl.checkpoint.weight_map import ReadOptions, SourceTensor, WeightMap
from minillm_repl.checkpoint.weights import locate_tensors, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.config_json import config_to_json
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.paths import SUFFIX, has_other_format
from minillm_repl.tokenizer.base import CharacterTokenizer, IdTokenizer, Tokenizer

_MAX_SPECIALS = 1_000  # special tokens of a character model
_MAX_VOCAB = 2_000_000  # tokens; the largest vocabularies of today have 262,144


def save_native(
    checkpoint: Checkpoint, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> Checkpoint:
    """Write the checkpoint to `path` atomically, and return it with this path.

    Raises UserError.
    """
    check_replaceable(path)
    parts = serialise(checkpoint.tensors, to_metadata(checkpoint))
    write_atomically(path, *parts, interrupted=interrupted)
    return dataclasses.replace(checkpoint, path=path, weight_map=None, is_on_disk=True)


def to_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the metadata of a file: everything of a checkpoint but its weights."""
    # ensure_ascii=False: escaped Hangul would take twice the bytes.
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(config_to_json(checkpoint.config)),
        "tokenizer": json.dumps(checkpoint.tokenizer.to_json(), ensure_ascii=False),
    }
    if checkpoint.training is not None:
        metadata["training"] = json.dumps(
            dataclasses.asdict(checkpoint.training), ensure_ascii=False
        )
    if checkpoint.chat_template is not None:
        metadata["chat"] = json.dumps(
            dataclasses.asdict(checkpoint.chat_template), ensure_ascii=False
        )
    if checkpoint.eos_token_ids:
        metadata["end"] = json.dumps(checkpoint.eos_token_ids)
    return metadata


def check_replaceable(path: Path) -> None:
    """Raise UserError if `path` is not a safetensors file, or has another format's suffix."""
    # Path.is_file raises for a name that is too long.
    if os.path.isfile(path) and path.stat().st_size:  # noqa: PTH113
        with open_regular(path) as file:
            try:
                parse_header(file, path)
            except UserError:
                raise UserError(
                    _(
                        "{name} exists and is not a checkpoint; save under another name",
                        name=safe_line(str(path)),
                    )
                ) from None
    if has_other_format(path):
        raise UserError(
            _(
                "{name}: models are saved as safetensors, not {ending}. Use "
                "{stem}{suffix}, or {stem}/ for a folder that the transformers library "
                "opens",
                name=safe_line(str(path)),
                ending=safe_line(path.suffix),
                stem=safe_line(path.stem),
                suffix=SUFFIX,
            )
        )


def read_native(header: Header, name: str, options: ReadOptions) -> Checkpoint:
    """Read the checkpoint of a native header.

    Raises UserError with the expectation and what was found.
    """
    checkpoint = read_without_weights(header, name)
    shapes = checkpoint.config.shapes()
    weight_map = WeightMap({tensor: (SourceTensor(tensor, shape),) for tensor, shape in shapes})
    locations = locate_tensors(weight_map, [header], name)
    tensors = read_weights(weight_map, locations, name, options)
    return dataclasses.replace(checkpoint, tensors=tensors)


def read_without_weights(header: Header, name: str) -> Checkpoint:
    """Return the checkpoint of a native header with empty `tensors`. Raises UserError."""
    config = parse_config(header, name)
    try:
        tokenizer = tokenizer_from_json(parse_field(header, "tokenizer", name))
    except UserError as error:
        raise UserError(_("the tokenizer of {name}: {error}", name=name, error=error)) from None
    # Otherwise the model would draw ids without a token, or read ids without an embedding.
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            _(
                "the vocabulary of {name} has {size} tokens, but its config says {vocab}",
                name=name,
                size=tokenizer.vocab_size,
                vocab=config.vocab_size,
            )
        )
    metadata = header.metadata
    return Checkpoint(
        config=config,
        tokenizer=tokenizer,
        tensors={},
        training=parse_training_record(header, name),
        path=header.path,
        chat_template=_parse_chat_template(header, name) if "chat" in metadata else None,
        eos_token_ids=_parse_eos_token_ids(header, name, config) if "end" in metadata else (),
    )


def tokenizer_from_json(data: Any) -> Tokenizer:
    """Return the tokenizer of the `tokenizer` field. Raises UserError for an unknown type."""
    match data:
        case {"type": "character", "normalization": "NFC", "characters": str(characters)}:
            specials = data.get("specials", [])
            if (
                isinstance(specials, list)
                and len(specials) <= _MAX_SPECIALS
                and all(map(_is_text, specials))
            ):
                return CharacterTokenizer(characters, specials)
        case {"type": "ids", "size": int(size)} if 0 < size <= _MAX_VOCAB:
            return IdTokenizer(size)
        case {
            "type": "subword",
            "size": int(size),
            "names": dict(names),
            "description": dict(description),
        } if 0 < size <= _MAX_VOCAB and all(map(_is_text, names.values())):
            # The `tokenizers` library takes time to import, and character models need none.
            from minillm_repl.tokenizer.subword import SubwordTokenizer

            return SubwordTokenizer(description, names, size)
    raise UserError(_("its tokenizer type is not known here; a newer minillm-repl may support it"))


def _parse_chat_template(header: Header, name: str) -> ChatTemplate:
    # Only the types are checked here; the template itself runs in the sandbox.
    match parse_field(header, "chat", name):
        case {"source": str(source), "variables": dict(variables)} if all(
            map(_is_text, variables.values())
        ):
            return ChatTemplate(source, variables)
    raise UserError(_("the chat template of {name} is not valid; see docs/format.md", name=name))


def _parse_eos_token_ids(header: Header, name: str, config: AnyConfig) -> tuple[int, ...]:
    end = parse_field(header, "end", name)
    if not isinstance(end, list) or not all(
        type(token) is int and 0 <= token < config.vocab_size for token in end
    ):
        raise UserError(_("the end tokens of {name} are not a list of valid token ids", name=name))
    return tuple(end)


def parse_training_record(header: Header, name: str) -> TrainingRecord | None:
    """Return the training record of a file, or None. Raises UserError."""
    if "training" not in header.metadata:
        return None
    match {"val_curve": [], **_record(header, name)}:  # older files have no val_curve
        case {
            "steps": steps,
            "tokens": tokens,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "corpus": str(corpus),
            "corpus_sha256": str(corpus_sha256),
            "seed": seed,
            "versions": dict(versions),
            "curve": list(curve),
            "val_curve": list(val_curve),
        } if (
            all(map(_is_count, (steps, tokens, seed)))
            and all(map(_is_loss, (train_loss, 0 if val_loss is None else val_loss)))
            and all(map(_is_text, versions.values()))
            and all(map(_is_point, (*curve, *val_curve)))
        ):
            return TrainingRecord(
                steps=steps,
                tokens=tokens,
                train_loss=train_loss,
                val_loss=val_loss,
                corpus=corpus,
                corpus_sha256=corpus_sha256,
                seed=seed,
                versions=versions,
                curve=tuple((step, loss) for step, loss in curve),
                val_curve=tuple((step, loss) for step, loss in val_curve),
            )
    raise UserError(
        _(
            "the training record of {name} has a missing or invalid field; see docs/format.md",
            name=name,
        )
    )


def _record(header: Header, name: str) -> dict[str, Any]:
    record = parse_field(header, "training", name)
    return record if isinstance(record, dict) else {}


def _is_point(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    step, loss = value
    return _is_count(step) and _is_loss(loss)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63  # isinstance would accept True


def _is_loss(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9  # nats; false for NaN


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
