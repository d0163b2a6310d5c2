"""Models and texts that are not part of this repository, for tests that want real ones.

The variable MINILLM_TEST_MODELS names a folder that holds some of them; a test whose file is not
there is skipped.
"""

import os
from pathlib import Path

import pytest

WHAT = {
    "checkpoints/stories260K-hf": "karpathy/tinyllamas' stories260K as a Hugging Face folder",
    "checkpoints/tiny_gpt2": "a GPT-2 of random weights saved as GPT2Model",
    "checkpoints/gpt2-tok": "vocab.json and merges.txt of GPT-2",
    "data/en/grimm.txt": "the fairy tales of the brothers Grimm in English, plain text",
    "seed/reference_minillm.py": "the study note's program",
    "seed/note.ko.txt": "the study note",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct, in bfloat16",
}


def outside(name):
    """The path of something in WHAT; skips the test where it is not there."""
    folder = os.environ.get("MINILLM_TEST_MODELS")
    if not folder:
        pytest.skip(f"needs {WHAT[name]}: MINILLM_TEST_MODELS names no folder with {name}")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(
            f"needs {WHAT[name]}: there is no {name} in the folder that MINILLM_TEST_MODELS names"
        )
    return path
