"""The resume file: a run as it is between two steps, so that it goes on as if it had never stopped
(docs/format.md).

It holds everything a run needs, the weights too, so that it never has to agree with a second file.
Like a checkpoint it is safetensors with JSON in its metadata, is written atomically, and nothing in
it is trusted when it is read.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.formats.adapter import printable_path
from minillm_repl.checkpoint.formats.header import FORMAT, Header, field_of, read_header
from minillm_repl.checkpoint.formats.native import described, description
from minillm_repl.checkpoint.weight_map import Piece, Reading, Recipe
from minillm_repl.checkpoint.weights import check, packed, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change, show, specs, value_of
from minillm_repl.storage.atomic import make_folder, write_atomically
from minillm_repl.training.distributed import shared_as, whole
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.trainer import State, Trainer

RESUME_FORMAT = "minillm-resume"
_MOMENTS = {"muon": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}


@dataclass(frozen=True)
class Facts:
    """What a run knows beside its plan and its state."""

    corpus: str
    corpus_sha256: str
    val_sha256: str  # of the text that is held out, where it is a file of its own
    folder: str  # in which the names of both texts hold
    further: bool  # whether it trains an older model further
    threads: int
    # of an adapter: where its model lies, and the digest of that
    base: tuple[Path, str] | None = None


@dataclass(frozen=True)
class Interrupted:
    """What a resume file says of a run; its tensors are still on disk."""

    # what the run started from, without weights; its training record is the one from before
    start: Checkpoint
    plan: TrainPlan  # settled
    facts: Facts
    state: State
    header: Header


def write(path: Path, trainer: Trainer, start: Checkpoint, facts: Facts) -> None:
    """Write the run as it is now. Raises UserError, with what was there before as it was."""
    metadata = described(start)
    metadata["format"] = RESUME_FORMAT
    metadata["plan"] = json.dumps(
        {
            name: show(spec, value_of(trainer.plan, name))
            for name, spec in specs(trainer.plan).items()
        },
        ensure_ascii=False,
    )
    base = facts.base and {"path": printable_path(facts.base[0]), "sha256": facts.base[1]}
    metadata["run"] = json.dumps({**dataclasses.asdict(facts), "base": base}, ensure_ascii=False)
    metadata["state"] = json.dumps(dataclasses.asdict(trainer.state))
    random = {"torch": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(trainer.device)
    metadata["random"] = json.dumps(
        {name: state.numpy().tobytes().hex() for name, state in random.items()}
    )
    tensors = _tensors(trainer)
    if trainer.processes.rank == 0:
        make_folder(path)
        write_atomically(path, *packed(tensors, metadata))


def read(path: Path) -> Interrupted:
    """Read what a resume file says of its run. Raises UserError naming the file."""
    name = safe_line(str(path))
    header = read_header(path)
    if header.metadata.get("format") != RESUME_FORMAT:
        raise UserError(_("{name} is not the resume file of a training run", name=name))
    start = description(
        dataclasses.replace(header, metadata={**header.metadata, "format": FORMAT}), name
    )
    # the weights that the run began with lie in no file of its own
    start = dataclasses.replace(start, path=None)
    plan, run = TrainPlan(), field_of(header, "run", name)
    match field_of(header, "plan", name), run, run.get("base") if isinstance(run, dict) else None:
        case (
            dict(settings),
            {
                "corpus": str(corpus),
                "corpus_sha256": str(sha256),
                "further": bool(further),
                "threads": int(threads),
            },
            None | {"path": str(), "sha256": str()} as base,
        ) if set(settings) == set(specs(TrainPlan)) and all(
            isinstance(text, str) for text in settings.values()
        ):
            for setting, text in settings.items():
                plan = change(
                    plan, setting, text, said=_("{setting} in {name}", setting=setting, name=name)
                )
            if not 0 <= threads <= 1024:
                raise UserError(_("{name} asks for {threads} threads", name=name, threads=threads))
            state = _state(field_of(header, "state", name), name)
            there = (Path(base["path"]), base["sha256"]) if base else None
            # older files have neither
            val, folder = (str(run.get(name, "")) for name in ("val_sha256", "folder"))
            return Interrupted(
                start,
                plan,
                Facts(corpus, sha256, val, folder, further, threads, there),
                state,
                header,
            )
    raise UserError(_("{name} does not say which run it belongs to; see docs/format.md", name=name))


def restore(interrupted: Interrupted, trainer: Trainer) -> None:
    """Put a new trainer of the same plan where the run was.

    Raises UserError if the file does not fit.
    """
    name = safe_line(str(interrupted.header.path))
    like = _tensors(trainer, fresh=True)
    recipe = Recipe({tensor: (Piece(tensor, array.shape),) for tensor, array in like.items()})
    arrays = read_weights(
        recipe, check(recipe, [interrupted.header], name), name, Reading("float32")
    )
    found = {tensor: torch.from_numpy(array).to(trainer.device) for tensor, array in arrays.items()}
    with torch.no_grad():
        for key, tensor in trainer.model.state_dict().items():
            tensor.copy_(shared_as(found[f"model.{key}"], tensor))
    trainer.best_weights = {
        key: shared_as(found[f"best.{key}"], each) for key, each in trainer.trained.items()
    }
    trainer.state = interrupted.state
    for kind, optimizer in trainer.optimizers.items():
        for key, parameter in _of(optimizer, trainer):
            optimizer.state[parameter] = {
                moment: shared_as(found[f"{kind}.{key}.{moment}"], parameter)
                for moment in _MOMENTS[kind]
            }
            if kind == "adamw":
                optimizer.state[parameter]["step"] = torch.tensor(
                    float(trainer.state.step), device=trainer.device
                )
    random = field_of(interrupted.header, "random", name)
    try:
        states = {
            key: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
            for key, text in random.items()
        }
        torch.set_rng_state(states["torch"])
        if "cuda" in states and trainer.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], trainer.device)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        raise UserError(
            _("the random numbers in {name} are damaged: the run cannot go on exactly", name=name)
        ) from None


def _tensors(trainer: Trainer, *, fresh: bool = False) -> dict[str, NDArray[np.float32]]:
    """Return every tensor of the run by name; of a `fresh` trainer, with the optimisers' moments
    as they will be.
    """
    tensors: dict[str, Tensor] = {
        f"model.{name}": each for name, each in trainer.model.state_dict().items()
    }
    tensors |= {f"best.{name}": each for name, each in trainer.best_weights.items()}
    for kind, optimizer in trainer.optimizers.items():
        for name, parameter in _of(optimizer, trainer):
            for moment in _MOMENTS[kind]:
                tensors[f"{kind}.{name}.{moment}"] = (
                    parameter if fresh else optimizer.state[parameter][moment]
                )
    return {
        name: whole(each.detach()).float().cpu().contiguous().numpy()
        for name, each in tensors.items()
    }


def _of(optimizer: torch.optim.Optimizer, trainer: Trainer) -> list[tuple[str, nn.Parameter]]:
    names = {id(parameter): name for name, parameter in trainer.trained.items()}
    return [(names[id(each)], each) for group in optimizer.param_groups for each in group["params"]]


def _state(data: Any, name: str) -> State:
    wanted = dataclasses.asdict(State())
    if not isinstance(data, dict) or set(data) != set(wanted):
        raise UserError(_("{name} does not say where its run is; see docs/format.md", name=name))
    try:
        given: dict[str, Any] = {
            key: [_entry(entry) for entry in data[key]]
            if isinstance(usual, list)
            else type(usual)(data[key])
            for key, usual in wanted.items()
        }
        state = State(**given)
        if state.step < 1 or any(type(value) not in (int, float, list) for value in data.values()):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            _("{name} does not say where its run is; see docs/format.md", name=name)
        ) from None
    return state


def _entry(entry: Any) -> Any:
    if isinstance(entry, list):
        step, loss = entry
        return int(step), float(loss)
    return float(entry)
