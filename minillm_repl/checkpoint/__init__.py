"""A model as data: config, vocabulary, weights, and how the tensors of a file make the weights."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minillm_repl.checkpoint.weights import Array, Tensors, Weights


# -- weight maps: how a model's tensors are made of a file's tensors; weights.py applies them

Index = tuple[int, ...]
Progress = Callable[[float], None]
"""Called with the share of the bytes that are read, from 0 to 1."""


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading weights."""

    dtype: str = "auto"  # float32, bfloat16, float16, or auto: that of the file
    allow_nonfinite: bool = False  # accept infinite weights and NaN
    progress: Progress = lambda _share: None
    base: Path | None = None  # the model of an adapter, where its file names none that is here


def identity(array: Any) -> Any:
    """Return the array itself."""
    return array


@dataclass(frozen=True)
class Layout:
    """The arrangement of a tensor in a file of another program: conversions from it and to it."""

    from_file: Callable[[Any], Any] = identity
    to_file: Callable[[Any], Any] = identity
    file_shape: Callable[[tuple[int, ...]], tuple[int, ...]] = identity  # from the model's


AS_IS = Layout()
TRANSPOSED = Layout(lambda array: array.T, lambda array: array.T, lambda shape: shape[::-1])


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in a file: a complete tensor of the model, or some rows of one.

    With an index, it is one of several matrices that the file stacks in a tensor of 3 dimensions.
    """

    name: str
    shape: tuple[int, ...]  # in the file; of a stack, all of it
    layout: Layout = AS_IS
    index: int | None = None

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape in the file, without that of the stack."""
        return self.shape if self.index is None else self.shape[1:]


@dataclass(frozen=True)
class WeightMap:
    """The file's tensors of each tensor of the model, stacked along its rows."""

    sources: Mapping[str, tuple[SourceTensor, ...]]
    ignored: re.Pattern[str] = re.compile(r"(?!)")  # tensors of a file that the model does not need


def to_file_layout(weight_map: WeightMap, tensors: "Tensors") -> dict[str, "Array"]:
    """Return the tensors of the file that a weight map describes."""
    import numpy as np  # not at the start

    theirs: dict[str, Array] = {}
    for tensor, pieces in weight_map.sources.items():
        row = 0
        for piece in pieces:
            rows = tensors[tensor]
            if len(pieces) > 1:
                rows = rows[row : row + piece.part_shape[0]]
            row += piece.part_shape[0]
            part = np.ascontiguousarray(piece.layout.to_file(rows))
            if piece.index is None:
                theirs[piece.name] = part
                continue
            if piece.name not in theirs:
                theirs[piece.name] = np.zeros(piece.shape, part.dtype)
            theirs[piece.name][piece.index] = part
    return theirs


def locate_in_file(
    weight_map: WeightMap, tensor: str, shape: Index, index: Index
) -> tuple[str, Index]:
    """Return the tensor of a file, and the index in it, of one value of a model's tensor.

    A boolean array with one True goes through the same conversions as the weights.
    """
    import numpy as np  # not at the start

    marked = np.zeros(shape, np.bool_)
    marked[index] = True
    parts = to_file_layout(WeightMap({tensor: weight_map.sources[tensor]}), {tensor: marked})
    name = next(name for name, part in parts.items() if part.any())
    return name, tuple(map(int, np.unravel_index(parts[name].argmax(), parts[name].shape)))


# -- the checkpoint


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template that renders a conversation, and the special tokens that it may name."""

    source: str
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # bos_token: <s>
    # What renders it, of a model on a server, which keeps the template: from messages, whether
    # names of special tokens mean the tokens, and variables, to a `chat.Prompt`.
    remote: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Adapter:
    """The matrices of a LoRA adapter, without the model that they belong to."""

    tensors: "Tensors"  # `LAYER.down` (rank, inputs) and `LAYER.up` (outputs, rank), float32
    base: Path  # the model's file or folder
    sha256: str  # of the model's weights
    training: TrainingRecord | None = None  # of the adapter alone
    start: str = ""  # the start token that its training used, if the model has none of its own
    # of its products: less than that of `tensors`, where several products share a matrix
    rank: int = 0

    @property
    def description(self) -> str:
        """Its size, and the model that it belongs to."""
        return _(
            "{n:,} parameters of rank {rank}, trained on top of {model}",
            n=sum(array.size for array in self.tensors.values()),
            # Shapes: (rank, inputs), (outputs, rank). max: a side may be smaller than the rank.
            rank=self.rank or max(min(array.shape) for array in self.tensors.values()),
            model=self.base,
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Config, tokenizer, weights, and what else the files of a model say."""

    config: AnyConfig
    tokenizer: Tokenizer
    tensors: "Weights"  # float32, float16, BFLOAT16 (model/bfloat16.py), or blocks of a file
    training: TrainingRecord | None = None
    path: Path | None = None
    chat_template: ChatTemplate | None = None
    eos_token_ids: tuple[int, ...] = ()  # tokens that end a text or a turn
    # Samplers that the files recommend, by the name of the setting; checked by `check_recommended`.
    recommended: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapter: Adapter | None = None  # already added to `tensors`
    weight_map: WeightMap | None = None  # from the file's tensors; None: they are the same
    model_type: str = ""  # of the config.json that it was read from
    notes: tuple[str, ...] = ()  # for the user: where the program deviates from the files
    is_on_disk: bool = False  # the file at `path` has exactly these weights

    @property
    def record(self) -> TrainingRecord | None:
        """The training record of the adapter if there is one, else of the model."""
        return self.adapter.training if self.adapter else self.training

    @property
    def dtype(self) -> str:
        """The dtype of most weights; of blocks, their format."""
        from minillm_repl.model.bfloat16 import dtype_name  # numpy: not at the start
        from minillm_repl.model.quantised import BlockMatrix

        sizes = Counter[str]()  # bytes
        for weight in self.tensors.values():
            name = weight.kind.name if isinstance(weight, BlockMatrix) else dtype_name(weight.dtype)
            sizes[name] += weight.nbytes
        return sizes.most_common(1)[0][0]

    def arrays(self) -> "Tensors":
        """Return the tensors as arrays; those in blocks become float32."""
        from minillm_repl.model.quantised import BlockMatrix

        return {
            name: weight.to_float32() if isinstance(weight, BlockMatrix) else weight
            for name, weight in self.tensors.items()
        }
