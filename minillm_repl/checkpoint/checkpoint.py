"""A model as it lies on disk or in memory: everything needed to run it, nothing that runs."""

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
    val_curve: tuple[tuple[int, float], ...] = ()  # (step, validation loss)

    def append_to(self, earlier: "TrainingRecord | None") -> "TrainingRecord":
        """Return the record of both runs, `before` and this: steps, tokens and curves go on."""
        if earlier is None:
            return self
        later, val_later = (
            tuple((earlier.steps + step, loss) for step, loss in curve)
            for curve in (self.curve, self.val_curve)
        )
        return dataclasses.replace(
            self,
            steps=earlier.steps + self.steps,
            tokens=earlier.tokens + self.tokens,
            curve=earlier.curve + later,
            val_curve=earlier.val_curve + val_later,
        )


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation becomes a text: a Jinja template, and special tokens that it may name."""

    source: str
    # bos_token, eos_token ...
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """What LoRA has learnt, apart from its model; both make the weights of a checkpoint."""

    tensors: "Tensors"  # `LAYER.down` (rank, inputs) and `LAYER.up` (outputs, rank), float32
    base: Path  # where the model lies
    sha256: str  # of its weights
    training: TrainingRecord | None = None  # of the adapter alone


@dataclass(frozen=True)
class Checkpoint:
    """Sizes, vocabulary, weights, and what else was known of a model."""

    config: AnyConfig
    tokenizer: Tokenizer
    tensors: "Tensors"  # all of one kind: float32, float16 or bfloat16
    training: TrainingRecord | None = None
    path: Path | None = None
    chat_template: ChatTemplate | None = None
    eos_token_ids: tuple[int, ...] = ()  # tokens after which there is no more to say
    adapter: Adapter | None = None  # it is in the weights already
    # how the tensors of its file make these; None where they are these
    weight_map: WeightMap | None = None
    # what the user is told when it is opened: where its files do not say what is done
    notes: tuple[str, ...] = ()
    is_on_disk: bool = (
        False  # whether what lies at `path` has these very weights, to the last digit
    )

    @property
    def record(self) -> TrainingRecord | None:
        """How it was trained; of an adapter, how that was, not the model beside it."""
        return self.adapter.training if self.adapter else self.training

    @property
    def dtype(self) -> str:
        """What the weights are stored as."""
        return next(iter(self.tensors.values())).dtype.name
