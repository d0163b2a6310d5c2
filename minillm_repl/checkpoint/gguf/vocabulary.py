"""A tokenizer as the metadata of a GGUF file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.gguf.splitting import SPLITS
from minillm_repl.checkpoint.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.tokenizer import BYTE_NAMES, UNK_TOKEN, CharacterTokenizer
from minillm_repl.tokenizer.subword import SubwordTokenizer

EXTRA_LOGIT = -10_000.0  # of a token that the model never samples; float16 has it exactly
_END = "<|endoftext|>"
_KEY = "tokenizer.ggml."


@dataclass(frozen=True)
class Vocabulary:
    """The metadata of a vocabulary, and the tokens that were added at its end.

    The added ones are read as token `like` is; None: as the first, and they have EXTRA_LOGIT.
    """

    metadata: Mapping[str, Any]
    n_extra: int = 0
    like: int | None = field(default=None)


def make_vocabulary(checkpoint: Checkpoint, *, converted: bool) -> Vocabulary:
    """Return a model's vocabulary; `converted` is a model of the note that became a GPT-2.

    Raises UserError for one that llama.cpp could not run.
    """
    tokenizer, ends = checkpoint.tokenizer, checkpoint.eos_token_ids
    match tokenizer:
        case CharacterTokenizer():
            vocabulary = _of_characters(tokenizer, converted, ends)
        case SubwordTokenizer():
            vocabulary = _of_subwords(tokenizer, ends)
        case _:
            raise UserError(_("the model has no vocabulary, without which llama.cpp opens nothing"))
    if checkpoint.chat_template is None:
        return vocabulary
    template = {"tokenizer.chat_template": checkpoint.chat_template.source}
    return Vocabulary({**vocabulary.metadata, **template}, vocabulary.n_extra, vocabulary.like)


def _of_characters(
    tokenizer: CharacterTokenizer, converted: bool, ends: tuple[int, ...]
) -> Vocabulary:
    """Return a vocabulary of characters as one of SentencePiece without merges.

    llama.cpp writes a character that it lacks in bytes, and fails without tokens for these.
    """
    like = tokenizer.token_to_id(UNK_TOKEN)
    if like is None and not converted and not tokenizer.has_bytes:
        raise UserError(
            _(
                "llama.cpp fails at a character that the vocabulary lacks, and this model has no "
                "token <unk> for these: save a folder with `:save NAME/`"
            )
        )
    tokens = [SPACE if each == " " else each for each in tokenizer.characters]
    if len(set(tokens)) < len(tokens):
        raise UserError(_("the vocabulary has both a space and {space}", space=SPACE))
    types = [NORMAL] * len(tokens)
    for name in tokenizer.specials:
        tokens.append(name)
        types.append(UNKNOWN if name == UNK_TOKEN else CONTROL)
    byte_tokens = [(name, BYTE) for name in sorted(BYTE_NAMES)]
    tokens += [name for name, _kind in byte_tokens if tokenizer.has_bytes]
    types += [kind for _name, kind in byte_tokens if tokenizer.has_bytes]
    extra = [] if tokenizer.has_bytes else byte_tokens
    # Where every byte has a token of its own, no character is unknown.
    extra += [(UNK_TOKEN, UNKNOWN)] if like is None and not tokenizer.has_bytes else []
    # Without an end token llama.cpp takes token 2 for one.
    extra += [] if ends else [(_END, CONTROL)]
    tokens += [name for name, _kind in extra]
    types += [kind for _name, kind in extra]
    metadata = {
        _KEY + "model": "llama",
        _KEY + "tokens": tokens,
        _KEY + "scores": [0.0] * len(tokens),
        _KEY + "token_type": types,
        **({_KEY + "unknown_token_id": tokens.index(UNK_TOKEN)} if UNK_TOKEN in tokens else {}),
        _KEY + "add_space_prefix": False,
        **_start(tokenizer.start_ids),
        **_ends(ends or (tokens.index(_END),)),
    }
    return Vocabulary(metadata, len(extra), like)


def _of_subwords(tokenizer: SubwordTokenizer, ends: tuple[int, ...]) -> Vocabulary:
    description = tokenizer.description
    model = description["model"]
    if model.get("type") != "BPE":
        raise UserError(
            _("GGUF has no tokenizer of the kind {kind:.40}", kind=str(model.get("type")))
        )
    # Ids without a token stay unused.
    names = {id_: name for name, id_ in model["vocab"].items()}
    types = dict.fromkeys(names, NORMAL)
    for entry in description.get("added_tokens") or []:
        names[entry["id"]] = entry["content"]
        types[entry["id"]] = CONTROL if entry["special"] else USER_DEFINED
    size = tokenizer.vocab_size
    merges = [each.split(" ", 1) if isinstance(each, str) else each for each in model["merges"]]
    roles = tokenizer.special_tokens_map
    ids = {
        "bos": tokenizer.token_to_id(roles.get("bos_token", "")),
        "unknown": tokenizer.token_to_id(roles.get("unk_token", "")),
        "padding": tokenizer.token_to_id(roles.get("pad_token", "")),
    }
    metadata = {
        _KEY + "tokens": [names.get(id_, f"[unused {id_}]") for id_ in range(size)],
        _KEY + "token_type": [types.get(id_, UNUSED) for id_ in range(size)],
        **{f"{_KEY}{role}_token_id": id_ for role, id_ in ids.items() if id_ is not None},
        **_start(tokenizer.start_ids),
        **_ends(ends),
    }
    if model.get("byte_fallback"):
        return Vocabulary({**metadata, **_sentencepiece(description, metadata, merges)})
    return Vocabulary(
        {
            **metadata,
            _KEY + "model": "gpt2",
            _KEY + "pre": _split_name(description.get("pre_tokenizer")),
            _KEY + "merges": [f"{left} {right}" for left, right in merges],
        }
    )


def _start(ids: tuple[int, ...]) -> dict[str, Any]:
    """Return the start token, and whether it comes before every text."""
    return {_KEY + "add_bos_token": bool(ids), **({_KEY + "bos_token_id": ids[0]} if ids else {})}


def _ends(ids: tuple[int, ...]) -> dict[str, int]:
    """Return the end tokens: GGUF has one of the text and one of a turn."""
    return dict(zip((_KEY + "eos_token_id", _KEY + "eot_token_id"), ids, strict=False))


def _sentencepiece(
    description: Mapping[str, Any], metadata: Mapping[str, Any], merges: list[list[str]]
) -> dict[str, Any]:
    """Return the metadata of a BPE of SentencePiece: a score for each token, by its first merge."""
    ranks = dict[str, int]()
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    types = dict(zip(metadata[_KEY + "tokens"], metadata[_KEY + "token_type"], strict=True))
    bytes_ = {name: BYTE for name in types if len(name) == 6 and name.startswith("<0x")}
    spaces = [
        part.get("prepend")
        for part in _steps(description.get("normalizer"), description.get("pre_tokenizer"))
        if part.get("type") in ("Prepend", "Metaspace") and part.get("prepend_scheme") != "never"
    ]
    return {
        _KEY + "model": "llama",
        _KEY + "scores": [float(-ranks.get(name, len(merges))) for name in types],
        _KEY + "token_type": list((types | bytes_).values()),
        _KEY + "add_space_prefix": bool(spaces),
    }


def _steps(*steps: Any) -> Iterator[dict[str, Any]]:
    for step in steps:
        if isinstance(step, dict):
            yield step
            yield from _steps(*step.get("normalizers", []), *step.get("pretokenizers", []))


def _split_name(pre_tokenizer: Any) -> str:
    """Return GGUF's name of how a tokenizer splits a text into words. Raises UserError."""
    patterns = tuple(filter(None, map(_pattern, _steps(pre_tokenizer))))
    # A pattern that matches everything leaves nothing between the matches.
    for name, known in SPLITS.items():
        if patterns == known:
            return name
    raise UserError(_("GGUF has no name for the way in which this tokenizer splits a text"))


def _pattern(step: Mapping[str, Any]) -> str:
    match step:
        case {"type": "ByteLevel", **rest}:
            return SPLITS["gpt-2"][0] if rest.get("use_regex", True) else ""
        case {"type": "Digits", "individual_digits": True}:
            return SPLITS["smollm"][0]
        case {"type": "Split", "pattern": {"Regex": str(regex)}}:
            return regex
        case {"type": "Sequence"}:
            return ""
    return str(step.get("type"))
