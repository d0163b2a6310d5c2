"""The sizes of a model, and the names and shapes of its tensors; needs no torch."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line

# Far above what this program is for, and low enough that a hostile file cannot make us build a giant.
_LARGEST = {"vocab": 1_000_000, "context": 1_000_000, "width": 65_536, "layers": 1_000, "heads": 1_024}


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT as in the study note: learned positions, pre-LayerNorm, 4× GELU feed-forward, untied head.

    Raises UserError for sizes that make no model.
    """

    vocab: int  # how many different tokens there are
    context: int = 32  # how many tokens the model sees at once: it has one learned vector per position
    width: int = 64  # numbers per token in the residual stream
    layers: int = 4
    heads: int = 4  # each sees its own width / heads numbers

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if type(value) is not int or not 1 <= value <= _LARGEST[entry.name]:
                raise UserError(f"{entry.name} must be from 1 to {_LARGEST[entry.name]:,}, not {value!r:.40}")
        if self.width % self.heads:
            raise UserError(f"width {self.width} cannot be shared out evenly among {self.heads} heads")

    @classmethod
    def from_json(cls, data: Any) -> "GPTConfig":
        """Read `{"arch": "gpt", "vocab": 44, ...}`. Raises UserError."""
        sizes = [entry.name for entry in fields(cls)]
        if not isinstance(data, dict) or data.get("arch") != "gpt" or set(data) != {"arch", *sizes}:
            raise UserError(f"it must be arch = gpt with {', '.join(sizes)}, not {safe_line(str(data)):.120}")
        return cls(**{size: data[size] for size in sizes})

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {"arch": "gpt", **asdict(self)}

    @property
    def head_size(self) -> int:
        """Numbers per head."""
        return self.width // self.heads

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        width, hidden = self.width, 4 * self.width
        yield "token_embedding.weight", (self.vocab, width)
        yield "position_embedding.weight", (self.context, width)
        for layer in range(self.layers):
            block = f"blocks.{layer}."
            yield block + "ln1.weight", (width,)
            yield block + "ln1.bias", (width,)
            yield block + "attention.qkv.weight", (3 * width, width)  # rows: all queries, all keys, all values
            yield block + "attention.proj.weight", (width, width)
            yield block + "attention.proj.bias", (width,)
            yield block + "ln2.weight", (width,)
            yield block + "ln2.bias", (width,)
            yield block + "ff.up.weight", (hidden, width)
            yield block + "ff.up.bias", (hidden,)
            yield block + "ff.down.weight", (width, hidden)
            yield block + "ff.down.bias", (width,)
        yield "ln_f.weight", (width,)
        yield "ln_f.bias", (width,)
        yield "lm_head.weight", (self.vocab, width)
        yield "lm_head.bias", (self.vocab,)

    @property
    def parameters(self) -> int:
        """How many numbers training may change."""
        return sum(math.prod(shape) for _, shape in self.shapes())
