"""Runs of the past: one that was stopped goes on, and a model is made again from its record."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.adapter import printable_path, weights_sha256
from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.record import RunRecord
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.build import pick_device
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import exists, resume_path, user_path
from minillm_repl.training import resume
from minillm_repl.training.corpus import (
    PLUS,
    Corpus,
    OpenCorpora,
    has_val_file,
    open_corpus,
    open_parts,
    parse_mixture,
)
from minillm_repl.training.defaults import resolve_memory
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import (
    build_trainer,
    encode_sample_prompt,
    find_corpus,
    rank_zero_first,
    start_run,
)
from minillm_repl.training.run import RunContext, TrainingRun
from minillm_repl.training.run_metadata import RunMetadata, parse_plan
from minillm_repl.training.splits import make_splits
from minillm_repl.training.texts import tokenise_corpora

# -- a run goes on


def resume_run(path: Path, context: RunContext, corpus: str = "") -> TrainingRun:
    """Return the run of a checkpoint where its resume file has it; `corpus` is where its text is
    now, if it has moved.

    Raises UserError.
    """
    state = resume.load_run(resume_path(path))  # the tensors are read last, into the trainer
    start, plan, metadata = state.start, state.plan, state.metadata
    with rank_zero_first(context.distributed):
        corpora = reopen_corpora(metadata, corpus, plan, context.path, context.interrupted)
        text = tokenise_corpora(corpora, start, plan, context, None, is_resumed=True)
    plan = resolve_memory(plan, start.config, pick_device(context.device))
    splits = make_splits(text.train, text.val, plan, safe_line(text.name), context.interrupted)
    scale = (splits[1] or splits[0]).bits_per_character(text.tokenizer)
    # The weights beside an adapter may be in the file of their model only.
    weights = start if state.has_frozen_weights else load_unchanged(*_base_of(metadata))
    plan = replace(plan, val=corpora.val)
    trainer = build_trainer(weights, start, text, plan, context, splits, scale, metadata.dtype)
    resume.restore_run(state, trainer)
    sample_prompt_ids, sample_heading = encode_sample_prompt(
        plan, trainer.train, start, corpora.train
    )
    step, steps = trainer.state.step, plan.steps
    # No method is told: it is that of the run before.
    note = _("continues after step {step:,} of {steps:,}", step=step, steps=steps)
    return TrainingRun(
        context=context,
        start=start,
        corpora=corpora,
        sources=text.train,
        trainer=trainer,
        threads=metadata.threads,
        is_finetuning=metadata.is_finetuning,
        base_model=metadata.base_model,
        start_path=metadata.start_path,
        start_sha256=metadata.start_sha256,
        sample_heading=sample_heading,
        sample_prompt_ids=sample_prompt_ids,
        unique_tokens=text.unique_tokens,
        step_seconds=None,
        notes=[*text.notes, note],
        warnings=text.warnings,
    )


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
    if PLUS in mixed:  # All parts lie in one folder: a digest tells of the whole only.
        folders_of_mixture = (Path(metadata.working_folder), Path(), checkpoint.parent)
        train = _find_mixture(
            mixed, folders_of_mixture, metadata.corpus_sha256, plan.documents, interrupted
        )
        train_path = Path(metadata.working_folder) / original_path
    else:
        train_path, train = _find_unchanged(
            original_path, places, metadata.corpus_sha256, plan.documents, interrupted
        )
    # The validation text is looked for in the same places, and beside the text that was typed.
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
        working_folder=printable_path(Path()),
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
            corpus = open_parts(name, parts, split, interrupted)
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


# -- a model is made again


def run_record(made: Checkpoint) -> RunRecord:
    """Return the record of the last run of a model. Raises UserError if it does not say all."""
    run = made.record.run if made.record else None
    if run is None or run.reason in ("running", "diverged"):
        raise UserError(
            _("this model has no record of a run from its start to its end: it cannot be remade")
        )
    return run


def remake_run(
    made: Checkpoint, corpus: str, context: RunContext
) -> tuple[TrainingRun, Callable[[], bool]]:
    """Return the run that made a model, ready to be made again from the model's record, and what
    tells that it was stopped there.

    `corpus` is where its text is now, if it has moved. Raises UserError for a record that does not
    say all, for another text, and where the model that it started from has changed.
    """
    record, run = made.record, run_record(made)
    assert record is not None
    name = _("the model's record")
    start = load_unchanged(run.start_path, run.start_sha256) if run.start_sha256 else None
    plan = parse_plan(run.plan, name)
    context = replace(context, threads=run.threads)
    again = start_run(start, find_corpus(corpus, made), plan, context, made.chat_template)
    if again.corpora.train.sha256 != record.corpus_sha256:
        raise UserError(_("{name} is not the text of this model", name=safe_line(corpus)))
    again.notes.append(_("made by {versions}", versions=_join_versions(record.versions)))
    # A run that was stopped by Ctrl-C stops after the same step.
    return again, lambda: run.reason == "interrupt" and again.trainer.state.step == run.steps


def _join_versions(versions: Mapping[str, str]) -> str:
    return safe_line(", ".join(f"{name} {version}" for name, version in versions.items()))


def same_weights(made: Checkpoint, again: Checkpoint) -> bool:
    """Tell whether two models have the same weights, bit for bit."""
    return weights_sha256(made.arrays()) == weights_sha256(again.arrays())


# -- what a model started from


def load_unchanged(path: str, sha256: str) -> Checkpoint:
    """Return the model that a run started from. Raises UserError if it is not there as it was."""
    if not path or not exists(Path(path)):
        raise UserError(
            _(
                "the model that this one was trained from is not at {path}",
                path=safe_line(path) or "?",
            )
        )
    start = load(Path(path))
    if weights_sha256(start.arrays()) != sha256:
        raise UserError(
            _(
                "{path} has other weights than those that this model was trained from",
                path=safe_line(path),
            )
        )
    return start


def _base_of(metadata: RunMetadata) -> tuple[str, str]:
    path, sha256 = metadata.base_model or ("", "")
    return str(path), sha256
