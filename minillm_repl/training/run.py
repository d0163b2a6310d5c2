"""One run of training: a model that learns, how it is kept on the way, and what is told of it."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minillm_repl import __version__
from minillm_repl.checkpoint import Adapter, Checkpoint, TrainingRecord, native
from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.model.build import to_arrays
from minillm_repl.model.layers import adapter_state_dict, merge_adapters
from minillm_repl.storage.paths import resume_path
from minillm_repl.training import TrainEvent, TrainingFinished, never_interrupted, resume
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.evaluation import estimate_seconds
from minillm_repl.training.machine import Distributed, full_tensor, torch_threads
from minillm_repl.training.open_corpora import OpenCorpora
from minillm_repl.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a run takes place, and who watches."""

    path: Path  # of the checkpoint that saves on the way write; the resume file lies beside it
    device: str = "auto"
    threads: int = 0  # 0 tries what is fastest
    distributed: Distributed = field(default_factory=Distributed)
    progress: Callable[[float], None] = lambda _share: None  # of tokenising the text, 0 to 1
    interrupted: Callable[[], bool] = never_interrupted


@dataclass(kw_only=True)
class TrainingRun:
    """A trainer, with all that a checkpoint of its model says beside the weights.

    `prepare` makes it. `notes` and `warnings` are what the user should know, one line each.
    """

    context: RunContext
    start: Checkpoint  # what learns, without weights; `training` is the record from before
    corpora: OpenCorpora
    trainer: Trainer
    threads: int
    is_finetuning: bool  # whether an older model is trained further
    base_model: tuple[Path, str] | None  # of an adapter: the file of its model, and the digest
    sample_prompt_ids: list[int]  # the model's samples on the way begin with these
    title: str  # what is about to happen, in one line
    notes: list[str]
    warnings: list[str]
    is_saved: bool = False  # whether it lies on disk
    save_error: str = ""  # why the last save failed

    def events(self, interrupted: Callable[[], bool], *, save: bool = True) -> Iterator[TrainEvent]:
        """Train, and yield what happens; with `save`, write the run to disk as its plan says."""
        with torch_threads(self.threads):
            yield from self.trainer.events(interrupted, self._save if save else None)

    def checkpoint(self, finished: TrainingFinished | None = None) -> Checkpoint:
        """Return the model as it is worth keeping now; its steps, tokens and curve continue those
        that it started from.
        """
        trainer = self.trainer
        weights = dict(trainer.model.state_dict())
        # On the way the model has the latest weights; with a validation split the best are kept.
        if finished is None and trainer.val is not None:
            weights |= trainer.best_weights
        weights = {name: full_tensor(tensor) for name, tensor in weights.items()}
        record = self._record(finished)
        adapter = None
        if self.base_model:
            path, sha256 = self.base_model
            start = "".join(map(self.start.tokenizer.special_name, self.start.tokenizer.start_ids))
            tensors = to_arrays(adapter_state_dict(weights))
            adapter = Adapter(tensors, path, sha256, record, start)
        return replace(
            self.start,
            tensors=to_arrays(merge_adapters(weights)),
            training=record.append_to(self.start.training),
            adapter=adapter,
        )

    def _record(self, finished: TrainingFinished | None) -> TrainingRecord:
        """Return what a checkpoint says of this run alone, at its end or on the way."""
        state = self.trainer.state
        train_loss = finished.train_loss if finished else state.train_loss
        val_loss = finished.val_loss if finished else None
        if finished is None and state.val_curve:
            val_loss = state.val_curve[-1][1]
        versions = {
            "minillm-repl": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return TrainingRecord(
            steps=state.step,
            tokens=state.tokens,
            train_loss=round(train_loss, 6),
            val_loss=val_loss and round(val_loss, 6),
            corpus=self.corpora.name,
            corpus_sha256=self.corpora.train.sha256,
            seed=self.trainer.plan.seed,
            versions=versions,
            curve=tuple(state.curve),
            val_curve=tuple(state.val_curve),
        )

    def _save(self) -> str:
        """Write the run and its checkpoint to disk; return why that failed, or an empty text.

        A disk that is too small for the run may still hold the weights: each is tried.
        """
        path, checkpoint = self.context.path, self.checkpoint()  # all ranks gather the tensors
        why = _error_of(
            lambda: resume.save_run(resume_path(path), self.trainer, self.start, self._metadata())
        )
        self.is_saved |= not why
        if self.context.distributed.rank == 0:
            unsaved = _error_of(lambda: native.save_native(checkpoint, path))
            if why and not unsaved:
                why = _("{error}; the weights alone are saved", error=why)
            why = why or unsaved
        self.save_error = why
        return why

    def _metadata(self) -> resume.RunMetadata:
        """Return what a resume file says of the run beside its plan and its state."""
        val_corpus = self.corpora.val_corpus
        return resume.RunMetadata(
            corpus=self.corpora.name,
            corpus_sha256=self.corpora.train.sha256,
            val_sha256=val_corpus.sha256 if val_corpus else "",
            working_folder=self.corpora.working_folder,
            is_finetuning=self.is_finetuning,
            threads=self.threads,
            base_model=self.base_model,
        )


def _error_of(action: Callable[[], object]) -> str:
    """Do something; return the text of its UserError, or an empty text."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


# -- what is told of a run


def describe_run(
    trainer: Trainer, corpus: Corpus, unique_tokens: int, *, is_finetuning: bool
) -> str:
    """Return what is about to happen, in one line.

    `unique_tokens` is how many tokens of the vocabulary occur in the text.
    """
    config, train, val, plan = trainer.model.config, trainer.train, trainer.val, trainer.plan
    sizes = {"parameters": config.n_params, "arch": config.arch}
    if plan.lora_rank:
        description = _(
            "training {trained:,} parameters; the other {parameters:,} are frozen",
            trained=sum(each.numel() for each in trainer.trainable_parameters.values()),
            **sizes,
        )
    elif is_finetuning:
        description = _("further training: {parameters:,} parameters", **sizes)
    else:
        description = _("a new {arch} model: {parameters:,} parameters", **sizes)
    documents = _n("{n:,} document", "{n:,} documents", corpus.count)
    tokens = (
        _(
            "{tokens:,} training tokens, {held:,} validation tokens",
            tokens=len(train.ids),
            held=len(val.ids),
        )
        if val
        else _("{tokens:,} tokens", tokens=len(train.ids))
    )
    read_tokens = plan.steps * plan.batch_size * plan.context_length
    return " · ".join(
        [
            description,
            f"{corpus.name}: {documents}",
            tokens,
            _("{different:,} distinct", different=unique_tokens),
            _(
                "{steps:,} steps ({passes:.2g} passes over the text)",
                steps=plan.steps,
                passes=read_tokens / len(train.ids),
            ),
        ]
    )


def describe_method(trainer: Trainer, threads: int, seconds: float) -> str:
    """Return how it is done, in one line; `seconds` is what forward and backward of a step take,
    if that is known.
    """
    plan, size = trainer.plan, trainer.distributed.world_size
    parallelism = (
        _n("{n} process", "{n} processes", size)
        if size > 1
        else _n("{n} thread", "{n} threads", threads)
        if threads
        else _("default threads")
    )
    parts = [
        _("batch {batch} × {context} tokens", batch=plan.batch_size, context=plan.context_length),
        _("Muon and AdamW, learning rate {lr:g}", lr=plan.lr)
        if plan.optimizer == "muon"
        else _("AdamW, learning rate {lr:g}", lr=plan.lr),
        f"{plan.precision}, {parallelism}",
    ]
    if size == 1:
        remaining = estimate_seconds(plan, seconds, *trainer.evaluator.token_counts())
        parts.append(
            _("about {time:.0f} s", time=remaining)
            if remaining < 90
            else _("about {time:.0f} min", time=remaining / 60)
            if remaining < 5400
            else _("about {time:.1f} h", time=remaining / 3600)
        )
    return " · ".join(parts)
