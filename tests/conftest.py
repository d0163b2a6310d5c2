"""What the tests share: the shipped model, tiny random ones, and the study note's own program as an oracle."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.load import load
from minillm_repl.checkpoint.names import find
from minillm_repl.model.config import GPTConfig
from minillm_repl.tokenizer.character import CharacterTokenizer

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"

torch.set_num_threads(1)  # models this small only wait for a second thread


@pytest.fixture(scope="session")
def nalssi():
    return load(find("nalssi"))


def random_checkpoint(vocab=11, context=8, width=12, layers=2, heads=3, seed=0, characters=None):
    """A model of random weights, large enough to matter everywhere; the sizes divide by nothing convenient."""
    characters = characters or [chr(0xAC00 + place) for place in range(vocab)]
    config = GPTConfig(len(characters), context, width, layers, heads)
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in config.shapes()}
    return Checkpoint(config, CharacterTokenizer(characters), tensors)


@pytest.fixture(scope="session")
def reference():
    """The study note's program as a module; it is not part of this repository."""
    beside = ROOT.parent / "shared" / "seed" / "reference_minillm.py"
    path = Path(os.environ.get("MINILLM_REFERENCE", beside))
    if not path.exists():
        pytest.skip("the study note's program is not here; MINILLM_REFERENCE names it")
    spec = importlib.util.spec_from_file_location("reference_minillm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
