"""Plain descriptions: a BPE of known steps, which the library can be given without a trial.

Nearly all large vocabularies are plain. A trial in the sandbox makes the whole tokenizer once
more, in another process; it is for what is not known here: other steps, expressions, models.
"""

import json
from collections.abc import Mapping
from itertools import chain, groupby, repeat
from typing import Any

import tokenizers

from minillm_repl.tokenizer.patterns import PATTERNS

Merges = list[tuple[str, str]]

_KEYS = {
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
    "post_processor", "decoder", "model",
}  # fmt: skip
_LISTS = ("normalizers", "pretokenizers", "decoders", "processors")
_MAX_STEPS = 64
_MAX_ID = 1 << 24
_MAX_RUNS = 100  # of special and other added tokens by turns; each run makes the search anew
_SPACES = (" ", "▁")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Values of fields, besides true and false, by the type of a step.
_STEPS: dict[str, dict[str, tuple[Any, ...]]] = {
    "NFC": {},
    "Prepend": {"prepend": ("▁",)},
    "Replace": {
        "pattern": tuple({"String": space} for space in _SPACES),
        "content": _SPACES,
    },
    "Split": {
        "pattern": tuple({"Regex": regex} for regex in PATTERNS),
        "behavior": ("Isolated",),
    },
    "Digits": {},
    "ByteLevel": {},
    "ByteFallback": {},
    "Fuse": {},
    "Strip": {"content": (" ",), "start": (0, 1), "stop": (0, 1)},
}
_MODEL: dict[str, tuple[Any, ...]] = {
    "type": ("BPE",),
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (True, False),
    "byte_fallback": (True, False),
    "ignore_merges": (True, False),
}


def largest_plain_id(description: Mapping[str, Any]) -> int | None:
    """Return the largest id that the steps of a plain description name; None if it is not plain.

    The ids of its vocabulary and of its added tokens are not among them.
    """
    steps = (description.get(key) for key in ("normalizer", "pre_tokenizer", "decoder"))
    if (
        not set(description) <= _KEYS
        or description.get("truncation") is not None
        or description.get("padding") is not None
        or not _is_plain_model(description.get("model"))
        or not _are_plain_added(description.get("added_tokens"))
        or not all(map(_is_plain_step, steps))
    ):
        return None
    return _largest_processed_id(description.get("post_processor"))


def _is_plain_model(model: Any) -> bool:
    if not isinstance(model, dict) or not set(model) <= {*_MODEL, "vocab", "merges", "unk_token"}:
        return False
    vocabulary, unknown = model.get("vocab"), model.get("unk_token")
    return (
        model.get("type") == "BPE"
        and all(model[key] in usual for key, usual in _MODEL.items() if key in model)
        and isinstance(vocabulary, dict)
        and set(map(type, vocabulary.values())) <= {int}
        and min(vocabulary.values(), default=0) >= 0
        and max(vocabulary.values(), default=0) < _MAX_ID
        and (unknown is None or (isinstance(unknown, str) and unknown in vocabulary))
        and isinstance(model.get("merges"), list)
    )


def _are_plain_added(tokens: Any) -> bool:
    """Tell whether added tokens have names, ids and flags, and nothing else."""
    if not isinstance(tokens, list):
        return False
    for token in tokens:
        if not isinstance(token, dict) or set(token) != {"id", "content", *_FLAGS}:
            return False
        if type(token["id"]) is not int or not 0 <= token["id"] < _MAX_ID:
            return False
        if not isinstance(token["content"], str) or not token["content"]:
            return False
        if not all(isinstance(token[flag], bool) for flag in _FLAGS):
            return False
    return sum(1 for _run in groupby(tokens, lambda each: each["special"])) <= _MAX_RUNS


def _is_plain_step(step: Any) -> bool:
    if step is None:
        return True
    if not isinstance(step, dict):
        return False
    kind, fields = step.get("type"), {key: step[key] for key in step if key != "type"}
    if kind == "Sequence":
        parts = next(iter(fields.values()), None)
        return (
            len(fields) == 1
            and set(fields) <= set(_LISTS)
            and isinstance(parts, list)
            and len(parts) <= _MAX_STEPS
            # No sequence of sequences: no known tokenizer has one.
            and all(_is_simple(part) for part in parts)
        )
    return _is_simple(step)


def _is_simple(step: Any) -> bool:
    """Tell whether a step is known, and no sequence."""
    usual = _STEPS.get(str(step.get("type"))) if isinstance(step, dict) else None
    return usual is not None and all(
        value in usual.get(key, (True, False)) for key, value in step.items() if key != "type"
    )


def _largest_processed_id(step: Any) -> int | None:
    """Return the largest id that a post-processor puts before or after a text; None if unknown."""
    parts = step.get("processors") if isinstance(step, dict) and "processors" in step else [step]
    if not isinstance(parts, list) or len(parts) > _MAX_STEPS:
        return None
    found = list(map(_largest_template_id, parts))
    return None if None in found else max(filter(None, found), default=0)


def _largest_template_id(step: Any) -> int | None:
    """Return the largest id of a post-processor that is no sequence; None if unknown."""
    match step:
        case None:
            return 0
        case {"type": "ByteLevel"} if _is_simple(step):
            return 0
        case {"type": "TemplateProcessing", "special_tokens": dict(tokens)}:
            ids = [
                id_
                for token in tokens.values()
                if isinstance(token, dict) and isinstance(token.get("ids"), list)
                for id_ in token["ids"]
            ]
            plain = all(type(id_) is int and 0 <= id_ < _MAX_ID for id_ in ids)
            return max(ids, default=0) if plain else None
    return None


# -- making the tokenizer


def make_plain_tokenizer(description: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """Return the tokenizer of a plain description, without its JSON text: in half the time.

    None if its merges are not pairs, which the library has more to say of.
    """
    model = description["model"]
    merges = _pairs(model["merges"])
    if merges is None:
        return None
    options = {
        key: model[key] for key in (*_MODEL, "unk_token") if key != "type" and model.get(key)
    }
    bpe = tokenizers.models.BPE(model["vocab"], merges, **options)
    return assemble(description, bpe)


def assemble(
    description: Mapping[str, Any], model: tokenizers.models.Model
) -> tokenizers.Tokenizer:
    """Return the tokenizer of a description whose model is made already; the two may share it."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    library = tokenizers.Tokenizer.from_str(
        json.dumps({**description, "added_tokens": [], "model": empty}, ensure_ascii=False)
    )
    library.model = model
    # The ids of added tokens follow from their order.
    for special, run in groupby(description["added_tokens"], lambda each: each["special"]):
        tokens = [
            tokenizers.AddedToken(each["content"], **{flag: each[flag] for flag in _FLAGS})
            for each in run
        ]
        (library.add_special_tokens if special else library.add_tokens)(tokens)
    library.no_truncation()
    library.no_padding()
    return library


def _pairs(merges: list[Any]) -> Merges | None:
    """Return merges, texts such as `a b` or pairs, as pairs; None if one is neither.

    No loop of Python goes through them: there may be 500,000.
    """
    kinds = set(map(type, merges))
    if not kinds <= {str} and not kinds <= {list, tuple}:
        return None
    split = map(str.split, merges, repeat(" ")) if kinds == {str} else merges
    pairs = list(map(tuple, split))
    if set(map(len, pairs)) - {2} or set(map(type, chain.from_iterable(pairs))) - {str}:
        return None
    return None if "" in chain.from_iterable(pairs) else pairs
