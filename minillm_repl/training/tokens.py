"""A corpus as one row of token ids, kept in mapped files, and the windows that the model reads.

The tokens of a large corpus stay in the user's cache folder, so that a second start finds them.
"""

import hashlib
import json
import math
import mmap
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from torch import Tensor

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.language import _
from minillm_repl.safetext import safe_line, strip_joiners
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.training.corpus import Corpus

_COUNTED_CHARACTERS = 20_000  # most frequent ones, among which unknown ones are looked for
_SHOWN_CHARACTERS = 20
IGNORE_INDEX = -100  # a target that does not count; torch's own usual number
_GOLDEN = 0.618033988749895  # the golden section, 1 / φ
# Windows read from a mapped file at once: around each, the system may map a megabyte.
_WINDOWS_PER_READ = 64
_CACHE_VERSION = 6  # of these files; another one makes all of them anew
_MAX_CACHE_BYTES = 20 << 30  # above, the files used longest ago are removed
_STALE_SECONDS = 24 * 3600  # after which nobody writes to an unfinished file any more


@dataclass(frozen=True)
class TokenisedCorpus:
    """A corpus as ids, one document after the other, each with its separator if it has one."""

    ids: NDArray[np.unsignedinteger]  # (count,), mapped
    ends: NDArray[np.int64]  # (documents,), mapped: the place after each document
    # (count,), whether the loss counts this token; None: it counts all
    loss_mask: NDArray[np.bool_] | None
    unknown_characters: int = 0  # characters that the tokenizer does not know
    unique_tokens: int = 0  # ids that occur
    # what comes before the first document: the separator, which comes before all others
    lead: tuple[int, ...] = ()


