"""What all views share."""

import dataclasses
from dataclasses import dataclass
from math import isfinite
from typing import Any

from minillm_repl.tokenizer.base import Token

Row = tuple[float, ...]


@dataclass(frozen=True)
class Likely:
    """A token that could come next, with the probability that the model's own softmax gives it."""

    token: Token
    prob: float


def as_json(view: Any) -> dict[str, Any]:
    """Return a view as JSON-ready data, with its name: `LensView` is `lens`.

    What is no number becomes null.
    """
    return {
        "view": type(view).__name__.removesuffix("View").lower(),
        **_finite(dataclasses.asdict(view)),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
