"""Added tokens: those that files beside the tokenizer.json name, and those only typed."""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from minillm_repl.tokenizer.base import Escapes
from minillm_repl.tokenizer.library import make_tokenizer, replace_surrogates

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def added_token(
    content: str, declared: Mapping[str, Any] = {}, *, special: bool = False
) -> dict[str, Any]:
    """Return an added token as a tokenizer.json holds it, with the flags that are said of it."""
    flags = {flag: declared.get(flag) is True for flag in _FLAGS}
    special = flags["special"] or special
    normalized = declared.get("normalized", not special) is True
    return {"content": content, **flags, "normalized": normalized, "special": special}


def add_tokens(
    description: Mapping[str, Any], tokens: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return a description with these tokens in it, in this order; those it has get their flags.

    The library gives a token that the vocabulary lacks the next free id, whatever a file says, and
    what is special in one file stays so; so does this.
    """
    parsed = _parse_vocabulary(description)
    if parsed is None:
        return description
    ids, size, entries = parsed
    known: dict[str, Mapping[str, Any]] = {each["content"]: each for each in entries}
    next_id = max([size, *(each["id"] + 1 for each in entries)])
    for token in tokens:
        content = token["content"]
        existing = known.get(content, {})
        token_id = existing.get("id", ids.get(content, next_id))
        next_id += token_id == next_id
        special = existing.get("special") is True or token["special"]
        known[content] = {**existing, "id": token_id, **token, "special": special}
    return {**description, "added_tokens": list(known.values())}


def with_bos_token(description: Mapping[str, Any], bos_token: str) -> Mapping[str, Any]:
    """Return a description that puts one token before every text, if it has that."""
    parsed = _parse_vocabulary(description)
    ids = {**parsed[0], **{each["content"]: each["id"] for each in parsed[2]}} if parsed else {}
    if bos_token not in ids:
        return description
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
    return {**description, "post_processor": processor}


def _parse_vocabulary(
    description: Mapping[str, Any],
) -> tuple[dict[str, int], int, list[dict[str, Any]]] | None:
    """Return the ids of a vocabulary, its size, and its added tokens; None if the library will
    refuse it anyway.
    """
    model, entries = description.get("model"), description.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list) or not isinstance(entries, list):
        return None
    if not all(isinstance(each, dict) and isinstance(each.get("content"), str) for each in entries):
        return None
    if not all(type(each.get("id")) is int for each in entries):
        return None
    return vocabulary if isinstance(vocabulary, dict) else {}, len(vocabulary), entries


def find_prefix_ids(library: tokenizers.Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the ids that a tokenizer puts before every text, as the first readable text shows.

    What it puts after one (`</s>`) closes the text, and would be read as if there were no more to
    say.
    """
    for text in texts:
        with_special, without_special = (
            library.encode(text),
            library.encode(text, add_special_tokens=False),
        )
        if without_special.ids:
            mask = [*with_special.special_tokens_mask, 0]
            return with_special.ids[: mask.index(0)]
    return []


def names_pattern(tokens: Iterable[tokenizers.AddedToken]) -> re.Pattern[str]:
    """Return what finds added tokens' names in a text as the library does, longest first."""
    ordered = sorted(
        (each for each in tokens if each.content), key=lambda each: len(each.content), reverse=True
    )
    edges = {False: "{}", True: r"(?<!\w){}(?!\w)"}
    return re.compile(
        "|".join(edges[each.single_word].format(re.escape(each.content)) for each in ordered)
        or "(?!)"
    )


def random_names(added: Mapping[int, tokenizers.AddedToken]) -> dict[str, str]:
    """Return for the name of each special token one that nobody can know, with the same ends."""
    nonce = secrets.token_hex(8)
    names = {token: each.content for token, each in added.items() if each.special and each.content}
    return {name: f"{name[0]}{nonce}{token:x}{name[-1]}" for token, name in names.items()}


def matches_special_names(description: Mapping[str, Any]) -> bool:
    """Tell whether a model finds the names of its special tokens in a text by itself, as one
    word of the vocabulary.
    """
    model = description.get("model")
    return isinstance(model, dict) and (
        isinstance(model.get("vocab"), list) or model.get("type") == "WordLevel"
    )


def rename_tokens(description: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a description in which tokens have other names."""
    model, added = description["model"], description["added_tokens"]
    entries = [
        {**entry, "content": names.get(entry["content"], entry["content"])} for entry in added
    ]
    unk_token = model.get("unk_token") if model.get("type") == "WordLevel" else None
    names = {name: other for name, other in names.items() if name != unk_token}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        vocabulary = [[names.get(name, name), *rest] for name, *rest in vocabulary]
    elif matches_special_names(description):
        vocabulary = {names.get(name, name): token for name, token in vocabulary.items()}
    return {**description, "added_tokens": entries, "model": {**model, "vocab": vocabulary}}


class EscapeEncoder:
    """Reads a text in which some names of special tokens mean them, and others are text.

    The library has one switch for a whole text, and a text cut at the names would be read otherwise
    at each cut (a space comes before it, or is lost). So the names are told apart: in a second
    tokenizer the special tokens have names that nobody can type, and those that mean one are
    written so.
    """

    def __init__(self, description: str, added: Mapping[int, tokenizers.AddedToken]) -> None:
        self._added_tokens, self._aliases = added, random_names(added)
        self._pattern = names_pattern(each for each in added.values() if each.special)
        aliased = rename_tokens(json.loads(description), self._aliases)
        self._library = make_tokenizer(
            json.dumps({**aliased, "post_processor": None}, ensure_ascii=False)
        )

    @cached_property
    def _ids(self) -> dict[int | None, int]:
        """The ids of added tokens by those that they have here."""
        named = {
            self._aliases.get(each.content, each.content): token
            for token, each in self._added_tokens.items()
        }
        return {self._library.token_to_id(name): token for name, token in named.items()}

    def encode(
        self, text: str, escapes: Escapes, positions: Sequence[int] = ()
    ) -> tuple[list[int], tokenizers.Encoding, list[int]]:
        """Return the ids, the library's encoding, and where in what it has read the `places` of
        the text are.
        """
        matches = list(self._pattern.finditer(text))
        aliased = self._pattern.sub(lambda name: self._aliases[name[0]], text).translate(escapes)
        growth = [(name.end(), len(self._aliases[name[0]]) - len(name[0])) for name in matches]
        shifted = [place + sum(more for end, more in growth if end <= place) for place in positions]
        encoding = self._library.encode(replace_surrogates(aliased), add_special_tokens=False)
        return [self._ids.get(token, token) for token in encoding.ids], encoding, shifted
