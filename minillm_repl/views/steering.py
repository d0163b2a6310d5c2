"""Steering: what is added to the residual stream, and random directions to compare it with."""

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from minillm_repl.model.hooks import Hook
from minillm_repl.repl.arguments import INDEX, Argument, Values
from minillm_repl.views.direction_fit import NAME
from minillm_repl.views.inspected_text import InspectedText

if TYPE_CHECKING:
    from torch import Tensor

_NAMED = re.compile(rf"({NAME.pattern})=([-+]?[\d.]+(?:e-?\d+)?)(?:\s+({INDEX}))?")
RANDOM_DIRECTIONS = 32  # that a direction is compared with
_MAX_ACTIVATION = 2**21  # numbers of one activation in a pass
_MAX_BATCH = RANDOM_DIRECTIONS // 4  # directions in a pass; more would show no progress


def steering_hook(vector: "Tensor", layer: int, strength: float) -> Hook:
    """Return a hook that adds `strength` × a unit vector to the residual stream after a layer.

    It acts at every position. With several vectors (n, 1, d_model), the pass goes on as a batch of
    n. Strength 0 changes no bit.
    """
    place = f"blocks.{layer}.residual"

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        return tensor + strength * vector.to(tensor) if name == place and strength else tensor

    return hook


def random_steering_hooks(
    inspected: InspectedText,
    layer: int,
    strength: float,
    progress: Callable[[float], None] = lambda _share: None,
) -> Iterator[Hook]:
    """Yield hooks that steer in `RANDOM_DIRECTIONS` random directions, a batch of them each.

    `progress` is called with the share that is done, 0 to 1.
    """
    for done, vectors in enumerate(random_directions(inspected)):
        progress(done * len(vectors) / RANDOM_DIRECTIONS)
        yield steering_hook(vectors, layer, strength)


def random_directions(inspected: InspectedText) -> "Iterator[Tensor]":
    """Yield `RANDOM_DIRECTIONS` random unit vectors, always the same ones, as many at a time as a
    pass over the text has room for: (n, 1, d_model).
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    d_model = inspected.config.d_model
    vectors = torch.randn(RANDOM_DIRECTIONS, 1, d_model, generator=generator)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    size = max(1, min(_MAX_BATCH, _MAX_ACTIVATION // (len(inspected.ids) * d_model)))
    for start in range(0, RANDOM_DIRECTIONS, size):
        yield unit[start : start + size]


def residual_norm(inspected: InspectedText, layer: int) -> float:
    """Return the L2 norm of the residual stream after a layer, at the last position."""
    name = f"blocks.{layer}.residual"
    residual = inspected.run_with_cache(name, last_only=True)[1][name]  # (time, d_model)
    return float(residual[-1].norm())


Named = tuple[str, float, int | None]
"""A direction, its strength in units of the residual norm, and the layer."""


def parse_named(text: str) -> Named | None:
    """Parse `NAME=0.2` or `NAME=0.2 5`; None if a text is something else."""
    found = _NAMED.fullmatch(text.strip())
    if found is None:
        return None
    name, strength, layer = found.groups()
    try:
        return name, float(strength), None if layer is None else int(layer)
    except ValueError:  # such as 1.2.3
        return None


class NamedStrength(Argument):
    """A direction and its strength: `NAME=0.2`, maybe a layer after it."""

    def __init__(self) -> None:
        super().__init__("NAME=0.2 [LAYER]", {"direction": None}, required=True)

    def take(self, text: str) -> tuple[Values, str]:
        """Read all that remains."""
        named = parse_named(text)
        return self.missing(text) if named is None else ({"direction": named}, "")
