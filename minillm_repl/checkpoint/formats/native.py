"""The native checkpoint: weights, sizes, vocabulary, training record in a file (docs/format.md)."""

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
from minillm_repl.checkpoint.weight_map import ReadOptions, SourceTensor, WeightMap
from minillm_repl.checkpoint.weights import locate_tensors, read_weights, serialise
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.paths import SUFFIX, has_other_format
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer, IdTokenizer

_MAX_SPECIALS = 1_000  # special tokens of a character model
_MAX_VOCAB = 2_000_000  # tokens; the largest vocabularies of today have 262,144


def save(
    checkpoint: Checkpoint, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> Checkpoint:
    """Write the checkpoint to `path`, atomically, and return it as the one that lies there.

    Raises UserError.
    """
    check_replaceable(path)
    write_atomically(
        path, *serialise(checkpoint.tensors, to_metadata(checkpoint)), interrupted=interrupted
    )
    return dataclasses.replace(checkpoint, path=path, weight_map=None, is_on_disk=True)


def to_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a file's metadata says of a checkpoint: everything but its weights."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(checkpoint.config.to_json()),
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
    """Raise UserError for another format's name, or if what is at `path` is no safetensors file."""
    # Path's own raises for a name that is too long.
    if os.path.isfile(path) and path.stat().st_size:  # noqa: PTH113
        with open_regular(path) as file:
            try:
                parse_header(file, path)
            except UserError:
                named = safe_line(str(path))
                raise UserError(
                    _(
                        "{name} exists and is not a checkpoint; save under another name",
                        name=named,
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


def read_checkpoint(header: Header, name: str, options: ReadOptions) -> Checkpoint:
    """Read a checkpoint once its header is known to describe one.

    Raises UserError that says what was expected and what was found.
    """
    without_weights = read_without_weights(header, name)
    weight_map = WeightMap(
        {
            tensor: (SourceTensor(tensor, shape),)
            for tensor, shape in without_weights.config.shapes()
        }
    )
    locations = locate_tensors(weight_map, [header], name)
    return dataclasses.replace(
        without_weights, tensors=read_weights(weight_map, locations, name, options)
    )


def read_without_weights(header: Header, name: str) -> Checkpoint:
    """Return what the metadata of a file says of a checkpoint, without its weights.

    Raises UserError.
    """
    config = parse_config(header, name)
    try:
        tokenizer = tokenizer_from_json(parse_field(header, "tokenizer", name))
    except UserError as error:
        raise UserError(_("the tokenizer of {name}: {error}", name=name, error=error)) from None
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            _(
                "the vocabulary of {name} has {size} tokens, but its config says {vocab}",
                name=name,
                size=tokenizer.vocab_size,
                vocab=config.vocab_size,
            )
        )
    training = parse_training_record(header, name)
    chat = _parse_chat_template(header, name) if "chat" in header.metadata else None
    end = _parse_eos_token_ids(header, name, config) if "end" in header.metadata else ()
    return Checkpoint(config, tokenizer, {}, training, header.path, chat, end)


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
    """Return the training record of a file, if it has one. Raises UserError."""
    if "training" not in header.metadata:
        return None
    match {"val_curve": [], **_record(header, name)}:
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
            points, measured = (
                tuple((step, loss) for step, loss in each) for each in (curve, val_curve)
            )
            return TrainingRecord(
                steps,
                tokens,
                train_loss,
                val_loss,
                corpus,
                corpus_sha256,
                seed,
                versions,
                points,
                measured,
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
    return (
        isinstance(value, list) and len(value) == 2 and _is_count(value[0]) and _is_loss(value[1])
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_loss(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
