"""A corpus becomes one row of token ids, in files that are mapped and not held in memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.chat.loss_mask import encode_with_loss_mask
from minillm_repl.checkpoint.checkpoint import ChatTemplate
from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line, strip_joiners
from minillm_repl.tokenizer.base import CharacterTokenizer, Tokenizer
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.documents import Document, split_chunks
from minillm_repl.training.tokens import TokenisedCorpus, cache_key, load_tokens, store_tokens

_MIN_CACHED_CHARACTERS = 4 << 20  # a smaller corpus is tokenised faster than it is found
_DOCUMENTS_PER_GROUP = 64  # documents, or pieces of long ones, that are tokenised together
_CONVERSATIONS_PER_GROUP = 200
_SUBWORD_CHUNK = 1 << 16  # characters
_COUNTED_CHARACTERS = 20_000  # most frequent ones, among which unknown ones are looked for
_SHOWN_CHARACTERS = 20


def tokenise(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    separator: int | None = None,
    template: ChatTemplate | None = None,
    cache: Path | None = None,
    progress: Callable[[float], None] = lambda _share: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> TokenisedCorpus:
    """Return the tokens of a corpus; `template` writes the conversations of one that has them.

    A separator follows each document, if there is more than one. The tokens of a large corpus stay
    in the folder `cache`, where the next run finds them. Raises UserError for a conversation that
    the template refuses, and when interrupted.
    """
    total = int(corpus.character_counts.sum())
    key = ""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    folders: tuple[Path | None, ...] = (None,)  # where the files may be written; None: nowhere kept
    if cache is not None and total >= _MIN_CACHED_CHARACTERS:
        key = cache_key(corpus, tokenizer, separator, template)
        with suppress(OSError, UserError, ValueError, KeyError, TypeError):
            return load_tokens(cache, key, dtype)
        folders = (cache, None)
    separator = separator if corpus.count > 1 else None
    name = safe_line(corpus.name)

    def report_progress(characters: int) -> None:
        progress(characters / total)
        if interrupted():
            raise UserError(_("stopped while reading {name}", name=name))

    for folder in folders:
        chunks = _token_chunks(corpus, tokenizer, separator, template)
        try:
            return _write_tokens(chunks, dtype, tokenizer.vocab_size, folder, key, report_progress)
        except OSError as error:  # The cache's disk is full; another one may not be.
            message = os_error_text(error)
    raise UserError(
        _(
            "could not write the tokens of {name} to a temporary file: {reason}",
            name=name,
            reason=message,
        )
    )


def _write_tokens(
    chunks: Iterator["_TokenChunk"],
    dtype: np.dtype[Any],
    vocab_size: int,
    folder: Path | None,
    key: str,
    progress: Callable[[int], None],
) -> TokenisedCorpus:
    """Write tokens to files, which are kept if there is a folder for them. Raises OSError."""
    with ExitStack() as stack:
        ids, mask_file = _open_outputs(stack, folder)
        unknown, characters_read, has_loss_mask = 0, 0, False
        token_occurs = np.zeros(vocab_size, dtype=np.bool_)
        for chunk in chunks:
            chunk_ids = np.asarray(chunk.ids, dtype=dtype)
            token_occurs[chunk_ids] = True
            ids.write(chunk_ids.tobytes())
            mask_file.write(np.asarray(chunk.loss_mask, dtype=np.bool_).tobytes())
            has_loss_mask |= len(chunk.loss_mask) > 0
            unknown += chunk.unknown
            characters_read += chunk.characters
            progress(characters_read)
        # A plain text needs no mask: every token is a target.
        mask = _memory_map(mask_file, np.dtype(np.bool_)) if has_loss_mask else None
        tokens = TokenisedCorpus(_memory_map(ids, dtype), mask, unknown, int(token_occurs.sum()))
        if isinstance(ids.name, str):  # it is in the cache's folder
            assert folder is not None
            with suppress(OSError, UserError):  # without a cache it is only slower the next time
                store_tokens(folder, key, tokens, ids, mask_file)
    return tokens


def _open_outputs(stack: ExitStack, cache: Path | None) -> tuple[IO[bytes], IO[bytes]]:
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
    # The file stays if `store_tokens` has given it another name by then.
    stack.callback(lambda: Path(file.name).unlink(missing_ok=True))
    return file


def _memory_map(file: IO[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return what was written to a file as an array (count,) that stays on disk."""
    file.flush()
    if not file.tell():
        return np.empty(0, dtype)
    return np.memmap(file, dtype, mode="r")


