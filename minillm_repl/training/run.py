"""One run of training: a model that learns, how it is kept on the way, and what is told of it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from minillm_repl.checkpoint import Adapter, Checkpoint
from minillm_repl.checkpoint.adapter import save_adapter, save_peft
from minillm_repl.checkpoint.load_save import save
from minillm_repl.checkpoint.weights import resolve_dtype
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import convert
from minillm_repl.model.build import to_arrays
from minillm_repl.model.layers import adapter_state_dict, merge_adapters
from minillm_repl.storage.paths import resume_path
from minillm_repl.training import TrainEvent, TrainingFinished, never_interrupted, resume
from minillm_repl.training.machine import Distributed, full_tensor, torch_threads
from minillm_repl.training.open_corpora import OpenCorpora
from minillm_repl.training.record import make_record, started
from minillm_repl.training.splits import Weighted
from minillm_repl.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where a run takes place, and who watches."""

    path: Path  # of the checkpoint that saves on the way write; the resume file lies beside it
    is_folder: bool = False  # the path is that of a folder, which is written at the end alone
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
    sources: list[Weighted]  # the corpora as tokens, with their weights
    trainer: Trainer
    threads: int
    is_finetuning: bool  # whether an older model is trained further
    base_model: tuple[Path, str] | None  # of an adapter: the file of its model, and the digest
    start_path: str  # of the model that is trained further, and
    start_sha256: str  # the digest of its weights; both empty for a new model
    sample_prompt_ids: list[int]  # the model's samples on the way begin with these
    sample_heading: str  # what is shown of them, before what the model writes
    title: str  # what is about to happen, in one line
    notes: list[str]
    warnings: list[str]
    is_saved: bool = False  # whether it lies on disk
    save_error: str = ""  # why the last save failed

    @property
    def is_adapter_apart(self) -> bool:
        """Whether only an adapter has to be saved: its model lies in a file that stays as it is."""
        return self.base_model is not None and not same_path(self.base_model[0], self.context.path)

    def events(self, interrupted: Callable[[], bool], *, save: bool = True) -> Iterator[TrainEvent]:
        """Train, and yield what happens; with `save`, write the run to disk as its plan says."""
        with torch_threads(self.threads):
            yield started(self)
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
        record = make_record(self, finished)
        adapter = None
        if self.base_model:
            path, sha256 = self.base_model
            start = "".join(map(self.start.tokenizer.special_name, self.start.tokenizer.start_ids))
            matrices = to_arrays(adapter_state_dict(weights))
            adapter = Adapter(matrices, path, sha256, record, start)
        tensors = to_arrays(merge_adapters(weights))
        if finished is not None:
            dtype = resolve_dtype(trainer.dtype, set())
            tensors = {name: convert(array, dtype) for name, array in tensors.items()}
        return replace(
            self.start,
            tensors=tensors,
            training=record.append_to(self.start.training),
            adapter=adapter,
        )

    def _save(self) -> str:
        """Write the run and its checkpoint to disk; return why that failed, or an empty text.

        A disk that is too small for the run may still hold the weights: each is tried.
        """
        path, checkpoint = self.context.path, self.checkpoint()  # all ranks gather the tensors
        metadata, is_apart = self._metadata(), self.is_adapter_apart
        why = _error_of(
            lambda: resume.save_run(
                resume_path(path), self.trainer, self.start, metadata, trained_only=is_apart
            )
        )
        self.is_saved |= not why
        if self.context.distributed.rank == 0 and not self.context.is_folder:
            unsaved = _error_of(lambda: save_trained(checkpoint, path))
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
            start_path=self.start_path,
            start_sha256=self.start_sha256,
            dtype=self.trainer.dtype,
        )


def save_trained(checkpoint: Checkpoint, path: Path, *, is_folder: bool = False) -> Checkpoint:
    """Save what was trained to a file, or a folder, and return it with its path: an adapter alone
    where its model lies elsewhere, else the whole model.

    Raises UserError.
    """
    if checkpoint.adapter is None or same_path(checkpoint.adapter.base, path):
        return save(checkpoint, path, folder=is_folder)
    (save_peft if is_folder else save_adapter)(checkpoint, path)
    return replace(checkpoint, path=path)


def same_path(one: Path, other: Path) -> bool:
    """Tell whether two paths are the same place, as they are written."""
    return os.path.abspath(one) == os.path.abspath(other)  # noqa: PTH100 - reads no disk


def _error_of(action: Callable[[], object]) -> str:
    """Do something; return the text of its UserError, or an empty text."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""
