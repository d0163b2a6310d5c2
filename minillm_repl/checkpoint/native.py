"""The native format (docs/format.md): weights, config, tokenizer and training record in a file."""

import json
import os
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint import ChatTemplate, Checkpoint, ReadOptions, SourceTensor, WeightMap
from minillm_repl.checkpoint.header import (
    FORMAT,
    VERSION,
    VERSION_1,
    Header,
    has_known_version,
    parse_field,
    parse_header,
)
from minillm_repl.checkpoint.record import parse_training_record
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import CONFIGS, AnyConfig
from minillm_repl.model.config_base import ModelConfig, Rope, printable
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.paths import SUFFIX, has_other_format
from minillm_repl.tokenizer import CharacterTokenizer, Tokenizer
from minillm_repl.tokenizer.ids import IdTokenizer

# The fields of every config, written even if they have the default value.
_SIZES = {entry.name for entry in fields(ModelConfig)}  # never left out
_MAX_SPECIALS = 1_000  # special tokens of a character model
_MAX_VOCAB = 2_000_000  # tokens; the largest vocabularies of today have 262,144


def save_native(
    checkpoint: Checkpoint, path: Path, interrupted: Callable[[], bool] = lambda: False
) -> Checkpoint:
    """Write the checkpoint to `path` atomically, and return it with this path.

    Raises UserError.
    """
    from minillm_repl.checkpoint.serialise import serialise

    check_replaceable(path)
    parts = serialise(checkpoint.arrays(), to_metadata(checkpoint))
    write_atomically(path, *parts, interrupted=interrupted)
    return replace(checkpoint, path=path, weight_map=None, is_on_disk=True)


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
        metadata["training"] = json.dumps(asdict(checkpoint.training), ensure_ascii=False)
    if checkpoint.chat_template is not None:
        metadata["chat"] = json.dumps(asdict(checkpoint.chat_template), ensure_ascii=False)
    if checkpoint.eos_token_ids:
        metadata["end"] = json.dumps(checkpoint.eos_token_ids)
    if checkpoint.recommended:
        metadata["sampling"] = json.dumps(checkpoint.recommended)
    return metadata


def check_replaceable(path: Path) -> None:
    """Raise UserError if `path` is not a safetensors file, or has another format's suffix."""
    # An empty file has nothing to lose. Path.is_file raises for a name that is too long.
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
    from minillm_repl.checkpoint.weights import locate_tensors, read_weights

    checkpoint = read_without_weights(header, name)
    shapes = checkpoint.config.shapes()
    weight_map = WeightMap({tensor: (SourceTensor(tensor, shape),) for tensor, shape in shapes})
    locations = locate_tensors(weight_map, [header], name)
    tensors = read_weights(weight_map, locations, name, options)
    return replace(checkpoint, tensors=tensors)


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
        recommended=_parse_recommended(header, name) if "sampling" in metadata else {},
    )


def _parse_recommended(header: Header, name: str) -> dict[str, Any]:
    """Return the samplers that a file recommends. Raises UserError."""
    recommended = parse_field(header, "sampling", name)
    if not isinstance(recommended, dict):
        raise UserError(
            _("{key} in the metadata of {name} is not an object", key="sampling", name=name)
        )
    return recommended


def parse_config(header: Header, name: str) -> AnyConfig:
    """Return the config of a native checkpoint.

    Raises UserError, also for an unknown format version.
    """
    version = header.metadata.get("version", "")
    if not has_known_version(header):
        raise UserError(
            _(
                "{name} has format version {version!r:.20}; this program reads version {known}",
                name=name,
                version=safe_line(version),
                known=f"{VERSION_1}, {VERSION}",
            )
        )
    try:
        return config_from_json(parse_field(header, "config", name))
    except UserError as error:
        raise UserError(_("the config of {name}: {error}", name=name, error=error)) from None


def config_from_json(data: Any) -> AnyConfig:
    """Return the config of `{"arch": "gpt", "vocab_size": 44, ...}`; an entry with a default may be
    left out.

    Raises UserError.
    """
    # Without sizes there is no model; every other entry may have its default.
    arch = data.get("arch") if isinstance(data, dict) else None
    family = CONFIGS.get(arch) if isinstance(arch, str) else None
    if family is None or not set(data) >= _SIZES:
        raise UserError(
            _(
                "expected arch = {arch} with {sizes}, got {value}",
                arch=family.arch if family else "/".join(CONFIGS),
                sizes=", ".join(sorted(_SIZES)),
                value=printable(data),
            )
        )
    values = {name: value for name, value in data.items() if name != "arch"}
    _check_names(family, values)
    for name in ("rope", "sliding_rope"):
        if isinstance(values.get(name), dict):
            lists = {key: tuple(each) for key, each in values[name].items() if type(each) is list}
            try:
                values[name] = Rope(**{**values[name], **lists})
            except TypeError:
                raise UserError(
                    _("unknown RoPE settings: {value}", value=printable(values[name]))
                ) from None
    for name in (
        "sliding_windows",
        "rope_layers",
        "routed_layers",
        "conv_layers",
    ):  # JSON has no tuples
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return family(**values)


def config_to_json(config: AnyConfig) -> dict[str, Any]:
    """Return what `config_from_json` reads: the sizes, and what differs from its default."""
    data: dict[str, Any] = {"arch": config.arch}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in _SIZES or value != entry.default:
            data[entry.name] = asdict(value) if isinstance(value, Rope) else value
    return data


def _check_names(family: type[AnyConfig], values: dict[str, Any]) -> None:
    """Raise UserError for an entry that the family does not have, or that is missing."""
    known = {entry.name: entry for entry in fields(family)}
    extra = sorted(set(values) - set(known))
    if extra:
        name = safe_line(extra[0])
        raise UserError(
            _("unknown entry for arch = {arch}: {name:.40}", arch=family.arch, name=name)
        )
    required = (name for name, entry in known.items() if entry.default is MISSING)
    missing = [name for name in required if name not in values]
    if missing:
        raise UserError(
            _("missing entry for arch = {arch}: {name}", arch=family.arch, name=missing[0])
        )


def tokenizer_from_json(data: Any) -> Tokenizer:
    """Return the tokenizer of the `tokenizer` field. Raises UserError for an unknown type."""
    match data:
        case {"type": "character", "normalization": "NFC", "characters": str(characters)}:
            specials, start = data.get("specials", []), data.get("start", "")
            has_bytes = data.get("bytes", False)
            if (
                isinstance(specials, list)
                and isinstance(has_bytes, bool)
                and len(specials) <= _MAX_SPECIALS
                and all(map(_is_text, (*specials, start)))
            ):
                return CharacterTokenizer(characters, specials, start, has_bytes=has_bytes)
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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
