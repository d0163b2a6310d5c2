"""From named arrays to a torch model, and back; and the device it runs on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import BFLOAT16, to_float32
from minillm_repl.model.config import AnyConfig, GPTConfig
from minillm_repl.model.gpt import GPT
from minillm_repl.model.layers import QuantisedWeight, Weight
from minillm_repl.model.llama import Llama
from minillm_repl.model.quantised import BlockMatrix, QuantisedMatrix

LanguageModel = GPT | Llama


def build(
    config: AnyConfig, tensors: Mapping[str, NDArray[Any] | QuantisedMatrix | BlockMatrix]
) -> LanguageModel:
    """Return the model around the named arrays; names and shapes are those of the config.

    It computes in float32 on the weights as stored. It shares the memory of matrices. It holds
    norms and biases, which are small, in float32.
    """
    # On the device `meta` nothing is allocated: `load_state_dict` puts the arrays in place.
    model, state = build_on_meta(config), {}
    for name, array in tensors.items():
        if not isinstance(array, np.ndarray):
            # A QuantisedWeight is no tensor, so it cannot go through the state dict.
            layer: Any = model.get_submodule(name.removesuffix(".weight"))
            del layer.weight
            layer.weight = QuantisedWeight(array)
        else:
            state[name] = to_torch(array if array.ndim > 1 else to_float32(array))
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def build_on_meta(config: AnyConfig) -> LanguageModel:
    """Return a model that has the shapes of its weights only."""
    with torch.device("meta"):
        return GPT(config) if isinstance(config, GPTConfig) else Llama(config)


def float32_weights(model: LanguageModel) -> dict[str, Tensor]:
    """Return a model's weights in float32 at least, by name: copies where they have fewer bits."""
    weights = {}
    for name, _shape in model.config.shapes():
        layer, _dot, parameter = name.rpartition(".")
        weight: Weight = getattr(model.get_submodule(layer), parameter)
        tensor = weight[:].detach()  # all rows; of a quantised matrix, in float32
        weights[name] = tensor if tensor.itemsize >= 4 else tensor.float()
    return weights


def to_torch(array: NDArray[Any]) -> Tensor:
    """Return a tensor that shares the array's memory."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def build_new(config: AnyConfig) -> LanguageModel:
    """Return a model with fresh weights from torch's global random state."""
    return GPT(config).initialise() if isinstance(config, GPTConfig) else Llama(config).initialise()


def build_trainable(config: AnyConfig, tensors: Mapping[str, NDArray[Any]]) -> LanguageModel:
    """Return the model around a float32 copy of the named arrays, with gradients."""
    return build(
        config, {name: to_float32(array, copy=True) for name, array in tensors.items()}
    ).requires_grad_()


def to_arrays(weights: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Return a copy of weights as float32 arrays, by name."""
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in weights.items()}


def pick_device(name: str) -> torch.device:
    """Return the torch device for auto, cpu, cuda or mps. Raises UserError if there is none."""
    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    # The dictionary is in order of speed.
    if name == "auto":
        name = next(device for device, available in is_available.items() if available)
    if not is_available[name]:
        raise UserError(_("torch finds no {name} device here; try --device cpu", name=name))
    return torch.device(name)
