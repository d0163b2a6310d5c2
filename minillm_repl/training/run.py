"""One run of training: a model that learns, and how it is kept on the way."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minillm_repl import __version__
from minillm_repl.checkpoint.checkpoint import Adapter, Checkpoint, TrainingRecord
from minillm_repl.checkpoint.formats import native
from minillm_repl.errors import UserError
from minillm_repl.model.build import to_arrays
from minillm_repl.model.lora import adapter_state_dict, merge_adapters
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.training import description, resume
from minillm_repl.training.autotune import torch_threads
from minillm_repl.training.cancellation import never_interrupted
from minillm_repl.training.distributed import Distributed, full_tensor
from minillm_repl.training.events import TrainEvent, TrainingFinished
from minillm_repl.training.open_corpora import OpenCorpora
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run_paths import resume_path
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
    unique_tokens: int  # of the vocabulary, in the training text
    trainer: Trainer
    threads: int
    is_finetuning: bool  # whether an older model is trained further
    base_model: tuple[Path, str] | None  # of an adapter: the file of its model, and the digest
    sample_prompt_ids: list[int]  # the model's samples on the way begin with these
    notes: list[str]
    warnings: list[str]
    is_saved: bool = False  # whether it lies on disk
    save_error: str = ""  # why the last save failed

    @property
    def plan(self) -> TrainPlan:
        """The plan, with nothing left at auto."""
        return self.trainer.plan

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        return self.start.tokenizer

    @property
    def corpus(self) -> str:
        """The name of the training text, as typed."""
        return self.corpora.name

    @property
    def title(self) -> str:
        """What is about to happen, in one line."""
        return description.title(
            self.trainer, self.corpus, self.unique_tokens, is_finetuning=self.is_finetuning
        )

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
        if finished is None and trainer.val is not None:
            weights |= trainer.best_weights
        weights = {name: full_tensor(tensor) for name, tensor in weights.items()}
        record = self._record(finished)
        adapter = None
        if self.base_model:
            path, sha256 = self.base_model
            adapter = Adapter(to_arrays(adapter_state_dict(weights)), path, sha256, record)
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
            corpus=self.corpus,
            corpus_sha256=self.corpora.train.sha256,
            seed=self.plan.seed,
            versions=versions,
            curve=tuple(state.curve),
            val_curve=tuple(state.val_curve),
        )

    def _save(self) -> str:
        """Write the run and its checkpoint to disk; return why that failed, or an empty text."""
        path, checkpoint = self.context.path, self.checkpoint()
        val_corpus = self.corpora.val_corpus
        metadata = resume.RunMetadata(
            corpus=self.corpus,
            corpus_sha256=self.corpora.train.sha256,
            val_sha256=val_corpus.sha256 if val_corpus else "",
            working_folder=self.corpora.working_folder,
            is_finetuning=self.is_finetuning,
            threads=self.threads,
            base_model=self.base_model,
        )
        self.save_error = ""
        try:
            resume.save_run(resume_path(path), self.trainer, self.start, metadata)
            if self.context.distributed.rank == 0:
                native.save_native(checkpoint, path)
            self.is_saved = True
        except UserError as error:
            self.save_error = str(error)
        return self.save_error
