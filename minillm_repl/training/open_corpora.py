"""The texts of a run, opened and as tokens: those that are named, those of a model's record, and
those of a run that goes on elsewhere.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE
from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.checkpoint.adapter import printable_path
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import exists, user_path
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.training import never_interrupted
from minillm_repl.training.corpus import Corpus, mix, open_corpus
from minillm_repl.training.defaults import make_tokenizer
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.resume import RunMetadata
from minillm_repl.training.splits import Weighted
from minillm_repl.training.tokenize import tokenise
from minillm_repl.training.tokens import TokenisedCorpus, cache_folder, describe_unknown

if TYPE_CHECKING:
    from minillm_repl.training.run import RunContext

_EOS_TOKENS = ("<end>", "<|end|>", "<|endoftext|>")

_PLUS = " + "  # between the corpora of a mixture; spaces, because names of files have a plus
_WEIGHT, _MAX_WEIGHT = re.compile(r"\d{1,3}(\.\d{1,6})?"), 100


@dataclass(frozen=True, kw_only=True)
class OpenCorpora:
    """What is learnt and what is only measured, opened, and where their names hold."""

    name: str  # of what is learnt, as typed
    train: Corpus
    val: str  # as in the plan
    val_corpus: Corpus | None
    # in which relative names hold
    working_folder: str = field(default_factory=lambda: printable_path(Path()))
    notes: tuple[str, ...] = ()


def find_corpus(requested: str, checkpoint: Checkpoint | None) -> str:
    """Return the corpus that was named, else the checkpoint's own, if it is there unchanged.

    Raises UserError that says what to type.
    """
    # The record keeps the name as UTF-8; Python reads other bytes as lone surrogates.
    if any("\ud800" <= letter < "\ue000" for letter in requested):
        raise UserError(
            _("the file name {name} is not UTF-8; rename the text file", name=safe_line(requested))
        )
    if requested:
        return requested
    record = checkpoint.record if checkpoint else None
    if checkpoint is None or record is None or not record.corpus:
        raise UserError(
            _(
                "no text is given: `:train CORPUS` needs a text file, such as `:train "
                "story.txt steps=500`"
            )
        )
    # A model that was copied with its text finds it beside itself.
    sibling_paths = (
        [str(checkpoint.path.parent / Path(record.corpus).name)] if checkpoint.path else []
    )
    for name in (record.corpus, *sibling_paths):
        parts = parse_mixture(name)
        is_there = all(exists(path) for path, _weight in parts)
        if is_there and _open_parts(name, parts, "auto").sha256 == record.corpus_sha256:
            return name
    raise UserError(
        _(
            "the training text of this model ({corpus:.80}) is missing or has changed; "
            "give a text with `:train CORPUS`",
            corpus=safe_line(record.corpus),
        )
    )


def parse_mixture(name: str, folder: Path = Path()) -> list[tuple[Path, float]]:
    """Return the paths and weights of `tales.txt + talks.jsonl*2`, or the one path of a corpus.

    Raises UserError for a weight that is no positive number.
    """
    whole = folder / user_path(name)
    if exists(whole) or _PLUS not in name:
        return [(whole, 1.0)]
    parts = list[tuple[Path, float]]()
    for part in name.split(_PLUS):
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


def _open_parts(
    name: str,
    parts: list[tuple[Path, float]],
    split: str,
    interrupted: Callable[[], bool] = never_interrupted,
) -> Corpus:
    """Open a corpus, or the corpora of a mixture. Raises UserError."""
    opened = [(open_corpus(path, split, interrupted), weight) for path, weight in parts]
    return mix(name, opened) if len(opened) > 1 else opened[0][0]


def open_corpora(corpus: str, plan: TrainPlan, interrupted: Callable[[], bool]) -> OpenCorpora:
    """Open the texts of a new run. Raises UserError."""
    train = _open_parts(corpus, parse_mixture(corpus), plan.documents, interrupted)
    val_corpus = (
        open_corpus(user_path(plan.val), plan.documents, interrupted)
        if has_val_file(plan)
        else None
    )
    is_same = val_corpus is not None and val_corpus.sha256 == train.sha256
    notes = (
        _("the validation text is the training text: its loss says nothing about other texts"),
    ) * is_same
    return OpenCorpora(name=corpus, train=train, val=plan.val, val_corpus=val_corpus, notes=notes)


def has_val_file(plan: TrainPlan) -> bool:
    """Tell whether what is measured on is a text of its own."""
    return plan.val not in ("auto", "off")


def reopen_corpora(
    metadata: RunMetadata,
    requested: str,
    plan: TrainPlan,
    checkpoint: Path,
    interrupted: Callable[[], bool],
) -> OpenCorpora:
    """Open the texts of a run that goes on: as `requested`, or else as they were named.

    Raises UserError where a text is nowhere, or is another one by now.
    """
    find_corpus(requested or metadata.corpus, None)  # only for its errors
    original_path, requested_path = user_path(metadata.corpus), user_path(requested)
    places = (
        [requested_path]
        if requested
        else list(_candidate_paths(original_path, metadata.working_folder, checkpoint.parent))
    )
    mixed = requested or metadata.corpus
    if _PLUS in mixed:
        folders_of_mixture = (Path(metadata.working_folder), Path(), checkpoint.parent)
        train = _find_mixture(
            mixed, folders_of_mixture, metadata.corpus_sha256, plan.documents, interrupted
        )
        train_path = Path(metadata.working_folder) / original_path
    else:
        train_path, train = _find_unchanged(
            original_path, places, metadata.corpus_sha256, plan.documents, interrupted
        )
    val, val_corpus = plan.val, None
    if has_val_file(plan):
        folders = [checkpoint.parent, *([requested_path.parent] if requested else [])]
        places = list(_candidate_paths(user_path(val), metadata.working_folder, *folders))
        val_path, val_corpus = _find_unchanged(
            user_path(val), places, metadata.val_sha256, plan.documents, interrupted
        )
        val = str(val_path)
    if train_path == Path(metadata.working_folder) / original_path and Path(val) == Path(
        metadata.working_folder
    ) / user_path(plan.val):
        return OpenCorpora(
            name=metadata.corpus,
            train=train,
            val=plan.val,
            val_corpus=val_corpus,
            working_folder=metadata.working_folder or printable_path(Path()),
        )
    note = _("the text file has moved: it is read from {path}", path=safe_line(str(train_path)))
    return OpenCorpora(
        name=str(train_path),
        train=train,
        val=val,
        val_corpus=val_corpus,
        notes=(note,) if train_path != Path(metadata.working_folder) / original_path else (),
    )


def _find_mixture(
    name: str,
    folders: Sequence[Path],
    sha256: str,
    split: str,
    interrupted: Callable[[], bool],
) -> Corpus:
    """Return the mixture whose parts lie in one of the folders. Raises UserError."""
    missing = ""
    for folder in folders:
        parts = parse_mixture(name, folder)
        absent = [path for path, _weight in parts if not exists(path)]
        if not absent:
            corpus = _open_parts(name, parts, split, interrupted)
            if corpus.sha256 == sha256:
                return corpus
            raise UserError(_changed_error(name))
        missing = missing or str(absent[0])
    raise UserError(_missing_error(missing))


def _candidate_paths(path: Path, *folders: str | Path) -> Iterator[Path]:
    """Yield where a text may lie that was named in the first of the folders."""
    first, *others = folders
    yield Path(first) / path
    yield path
    yield from (folder / path.name for folder in map(Path, others))


def _find_unchanged(
    path: Path,
    candidate_paths: list[Path],
    sha256: str,
    split: str,
    interrupted: Callable[[], bool],
) -> tuple[Path, Corpus]:
    """Return the first of the places at which a text of that digest lies, and the text.

    Raises UserError.
    """
    existing = [place for place in dict.fromkeys(candidate_paths) if exists(place)]
    for place in existing:
        corpus = open_corpus(place, split, interrupted)
        # Older resume files have no digest of a validation text: then any text there is taken.
        if corpus.sha256 == sha256 or not sha256:
            return place, corpus
    name = safe_line(os.fspath(existing[0] if existing else path))
    raise UserError(_changed_error(name) if existing else _missing_error(name))


def _changed_error(name: str) -> str:
    return _(
        "{corpus} has changed: the run cannot be resumed exactly; start a new one with `:train`",
        corpus=safe_line(name),
    )


def _missing_error(name: str) -> str:
    return _(
        "the text {corpus} of this run is missing; give its new path with `:train resume FILE` "
        "or `--resume --train FILE`",
        corpus=safe_line(name),
    )


# -- tokenise


@dataclass(kw_only=True)
class Texts:
    """What a run learns from, as tokens, and what writes them."""

    name: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]
    train: list[Weighted] = field(default_factory=list)
    val: TokenisedCorpus | None = None  # a text of its own to measure on
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """The tokens of one pass."""
        return sum(int(len(tokens.ids) * weight) for tokens, weight in self.train)

    @property
    def unique_tokens(self) -> int:
        """How many tokens of the vocabulary occur in the corpus that has the most."""
        return max(tokens.unique_tokens for tokens, _weight in self.train)


def tokenise_corpora(
    corpora: OpenCorpora,
    start: Checkpoint | None,
    plan: TrainPlan,
    context: "RunContext",
    chat: ChatTemplate | None,
    *,
    is_resumed: bool = False,
) -> Texts:
    """Return the texts of a run as tokens; a new model gets its tokenizer here."""
    is_conversational = corpora.train.is_conversational
    if start:
        tokenizer, template = start.tokenizer, start.chat_template
        eos_token_ids = start.eos_token_ids
    else:
        tokenizer = make_tokenizer(plan.tokenizer, corpora.train)
        template = chat or (DEFAULT_CHAT_TEMPLATE if is_conversational else None)
        eos_token_ids = _find_eos(tokenizer)
    if eos_token_ids and corpora.train.count > 1 and corpora.train.has_texts:
        # Training puts this token between texts, so each begins after one: prompts must too.
        tokenizer = tokenizer.with_start(tokenizer.special_name(eos_token_ids[0]))
    text = Texts(
        name=corpora.name,
        tokenizer=tokenizer,
        chat_template=template,
        eos_token_ids=eos_token_ids,
        notes=[*corpora.notes],
    )
    if start and start.chat_template and not is_resumed and not is_conversational:
        text.warnings.append(_forgetting_warning(corpora.train))
    for part, weight in corpora.train.parts:
        is_part = bool(corpora.train.mixture)
        text.train.append((_tokenise_one(part, text, context, is_part=is_part), weight))
    if corpora.val_corpus:
        text.val = _tokenise_one(corpora.val_corpus, text, context)
    return text


def _tokenise_one(
    corpus: Corpus, text: Texts, context: "RunContext", *, is_part: bool = False
) -> TokenisedCorpus:
    text.notes += [f"{safe_line(corpus.name)}: {note}" for note in corpus.notes]
    if corpus.is_conversational and text.chat_template is None:
        raise UserError(
            _(
                "the corpus contains conversations, but this model has no chat "
                "template to render them"
            )
        )
    tokens = tokenise(
        corpus,
        text.tokenizer,
        separator=text.eos_token_ids[0] if text.eos_token_ids else None,
        template=text.chat_template if corpus.is_conversational else None,
        cache=cache_folder(),
        is_part=is_part,
        progress=context.progress,
        interrupted=context.interrupted,
    )
    if tokens.unknown_characters:
        text.notes.append(describe_unknown(tokens, corpus, text.tokenizer))
    return tokens


def _forgetting_warning(corpus: Corpus) -> str:
    """Return the warning before a model that chats learns plain text."""
    return _(
        "{corpus} is plain text, but this model chats: training on it makes the answers "
        "worse. To teach answers, use conversations as JSON lines with `messages` "
        "(docs/training.md)",
        corpus=safe_line(corpus.name),
    )


def _find_eos(tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = (tokenizer.token_to_id(name) for name in _EOS_TOKENS)
    return tuple(token for token in ids if token is not None)[:1]
