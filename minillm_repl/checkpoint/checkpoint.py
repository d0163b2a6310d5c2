"""A model as data: its config, vocabulary and weights, without any code to run it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.checkpoint.weight_map import WeightMap
from minillm_repl.model.config import AnyConfig
from minillm_repl.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from minillm_repl.checkpoint.weights import Tensors


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
        )


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template that renders a conversation, and the special tokens that it may name."""

    source: str
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)  # bos_token: <s>


@dataclass(frozen=True)
class Adapter:
    """The matrices of a LoRA adapter, without the model that they belong to."""

    tensors: "Tensors"  # `LAYER.down` (rank, inputs) and `LAYER.up` (outputs, rank), float32
    base: Path  # the model's file or folder
    sha256: str  # of the model's weights
    training: TrainingRecord | None = None  # of the adapter alone


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Config, tokenizer, weights, and what else the files of a model say."""

    config: AnyConfig
    tokenizer: Tokenizer
    tensors: "Tensors"  # all of one dtype: float32, float16 or bfloat16
    training: TrainingRecord | None = None
    path: Path | None = None
    chat_template: ChatTemplate | None = None
    eos_token_ids: tuple[int, ...] = ()  # tokens that end a text or a turn
    adapter: Adapter | None = None  # already added to `tensors`
    weight_map: WeightMap | None = None  # from the file's tensors; None: they are the same
    notes: tuple[str, ...] = ()  # for the user: where the program deviates from the files
    is_on_disk: bool = False  # the file at `path` has exactly these weights

    @property
    def record(self) -> TrainingRecord | None:
        """The training record of the adapter if there is one, else of the model."""
        return self.adapter.training if self.adapter else self.training

    @property
    def dtype(self) -> str:
        """The dtype of the weights."""
        return next(iter(self.tensors.values())).dtype.name
