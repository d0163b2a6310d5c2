"""A corpus: its files are looked through once, and read as documents as often as needed.

What is learnt and what is only measured are a corpus each; several make a mixture.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint.adapter import printable_path
from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.training import never_interrupted
from minillm_repl.training.corpus_files import (
    JSON_LINES_SUFFIXES,
    N_CODE_POINTS,
    OTHER_SUFFIXES,
    TEXT_SUFFIXES,
    FileFormat,
    Files,
    detect_format,
    inner_suffix,
    read_files,
    scan,
)
from minillm_repl.training.documents import Document, with_file_name
from minillm_repl.training.plan import TrainPlan

_MAX_FILES = 100_000
_MAX_TOLD = 5  # files that are named with what is not clear about them
# documents: so few gaps of several lines are an accident, and separate nothing
_MIN_SEPARATED_DOCUMENTS = 10
_MAX_LONG_SHARE = 0.02  # of long lines; more are no list
PLUS = " + "  # between the corpora of a mixture; spaces, because names of files have a plus
_WEIGHT, _MAX_WEIGHT = re.compile(r"\d{1,3}(\.\d{1,6})?"), 100


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What there is to learn from; it stays on disk, and is read from there as often as needed."""

    name: str  # as the user gave it
    files: Files
    split: str  # as asked for; the format of each file says how it is split
    # of a file: of its text with newlines as line ends and no byte order mark, as UTF-8
    sha256: str
    count: int  # of documents
    is_conversational: bool  # whether there are conversations,
    has_texts: bool  # and whether there are texts
    has_tools: bool  # whether a message is what a tool said
    # (0x110000,), how often each code point occurs
    character_counts: NDArray[np.int64] = field(repr=False)
    notes: tuple[str, ...] = ()  # what was found and mended, a line each
    # of a mixture: its corpora, each with its weight
    parts: tuple[tuple["Corpus", float], ...] = ()

    def documents(self) -> Iterator[Document]:
        """Yield all documents, from the first."""
        if not self.parts:
            yield from read_files(self.files, self.split)
        for part, _weight in self.parts:
            yield from part.documents()

    @property
    def format_key(self) -> str:
        """How it is read, as far as its name and its digest do not say."""
        kinds = [f"{shape.kind}{shape.delimiter}{shape.split}" for _file, shape in self.files]
        return hashlib.sha256("\0".join([self.split, *kinds]).encode()).hexdigest()


def open_corpus(
    path: Path, split: str = "auto", interrupted: Callable[[], bool] = never_interrupted
) -> Corpus:
    """Look through a corpus once: its documents, its characters, its digest.

    `split` says where a text file's documents end: `auto` (after each line, where these are many
    and short; else at a line `<|endoftext|>`, and at two or more blank lines where that is more
    than an accident), `lines`, `blank-lines` (one is enough), `files` (each file is one document)
    or `whole` (nowhere: the whole corpus is one). Each record of JSON or of a table is a document,
    but for these four, which make a text of any file. Raises UserError naming the file, if it
    cannot be read, is not what its ending says, or is empty; or when it is interrupted.
    """
    skipped = list[str]()
    # Path's own raises for a name that is too long.
    is_folder = os.path.isdir(path)  # noqa: PTH112
    files = (
        tuple(_folder_files(path, split, skipped))
        if is_folder
        else ((path, detect_format(path, split)),)
    )
    found = scan(path, files, split, interrupted)
    if split == "auto" and not is_folder:
        # What the start of a file says is held against the whole: paragraphs after a list of
        # contents, or a few gaps of two blank lines, which are an accident.
        kind = files[0][1].split
        if kind == "lines" and found.long_documents > _MAX_LONG_SHARE * found.count:
            kind = "gaps"
            found = scan(path, _with_split(files, kind), split, interrupted)
        if kind == "gaps" and 1 < found.count < _MIN_SEPARATED_DOCUMENTS:
            found = scan(path, _with_split(files, "marks"), split, interrupted)
    name = safe_line(str(path))
    if not found.character_counts[33:].any():  # nothing but white space and control characters
        raise UserError(_("{name} is empty: there is nothing to train on", name=name))
    return Corpus(
        name=str(path),
        files=found.files,
        split=split,
        sha256=found.digest.hexdigest(),
        count=found.count,
        is_conversational=found.has_conversations,
        has_texts=found.has_texts,
        has_tools=found.has_tools,
        character_counts=found.character_counts,
        notes=(*skipped, *found.repairs.notes(is_folder)),
    )


def _with_split(files: Files, split: str) -> Files:
    return tuple((file, replace(shape, split=split)) for file, shape in files)


