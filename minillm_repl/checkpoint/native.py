"""The native checkpoint: weights, sizes, vocabulary and training record in one safetensors file (docs/format.md)."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from minillm_repl.checkpoint.atomic import write_atomically
from minillm_repl.checkpoint.header import FORMAT, VERSION, Header, config_of, field_of, read_header
from minillm_repl.errors import UserError
from minillm_repl.model.config import GPTConfig
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import tokenizer_from_json

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class TrainingRecord:
    """How the weights came to be. Losses are nats per token, over the corpus named."""

    steps: int
    tokens: int
    train_loss: float
    val_loss: float | None = None
    corpus: str = ""
    corpus_sha256: str = ""
    seed: int = 0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()  # (step, training loss), thinned


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lies on disk or in memory: everything needed to run it, nothing that runs."""

    config: GPTConfig
    tokenizer: Tokenizer
    tensors: Tensors
    training: TrainingRecord | None = None
    path: Path | None = None
    family: str = "GPT"


def save(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Write the checkpoint to `path`, atomically, and return it as the one that lies there. Raises UserError."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(checkpoint.config.to_json()),
        "tokenizer": json.dumps(checkpoint.tokenizer.to_json(), ensure_ascii=False),
    }
    if checkpoint.training is not None:
        metadata["training"] = json.dumps(dataclasses.asdict(checkpoint.training), ensure_ascii=False)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in checkpoint.tensors.items()}
    check_replaceable(path)
    write_atomically(path, safetensors.numpy.save(tensors, metadata))
    return dataclasses.replace(checkpoint, path=path)


def check_replaceable(path: Path) -> None:
    """Raise UserError if something lies at `path` that is no safetensors file: a corpus, say."""
    if os.path.isfile(path) and path.stat().st_size:  # noqa: PTH113 - Path's own raises for a name that is too long
        try:
            read_header(path)
        except UserError:
            raise UserError(
                f"{safe_line(str(path))} is there and is not a checkpoint; save under another name"
            ) from None


def checkpoint(header: Header, tensors: Callable[[], Tensors], name: str) -> Checkpoint:
    """Make a checkpoint of it once the header is known to describe one; `tensors` reads the weights.

    Raises UserError that says what was expected and what was found.
    """
    config = config_of(header, name)
    try:
        tokenizer = tokenizer_from_json(field_of(header, "tokenizer", name))
    except UserError as error:
        raise UserError(f"the tokenizer of {name}: {error}") from None
    if tokenizer.size != config.vocab:
        raise UserError(f"{name} has a vocabulary of {tokenizer.size} tokens, but its config says {config.vocab}")
    check_shapes(header, dict(config.shapes()), name)
    training = _training(header, name) if "training" in header.metadata else None
    return Checkpoint(config, tokenizer, tensors(), training)


def _training(header: Header, name: str) -> TrainingRecord:
    match field_of(header, "training", name):
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
        } if (
            all(map(_is_count, (steps, tokens, seed)))
            and all(map(_is_loss, (train_loss, 0 if val_loss is None else val_loss)))
            and all(isinstance(text, str) for text in versions.values())
            and all(isinstance(point, list) and len(point) == 2 for point in curve)
            and all(_is_count(step) and _is_loss(loss) for step, loss in curve)
        ):
            points = tuple((step, loss) for step, loss in curve)
            return TrainingRecord(steps, tokens, train_loss, val_loss, corpus, corpus_sha256, seed, versions, points)
    raise UserError(f"the training record of {name} lacks a field or has one of the wrong kind; see docs/format.md")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_loss(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def check_shapes(header: Header, expected: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Compare the tensors a file says it has with those it must have. Raises UserError with the first difference."""
    for tensor, shape in expected.items():
        if tensor not in header.tensors:
            raise UserError(f"{name} lacks the tensor {tensor}")
        dtype, found = header.tensors[tensor]
        if found != shape:
            raise UserError(f"{tensor} in {name} must have the shape {list(shape)}, not {list(found)}")
        if dtype != "F32":
            raise UserError(f"{tensor} in {name} must be F32, not {safe_line(dtype)}")
    extra = sorted(set(header.tensors) - set(expected))
    if extra:
        raise UserError(f"{name} has a tensor that does not belong to the model: {safe_line(extra[0]):.80}")
