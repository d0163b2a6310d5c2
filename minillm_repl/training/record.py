"""What is said of a run: before it in a line or two, at its start as an event, and in the record
of its model, from which the model can be made again.
"""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minillm_repl import __version__
from minillm_repl.checkpoint import RunRecord, TrainingRecord
from minillm_repl.language import _, _n
from minillm_repl.settings import to_texts
from minillm_repl.training import Started, TrainingFinished
from minillm_repl.training.corpus import Corpus
from minillm_repl.training.defaults import estimate_memory
from minillm_repl.training.evaluation import estimate_seconds
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.trainer import Trainer

if TYPE_CHECKING:
    from minillm_repl.training.run import TrainingRun

_MIN_TELLING_STEPS = 10  # of a run that must have learnt something by its end
_MAX_LOSS = 1e8  # nats: what a record says of a loss that was not measured yet

_OPTIMIZERS = {"normuon": "NorMuon", "muon": "Muon"}


def started(run: "TrainingRun") -> Started:
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


def make_record(run: "TrainingRun", finished: TrainingFinished | None) -> TrainingRecord:
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
        _("AdamW, learning rate {lr:g}", lr=plan.lr)
        if plan.optimizer == "adamw"
        else _(
            "{name} and AdamW, learning rate {lr:g}", name=_OPTIMIZERS[plan.optimizer], lr=plan.lr
        ),
        f"{plan.precision}, {parallelism}",
        _("about {size:,.0f} MiB", size=estimate_memory(plan, trainer.model.config) / 2**20),
    ]
    if plan.grad_checkpointing == "on":
        parts.append(_("gradient checkpointing"))
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


def describe_failure(finished: TrainingFinished, plan: TrainPlan) -> str:
    """Return what went wrong in a run that learnt nothing, and what to try; empty if it learnt."""
    advice = {"lr": plan.lr, "less": plan.lr / 10}
    if finished.reason == "diverged":
        return _(
            "the loss was no finite number after step {step:,}, and the weights of step {kept:,} "
            "are kept: lr={lr:g} may be too large; try lr={less:.2g}",
            step=finished.steps,
            kept=finished.kept,
            **advice,
        )
    is_long_enough = finished.steps >= _MIN_TELLING_STEPS and finished.reason != "interrupt"
    if is_long_enough and finished.kept == 0:
        return _(
            "no step made the loss lower, and the weights from before the first step are kept: "
            "lr={lr:g} may be too large; try lr={less:.2g}",
            **advice,
        )
    return ""
