"""Runs of the past: a model is made again from its record."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from minillm_repl.checkpoint import Checkpoint, RunRecord
from minillm_repl.checkpoint.adapter import weights_sha256
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.training import resume
from minillm_repl.training.open_corpora import find_corpus
from minillm_repl.training.prepare import load_unchanged, start_run
from minillm_repl.training.run import RunContext, TrainingRun


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
    plan = resume.parse_plan(run.plan, name)
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
