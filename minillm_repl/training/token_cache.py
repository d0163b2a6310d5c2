"""A corpus as one row of token ids, and the files in which the ids of a large corpus stay.

They lie in the user's cache folder, so that a second start finds them.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.training.corpus import Corpus

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
