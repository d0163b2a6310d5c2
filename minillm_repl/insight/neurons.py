"""The neurons of a feed-forward: which fire on a text, and on what."""

import torch

from minillm_repl.errors import UserError
from minillm_repl.insight.views.thinking import Neuron, NeuronsView
from minillm_repl.language import _
from minillm_repl.views.inspected_text import InspectedText, check_layer

_MOST = 12


@torch.no_grad()
def neurons_view(subject: InspectedText, layer: int, neuron: int | None = None) -> NeuronsView:
    """Return the neurons with the largest |activation| on the text, or one.

    Raises UserError if it is not there.
    """
    check_layer(subject.config, layer)
    name = f"blocks.{layer}.mlp.hidden"
    hidden = subject.run_with_cache(name, last_only=True)[1][name]  # (time, hidden)
    size = hidden.shape[-1]
    if neuron is not None and not neuron < size:
        raise UserError(
            _(
                "no neuron {neuron}: neurons are numbered from 0 to {last}",
                neuron=neuron,
                last=size - 1,
            )
        )
    strength = hidden.abs().amax(0)  # (hidden,)
    order = (
        strength.argsort(descending=True, stable=True)[:_MOST].tolist()
        if neuron is None
        else [neuron]
    )
    neurons = (Neuron(index, tuple(hidden[:, index].tolist())) for index in order)
    return NeuronsView(layer, size, subject.tokens, tuple(neurons), **subject.window_fields)
