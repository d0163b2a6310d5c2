"""The tokenizer inside a GGUF file: its description, as a tokenizer.json has it.

A file has the tokens, their types, and for a byte-level BPE the merges.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.checkpoint.gguf.architectures import TOKENS
from minillm_repl.checkpoint.gguf.splitting import SPLITS
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.tokenizer.description import added_token, with_bos_token
from minillm_repl.tokenizer.ids import IdTokenizer
from minillm_repl.tokenizer.subword import SubwordTokenizer

_KEY = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
SPACE = "▁"  # SentencePiece writes a space so
# A word that is a token is that token, whatever the merges make of it; a text has a start token.
_WHOLE_WORDS = (
    "llama-bpe", "llama3", "llama-v3", "lfm2", "midm-2.0", "falcon3", "falcon-h1", "pixtral",
    "tekken",
)  # fmt: skip
# Names of tokens that end a text or a turn, for files that name only one of them.
_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "[|endofturn|]",
)  # fmt: skip
_MAX_MERGE_TOKEN = 200  # characters; splits of longer tokens of a SentencePiece are not tried


def split_merges(merges: Sequence[str]) -> list[tuple[str, ...]] | None:
    """Return the two tokens of each merge; None if one has not two.

    A space stands between them, and is no letter of a byte-level BPE, whose own space is Ġ; a token
    may still begin with one.
    """
    pairs = list(map(tuple, map(str.split, merges, repeat(" "))))
    if set(map(len, pairs)) <= {2} and "" not in chain.from_iterable(pairs):
        return pairs  # of all files that are known
    places = [merge.find(" ", 1) for merge in merges]
    if not all(1 <= at < len(merge) - 1 for at, merge in zip(places, merges, strict=True)):
        return None
    return [(merge[:at], merge[at + 1 :]) for at, merge in zip(places, merges, strict=True)]


class GGUFTokenizer:
    """What a file says of its tokenizer. Every method raises UserError."""

    def __init__(self, metadata: Mapping[str, Any], vocab_size: int) -> None:
        self._metadata, self._vocab_size = metadata, vocab_size
        self._tokens = self._list("tokens", str) if TOKENS in metadata else []
        types = self._list("token_type", int)
        self._types = types or [NORMAL] * len(self._tokens)
        if len(self._tokens) > vocab_size or len(self._types) != len(self._tokens):
            raise UserError(
                _(
                    "it has {tokens:,} tokens, {types:,} types of tokens and {size:,} embeddings",
                    tokens=len(self._tokens),
                    types=len(self._types),
                    size=vocab_size,
                )
            )
        if not set(self._types) <= {0, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
            raise UserError(_("it has a token of an unknown type"))
        self._ids = {token: id_ for id_, token in enumerate(self._tokens)}
        if len(self._ids) < len(self._tokens):
            raise UserError(_("it has a token twice"))
        self._model, self._pre = self._string("model"), self._string("pre")

    def read(self) -> Tokenizer:
        """Return the tokenizer; without a vocabulary, tokens are numbers."""
        if not self._tokens:
            return IdTokenizer(self._vocab_size)
        match self._model:
            case "gpt2":
                description = self._byte_level()
            case "llama":
                description = self._sentencepiece()
            case other:
                raise UserError(
                    _(
                        "tokenizer.ggml.model = {name:.40} is not supported; supported: {names}",
                        name=safe_line(other) or _("missing"),
                        names="gpt2, llama",
                    )
                )
        described: Mapping[str, Any] = {
            "version": "1.0",
            "added_tokens": list(self._added_tokens()),
            **description,
        }
        if self._adds_bos and "bos_token" in self.roles:
            described = with_bos_token(described, self.roles["bos_token"])
        return SubwordTokenizer(described, self.roles, self._vocab_size, None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user: where the file says too little."""
        if self._model != "gpt2" or self._pre not in ("", "default") or not self._tokens:
            return ()
        return (
            _(
                "the file does not say how a text is split into words (tokenizer.ggml.pre): "
                "its tokens may not be those that the model was trained on"
            ),
        )

    @property
    def roles(self) -> dict[str, str]:
        """The special tokens by role."""
        roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding"}
        ids = {role: self._id(f"{key}_token_id") for role, key in roles.items()}
        return {f"{role}_token": self._tokens[id_] for role, id_ in ids.items() if id_ is not None}

    def chat_template(self) -> ChatTemplate | None:
        """Return the chat template, or None."""
        source = self._metadata.get("tokenizer.chat_template")
        if not isinstance(source, str) or not source.strip():
            return None
        return ChatTemplate(source, self.roles)

    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the tokens that end a text or a turn, each once."""
        named = [self._id(f"{name}_token_id") for name in ("eos", "eot", "eom")]
        ids = [self._ids[name] for name in _ENDS if name in self._ids]
        known = [id_ for id_ in ids if self._is_special(id_)]
        return tuple(dict.fromkeys(id_ for id_ in [*named, *known] if id_ is not None))

    # -- the two models

    def _byte_level(self) -> dict[str, Any]:
        """Return the description of a byte-level BPE, split into words as `pre` says."""
        name = self._pre or "default"
        if name not in SPLITS:
            raise UserError(
                _(
                    "unknown way to split a text (tokenizer.ggml.pre): {name:.60}",
                    name=safe_line(name),
                )
            )
        splits = [
            {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
            for each in SPLITS[name]
        ]
        letters = {
            "type": "ByteLevel",
            "add_prefix_space": self._metadata.get(_KEY + "add_space_prefix") is True,
            "trim_offsets": True,
            "use_regex": False,
        }
        merges = split_merges(self._list("merges", str))
        if merges is None:
            raise UserError(_("it has a merge that is not two tokens"))
        return {
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, letters]},
            "decoder": {**letters, "add_prefix_space": True},
            "model": {
                "type": "BPE",
                "vocab": self._ids,
                "merges": merges,
                "ignore_merges": name in _WHOLE_WORDS,
            },
        }

    def _sentencepiece(self) -> dict[str, Any]:
        """Return the description of a BPE of SentencePiece, whose merges follow from the scores."""
        has_prefix = self._metadata.get(_KEY + "add_space_prefix", True) is not False
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        first = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        unknown = self._id("unknown_token_id")
        return {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace][not has_prefix :],
            },
            "pre_tokenizer": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
                + ([first] if has_prefix else []),
            },
            "model": {
                "type": "BPE",
                "vocab": self._ids,
                "merges": self._merges_of_scores(),
                "unk_token": None if unknown is None else self._tokens[unknown],
                "fuse_unk": True,
                "byte_fallback": True,
            },
        }

    def _merges_of_scores(self) -> list[list[str]]:
        """Return every pair of tokens that makes a token, that with the highest score first."""
        scores = self._list("scores", float)
        if len(scores) != len(self._tokens):
            raise UserError(_("it has a score for only some of its tokens"))
        # Each by itself: half a million pairs of new strings would take much memory.
        mergeable = {
            token: token
            for token, kind in zip(self._tokens, self._types, strict=True)
            if kind not in (UNKNOWN, CONTROL, BYTE)
        }
        merges = list[list[str]]()
        # The sort is stable: of equal scores, the lower id comes first.
        for id_ in sorted(range(len(scores)), key=scores.__getitem__, reverse=True):
            token = self._tokens[id_]
            if token not in mergeable or len(token) > _MAX_MERGE_TOKEN:
                continue
            for place in range(1, len(token)):
                left, right = mergeable.get(token[:place]), mergeable.get(token[place:])
                if left is not None and right is not None:
                    merges.append([left, right])
        return merges

    def _added_tokens(self) -> Iterator[dict[str, Any]]:
        """Yield the tokens that are found in a text as they are: control ones are special."""
        unusual = [id_ for id_, kind in enumerate(self._types) if kind != NORMAL]
        ends = [self._ids[name] for name in _ENDS if name in self._ids]
        for id_ in sorted({*unusual, *ends}):
            token, kind = self._tokens[id_], self._types[id_]
            if token and (kind == USER_DEFINED or self._is_special(id_)):
                special = kind != USER_DEFINED or token in _ENDS
                entry = added_token(token, {"normalized": False}, special=special)
                yield {"id": id_, **entry}

    def _is_special(self, id_: int) -> bool:
        # Some converters left an end token without its type.
        return self._types[id_] in (CONTROL, UNKNOWN) or self._tokens[id_] in _ENDS

    @property
    def _adds_bos(self) -> bool:
        usual = self._model == "llama" or self._pre in _WHOLE_WORDS
        return self._metadata.get(_KEY + "add_bos_token", usual) is True

    # -- values of the metadata

    def _string(self, name: str) -> str:
        value = self._metadata.get(_KEY + name, "")
        if not isinstance(value, str):
            raise UserError(_("{name} is not a text", name=_KEY + name))
        return value

    def _list(self, name: str, kind: type) -> Sequence[Any]:
        values = self._metadata.get(_KEY + name, [])
        # All elements of an array have one type.
        if not isinstance(values, list) or (values and type(values[0]) is not kind):
            raise UserError(_("{name} is not a list of its kind", name=_KEY + name))
        return values

    def _id(self, name: str) -> int | None:
        """Return the id of a special token; None if the file has none, or one out of range."""
        id_ = self._metadata.get(_KEY + name, -1)
        if type(id_) is not int:
            raise UserError(_("{name} is not a whole number", name=_KEY + name))
        return id_ if 0 <= id_ < len(self._tokens) else None
