"""A corpus as one row of token ids in a file, which is mapped and not held in memory.

Those of larger corpora are kept in the user's cache folder, so that a second start finds them.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from minillm_repl.chat.loss_mask import trained_ids
from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError, reason
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.documents import Document, pieces

_VERSION = 5  # of these files; another one makes all of them anew
_KEPT = 4 << 20  # characters: what is smaller is read again faster than it is found
_FULL = 20 << 30  # bytes in the cache, above which those used longest ago go
_AT_ONCE = 64  # documents or pieces that are tokenised together
_CONVERSATIONS = 200
_SUBWORD_PIECE = 1 << 16  # characters
_ABANDONED = 24 * 3600  # seconds, after which an unfinished file has nobody who writes it


@dataclass(frozen=True)
class Tokens:
    """A corpus as ids, one after the other; after each document its separator, if it has one."""

    ids: NDArray[np.unsignedinteger]  # (count,), mapped
    # (count,), whether the loss counts this token; None: it counts all
    learned: NDArray[np.bool_] | None
    unknown: int = 0  # characters that the tokenizer does not know
    different: int = 0  # ids that occur


def cache_folder() -> Path:
    """Return where token files are kept."""
    return user_cache_path("minillm-repl") / "tokens"


def tokenise(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    separator: int | None = None,
    template: ChatTemplate | None = None,
    cache: Path | None = None,
    progress: Callable[[float], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tokens:
    """Return the tokens of a corpus; `template` writes the conversations of one that has them.

    A separator comes after each document, if there is more than one. What a large corpus gives is
    kept in the folder
    `cache`, and found there the next time. Raises UserError for a conversation that the template
    refuses, and when interrupted.
    """
    total = int(corpus.characters.sum())
    key = _key(corpus, tokenizer, separator, template)
    dtype = np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.uint32)
    if cache is not None and total >= _KEPT:
        with suppress(OSError, UserError, ValueError, KeyError, TypeError):
            return _open(cache, key, dtype)
    separator = separator if corpus.count > 1 else None

    def read(characters: int) -> None:
        progress(characters / total)
        if interrupted():
            raise UserError(_("stopped while reading {name}", name=safe_line(corpus.name)))

    for folder in (cache, None) if cache is not None and total >= _KEPT else (None,):
        try:
            return _written(
                _tokenised(corpus, tokenizer, separator, template),
                dtype,
                tokenizer.size,
                folder,
                key,
                read,
            )
        except OSError as error:  # the cache's disk is full; another one may not be
            why = reason(error)
    name = safe_line(corpus.name)
    raise UserError(
        _(
            "could not write the tokens of {name} to a temporary file: {reason}",
            name=name,
            reason=why,
        )
    )


def _written(
    pieces: Iterator["_Piece"],
    dtype: np.dtype[Any],
    size: int,
    folder: Path | None,
    key: str,
    progress: Callable[[int], None],
) -> Tokens:
    """Write tokens to files, which are kept if there is a folder for them. Raises OSError."""
    with ExitStack() as stack:
        ids, learned = _files(stack, folder)
        unknown, read, marked = 0, 0, False
        occurs = np.zeros(size, dtype=np.bool_)
        for piece in pieces:
            found = np.asarray(piece.ids, dtype=dtype)
            occurs[found] = True
            ids.write(found.tobytes())
            learned.write(np.asarray(piece.learned, dtype=np.bool_).tobytes())
            marked |= len(piece.learned) > 0
            unknown += piece.unknown
            read += piece.characters
            progress(read)
        mask = _mapped(learned, np.dtype(np.bool_)) if marked else None
        tokens = Tokens(_mapped(ids, dtype), mask, unknown, int(occurs.sum()))
        if isinstance(ids.name, str):  # it is in the cache's folder
            assert folder is not None
            with suppress(OSError, UserError):  # without a cache it is only slower the next time
                _keep(folder, key, tokens, ids, learned)
    return tokens


@dataclass(frozen=True)
class _Piece:
    ids: Sequence[int] | NDArray[Any]
    learned: Sequence[bool]
    characters: int
    unknown: int


def _tokenised(
    corpus: Corpus, tokenizer: Tokenizer, separator: int | None, template: ChatTemplate | None
) -> Iterator[_Piece]:
    documents = corpus.documents()
    if template is not None:
        return _conversations(documents, tokenizer, template)
    if isinstance(tokenizer, CharacterTokenizer):
        return _characters(documents, tokenizer, separator)
    return _subwords(documents, tokenizer, separator)


def _characters(
    documents: Iterator[Document], tokenizer: CharacterTokenizer, separator: int | None
) -> Iterator[_Piece]:
    """Look all characters up at once; the processors share the work."""
    nothing = np.iinfo(np.uint32).max
    table = np.full(0x110000, nothing, dtype=np.uint32)
    table[[ord(character) for character in tokenizer.characters]] = np.arange(
        len(tokenizer.characters)
    )
    lost = tokenizer.named(tokenizer.unknown_becomes) if tokenizer.unknown_becomes else None

    def work(group: list[Document]) -> _Piece:
        parts, unknown, characters = [], 0, 0
        for document in group:
            ids = table[np.frombuffer(document.text.encode("utf-32-le"), dtype=np.uint32)]
            missing = ids == nothing
            unknown += int(missing.sum())
            characters += len(ids)
            parts.append(ids[~missing] if lost is None else np.where(missing, lost, ids))
            if separator is not None and document.ends:
                parts.append(np.array([separator], dtype=np.uint32))
        return _Piece(np.concatenate(parts), (), characters, unknown)

    with ThreadPoolExecutor() as pool:
        waiting = []
        for group in _groups(documents, _AT_ONCE):
            waiting.append(pool.submit(work, group))
            if len(waiting) > 4:  # bounded: a corpus may be larger than the memory
                yield waiting.pop(0).result()
        for work_left in waiting:
            yield work_left.result()


def _subwords(
    documents: Iterator[Document], tokenizer: Tokenizer, separator: int | None
) -> Iterator[_Piece]:
    """Tokenise piece by piece; the library uses all processors for a group of them."""
    lost = tokenizer.named(tokenizer.unknown_becomes) if tokenizer.unknown_becomes else None
    for group in _groups(_in_pieces(documents), _AT_ONCE):
        ids: list[int] = []
        for document, encoded in zip(
            group, tokenizer.encode_many([each.text for each in group]), strict=True
        ):
            ids += encoded
            if separator is not None and document.ends:
                ids.append(separator)
        unknown = ids.count(lost) if lost is not None else 0
        yield _Piece(ids, (), sum(len(document.text) for document in group), unknown)


def _in_pieces(documents: Iterator[Document]) -> Iterator[Document]:
    """Cut long texts: the library takes a text as one piece of work, and needs a hundred times
    its size for it.
    """
    for document in documents:
        *parts, last = pieces(document.text, _SUBWORD_PIECE)
        yield from (Document(part, ends=False) for part in parts)
        yield Document(last, ends=document.ends)


def _conversations(
    documents: Iterator[Document], tokenizer: Tokenizer, template: ChatTemplate
) -> Iterator[_Piece]:
    done = 0
    for group in _groups(documents, _CONVERSATIONS):
        ids: list[int] = []
        learned: list[bool] = []
        for tokens, counts in trained_ids(
            template, tokenizer, [document.messages for document in group], done + 1
        ):
            ids += tokens
            learned += counts
        said = [text for document in group for text in document.texts]
        unknown = sum(text.count(each) for text in said for each in tokenizer.unknown(text))
        yield _Piece(ids, learned, sum(map(len, said)), unknown)
        done += len(group)


def _groups(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """Yield documents in groups of so many, fewer if they are long."""
    group: list[Document] = []
    length = 0
    for document in documents:
        group.append(document)
        length += sum(map(len, document.texts))
        if len(group) >= size or length > 1 << 20:
            yield group
            group, length = [], 0
    if group:
        yield group


def _key(
    corpus: Corpus, tokenizer: Tokenizer, separator: int | None, template: ChatTemplate | None
) -> str:
    """Return what names the tokens of a corpus: all that they depend on."""
    described = [
        _VERSION,
        corpus.sha256,
        corpus.shape,
        corpus.split,
        tokenizer.to_json(),
        separator,
    ]
    described.append(asdict(template) if template else None)
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=dict).encode()).hexdigest()


def _files(stack: ExitStack, cache: Path | None) -> tuple[IO[bytes], IO[bytes]]:
    """Return two files to write to that nobody else sees; in the cache's folder if that can be
    written to.
    """
    if cache is not None:
        with suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _temporary(stack, cache), _temporary(stack, cache)
    return _temporary(stack, None), _temporary(stack, None)


def _temporary(stack: ExitStack, folder: Path | None) -> IO[bytes]:
    if folder is None:
        return stack.enter_context(tempfile.TemporaryFile())
    # Readable by the user alone; the caller's stack closes it.
    file = stack.enter_context(tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False))  # noqa: SIM115
    # unless it has got another name by then
    stack.callback(lambda: Path(file.name).unlink(missing_ok=True))
    return file


def _mapped(file: IO[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    file.flush()
    if not file.tell():
        return np.empty(0, dtype)
    return np.memmap(file, dtype, mode="r")


def _keep(cache: Path, key: str, tokens: Tokens, ids: IO[bytes], learned: IO[bytes]) -> None:
    """Give the files their names, then write beside them that they are whole."""
    parts = {"ids": ids, **({"learned": learned} if tokens.learned is not None else {})}
    for part, file in parts.items():
        os.fsync(file.fileno())
        Path(file.name).replace(cache / f"{key}.{part}")
    facts = {
        "count": len(tokens.ids),
        "unknown": tokens.unknown,
        "different": tokens.different,
        "parts": [*parts],
    }
    write_atomically(cache / f"{key}.json", json.dumps(facts).encode(), private=True)
    _make_room(cache, key)


def _open(cache: Path, key: str, dtype: np.dtype[Any]) -> Tokens:
    """Open what was kept.

    Raises OSError, ValueError, KeyError or TypeError if it is not there, or not whole.
    """
    facts = json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))
    opened = {}
    for part in facts["parts"]:
        path = cache / f"{key}.{part}"
        kind = dtype if part == "ids" else np.dtype(np.bool_)
        if path.stat().st_size != facts["count"] * kind.itemsize:
            raise ValueError
        opened[part] = np.memmap(path, kind, mode="r")
    os.utime(cache / f"{key}.json")
    return Tokens(
        opened["ids"], opened.get("learned"), int(facts["unknown"]), int(facts["different"])
    )


def _make_room(cache: Path, key: str) -> None:
    """Remove those used longest ago, but not this one, until the rest is no more than may be
    kept.
    """
    for file in cache.glob(".*"):
        if file.stat().st_mtime < time.time() - _ABANDONED:
            file.unlink(missing_ok=True)
    groups = sorted((file for file in cache.glob("*.json")), key=lambda file: file.stat().st_mtime)
    sizes = {
        file.stem: sum(each.stat().st_size for each in cache.glob(f"{file.stem}.*"))
        for file in groups
    }
    for file in groups:
        if sum(sizes.values()) <= _FULL:
            return
        if file.stem != key:
            for each in cache.glob(f"{file.stem}.*"):
                each.unlink(missing_ok=True)
            del sizes[file.stem]