@dataclass(frozen=True)
class _TokenChunk:
    ids: Sequence[int] | NDArray[Any]
    loss_mask: Sequence[bool]
    characters: int
    unknown: int


def _token_chunks(
    corpus: Corpus, tokenizer: Tokenizer, separator: int | None, template: ChatTemplate | None
) -> Iterator[_TokenChunk]:
    documents = corpus.documents()
    if template is not None:
        return _conversation_chunks(documents, tokenizer, template)
    if isinstance(tokenizer, CharacterTokenizer):
        return _character_chunks(documents, tokenizer, separator)
    return _subword_chunks(documents, tokenizer, separator)


def _character_chunks(
    documents: Iterator[Document], tokenizer: CharacterTokenizer, separator: int | None
) -> Iterator[_TokenChunk]:
    """Look all characters up at once; the processors share the work."""
    missing_id = np.iinfo(np.uint32).max
    # An id for each code point of Unicode, 4 MiB: looking up is one indexing for a whole text.
    table = np.full(0x110000, missing_id, dtype=np.uint32)
    table[[ord(character) for character in tokenizer.characters]] = np.arange(
        len(tokenizer.characters)
    )
    unknown_id = tokenizer.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None

    def encode_group(group: list[Document]) -> _TokenChunk:
        arrays, unknown, characters = [], 0, 0
        for document in group:
            ids = table[np.frombuffer(document.text.encode("utf-32-le"), dtype=np.uint32)]
            missing = ids == missing_id
            unknown += int(missing.sum())
            characters += len(ids)
            arrays.append(
                ids[~missing] if unknown_id is None else np.where(missing, unknown_id, ids)
            )
            if separator is not None and document.is_complete:
                arrays.append(np.array([separator], dtype=np.uint32))
        return _TokenChunk(np.concatenate(arrays), (), characters, unknown)

    with ThreadPoolExecutor() as pool:
        futures = []
        for group in _groups(documents, _DOCUMENTS_PER_GROUP):
            futures.append(pool.submit(encode_group, group))
            if len(futures) > 4:  # bounded: a corpus may be larger than the memory
                yield futures.pop(0).result()
        for future in futures:
            yield future.result()


def _subword_chunks(
    documents: Iterator[Document], tokenizer: Tokenizer, separator: int | None
) -> Iterator[_TokenChunk]:
    """Tokenise piece by piece; the library uses all processors for a group of them."""
    unknown_id = tokenizer.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None
    for group in _groups(_split_long_documents(documents), _DOCUMENTS_PER_GROUP):
        ids: list[int] = []
        for document, encoded in zip(
            group, tokenizer.encode_batch([each.text for each in group]), strict=True
        ):
            ids += encoded
            if separator is not None and document.is_complete:
                ids.append(separator)
        unknown = ids.count(unknown_id) if unknown_id is not None else 0
        yield _TokenChunk(ids, (), sum(len(document.text) for document in group), unknown)


def _split_long_documents(documents: Iterator[Document]) -> Iterator[Document]:
    """Cut long texts: the library takes a text as one piece of work, and needs a hundred times
    its size for it.
    """
    for document in documents:
        *chunks, last = split_chunks(document.text, _SUBWORD_CHUNK)
        yield from (Document(chunk, is_complete=False) for chunk in chunks)
        yield Document(last, is_complete=document.is_complete)


def _conversation_chunks(
    documents: Iterator[Document], tokenizer: Tokenizer, template: ChatTemplate
) -> Iterator[_TokenChunk]:
    n_done = 0
    for group in _groups(documents, _CONVERSATIONS_PER_GROUP):
        ids: list[int] = []
        loss_mask: list[bool] = []
        for tokens, mask in encode_with_loss_mask(
            template, tokenizer, [document.messages for document in group], n_done + 1
        ):
            ids += tokens
            loss_mask += mask
        texts = [text for document in group for text in document.texts]
        unknown = sum(text.count(each) for text in texts for each in tokenizer.find_unknown(text))
        yield _TokenChunk(ids, loss_mask, sum(map(len, texts)), unknown)
        n_done += len(group)


def _groups(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """Yield documents in groups of at most `size`, smaller if they are long."""
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
