"""The texts of a run: those that are named, those of a model's record, and those of a run that
goes on elsewhere.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.formats.adapter import printable_path
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import there, user_path
from minillm_repl.training.corpus import Corpus, open_corpus
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.resume import Facts


@dataclass(frozen=True)
class Texts:
    """What is learnt and what is only measured, opened, and where their names hold."""

    name: str  # of what is learnt, as typed
    learnt: Corpus
    val: str  # as in the plan
    held: Corpus | None
    # in which relative names hold
    folder: str = field(default_factory=lambda: printable_path(Path()))
    notes: tuple[str, ...] = ()


def find_corpus(named: str, checkpoint: Checkpoint | None) -> str:
    """Return the corpus that was named, else the one the checkpoint was trained on, if it is there
    unchanged.

    Raises UserError that says what to type.
    """
    # bytes that are no UTF-8, as which it is kept
    if any("\ud800" <= letter < "\ue000" for letter in named):
        raise UserError(
            _("the name {name} is not UTF-8; give the text another", name=safe_line(named))
        )
    if named:
        return named
    record = checkpoint.record if checkpoint else None
    if checkpoint is None or record is None or not record.corpus:
        raise UserError(
            _("which text? `:train CORPUS` takes a text file, such as `:train story.txt steps=500`")
        )
    beside = [str(checkpoint.path.parent / Path(record.corpus).name)] if checkpoint.path else []
    for name in (record.corpus, *beside):
        if there(user_path(name)) and open_corpus(user_path(name)).sha256 == record.corpus_sha256:
            return name
    raise UserError(
        _(
            "the text that this model was trained on ({corpus:.80}) is not here, or has "
            "changed; name one"
            " with `:train CORPUS`",
            corpus=safe_line(record.corpus),
        )
    )


def open_texts(corpus: str, plan: TrainPlan, interrupted: Callable[[], bool]) -> Texts:
    """Open the texts of a new run. Raises UserError."""
    learnt = open_corpus(user_path(corpus), plan.documents, interrupted)
    held = (
        open_corpus(user_path(plan.val), plan.documents, interrupted)
        if holds_out_a_file(plan)
        else None
    )
    same = held is not None and held.sha256 == learnt.sha256
    notes = (
        _("what is held out is the text that is learnt: its loss says nothing about other texts"),
    ) * same
    return Texts(corpus, learnt, plan.val, held, notes=notes)


def holds_out_a_file(plan: TrainPlan) -> bool:
    """Tell whether what is measured on is a text of its own."""
    return plan.val not in ("auto", "off")


def open_again(
    facts: Facts, named: str, plan: TrainPlan, checkpoint: Path, interrupted: Callable[[], bool]
) -> Texts:
    """Open the texts of a run that goes on: as `named` anew, else where they were, here, or beside
    the checkpoint.

    Raises UserError where a text is nowhere, or is another one by now.
    """
    find_corpus(named or facts.corpus, None)
    old, new = user_path(facts.corpus), user_path(named)
    places = [new] if named else list(_places(old, facts.folder, checkpoint.parent))
    where, learnt = _same(old, places, facts.corpus_sha256, plan.documents, interrupted)
    val, held = plan.val, None
    if holds_out_a_file(plan):
        around = [checkpoint.parent, *([new.parent] if named else [])]
        places = list(_places(user_path(val), facts.folder, *around))
        beside, held = _same(user_path(val), places, facts.val_sha256, plan.documents, interrupted)
        val = str(beside)
    if where == Path(facts.folder) / old and Path(val) == Path(facts.folder) / user_path(plan.val):
        return Texts(facts.corpus, learnt, plan.val, held, facts.folder or printable_path(Path()))
    note = _("the text has moved: it is read from {path}", path=safe_line(str(where)))
    return Texts(
        str(where), learnt, val, held, notes=(note,) if where != Path(facts.folder) / old else ()
    )


def _places(path: Path, *folders: str | Path) -> Iterator[Path]:
    """Yield where a text may lie that was named in the first of the folders."""
    first, *others = folders
    yield Path(first) / path
    yield path
    yield from (folder / path.name for folder in map(Path, others))


def _same(
    path: Path, places: list[Path], sha256: str, split: str, interrupted: Callable[[], bool]
) -> tuple[Path, Corpus]:
    """Return the first of the places at which a text of that digest lies, and the text.

    Raises UserError.
    """
    found = [place for place in dict.fromkeys(places) if there(place)]
    for place in found:
        opened = open_corpus(place, split, interrupted)
        # older files do not say that of a text that is held out
        if opened.sha256 == sha256 or not sha256:
            return place, opened
    name = safe_line(os.fspath(found[0] if found else path))
    if found:
        raise UserError(
            _(
                "{corpus} has changed: the run cannot go on exactly; `:train` begins anew",
                corpus=name,
            )
        )
    raise UserError(
        _(
            "the text {corpus} of this run is not there; `:train resume FILE`, or `--resume "
            "--train FILE`, says"
            " where it is now",
            corpus=name,
        )
    )
