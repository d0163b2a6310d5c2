"""What a checkpoint says of its training, checked strictly: it is untrusted text."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minillm_repl.checkpoint.header import Header, parse_field
from minillm_repl.errors import UserError
from minillm_repl.language import _

_MAX_CURVES, _MAX_CURVE_NAME = 1_000, 100

Curves = Mapping[str, tuple[tuple[int, float], ...]]
"""Curves by name: (step, value) each."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What made the weights in a run of training: with the text, it makes them again."""

    plan: Mapping[str, str]  # every setting of `:train`, as text that `name=value` accepts
    reason: str  # why it ended, or `running` where it was saved on its way
    steps: int  # of this run alone
    kept: int  # the step whose weights these are
    first_loss: float  # nats per token, over one sample of the text; before the first step,
    last_loss: float  # and of these weights
    seconds: float
    threads: int  # of the processor; 0: torch's own choice
    processes: int
    machine: Mapping[str, str]
    val_sha256: str = ""  # of a validation text of its own
    start_path: str = ""  # of the model that was trained further; empty: a new one
    start_sha256: str = ""  # of its weights


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How the weights were trained. Losses are nats per token of the corpus."""

    steps: int
    tokens: int
    train_loss: float
    val_loss: float | None = None
    corpus: str = ""
    corpus_sha256: str = ""
    seed: int = 0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()  # (step, training loss), thinned
    val_curve: tuple[tuple[int, float], ...] = ()  # (step, validation loss)
    run: RunRecord | None = None  # the last run; older files do not have it
    # what was watched beside the losses (training/probes.py): `heads.induction`; nor this
    probes: Curves = dataclasses.field(default_factory=dict)

    def append_to(self, earlier: "TrainingRecord | None") -> "TrainingRecord":
        """Return the record of an earlier run followed by this one."""
        if earlier is None:
            return self

        def shifted(curve: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
            return tuple((earlier.steps + step, loss) for step, loss in curve)

        return dataclasses.replace(
            self,
            steps=earlier.steps + self.steps,
            tokens=earlier.tokens + self.tokens,
            curve=earlier.curve + shifted(self.curve),
            val_curve=earlier.val_curve + shifted(self.val_curve),
            probes={
                name: earlier.probes.get(name, ()) + shifted(self.probes.get(name, ()))
                for name in dict.fromkeys((*earlier.probes, *self.probes))
            },
        )


def parse_training_record(header: Header, name: str) -> TrainingRecord | None:
    """Return the training record of a file, or None. Raises UserError."""
    if "training" not in header.metadata:
        return None
    return record_from_json(parse_field(header, "training", name), name)


def record_from_json(data: Any, name: str) -> TrainingRecord:
    """Return the training record of its JSON. Raises UserError naming the file."""
    record = data if isinstance(data, dict) else {}
    match {"val_curve": [], "run": None, "probes": {}, **record}:  # older files have none of them
        case {
            "steps": steps,
            "tokens": tokens,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "corpus": str(corpus),
            "corpus_sha256": str(corpus_sha256),
            "seed": seed,
            "versions": dict(versions),
            "curve": list(curve),
            "val_curve": list(val_curve),
            "run": run,
            "probes": probes,
        } if (
            (run is None or _is_run(run))
            and all(map(_is_count, (steps, tokens, seed)))
            and all(map(_is_loss, (train_loss, 0 if val_loss is None else val_loss)))
            and all(isinstance(version, str) for version in versions.values())
            and all(map(_is_point, (*curve, *val_curve)))
            and _are_curves(probes)
        ):
            return TrainingRecord(
                steps=steps,
                tokens=tokens,
                train_loss=train_loss,
                val_loss=val_loss,
                corpus=corpus,
                corpus_sha256=corpus_sha256,
                seed=seed,
                versions=versions,
                curve=tuple((step, loss) for step, loss in curve),
                val_curve=tuple((step, loss) for step, loss in val_curve),
                run=run and RunRecord(**run),
                probes=parse_curves(probes),
            )
    raise UserError(
        _(
            "the training record of {name} has a missing or invalid field; see docs/format.md",
            name=name,
        )
    )


def parse_curves(data: Any) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return curves by name. Raises ValueError for what is none."""
    if not _are_curves(data):
        raise ValueError
    return {name: tuple((step, value) for step, value in curve) for name, curve in data.items()}


def _are_curves(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and len(data) <= _MAX_CURVES
        and all(len(name) <= _MAX_CURVE_NAME for name in data)
        and all(isinstance(curve, list) and all(map(_is_point, curve)) for curve in data.values())
    )


def _is_run(run: Any) -> bool:
    """Tell whether a value is the JSON of a `RunRecord`."""
    names = {entry.name for entry in dataclasses.fields(RunRecord)}
    if not isinstance(run, dict) or run.keys() != names:
        return False
    texts = [run["reason"], run["val_sha256"], run["start_path"], run["start_sha256"]]
    for table in (run["plan"], run["machine"]):
        texts += table.values() if isinstance(table, dict) else [None]
    counts, losses = ("steps", "kept", "threads", "processes"), ("first_loss", "last_loss")
    return (
        all(isinstance(text, str) for text in texts)
        and all(_is_count(run[name]) for name in counts)
        and all(_is_loss(run[name]) for name in (*losses, "seconds"))
    )


def _is_point(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    step, loss = value
    return _is_count(step) and _is_loss(loss)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63  # isinstance would accept True


def _is_loss(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9  # nats; false for NaN
