"""The resume file: a run between two steps, to go on as if it never stopped (docs/format.md).

It holds everything a run needs, the weights too, so that it never has to agree with a second file.
Like a checkpoint it is safetensors with JSON in its metadata, is written atomically, and nothing in
it is trusted when it is read.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm_repl.checkpoint import Checkpoint, ReadOptions, SourceTensor, WeightMap
from minillm_repl.checkpoint.adapter import printable_path
from minillm_repl.checkpoint.header import FORMAT, Header, parse_field, read_header
from minillm_repl.checkpoint.native import read_without_weights, to_metadata
from minillm_repl.checkpoint.serialise import serialise
from minillm_repl.checkpoint.weights import locate_tensors, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.settings import to_texts
from minillm_repl.storage.atomic import make_parent_folder, write_atomically
from minillm_repl.training import TrainerState
from minillm_repl.training.machine import full_tensor, shard_like
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run_metadata import (
    RunMetadata,
    parse_metadata,
    parse_plan,
    parse_state,
)
from minillm_repl.training.trainer import Trainer

RESUME_FORMAT = "minillm-resume"
_MOMENTS = {
    "muon": ("momentum_buffer",),
    "normuon": ("momentum_buffer", "row_squares"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """What a resume file says of a run; its tensors are still on disk."""

    # what the run started from, without weights; its training record is the one from before
    start: Checkpoint
    plan: TrainPlan  # settled
    metadata: RunMetadata
    state: TrainerState
    header: Header

    @property
    def has_frozen_weights(self) -> bool:
        """Whether the weights that an adapter does not train are in the file too."""
        is_lora = bool(self.plan.lora_rank)
        return not is_lora or any(name.endswith(".base.weight") for name in self.header.tensors)


def save_run(
    path: Path,
    trainer: Trainer,
    start: Checkpoint,
    run_metadata: RunMetadata,
    *,
    trained_only: bool = False,
) -> None:
    """Write the run as it is now; with `trained_only`, without weights that are not trained.

    Raises UserError, with what was there before as it was.
    """
    metadata = to_metadata(start)
    metadata["format"] = RESUME_FORMAT
    metadata["plan"] = json.dumps(to_texts(trainer.plan), ensure_ascii=False)
    base = run_metadata.base_model and {
        "path": printable_path(run_metadata.base_model[0]),
        "sha256": run_metadata.base_model[1],
    }
    metadata["run"] = json.dumps(
        {**dataclasses.asdict(run_metadata), "base_model": base}, ensure_ascii=False
    )
    metadata["state"] = json.dumps(dataclasses.asdict(trainer.state))
    # Dropout draws from these generators: without their states a resumed run would differ.
    random = {"torch": torch.get_rng_state()}
    if trainer.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(trainer.device)
    metadata["random"] = json.dumps(
        {name: state.numpy().tobytes().hex() for name, state in random.items()}
    )
    tensors = _run_tensors(trainer)
    if trained_only:
        frozen = _frozen_names(trainer)
        tensors = {name: each for name, each in tensors.items() if name not in frozen}
    if trainer.distributed.rank == 0:  # all ranks gathered the tensors; one writes them
        make_parent_folder(path)
        write_atomically(path, *serialise(tensors, metadata))


def load_run(path: Path) -> ResumeState:
    """Read what a resume file says of its run. Raises UserError naming the file."""
    name = safe_line(str(path))
    header = read_header(path)
    if header.metadata.get("format") != RESUME_FORMAT:
        raise UserError(_("{name} is not a resume file of a training run", name=name))
    start = read_without_weights(
        dataclasses.replace(header, metadata={**header.metadata, "format": FORMAT}), name
    )
    return ResumeState(
        # The weights that the run began with lie in no file of their own.
        start=dataclasses.replace(start, path=None),
        plan=parse_plan(parse_field(header, "plan", name), name),
        metadata=parse_metadata(parse_field(header, "run", name), name),
        state=parse_state(parse_field(header, "state", name), name),
        header=header,
    )


def restore_run(resumed: ResumeState, trainer: Trainer) -> None:
    """Put a new trainer of the same plan where the run was.

    Raises UserError if the file does not fit.
    """
    name = safe_line(str(resumed.header.path))
    expected = _run_tensors(trainer, is_fresh=True)
    if not resumed.has_frozen_weights:  # the trainer has them already
        frozen = _frozen_names(trainer)
        expected = {tensor: each for tensor, each in expected.items() if tensor not in frozen}
    recipe = WeightMap(
        {tensor: (SourceTensor(tensor, array.shape),) for tensor, array in expected.items()}
    )
    arrays = read_weights(
        recipe, locate_tensors(recipe, [resumed.header], name), name, ReadOptions("float32")
    )
    loaded = {
        tensor: torch.from_numpy(array).to(trainer.device) for tensor, array in arrays.items()
    }
    with torch.no_grad():
        for key, tensor in trainer.model.state_dict().items():
            if f"model.{key}" in loaded:
                tensor.copy_(shard_like(loaded[f"model.{key}"], tensor))
    trainer.best_weights = {
        key: shard_like(loaded[f"best.{key}"], trained_parameter)
        for key, trained_parameter in trainer.trainable_parameters.items()
    }
    trainer.state = resumed.state
    for kind, optimizer in trainer.optimizers.items():
        for key, parameter in _named_parameters(optimizer, trainer):
            optimizer.state[parameter] = {
                moment: shard_like(loaded[f"{kind}.{key}.{moment}"], parameter)
                for moment in _MOMENTS[kind]
            }
            if kind == "adamw":  # its bias correction needs the number of steps
                optimizer.state[parameter]["step"] = torch.tensor(
                    float(trainer.state.step), device=trainer.device
                )
    random = parse_field(resumed.header, "random", name)
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
            _(
                "the random number state in {name} is damaged: the run cannot be resumed exactly",
                name=name,
            )
        ) from None


def _run_tensors(trainer: Trainer, *, is_fresh: bool = False) -> dict[str, NDArray[np.float32]]:
    """Return every tensor of the run by name, in float32.

    A trainer that `is_fresh` has no moments yet; the parameters stand in for these, which have the
    same shapes, or their first columns.
    """
    tensors: dict[str, Tensor] = {
        f"model.{name}": each for name, each in trainer.model.state_dict().items()
    }
    tensors |= {f"best.{name}": each for name, each in trainer.best_weights.items()}
    for kind, optimizer in trainer.optimizers.items():
        for name, parameter in _named_parameters(optimizer, trainer):
            for moment in _MOMENTS[kind]:
                stand_in = parameter[:, :1] if moment == "row_squares" else parameter
                tensors[f"{kind}.{name}.{moment}"] = (
                    stand_in if is_fresh else optimizer.state[parameter][moment]
                )
    return {
        name: full_tensor(each.detach()).float().cpu().contiguous().numpy()
        for name, each in tensors.items()
    }


def _frozen_names(trainer: Trainer) -> set[str]:
    """Return the names in a resume file of the weights that are not trained."""
    names = trainer.model.state_dict().keys() - trainer.trainable_parameters.keys()
    return {f"model.{name}" for name in names}


def _named_parameters(
    optimizer: torch.optim.Optimizer, trainer: Trainer
) -> list[tuple[str, nn.Parameter]]:
    names = {id(parameter): name for name, parameter in trainer.trainable_parameters.items()}
    return [(names[id(each)], each) for group in optimizer.param_groups for each in group["params"]]
