"""The choice of a torch device."""

import torch

from minillm_repl.errors import UserError
from minillm_repl.language import _


def pick_device(name: str) -> torch.device:
    """Return the torch device that auto, cpu, cuda or mps means here.

    Raises UserError if there is none such.
    """
    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in is_available.items() if available)
    if not is_available[name]:
        raise UserError(_("torch finds no {name} device here; try --device cpu", name=name))
    return torch.device(name)
