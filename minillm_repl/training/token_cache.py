"""The tokens of a corpus in files, which are mapped and not held in memory.

Those of a large corpus are kept in the user's cache folder, so that a second start finds them.
"""

import hashlib
import json
import os
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.training.corpus import Corpus

_VERSION = 5  # of these files; another one makes all of them anew
_MAX_CACHE_BYTES = 20 << 30  # above, the files used longest ago are removed
_STALE_SECONDS = 24 * 3600  # after which nobody writes to an unfinished file any more


@dataclass(frozen=True)
class TokenisedCorpus:
    """A corpus as ids, one after the other; after each document its separator, if it has one."""

    ids: NDArray[np.unsignedinteger]  # (count,), mapped
    # (count,), whether the loss counts this token; None: it counts all
    loss_mask: NDArray[np.bool_] | None
    unknown_characters: int = 0  # characters that the tokenizer does not know
    unique_tokens: int = 0  # ids that occur


def cache_folder() -> Path:
    """Return the folder of the token files."""
    return user_cache_path("minillm-repl") / "tokens"


def cache_key(
    corpus: Corpus, tokenizer: Tokenizer, separator: int | None, template: ChatTemplate | None
) -> str:
    """Return a name for the tokens of a corpus: a digest of all that they depend on."""
    inputs = (
        _VERSION,
        corpus.sha256,
        corpus.format_key,
        corpus.split,
        tokenizer.to_json(),
        separator,
        asdict(template) if template else None,
    )
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=dict).encode()).hexdigest()


def open_outputs(stack: ExitStack, cache: Path | None) -> tuple[IO[bytes], IO[bytes]]:
    """Return two files without a name to write to, in the cache's folder if possible."""
    if cache is not None:
        with suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _temporary_file(stack, cache), _temporary_file(stack, cache)
    return _temporary_file(stack, None), _temporary_file(stack, None)


def _temporary_file(stack: ExitStack, folder: Path | None) -> IO[bytes]:
    if folder is None:
        return stack.enter_context(tempfile.TemporaryFile())
    # Readable by the user alone; the caller's stack closes it.
    temporary = tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False)  # noqa: SIM115
    file = stack.enter_context(temporary)
    # The file stays if `store` has given it another name by then.
    stack.callback(lambda: Path(file.name).unlink(missing_ok=True))
    return file


def memory_map(file: IO[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return what was written to a file as an array (count,) that stays on disk."""
    file.flush()
    if not file.tell():
        return np.empty(0, dtype)
    return np.memmap(file, dtype, mode="r")


def store(
    cache: Path, key: str, tokens: TokenisedCorpus, ids_file: IO[bytes], mask_file: IO[bytes]
) -> None:
    """Give the files their names, then write a third one that says that they are whole."""
    files = {"ids": ids_file, **({"learned": mask_file} if tokens.loss_mask is not None else {})}
    for suffix, file in files.items():
        os.fsync(file.fileno())
        Path(file.name).replace(cache / f"{key}.{suffix}")
    metadata = {
        "count": len(tokens.ids),
        "unknown": tokens.unknown_characters,
        "different": tokens.unique_tokens,
        "parts": [*files],
    }
    write_atomically(cache / f"{key}.json", json.dumps(metadata).encode(), private=True)
    _evict(cache, key)


def load(cache: Path, key: str, dtype: np.dtype[Any]) -> TokenisedCorpus:
    """Return the tokens that were stored.

    Raises OSError, ValueError, KeyError or TypeError if they do not exist, or are not whole.
    """
    metadata = json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))
    arrays = {}
    for suffix in metadata["parts"]:
        path = cache / f"{key}.{suffix}"
        array_dtype = dtype if suffix == "ids" else np.dtype(np.bool_)
        if path.stat().st_size != metadata["count"] * array_dtype.itemsize:
            raise ValueError
        arrays[suffix] = np.memmap(path, array_dtype, mode="r")
    os.utime(cache / f"{key}.json")
    return TokenisedCorpus(
        arrays["ids"], arrays.get("learned"), int(metadata["unknown"]), int(metadata["different"])
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
