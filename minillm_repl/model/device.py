"""The choice of a torch device."""

import torch

from minillm_repl.errors import UserError


def pick_device(name: str) -> torch.device:
    """Return the torch device that auto, cpu, cuda or mps means here. Raises UserError if there is none such."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there[name]:
        raise UserError(f"this torch finds no {name} device here; try --device cpu")
    return torch.device(name)
