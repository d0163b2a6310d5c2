"""What the tests share: the shipped model, tiny random ones, and the note's program as oracle."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from minillm_repl.checkpoint.load_save import load
from minillm_repl.storage.paths import find_checkpoint
from tests.outside import outside

# Tests that have torch anyway take it from here.
from tests.small import random_checkpoint  # noqa: F401

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"

# the tests read English, whatever whoever runs them speaks
os.environ |= {"LC_ALL": "C.UTF-8", "MINILLM_LANG": "en"}
torch.set_num_threads(1)  # models this small only wait for a second thread


@pytest.fixture(scope="session")
def nalssi():
    return load(find_checkpoint("nalssi"))


@pytest.fixture(scope="session")
def reference():
    """The study note's program as a module; it is not part of this repository."""
    path = outside("seed/reference_minillm.py")
    spec = importlib.util.spec_from_file_location("reference_minillm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
