"""A part of a pass: the layers from one on, with the weights of the model."""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.hooks import caching, compose
from minillm_repl.views.inspected_text import InspectedText, no_grad

if TYPE_CHECKING:
    from torch import Tensor


def from_layer(
    inspected: InspectedText, first: int, residual: "Tensor", last: int | None = None
) -> InspectedText:
    """Return the text with a model of the layers from `first` to before `last`, by default to the
    end, which share their weights.

    `residual` (time, d_model) is the stream that they read, interventions included.
    """
    model = copy.copy(inspected.model)
    model._modules = dict(inspected.model._modules)
    model.blocks = inspected.model.blocks[first:last]
    if isinstance(model.config, LlamaConfig):
        model.ropes = model.ropes[first:last]

    def begin(name: str, tensor: "Tensor") -> "Tensor":
        return residual.expand_as(tensor) if name == "embedding" else tensor

    return replace(inspected, model=model, hook=compose(inspected.hook, begin))


def can_begin_inside(inspected: InspectedText, residual: "Tensor", logits: "Tensor") -> bool:
    """Tell whether the last layer alone, on what it read (time, d_model), gives the last logits.

    An intervention that needs to see the layers before (`:circuit run`) has others.
    """
    import torch

    part = from_layer(inspected, inspected.config.n_layers - 1, residual)
    return torch.allclose(part.logits(last_only=True)[-1], logits, rtol=1e-4, atol=1e-4)


def before_layer(layer: int) -> str:
    """Return the hook name of the stream that a layer reads; that of the number of layers is the
    last one.
    """
    return f"blocks.{layer - 1}.residual" if layer else "embedding"


@no_grad
def streams_before(
    inspected: InspectedText, first: int, residual: "Tensor", layers: range
) -> "dict[int, Tensor]":
    """Return the stream that each of some layers reads, (time, d_model), from that which the layer
    `first` reads.
    """
    text = from_layer(inspected, first, residual, max(layers))
    names = [before_layer(layer) for layer in layers]
    cache = text.run_with_cache(*names, last_only=True)[1] if max(layers) > first else {}
    return {
        layer: residual if layer == first else cache[name]
        for layer, name in zip(layers, names, strict=True)
    }


def stream_after(inspected: InspectedText, layer: int, residual: "Tensor") -> "Tensor":
    """Return the stream after a layer that reads `residual`: (time, d_model), with its graph."""
    found: dict[str, Tensor] = {}
    text = from_layer(inspected, layer, residual, layer + 1)
    text = text.with_hook(caching(found, lambda name: name == before_layer(layer + 1)))
    text.model(text.input_ids, hook=text.hook, last_only=True)
    return found[before_layer(layer + 1)][0]
