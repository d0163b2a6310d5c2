"""Files of format version 1 open as ever: a checkpoint, an adapter, a run that was stopped."""

import dataclasses
import json
from itertools import count

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from minillm_repl.checkpoint import Checkpoint, adapter
from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.errors import UserError
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.config_base import Rope
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.training.history import resume_run
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import start_run
from minillm_repl.training.run import RunContext
from tests.small import random_checkpoint

DIGITS = list("0123456789 ")
PLAN = TrainPlan(
    steps=6, context_length=8, batch_size=2, lr=0.01, precision="float32", eval_interval=2
)
# Each metadata field: the names of today, and those of version 1.
OLD_NAMES = {
    "config": {
        "vocab_size": "vocab", "context_length": "context", "d_model": "width",
        "n_layers": "layers", "n_heads": "heads", "n_kv_heads": "kv_heads",
        "head_dim": "head_size", "d_mlp": "hidden", "tie_word_embeddings": "tied",
        "parallel_residual": "parallel", "sliding_windows": "windows",
        "lm_head_bias": "head_bias", "mlp_bias": "ff_bias", "rotary_pct": "share",
        "low_freq_factor": "low", "high_freq_factor": "high",
        "original_max_position_embeddings": "original",
    },
    "plan": {
        "batch-size": "batch", "grad-accum-steps": "accumulate", "context-length": "context",
        "sample-prompt": "sample", "d-model": "width", "n-layers": "layers", "n-heads": "heads",
        "n-kv-heads": "kv-heads", "lora-rank": "lora", "warmup-steps": "warm-up",
        "grad-clip": "clip", "eval-interval": "every",
    },
    "run": {"working_folder": "folder", "is_finetuning": "further", "base_model": "base"},
    "state": {
        "last_eval_step": "measured", "best_loss": "best", "evals_since_best": "waited",
        "recent_losses": "stretch",
    },
}  # fmt: skip


def rewrite_as_version_1(path):
    """Give a file that was written today the names that version 1 had."""
    with safe_open(path, "np") as file:
        metadata = {**file.metadata(), "version": "1"}
    tensors = {
        name.replace(".mlp.", ".ff."): array
        for name, array in safetensors.numpy.load_file(path).items()
    }
    for field, names in OLD_NAMES.items():
        if field in metadata:

            def rename(data, names=names):
                return {names.get(key, key): value for key, value in data.items()}

            # the config holds an object of its own, `rope`
            metadata[field] = json.dumps(json.loads(metadata[field], object_hook=rename))
    safetensors.numpy.save_file(tensors, path, metadata)
    return metadata


def assert_same_weights(found, expected):
    assert set(found.tensors) == set(expected.tensors)
    assert all(
        np.array_equal(found.tensors[name], expected.tensors[name]) for name in found.tensors
    )


def small_llama():
    rope = Rope(
        theta=5e3,
        scaling="llama3",
        factor=4.0,
        low_freq_factor=0.5,
        high_freq_factor=2.0,
        original_max_position_embeddings=32,
    )
    config = LlamaConfig(
        vocab_size=11,
        context_length=8,
        d_model=12,
        n_layers=2,
        n_heads=3,
        n_kv_heads=1,
        head_dim=8,
        d_mlp=20,
        sliding_windows=(0, 4),
        mlp_bias=True,
        tie_word_embeddings=True,
        rope=rope,
    )
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in config.shapes()}
    return Checkpoint(config=config, tokenizer=CharacterTokenizer(DIGITS), tensors=tensors)


@pytest.mark.parametrize("make", [random_checkpoint, small_llama])
def test_a_checkpoint_opens_as_before(tmp_path, make):
    expected = make()
    path = save(expected, tmp_path / "m.safetensors").path
    metadata = rewrite_as_version_1(path)
    assert {"vocab", "context", "width", "layers", "heads"} <= set(json.loads(metadata["config"]))
    found = load(path)
    assert found.config == expected.config
    assert_same_weights(found, expected)
    again = save(found, tmp_path / "again.safetensors").path
    with safe_open(again, "np") as file:
        assert file.metadata()["version"] == "2"
        assert not [name for name in file.keys() if ".ff." in name]  # noqa: SIM118 - no mapping


def test_names_of_version_1_are_refused_in_version_2(tmp_path):
    path = save(random_checkpoint(), tmp_path / "m.safetensors").path
    metadata = rewrite_as_version_1(path) | {"version": "2"}
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)
    with pytest.raises(UserError, match="expected arch = gpt with context_length, d_model"):
        load(path)


@pytest.fixture
def base(tmp_path):
    save(random_checkpoint(characters=DIGITS, context=16), tmp_path / "base.safetensors")
    return load(tmp_path / "base.safetensors")


def begin(base, folder, **settings):
    text = folder / "t.txt"
    text.write_text(" ".join(str(place * 7 % 97) for place in range(120)), encoding="utf-8")
    plan = dataclasses.replace(PLAN, **settings)
    context = RunContext(path=folder / "run.safetensors", device="cpu", threads=1)
    return start_run(base, str(text), plan, context)


def test_an_adapter_fits_its_model_whichever_version_each_has(base, tmp_path):
    run = begin(base, tmp_path, lora_rank=1)
    *_, finished = run.events(lambda: False, save=False)
    path = tmp_path / "adapter.safetensors"
    adapter.save_adapter(run.checkpoint(finished), path)
    expected = load(path)
    for rewritten in (path, base.path):
        metadata = rewrite_as_version_1(rewritten)
        assert metadata["version"] == "1"
        assert_same_weights(load(path), expected)


def test_a_stopped_run_goes_on_to_the_same_weights(base, tmp_path):
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    for folder in (whole, cut):
        folder.mkdir()
    run = begin(base, whole)
    *_, finished = run.events(lambda: False, save=False)
    asked = count()
    list(begin(base, cut).events(lambda: next(asked) >= 3))
    metadata = rewrite_as_version_1(cut / "run.resume.safetensors")
    assert {"width", "batch", "every"} <= set(json.loads(metadata["plan"]))
    assert {"measured", "best", "waited", "stretch"} <= set(json.loads(metadata["state"]))
    assert {"folder", "further", "base"} <= set(json.loads(metadata["run"]))
    path = cut / "run.safetensors"
    resumed = resume_run(path, RunContext(path=path, device="cpu", threads=1))
    *_, resumed_end = resumed.events(lambda: False, save=False)
    assert_same_weights(resumed.checkpoint(resumed_end), run.checkpoint(finished))
