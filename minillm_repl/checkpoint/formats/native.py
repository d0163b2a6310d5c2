"""The native checkpoint: weights, sizes, vocabulary and training record in one safetensors file
(docs/format.md).
"""

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
    config_of,
    field_of,
    header_in,
)
from minillm_repl.checkpoint.weight_map import Piece, Reading, Recipe
from minillm_repl.checkpoint.weights import check, packed, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.paths import SUFFIX, of_another_format
from minillm_repl.tokenizer.read import tokenizer_from_json


def save(
    checkpoint: Checkpoint, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> Checkpoint:
    """Write the checkpoint to `path`, atomically, and return it as the one that lies there.

    Raises UserError.
    """
    check_replaceable(path)
    write_atomically(
        path, *packed(checkpoint.tensors, described(checkpoint)), interrupted=interrupted
    )
    return dataclasses.replace(checkpoint, path=path, recipe=None, on_disk=True)


def described(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a file's metadata says of a checkpoint: everything but its weights."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(checkpoint.config.to_json()),
        "tokenizer": json.dumps(checkpoint.tokenizer.to_json(), ensure_ascii=False),
    }
    if checkpoint.training is not None:
        metadata["training"] = json.dumps(
            dataclasses.asdict(checkpoint.training), ensure_ascii=False
        )
    if checkpoint.chat is not None:
        metadata["chat"] = json.dumps(dataclasses.asdict(checkpoint.chat), ensure_ascii=False)
    if checkpoint.end:
        metadata["end"] = json.dumps(checkpoint.end)
    return metadata


def check_replaceable(path: Path) -> None:
    """Raise UserError for a name of another format, and for what lies at `path` if it is no
    safetensors file.
    """
    if os.path.isfile(path) and path.stat().st_size:  # noqa: PTH113 - Path's own raises for a name that is too long
        with open_regular(path) as file:
            try:
                header_in(file, path)
            except UserError:
                named = safe_line(str(path))
                raise UserError(
                    _(
                        "{name} is there and is not a checkpoint; save under another name",
                        name=named,
                    )
                ) from None
    if of_another_format(path):
        raise UserError(
            _(
                "{name}: what is saved is a safetensors file, not {ending}: name it "
                "{stem}{suffix}, or {stem}/ for a"
                " folder that the transformers library opens",
                name=safe_line(str(path)),
                ending=safe_line(path.suffix),
                stem=safe_line(path.stem),
                suffix=SUFFIX,
            )
        )


def checkpoint(header: Header, name: str, how: Reading) -> Checkpoint:
    """Read a checkpoint once its header is known to describe one.

    Raises UserError that says what was expected and what was found.
    """
    described = description(header, name)
    recipe = Recipe(
        {tensor: (Piece(tensor, shape),) for tensor, shape in described.config.shapes()}
    )
    found = check(recipe, [header], name)
    return dataclasses.replace(described, tensors=read_weights(recipe, found, name, how))


def description(header: Header, name: str) -> Checkpoint:
    """Return what the metadata of a file says of a checkpoint, without its weights.

    Raises UserError.
    """
    config = config_of(header, name)
    try:
        tokenizer = tokenizer_from_json(field_of(header, "tokenizer", name))
    except UserError as error:
        raise UserError(_("the tokenizer of {name}: {error}", name=name, error=error)) from None
    if tokenizer.size != config.vocab:
        raise UserError(
            _(
                "{name} has a vocabulary of {size} tokens, but its config says {vocab}",
                name=name,
                size=tokenizer.size,
                vocab=config.vocab,
            )
        )
    training = training_of(header, name)
    chat = _chat(header, name) if "chat" in header.metadata else None
    end = _end(header, name, config) if "end" in header.metadata else ()
    return Checkpoint(config, tokenizer, {}, training, header.path, chat, end)


def _chat(header: Header, name: str) -> ChatTemplate:
    match field_of(header, "chat", name):
        case {"source": str(source), "variables": dict(variables)} if all(
            map(_is_text, variables.values())
        ):
            return ChatTemplate(source, variables)
    raise UserError(_("the chat template of {name} is not one; see docs/format.md", name=name))


def _end(header: Header, name: str, config: AnyConfig) -> tuple[int, ...]:
    end = field_of(header, "end", name)
    if not isinstance(end, list) or not all(
        type(token) is int and 0 <= token < config.vocab for token in end
    ):
        raise UserError(_("the end tokens of {name} are not a list of token ids", name=name))
    return tuple(end)


def training_of(header: Header, name: str) -> TrainingRecord | None:
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
            "the training record of {name} lacks a field or has one of the wrong kind; see "
            "docs/format.md",
            name=name,
        )
    )


def _record(header: Header, name: str) -> dict[str, Any]:
    record = field_of(header, "training", name)
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
