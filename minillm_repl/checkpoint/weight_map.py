"""Weight maps: how a model's tensors are made of a file's tensors. weights.py applies them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Progress = Callable[[float], None]
"""Called with the share of the bytes that are read, from 0 to 1."""


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading weights."""

    dtype: str = "auto"  # float32, bfloat16, float16, or auto: that of the file
    allow_nonfinite: bool = False  # accept infinite weights and NaN
    progress: Progress = lambda _share: None


def identity(array: Any) -> Any:
    """Return the array itself."""
    return array


@dataclass(frozen=True)
class Layout:
    """The arrangement of a tensor in a file of another program: conversions from it and to it."""

    from_file: Callable[[Any], Any] = identity
    to_file: Callable[[Any], Any] = identity


AS_IS = Layout()
TRANSPOSED = Layout(lambda array: array.T, lambda array: array.T)


@dataclass(frozen=True)
class SourceTensor:
    """One tensor in a file: a complete tensor of the model, or some rows of one."""

    name: str
    shape: tuple[int, ...]  # in the file
    layout: Layout = AS_IS


@dataclass(frozen=True)
class WeightMap:
    """The file's tensors of each tensor of the model, stacked along its rows."""

    sources: Mapping[str, tuple[SourceTensor, ...]]
    ignored: re.Pattern[str] = re.compile(r"(?!)")  # tensors of a file that the model does not need
