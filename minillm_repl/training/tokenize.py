"""A corpus becomes one row of token ids, in files that are mapped and not held in memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.chat.loss_mask import encode_with_loss_mask
from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.safetext import safe_line, strip_joiners
from minillm_repl.storage.mapped import memory_map, open_temporary
from minillm_repl.tokenizer import CharacterTokenizer, Tokenizer
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.corpus_files import Piece, groups, read_files
from minillm_repl.training.documents import Document, split_long_documents
from minillm_repl.training.token_cache import TokenisedCorpus, cache_key, load_tokens, store_tokens

_MIN_CACHED_CHARACTERS = 4 << 20  # a smaller corpus is tokenised faster than it is found
_DOCUMENTS_PER_GROUP = 64  # documents, or pieces of long ones, that are tokenised together
_CONVERSATIONS_PER_GROUP = 200
_SUBWORD_CHUNK = 1 << 16  # characters: a library needs a hundred times the size of a text for it
_COUNTED_CHARACTERS = 20_000  # most frequent ones, among which unknown ones are looked for
_SHOWN_CHARACTERS = 20


def tokenise(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    separator: int | None = None,
    template: ChatTemplate | None = None,
    cache: Path | None = None,
    is_part: bool = False,
    progress: Callable[[float], None] = lambda _share: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> TokenisedCorpus:
    """Return the tokens of a corpus, no mixture; `template` writes the conversations in it.

    A text begins as a prompt does, with the start token of the tokenizer. A separator follows each
    text, if there is more than one document, or if the corpus is a part of a mixture; where it is
    that start token, it serves as both. The tokens of a large corpus stay in the folder `cache`,
    where the next run finds them. Raises UserError for a conversation that the template refuses,
    and when interrupted.
    """
    total = int(corpus.character_counts.sum())
    separator = separator if (corpus.count > 1 or is_part) and corpus.has_texts else None
    lead = () if separator is None else (separator,)
    start_ids = () if tokenizer.start_ids == lead else tokenizer.start_ids
    lead = () if start_ids else lead
    key = ""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    folders: tuple[Path | None, ...] = (None,)  # where the files may be written; None: nowhere kept
    if cache is not None and total >= _MIN_CACHED_CHARACTERS:
        key = cache_key(corpus, tokenizer, separator, template)
        with suppress(OSError, UserError, ValueError, KeyError, TypeError):
            return replace(load_tokens(cache, key, dtype), lead=lead)
        folders = (cache, None)
    name = safe_line(corpus.name)

    def report_progress(characters: int) -> None:
        progress(characters / total)
        if interrupted():
            raise UserError(_("stopped while reading {name}", name=name))

    for folder in folders:
        encoder = _Encoder(tokenizer, template, separator, start_ids)
        documents = read_files(corpus.files, corpus.split)
        try:
            tokens = _write_tokens(encoder, documents, dtype, folder, key, report_progress)
            return replace(tokens, lead=lead)
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
    encoder: "_Encoder",
    documents: Iterator[Document],
    dtype: np.dtype[Any],
    folder: Path | None,
    key: str,
    progress: Callable[[int], None],
) -> TokenisedCorpus:
    """Write tokens to files, which are kept if there is a folder for them. Raises OSError."""
    with ExitStack() as stack:
        ids, ends, mask_file = open_temporary(stack, folder, count=3)
        unknown, characters_read, has_loss_mask, n_tokens = 0, 0, False, 0
        token_occurs = np.zeros(encoder.tokenizer.vocab_size, dtype=np.bool_)
        for chunk in encoder.chunks(documents):
            chunk_ids = np.asarray(chunk.ids, dtype=dtype)
            token_occurs[chunk_ids] = True
            ids.write(chunk_ids.tobytes())
            ends.write((np.asarray(chunk.ends, dtype=np.int64) + n_tokens).tobytes())
            mask_file.write(np.asarray(chunk.loss_mask, dtype=np.bool_).tobytes())
            has_loss_mask |= len(chunk.loss_mask) > 0
            n_tokens += len(chunk_ids)
            unknown += chunk.unknown
            characters_read += chunk.characters
            progress(characters_read)
        # A plain text needs no mask: every token is a target.
        mask = memory_map(mask_file, np.dtype(np.bool_)) if has_loss_mask else None
        tokens = TokenisedCorpus(
            memory_map(ids, dtype),
            memory_map(ends, np.dtype(np.int64)),
            mask,
            unknown,
            int(token_occurs.sum()),
        )
        if isinstance(ids.name, str):  # it is in the cache's folder
            assert folder is not None
            files = {"ids": ids, "ends": ends, **({"learned": mask_file} if has_loss_mask else {})}
            with suppress(OSError, UserError):  # without a cache it is only slower the next time
                store_tokens(folder, key, tokens, files)
    return tokens


@dataclass(frozen=True)
class _TokenChunk:
    ids: Sequence[int] | NDArray[Any]
    ends: Sequence[int]  # of the documents that end in it, from its start
    loss_mask: Sequence[bool]
    characters: int
    unknown: int


@dataclass(frozen=True)
class _Encoder:
    """Turns documents into tokens, group by group."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    separator: int | None
    start_ids: tuple[int, ...]  # before each document, if the separator does not do

    def chunks(self, documents: Iterator[Document]) -> Iterator[_TokenChunk]:
        """Yield the tokens of documents. Raises UserError as `encode_with_loss_mask` does."""
        if self.template is not None:
            return self._conversation_chunks(documents)
        if isinstance(self.tokenizer, CharacterTokenizer):
            return self._character_chunks(documents, self.tokenizer)
        return self._subword_chunks(documents)

    def _character_chunks(
        self, documents: Iterator[Document], tokenizer: CharacterTokenizer
    ) -> Iterator[_TokenChunk]:
        """Look all characters up at once; the processors share the work."""
        missing_id = np.iinfo(np.uint32).max
        # An id for each code point of Unicode, 4 MiB: looking up is one indexing for a whole text.
        table = np.full(0x110000, missing_id, dtype=np.uint32)
        table[[ord(character) for character in tokenizer.characters]] = np.arange(
            len(tokenizer.characters)
        )
        unknown_id = tokenizer.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None

        def encode_group(group: list[Piece]) -> _TokenChunk:
            arrays, ends = list[NDArray[Any]](), list[int]()
            unknown, characters, n_tokens = 0, 0, 0
            for document, is_first in group:
                ids = table[np.frombuffer(document.text.encode("utf-32-le"), dtype=np.uint32)]
                missing = ids == missing_id
                characters += len(ids)
                if tokenizer.has_bytes:
                    known = _with_bytes(tokenizer, document.text, ids, missing)
                elif unknown_id is None:
                    known = ids[~missing]
                else:
                    known = np.where(missing, unknown_id, ids)
                unknown += 0 if tokenizer.has_bytes else int(missing.sum())
                before, after = self._around(document, is_first=is_first)
                parts = np.array(before, np.uint32), known, np.array(after, np.uint32)
                arrays += parts
                n_tokens += sum(map(len, parts))
                if document.is_complete:
                    ends.append(n_tokens)
            return _TokenChunk(np.concatenate(arrays), ends, (), characters, unknown)

        with ThreadPoolExecutor() as pool:
            futures = []
            for group in groups(documents, _DOCUMENTS_PER_GROUP):
                futures.append(pool.submit(encode_group, group))
                if len(futures) > 4:  # bounded: a corpus may be larger than the memory
                    yield futures.pop(0).result()
            for future in futures:
                yield future.result()

    def _around(self, document: Document, *, is_first: bool) -> tuple[Sequence[int], Sequence[int]]:
        """Return the tokens before and after a piece of a document."""
        separator = () if self.separator is None else (self.separator,)
        return self.start_ids if is_first else (), separator if document.is_complete else ()

    def _subword_chunks(self, documents: Iterator[Document]) -> Iterator[_TokenChunk]:
        """Tokenise piece by piece; the library uses all processors for a group of them."""
        tokenizer = self.tokenizer
        unknown_id = tokenizer.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None
        for group in groups(split_long_documents(documents, _SUBWORD_CHUNK), _DOCUMENTS_PER_GROUP):
            ids, ends = list[int](), list[int]()
            for (document, is_first), encoded in zip(group, self._encode(group), strict=True):
                before, after = self._around(document, is_first=is_first)
                ids += [*before, *encoded, *after]
                if document.is_complete:
                    ends.append(len(ids))
            unknown = ids.count(unknown_id) if unknown_id is not None else 0
            characters = sum(len(document.text) for document, _is_first in group)
            yield _TokenChunk(ids, ends, (), characters, unknown)

    def _encode(self, group: list[Piece]) -> list[list[int]]:
        """Return the ids of texts without a start token; a document begins as a prompt does."""
        # Some tokenizers put a space before a text, and none before a text that goes on.
        skipped, encoded = len(self.tokenizer.start_ids), dict[int, list[int]]()
        for begins in (True, False):
            numbers = [index for index, (_text, is_first) in enumerate(group) if is_first == begins]
            texts = [group[index][0].text for index in numbers]
            found = self.tokenizer.encode_batch(texts, add_special=begins)
            encoded |= zip(numbers, (ids[skipped * begins :] for ids in found), strict=True)
        return [encoded[index] for index in range(len(group))]

    def _conversation_chunks(self, documents: Iterator[Document]) -> Iterator[_TokenChunk]:
        """Tokenise conversations, and the texts between them, which are learnt as a whole."""
        assert self.template is not None
        n_done = 0
        documents = split_long_documents(documents, _SUBWORD_CHUNK)
        for group in groups(documents, _CONVERSATIONS_PER_GROUP):
            talks = [document.messages for document, _is_first in group if document.messages]
            examples = iter(
                encode_with_loss_mask(self.template, self.tokenizer, talks, n_done + 1)
                if talks
                else ()
            )
            n_done += len(talks)
            plain = [piece for piece in group if not piece[0].messages]
            encoded = iter(self._encode(plain))
            ids, ends, loss_mask = list[int](), list[int](), list[bool]()
            for document, is_first in group:
                if document.messages:
                    for tokens, mask in next(examples):
                        ids += tokens
                        loss_mask += mask
                else:
                    before, after = self._around(document, is_first=is_first)
                    ids += [*before, *next(encoded), *after]
                    loss_mask += [True] * (len(ids) - len(loss_mask))
                if document.is_complete:
                    ends.append(len(ids))
            texts = [text for document, _is_first in group for text in document.texts]
            find = self.tokenizer.find_unknown
            unknown = sum(text.count(each) for text in texts for each in find(text))
            yield _TokenChunk(ids, ends, loss_mask, sum(map(len, texts)), unknown)


def _with_bytes(
    tokenizer: CharacterTokenizer, text: str, ids: NDArray[Any], missing: NDArray[np.bool_]
) -> NDArray[Any]:
    """Return the ids of a text in which the bytes of each missing character stand in its place."""
    parts, done = list[Any](), 0
    for place in np.flatnonzero(missing).tolist():
        parts += [ids[done:place], tokenizer.unknown_ids(text[place])]
        done = place + 1
    return np.concatenate([*parts, ids[done:]]).astype(np.uint32)


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
