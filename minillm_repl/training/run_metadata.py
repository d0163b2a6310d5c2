"""What a resume file says of its run beside the tensors, as JSON, and checked strictly: the plan,
where its texts lie, and how far it is.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint.record import parse_curves
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.settings import change, find, specs
from minillm_repl.training import TrainerState
from minillm_repl.training.plan import TrainPlan

_ADDED_STATE = ("step_seconds", "first_quick_loss", "probes")  # older files do not have these


@dataclass(frozen=True, kw_only=True)
class RunMetadata:
    """What a run knows beside its plan and its state."""

    corpus: str
    corpus_sha256: str
    val_sha256: str  # of the text that is held out, where it is a file of its own
    working_folder: str  # in which the names of both texts hold
    is_finetuning: bool  # whether it trains an older model further
    threads: int
    # of an adapter: where its model lies, and the digest of that
    base_model: tuple[Path, str] | None = None
    start_path: str = ""  # of the model that is trained further
    start_sha256: str = ""  # of its weights
    dtype: str = "float32"  # in which the trained weights are stored


def parse_plan(data: Any, name: str) -> TrainPlan:
    """Return the plan of its settings as texts, by name. Raises UserError naming the file."""
    is_text = isinstance(data, dict) and all(isinstance(text, str) for text in data.values())
    # A setting that is newer than the file had its default.
    if not is_text or {find(TrainPlan, each)[0] for each in data} - set(specs(TrainPlan)):
        raise _invalid_run(name)
    plan = TrainPlan()
    for setting, text in data.items():
        label = _("{setting} in {name}", setting=setting, name=name)
        plan = change(plan, setting, text, display_name=label)
    return plan


def parse_metadata(data: Any, name: str) -> RunMetadata:
    """Return what a run knows beside its plan and its state. Raises UserError naming the file."""
    match data:
        case {
            "corpus": str(corpus),
            "corpus_sha256": str(sha256),
            "is_finetuning": bool(is_finetuning),
            "threads": int(threads),
        }:
            base = data.get("base_model")
        case _:
            raise _invalid_run(name)
    match base:
        case None:
            base_model = None
        case {"path": str(path), "sha256": str(base_sha256)}:
            base_model = Path(path), base_sha256
        case _:
            raise _invalid_run(name)
    if not 0 <= threads <= 1024:  # more would be started before anything is checked
        raise UserError(
            _("{name} has an invalid number of threads: {threads}", name=name, threads=threads)
        )
    return RunMetadata(
        corpus=corpus,
        corpus_sha256=sha256,
        val_sha256=str(data.get("val_sha256", "")),  # older files do not have it
        working_folder=str(data.get("working_folder", "")),  # nor this
        is_finetuning=is_finetuning,
        threads=threads,
        base_model=base_model,
        start_path=str(data.get("start_path", "")),  # nor these
        start_sha256=str(data.get("start_sha256", "")),
        dtype=_parse_dtype(data.get("dtype", "float32"), name),
    )


def _parse_dtype(dtype: Any, name: str) -> str:
    if dtype not in ("float32", "bfloat16", "float16"):
        raise _invalid_run(name)
    return str(dtype)


def parse_state(data: Any, name: str) -> TrainerState:
    """Return where a run is. Raises UserError naming the file."""
    defaults = dataclasses.asdict(TrainerState())
    if not isinstance(data, dict) or not set(data) <= set(defaults):
        raise UserError(_("{name} has no valid state of its run; see docs/format.md", name=name))
    try:
        values: dict[str, Any] = {
            key: [_parse_entry(entry) for entry in data[key]]
            if isinstance(default, list)
            else type(default)(data[key])
            for key, default in defaults.items()
            if key in data or key not in _ADDED_STATE
        }
        values["probes"] = {
            name: list(curve) for name, curve in parse_curves(data.get("probes", {})).items()
        }
        state = TrainerState(**values)
        plain = [value for key, value in data.items() if key != "probes"]
        if state.step < 1 or any(type(value) not in (int, float, list) for value in plain):
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(
            _("{name} has no valid state of its run; see docs/format.md", name=name)
        ) from None
    return state


def _parse_entry(entry: Any) -> Any:
    if isinstance(entry, list):
        step, loss = entry
        return int(step), float(loss)
    return float(entry)


def _invalid_run(name: str) -> UserError:
    return UserError(_("{name} does not identify its run; see docs/format.md", name=name))