@dataclass
class Split:
    """One row of tokens, and its windows of context + 1: inputs and, one place on, targets."""

    ids: NDArray[np.unsignedinteger]  # (count,), of a mapped file or in memory
    loss_mask: NDArray[np.bool_] | None  # (count,), which tokens count as targets; None: all
    context_length: int

    @property
    def n_windows(self) -> int:
        """How many windows there are: one begins at every token but the last `context_length`."""
        return max(0, len(self.ids) - self.context_length)

    def batch(self, starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the windows at `starts` (b,): inputs (b, context) and targets, both int64."""
        places = starts[:, None] + np.arange(self.context_length + 1)  # (b, context + 1)
        ids = torch.from_numpy(_gather(self.ids, places).astype(np.int64))
        inputs, targets = ids[:, :-1], ids[:, 1:]
        if self.loss_mask is not None:
            targets = torch.where(
                torch.from_numpy(_gather(self.loss_mask, places[:, 1:])), targets, IGNORE_INDEX
            )
        return inputs, targets

    def training_starts(self, first: int, count: int, seed: int) -> NDArray[np.int64]:
        """Return where the windows begin that a run reads as number `first` (of all) and on.

        Each is read once before any is read again, and those of one batch lie far apart: they are a
        Weyl sequence, in steps of about the golden section of the row, from another place in each
        round.
        """
        # A stride without a common divisor visits every window once in each round.
        stride = max(1, round(self.n_windows * _GOLDEN))
        while math.gcd(stride, self.n_windows) != 1:
            stride += 1
        starts = list[int]()
        for window_index in range(first, first + count):
            epoch, epoch_index = divmod(window_index, self.n_windows)
            if epoch_index == 0 or not starts:
                offset = int(np.random.default_rng((seed, epoch)).integers(self.n_windows))
            starts.append((offset + epoch_index * stride) % self.n_windows)
        return np.array(starts, dtype=np.int64)

    def evenly_spaced_starts(self, max_tokens: int) -> NDArray[np.int64]:
        """Return where windows begin that lie evenly over the whole row and have about
        `max_tokens` tokens, or are all.
        """
        stride = -(-self.n_windows * self.context_length // max_tokens)
        return np.arange(0, self.n_windows, max(1, min(stride, self.n_windows)))

    def disjoint_starts(self, max_tokens: int = 0) -> NDArray[np.int64]:
        """Return where windows begin that lie side by side: every token is a target once;
        thinned to `max_tokens` tokens.
        """
        starts = np.arange(0, self.n_windows, self.context_length)
        count = max(1, max_tokens // self.context_length) if max_tokens else len(starts)
        if count >= len(starts):
            return starts
        return starts[np.arange(count) * len(starts) // count]

    @property
    def targets(self) -> int:
        """How many tokens count."""
        return len(self.ids) if self.loss_mask is None else int(self.loss_mask.sum())

    def count_characters(self, tokenizer: Tokenizer) -> int:
        """Return how many characters of text the tokens that count are; one that stands for the
        unknown is one.
        """
        lengths = np.array(
            [_token_characters(tokenizer, token) for token in range(tokenizer.vocab_size)]
        )
        total = 0
        for start in range(0, len(self.ids), 1 << 20):
            here = slice(start, start + (1 << 20))
            ids = self.ids[here] if self.loss_mask is None else self.ids[here][self.loss_mask[here]]
            total += int(lengths[ids].sum())
            for row in (self.ids, self.loss_mask):
                release(row)
        return total


def _gather(array: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """Return the entries of a row at places (b, t)."""
    gathered = np.empty(indices.shape, array.dtype)
    for first in range(0, len(indices), _WINDOWS_PER_READ):
        here = slice(first, first + _WINDOWS_PER_READ)
        gathered[here] = array[indices[here]]
        release(array)
    return gathered


def release(array: NDArray[Any] | None) -> None:
    """Give a mapped file's pages back: it may exceed memory, and stays in the system cache."""
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _token_characters(tokenizer: Tokenizer, token: int) -> int:
    token_bytes = tokenizer.token_bytes(token)
    if not token_bytes:
        return int(
            bool(tokenizer.unk_token) and tokenizer.special_name(token) == tokenizer.unk_token
        )
    # every byte but those that only continue a character
    return sum(byte & 0xC0 != 0x80 for byte in token_bytes)


def describe_unknown(tokens: TokenisedCorpus, corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Return what becomes of the characters that the vocabulary lacks, with the most frequent."""
    counts = corpus.character_counts
    code_points = np.argsort(-counts, kind="stable")[:_COUNTED_CHARACTERS]
    text = "".join(chr(code_point) for code_point in code_points if counts[code_point])
    unknown = tokenizer.find_unknown(text)[:_SHOWN_CHARACTERS]
    # A joiner alone would be invisible.
    shown = (strip_joiners(each) or strip_joiners(each, visible=True) for each in unknown)
    values = {
        "count": tokens.unknown_characters,
        "share": tokens.unknown_characters / max(1, int(counts.sum())),
        "characters": safe_line(", ".join(shown)),
    }
    return (
        _(
            "{count:,} characters ({share:.2%}) are not in the vocabulary and are read as "
            "{token}: {characters}",
            token=safe_line(tokenizer.unk_token),
            **values,
        )
        if tokenizer.unk_token
        else _(
            "{count:,} characters ({share:.2%}) are not in the vocabulary and are skipped: "
            "{characters}",
            **values,
        )
    )


# -- token files


def cache_folder() -> Path:
    """Return the folder of the token files."""
    return user_cache_path("minillm-repl") / "tokens"


def cache_key(
    corpus: Corpus, tokenizer: Tokenizer, separator: int | None, template: ChatTemplate | None
) -> str:
    """Return a name for the tokens of a corpus: a digest of all that they depend on."""
    inputs = (
        _CACHE_VERSION,
        corpus.sha256,
        corpus.format_key,
        tokenizer.to_json(),
        separator,
        asdict(template) if template else None,
    )
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=dict).encode()).hexdigest()


def store_tokens(
    cache: Path, key: str, tokens: TokenisedCorpus, files: Mapping[str, IO[bytes]]
) -> None:
    """Give the files of `ids`, `ends` and `learned` (the loss mask) their names, then write one
    that says that they are whole.
    """
    for suffix, file in files.items():
        os.fsync(file.fileno())
        Path(file.name).replace(cache / f"{key}.{suffix}")
    metadata = {
        "count": len(tokens.ids),
        "unknown": tokens.unknown_characters,
        "different": tokens.unique_tokens,
        "documents": len(tokens.ends),
        "parts": [*files],
    }
    write_atomically(cache / f"{key}.json", json.dumps(metadata).encode(), private=True)
    _evict(cache, key)


def load_tokens(cache: Path, key: str, dtype: np.dtype[Any]) -> TokenisedCorpus:
    """Return the tokens that were stored.

    Raises OSError, ValueError, KeyError or TypeError if they do not exist, or are not whole.
    """
    metadata = json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))
    arrays = {}
    for suffix in metadata["parts"]:
        path = cache / f"{key}.{suffix}"
        array_dtype = {"ids": dtype, "ends": np.dtype(np.int64)}.get(suffix, np.dtype(np.bool_))
        count = metadata["documents" if suffix == "ends" else "count"]
        if path.stat().st_size != count * array_dtype.itemsize:
            raise ValueError
        arrays[suffix] = np.memmap(path, array_dtype, mode="r")
    os.utime(cache / f"{key}.json")
    return TokenisedCorpus(
        arrays["ids"],
        arrays["ends"],
        arrays.get("learned"),
        int(metadata["unknown"]),
        int(metadata["different"]),
    )


def _evict(cache: Path, key: str) -> None:
    """Remove those used longest ago, but not this, until the rest is what may be kept."""
    for file in cache.glob(".*"):
        if file.stat().st_mtime < time.time() - _STALE_SECONDS:
            file.unlink(missing_ok=True)
    groups = sorted((file for file in cache.glob("*.json")), key=lambda file: file.stat().st_mtime)
    sizes = {
        file.stem: sum(each.stat().st_size for each in cache.glob(f"{file.stem}.*"))
        for file in groups
    }
    for file in groups:
        if sum(sizes.values()) <= _MAX_CACHE_BYTES:
            return
        if file.stem != key:
            for each in cache.glob(f"{file.stem}.*"):
                each.unlink(missing_ok=True)
            del sizes[file.stem]
