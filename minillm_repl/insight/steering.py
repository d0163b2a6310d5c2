"""Steering: a direction in the residual stream from one text to another (Turner et al., 2023)."""

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.insight.subject import Subject, check_layer
from minillm_repl.language import _
from minillm_repl.model.taps import Tap


def direction(to: Subject, away: Subject, layer: int) -> Tensor:
    """Return the unit vector (width,) from one text to another: the difference of their means after a layer.

    A mean leaves out position 0 where there are others: many models park a vector there that drowns the rest.
    Raises UserError if there is no such layer, or no difference.
    """
    check_layer(to.config, layer)
    difference = _mean(to, layer) - _mean(away, layer)
    if not difference.any():
        raise UserError(_("the two texts are the same to the model: there is no direction from one to the other"))
    return torch.nn.functional.normalize(difference, dim=0)


def steering(along: Tensor, layer: int, strength: float) -> Tap:
    """Return a tap that adds `strength` times a unit vector to the residual stream after a layer, at every position."""
    place = f"blocks.{layer}.residual"

    def tap(name: str, tensor: Tensor) -> Tensor:
        return tensor + strength * along.to(tensor) if name == place else tensor

    return tap


def random_direction(like: Tensor, seed: int = 0) -> Tensor:
    """Return a unit vector in a random direction, of the same size and kind: what any direction would do."""
    vector: Tensor = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)
    return torch.nn.functional.normalize(vector, dim=0)


def stream_norm(subject: Subject, layer: int) -> float:
    """Return how long the residual stream after a layer is at the last position (L2 norm)."""
    return float(subject.record(f"blocks.{layer}.residual", last=True)[1][f"blocks.{layer}.residual"][-1].norm())


def _mean(subject: Subject, layer: int) -> Tensor:
    name = f"blocks.{layer}.residual"
    stream = subject.record(name, last=True)[1][name].float()  # (time, width)
    return stream[1 if len(stream) > 1 else 0 :].mean(0)
