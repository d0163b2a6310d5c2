"""The choice of a torch device."""

import torch

from minillm_repl.errors import UserError
from minillm_repl.language import _


def pick_device(name: str) -> torch.device:
    """Return the torch device that auto, cpu, cuda or mps means here.

    Raises UserError if there is none such.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there[name]:
        raise UserError(_("this torch finds no {name} device here; try --device cpu", name=name))
    return torch.device(name)
