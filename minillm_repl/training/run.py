"""One run of training: a model that learns, its events, its record, and how it is saved."""

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minillm_repl import __version__
from minillm_repl.checkpoint import Adapter, Checkpoint
from minillm_repl.checkpoint.adapter import save_adapter, save_peft
from minillm_repl.checkpoint.load_save import save
from minillm_repl.checkpoint.record import RunRecord, TrainingRecord
from minillm_repl.checkpoint.weights import resolve_dtype
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import convert
from minillm_repl.model.build import to_arrays
from minillm_repl.model.layers import adapter_state_dict, merge_adapters
from minillm_repl.settings import to_texts
from minillm_repl.storage.paths import resume_path
from minillm_repl.training import Started, TrainEvent, TrainingFinished, never_interrupted, resume
from minillm_repl.training.corpus import OpenCorpora
from minillm_repl.training.machine import Distributed, full_tensor, torch_threads
from minillm_repl.training.run_metadata import RunMetadata
from minillm_repl.training.splits import Weighted
from minillm_repl.training.trainer import Trainer

_MAX_LOSS = 1e8  # nats: what a record says of a loss that was not measured yet


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
    unique_tokens: int  # how many tokens of the vocabulary occur in the text
    step_seconds: float | None  # of forward and backward; 0: not measured; None: of a resumed run
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
            yield _started(self)
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
        record = _make_record(self, finished)
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

    def _metadata(self) -> RunMetadata:
        """Return what a resume file says of the run beside its plan and its state."""
        val_corpus = self.corpora.val_corpus
        return RunMetadata(
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


# -- what is recorded of it


def _started(run: TrainingRun) -> Started:
    """Return the event with all that a run is made of."""
    trainer, val_corpus = run.trainer, run.corpora.val_corpus
    return Started(
        step=trainer.state.step,
        plan=to_texts(run.trainer.plan),
        corpus=run.corpora.name,
        corpus_sha256=run.corpora.train.sha256,
        val_sha256=val_corpus.sha256 if val_corpus else "",
        training_tokens=len(trainer.train.ids),
        validation_tokens=len(trainer.val.ids) if trainer.val else 0,
        parameters=trainer.model.config.n_params,
        start_sha256=run.start_sha256,
        threads=run.threads,
        processes=run.context.distributed.world_size,
        versions=_versions(),
        machine=describe_machine(trainer.device),
    )


def _make_record(run: TrainingRun, finished: TrainingFinished | None) -> TrainingRecord:
    """Return what a checkpoint says of a run alone, at its end or on the way."""
    state, val_corpus = run.trainer.state, run.corpora.val_corpus
    val_loss = finished.val_loss if finished else None
    if finished is None and state.val_curve:
        val_loss = state.val_curve[-1][1]
    return TrainingRecord(
        steps=state.step,
        tokens=state.tokens,
        train_loss=round(finished.train_loss if finished else state.train_loss, 6),
        val_loss=val_loss and round(val_loss, 6),
        corpus=run.corpora.name,
        corpus_sha256=run.corpora.train.sha256,
        seed=run.trainer.plan.seed,
        versions=_versions(),
        curve=tuple(state.curve),
        val_curve=tuple(state.val_curve),
        probes={name: tuple(points) for name, points in state.probes.items()},
        run=RunRecord(
            plan=to_texts(run.trainer.plan),
            reason=finished.reason if finished else "running",
            steps=state.step,
            kept=finished.kept if finished else state.best_step,
            first_loss=round(finished.first_loss if finished else state.first_loss, 6),
            last_loss=round(finished.last_loss if finished else min(state.best_loss, _MAX_LOSS), 6),
            seconds=round(state.seconds, 1),
            threads=run.threads,
            processes=run.context.distributed.world_size,
            machine=describe_machine(run.trainer.device),
            val_sha256=val_corpus.sha256 if val_corpus else "",
            start_path=run.start_path,
            start_sha256=run.start_sha256,
        ),
    )


def _versions() -> dict[str, str]:
    """Return the versions of the programs that make a model."""
    return {
        "minillm-repl": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return what the bits of a run depend on beside the versions of its programs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    machine = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": next(names, platform.processor() or platform.machine()),
        "cores": str(os.cpu_count()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return machine