def _folder_files(
    folder: Path, split: str, skipped: list[str]
) -> Iterator[tuple[Path, FileFormat]]:
    """Yield the files of a folder that are texts; tell of those that are none, or not clear."""
    unclear, no_texts, found = list[str](), list[str](), False
    for file in _list_files(folder):
        suffix = inner_suffix(file)
        try:
            shape = detect_format(file, split)
            # JSON may be anything, such as settings: read its first record to find out. A table
            # was told by its columns.
            if suffix in OTHER_SUFFIXES and shape.kind != "table":
                next(read_files(((file, shape),), "auto"), None)
            # Source code has blank lines within what belongs together.
            if shape.split in ("gaps", "lines") and suffix not in TEXT_SUFFIXES and split == "auto":
                shape = replace(shape, split="marks")
            found = True
            yield file, shape
        except UserError as error:
            if suffix in TEXT_SUFFIXES:
                raise  # A text that cannot be read is an error, and no file to pass over.
            if suffix in (*OTHER_SUFFIXES, *JSON_LINES_SUFFIXES, ".parquet"):
                unclear.append(_("not read: {error}", error=error))
            else:
                no_texts.append(file.name)
    skipped += unclear[:_MAX_TOLD]
    if unclear[_MAX_TOLD:]:
        more = len(unclear) - _MAX_TOLD
        skipped.append(_n("{n:,} more file not read", "{n:,} more files not read", more))
    if no_texts:
        skipped.append(with_file_name(_("no text, left out"), no_texts))
    if not found:
        count = len(unclear) + len(no_texts)
        name = safe_line(str(folder))
        raise UserError(
            _n(
                "no text in {name}: its {n:,} file is none",
                "no text in {name}: none of its {n:,} files is one",
                count,
                name=name,
            )
            + "".join(f"; {note}" for note in unclear[:1])
        )


def _list_files(folder: Path) -> list[Path]:
    """Return the files of a folder in the order of their names. Raises UserError for too many."""
    root = folder.resolve()
    paths = sorted(
        file
        for file in folder.rglob("*")
        if not _is_hidden(file.relative_to(folder))
        and file.is_file()
        and file.resolve().is_relative_to(root)  # no link that leads out of the folder
    )
    if len(paths) > _MAX_FILES:
        raise UserError(
            _(
                "too many files in {name}: {count:,}; the limit is {most:,}",
                count=len(paths),
                name=safe_line(str(folder)),
                most=_MAX_FILES,
            )
        )
    return paths


def _is_hidden(file: Path) -> bool:
    """Tell whether a system or an editor has put a file there, or in a folder of theirs: second
    copies, and no text.
    """
    return any(component.startswith(".") or component == "__MACOSX" for component in file.parts)


# -- several


def mix(name: str, parts: Sequence[tuple[Corpus, float]]) -> Corpus:
    """Return several corpora as one; the documents of each come as often as its weight says."""
    corpora = [part for part, _weight in parts]
    digests = "\n".join(f"{part.sha256} {weight:g}" for part, weight in parts)
    notes = [f"{safe_line(part.name)}: {note}" for part in corpora for note in part.notes]
    return Corpus(
        name=name,
        files=tuple(file for part in corpora for file in part.files),
        split=corpora[0].split,
        sha256=hashlib.sha256(digests.encode()).hexdigest(),
        count=sum(part.count for part in corpora),
        is_conversational=any(part.is_conversational for part in corpora),
        has_texts=any(part.has_texts for part in corpora),
        has_tools=any(part.has_tools for part in corpora),
        character_counts=sum(
            (part.character_counts for part in corpora), np.zeros(N_CODE_POINTS, np.int64)
        ),
        notes=tuple(notes),
        parts=tuple(parts),
    )


@dataclass(frozen=True, kw_only=True)
class OpenCorpora:
    """What is learnt and what is only measured, opened, and where their names hold."""

    name: str  # of what is learnt, as typed
    train: Corpus
    val: str  # as in the plan
    val_corpus: Corpus | None
    working_folder: str  # in which relative names hold
    notes: tuple[str, ...] = ()


def open_corpora(corpus: str, plan: TrainPlan, interrupted: Callable[[], bool]) -> OpenCorpora:
    """Open the texts of a new run. Raises UserError."""
    val_path = user_path(plan.val) if has_val_file(plan) else None
    train = open_parts(corpus, parse_mixture(corpus), plan.documents, interrupted)
    val_corpus = open_corpus(val_path, plan.documents, interrupted) if val_path else None
    is_same = val_corpus is not None and val_corpus.sha256 == train.sha256
    notes = (
        _("the validation text is the training text: its loss says nothing about other texts"),
    ) * is_same
    return OpenCorpora(
        name=corpus,
        train=train,
        val=plan.val,
        val_corpus=val_corpus,
        working_folder=printable_path(Path()),
        notes=notes,
    )


def has_val_file(plan: TrainPlan) -> bool:
    """Tell whether what is measured on is a text of its own."""
    return plan.val not in ("auto", "off")


def open_parts(
    name: str,
    parts: list[tuple[Path, float]],
    split: str,
    interrupted: Callable[[], bool] = never_interrupted,
) -> Corpus:
    """Open a corpus, or the corpora of a mixture. Raises UserError."""
    opened = [(open_corpus(path, split, interrupted), weight) for path, weight in parts]
    return mix(name, opened) if len(opened) > 1 else opened[0][0]


def parse_mixture(name: str, folder: Path = Path()) -> list[tuple[Path, float]]:
    """Return the paths and weights of `tales.txt + talks.jsonl*2`, or the one path of a corpus.

    Raises UserError for a weight that is no positive number.
    """
    whole = folder / user_path(name)
    if exists(whole) or PLUS not in name:
        return [(whole, 1.0)]
    parts = list[tuple[Path, float]]()
    for part in name.split(PLUS):
        path, star, number = part.strip().rpartition("*")
        if not star or exists(folder / user_path(part.strip())):
            parts.append((folder / user_path(part.strip()), 1.0))
            continue
        if not _WEIGHT.fullmatch(number.strip()) or not 0 < float(number) <= _MAX_WEIGHT:
            raise UserError(
                _(
                    "{number:.20} is no weight of a corpus: use a number up to {most}",
                    number=safe_line(number),
                    most=_MAX_WEIGHT,
                )
            )
        parts.append((folder / user_path(path.strip()), float(number)))
    return parts
