"""Descriptions of tokenizers: what a tokenizer.json says, read and changed as plain JSON."""

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tokenizers

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"  # SentencePiece writes a space so

# -- Added tokens


def added_token(
    content: str, declared: Mapping[str, Any] = {}, *, special: bool = False
) -> dict[str, Any]:
    """Return an added token as a tokenizer.json holds it, with its declared flags."""
    flags = {flag: declared.get(flag) is True for flag in _FLAGS}
    special = flags["special"] or special
    normalized = declared.get("normalized", not special) is True
    return {"content": content, **flags, "normalized": normalized, "special": special}


def add_tokens(
    description: Mapping[str, Any], tokens: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return a description with these added tokens, in this order.

    A token that is there already gets the new flags, but stays special. A token that the
    vocabulary lacks gets the next free id. Both follow the library, whatever id a file declares.
    """
    parsed = _parse_vocabulary(description)
    if parsed is None:
        return description
    ids, size, entries = parsed
    known: dict[str, Mapping[str, Any]] = {each["content"]: each for each in entries}
    next_id = max([size, *(each["id"] + 1 for each in entries)])
    # The library appends tokens one by one, so their order decides their ids.
    for token in tokens:
        content = token["content"]
        existing = known.get(content, {})
        token_id = existing.get("id", ids.get(content, next_id))
        if token_id == next_id:
            next_id += 1
        special = existing.get("special") is True or token["special"]
        known[content] = {**existing, "id": token_id, **token, "special": special}
    return {**description, "added_tokens": list(known.values())}


def with_bos_token(description: Mapping[str, Any], bos_token: str) -> Mapping[str, Any]:
    """Return a description that puts `bos_token` before every text, if the vocabulary has it."""
    parsed = _parse_vocabulary(description)
    if parsed is None:
        return description
    vocabulary, _size, entries = parsed
    ids = {**vocabulary, **{each["content"]: each["id"] for each in entries}}
    if bos_token not in ids:
        return description
    # The format of a TemplateProcessing step; `pair` is required, and never used here.
    prefix = {"SpecialToken": {"id": bos_token, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    processor = {
        "type": "TemplateProcessing",
        "single": [prefix, text],
        "pair": [prefix, text, second],
        "special_tokens": {
            bos_token: {"id": bos_token, "ids": [ids[bos_token]], "tokens": [bos_token]}
        },
    }
    earlier = description.get("post_processor")
    if earlier is not None:  # such as the offsets of GPT-2's bytes
        processor = {"type": "Sequence", "processors": [earlier, processor]}
    return {**description, "post_processor": processor}


def _parse_vocabulary(
    description: Mapping[str, Any],
) -> tuple[dict[str, int], int, list[dict[str, Any]]] | None:
    """Return the ids by token, the vocabulary's size, and the added tokens.

    Return None for a description that the library will refuse. The ids are empty for a
    vocabulary that is a list (Unigram).
    """
    model = description.get("model")
    entries = description.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not isinstance(entries, list):
        return None
    if not all(isinstance(each, dict) and isinstance(each.get("content"), str) for each in entries):
        return None
    if not all(type(each.get("id")) is int for each in entries):
        return None
    return vocabulary if isinstance(vocabulary, dict) else {}, len(vocabulary), entries


# -- Names of special tokens


def matches_special_names(description: Mapping[str, Any]) -> bool:
    """Tell whether the model itself finds names of special tokens in a text.

    Unigram and WordLevel do: such a name is one word of their vocabulary.
    """
    model = description.get("model")
    return isinstance(model, dict) and (
        isinstance(model.get("vocab"), list) or model.get("type") == "WordLevel"
    )


def rename_tokens(description: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a description in which tokens have other names: `names` maps old to new."""
    model, added = description["model"], description["added_tokens"]
    entries = [
        {**entry, "content": names.get(entry["content"], entry["content"])} for entry in added
    ]
    # WordLevel looks its unknown token up by name.
    unk_token = model.get("unk_token") if model.get("type") == "WordLevel" else None
    names = {name: other for name, other in names.items() if name != unk_token}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = [[names.get(name, name), *scores] for name, *scores in vocabulary]
    elif matches_special_names(description):
        vocabulary = {names.get(name, name): token for name, token in vocabulary.items()}
    return {**description, "added_tokens": entries, "model": {**model, "vocab": vocabulary}}


def find_unk_token(description: Mapping[str, Any]) -> str:
    """Return the name of the token for what the vocabulary lacks; empty if there is none."""
    model = description.get("model")
    if not isinstance(model, dict) or model.get("byte_fallback"):
        return ""
    unknown, vocabulary = model.get("unk_token"), model.get("vocab")
    # Unigram gives the index in its vocabulary instead.
    if isinstance(model.get("unk_id"), int) and isinstance(vocabulary, list):
        unknown = vocabulary[model["unk_id"]][0]
    return unknown if isinstance(unknown, str) else ""


# -- Spaces, and the bytes of a token


def _steps(step: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser, pre-tokenizer or decoder; a sequence may hold sequences."""
    if isinstance(step, dict):
        yield step
        for key in ("normalizers", "pretokenizers", "decoders"):
            for inner in step.get(key, []):
                yield from _steps(inner)


def without_prefix_space(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a description that puts no space before a text."""
    bare = copy.deepcopy({key: description.get(key) for key in ("normalizer", "pre_tokenizer")})
    for part in (*_steps(bare["normalizer"]), *_steps(bare["pre_tokenizer"])):
        match part.get("type"):
            case "Prepend":
                part.update(prepend="")
            case "Metaspace":
                part.pop("add_prefix_space", None)  # the older spelling
                part.update(prepend_scheme="never")
            case "ByteLevel":
                part.update(add_prefix_space=False)
    return {**description, **bare}


def strips_space(description: Mapping[str, Any]) -> bool:
    """Tell whether the decoder removes a space from the start of a text."""
    return any(
        part.get("type") == "Metaspace"
        or (part.get("type") == "Strip" and part.get("content") == " ")
        for part in _steps(description.get("decoder"))
    )


def make_name_decoder(
    description: Mapping[str, Any], library: tokenizers.Tokenizer
) -> Callable[[int, str], bytes]:
    """Return the function from a token's id and name to its bytes; the decoder decides which."""
    decoder = description.get("decoder")
    kinds = {part.get("type") for part in _steps(decoder)}
    if "ByteLevel" in kinds:
        return lambda _token, name: _decode_byte_level(name)
    # A Replace step in the decoder turns ▁ into a space.
    replaces_space = _SPACE in json.dumps(decoder, ensure_ascii=False)
    if replaces_space or kinds & {"ByteFallback", "Metaspace"}:
        return lambda _token, name: _decode_sentencepiece(name)
    return lambda token, _name: library.decode([token], skip_special_tokens=False).encode()


def _decode_sentencepiece(name: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()


def _decode_byte_level(name: str) -> bytes:
    """Return the bytes of GPT-2's letters; a name with other letters stands for itself."""
    try:
        return name.translate(_UNICODE_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return name.encode()


def _unicode_to_bytes() -> dict[int, int]:
    """Return the byte of each letter of GPT-2, as `str.translate` wants it.

    A printable byte is its own letter; the letters of the others begin at U+0100. The characters
    of these other bytes are no letters of GPT-2: they map to U+10FFFF, which no byte encodes.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [byte for byte in range(256) if byte not in printable]
    letters = {256 + place: byte for place, byte in enumerate(others)}
    return letters | dict.fromkeys(others, 0x10FFFF)


_UNICODE_TO_BYTES = _unicode_to_bytes()
