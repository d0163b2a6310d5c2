"""Adapters of the PEFT library, opened here: PEFT itself says what the logits are."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.generate.backends import make_decoder
from minillm_repl.model.build import build
from tests.conftest import ROOT
from tests.test_huggingface import FAMILIES, logits_of, random_ids, random_model

peft = pytest.importorskip(
    "peft", reason="needs the package peft, which makes adapters: pip install peft accelerate"
)
EVERY = "all-linear"
KINDS = {
    "llama": {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 7},
    "llama tied, biased": {"target_modules": EVERY, "use_rslora": True, "lora_alpha": 5},
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    "gpt_neox": {"target_modules": ["query_key_value", "dense", "dense_4h_to_h"]},
    "phi3": {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]},
    "gemma3": {
        "target_modules": EVERY,
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"k_proj": 9, "layers.1.mlp.up_proj": 1},
    },
    "granite 4": {"target_modules": EVERY},
}


def adapted(kind, tmp_path, **more):
    """A random model with a random adapter, both saved; the adapter names the model's folder."""
    model = random_model(*FAMILIES[kind])
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | KINDS[kind] | more
    theirs = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, 0, 0.2)
    theirs.save_pretrained(tmp_path / "adapter")
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_has_the_logits_of_peft(kind, tmp_path):
    theirs, ids = adapted(kind, tmp_path), random_ids(40)
    checkpoint, base = load(tmp_path / "adapter"), load(tmp_path / "base")
    expected = logits_of(theirs, ids)
    ours = build(checkpoint.config, checkpoint.tensors)
    torch.testing.assert_close(logits_of(ours, ids), expected, rtol=1e-5, atol=1e-4)
    by_kernels = torch.from_numpy(make_decoder(checkpoint).prefill(ids[0].tolist()))
    torch.testing.assert_close(by_kernels, expected[0, -1], rtol=1e-5, atol=1e-4)
    alone = logits_of(build(base.config, base.tensors), ids)
    assert not torch.allclose(alone, expected, atol=1e-2)  # else this shows nothing
    assert checkpoint.adapter.base == tmp_path / "base"
    assert checkpoint.path == tmp_path / "adapter"


def test_an_adapter_is_switched_off_and_on_again_without_losing_the_text(tmp_path):
    theirs, ids = adapted("llama", tmp_path), torch.tensor([[5, 6, 7, 8]])
    typed = ["5 6 7 8", ":undo", *[':lens --json - "5 6 7 8"', ":adapter off"] * 2, ":adapter on"]
    typed += [
        ':lens --json - "5 6 7 8"',
        ":adapter",
        ":model",
        ":adapter off",
        ":model",
        ":quit",
        "",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "minillm_repl", "--ckpt", str(tmp_path / "adapter"), "--lang", "en"],
        input="\n".join(typed), capture_output=True, text=True, encoding="utf-8", check=True,
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    shown = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    final = [view["rows"][-1]["prob"] for view in shown]
    with_it = float(logits_of(theirs, ids)[0, -1].softmax(-1).max())
    with theirs.disable_adapter():
        without = float(logits_of(theirs, ids)[0, -1].softmax(-1).max())
    assert abs(with_it - without) > 1e-3  # else this shows nothing
    assert final == pytest.approx([with_it, without, with_it], abs=1e-5)
    assert "adapter on: " in done.stderr
    assert "off; `:adapter on` switches it on again" in " ".join(done.stdout.split())


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_an_adapter_means_the_adapter(file, tmp_path):
    adapted("llama", tmp_path)
    assert load(tmp_path / "adapter" / file).path == tmp_path / "adapter"


def test_the_base_is_found_beside_a_moved_adapter_or_named_by_the_user(tmp_path):
    adapted("llama", tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(tmp_path / "base", moved / "base")
    shutil.move(tmp_path / "adapter", moved / "adapter")
    assert load(moved / "adapter").adapter.base == moved / "base"
    shutil.move(moved / "base", moved / "renamed")
    with pytest.raises(UserError, match="its base model was not found here: --base PATH"):
        load(moved / "adapter")
    assert load(moved / "adapter", base=moved / "renamed").adapter.base == moved / "renamed"


def edited(folder, **fields):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))


def tensors_edited(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WRONG = {
    "dora": (lambda f: edited(f, use_dora=True), "use_dora = True, which is not supported"),
    "another kind": (lambda f: edited(f, peft_type="IA3"), "peft_type = IA3"),
    "biases": (lambda f: edited(f, bias="all"), "bias = all"),
    "an init that changes the base": (lambda f: edited(f, init_lora_weights="pissa"), "= pissa"),
    "whole modules": (lambda f: edited(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "an expression": (
        lambda f: edited(f, alpha_pattern={"(a+)+$": 1}),
        r"alpha_pattern '\(a.* is not supported",
    ),
    "text as alpha": (lambda f: edited(f, lora_alpha="8"), "lora_alpha must be a number"),
    "half": (lambda f: tensors_edited(f, lambda t: t.pop(A)), "only half of the adapter of"),
    "another size": (
        lambda f: tensors_edited(f, lambda t: t.update({A: torch.ones(3, 5)})),
        "must have the shape",
    ),
    "another model's": (
        lambda f: tensors_edited(f, lambda t: t.update({A.replace("q_", "qq_"): torch.ones(1, 1)})),
        "fits no matrix of its model",
    ),
    "nothing": (lambda f: tensors_edited(f, dict.clear), "an adapter without tensors"),
    "itself": (
        lambda f: edited(f, base_model_name_or_path=str(f)),
        "its base model was not found here",
    ),
    "another adapter": (
        lambda f: edited(f, base_model_name_or_path=str(shutil.copytree(f, f.parent / "b"))),
        "is an adapter for another adapter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_more_than_two_matrices_or_fits_nothing_is_refused_in_one_line(what, tmp_path):
    adapted("llama", tmp_path)
    spoil, message = WRONG[what]
    spoil(tmp_path / "adapter")
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path / "adapter")
    assert str(raised.value).isprintable()
