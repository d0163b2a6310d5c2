"""How a file's tensors become a model's, as a description; weights.py carries it out."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Progress = Callable[[float], None]
"""Is told the share that is done, from 0 to 1."""


@dataclass(frozen=True)
class ReadOptions:
    """How weights are wanted: as which numbers, whether any that are not finite are taken, and
    who is told.
    """

    dtype: str = "auto"  # float32, bfloat16, float16, or that of the file
    allow_nonfinite: bool = False
    progress: Progress = lambda _: None


def identity(array: Any) -> Any:
    """Change nothing."""
    return array


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in a file that is not ours: from there to here, and back."""

    from_file: Callable[[Any], Any] = identity
    to_file: Callable[[Any], Any] = identity


AS_IS = Layout()
TRANSPOSED = Layout(lambda array: array.T, lambda array: array.T)


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in a file, which is a whole tensor of ours, or some rows of one."""

    name: str
    shape: tuple[int, ...]  # in the file
    layout: Layout = AS_IS


@dataclass(frozen=True)
class WeightMap:
    """How our tensors are put together from those of a file: from pieces, one below the other."""

    sources: Mapping[str, tuple[SourceTensor, ...]]
    ignored: re.Pattern[str] = re.compile(r"(?!)")  # tensors that may be there, and mean nothing
