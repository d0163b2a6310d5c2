"""Mixtures of experts: files in either form, malformed ones, kernels, training."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.generate.backends.kernels import KernelDecoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.kernels.library import load_library
from minillm_repl.model.build import build, build_trainable
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.layers import LoRALinear, add_adapters
from minillm_repl.model.mlp import route
from minillm_repl.render.export import plain_text
from minillm_repl.views import experts
from minillm_repl.views.inspected_text import InspectedText
from tests.test_huggingface import EXPERTS, FAMILIES, logits_of, random_ids, random_model

MOE = [name for name in FAMILIES if "moe" in name]
# Large enough that the matrices stay as the file has them, and that several threads share them.
LARGE = EXPERTS | {
    "vocab_size": 1_500,
    "hidden_size": 224,
    "num_attention_heads": 4,
    "num_experts": 9,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 130,
    "max_position_embeddings": 300,
    "norm_topk_prob": True,
}


@pytest.fixture
def saved(tmp_path):
    random_model(*FAMILIES["olmoe"]).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    random_model(transformers.Qwen3MoeConfig, LARGE).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("dtype", "bits", "atol"),
    [("float32", 0, 1e-4), ("bfloat16", 0, 1e-4), ("bfloat16", 8, 1e-3), ("float16", 4, 1e-3)],
)
def test_the_kernels_compute_what_the_plain_model_does(large, dtype, bits, atol):
    checkpoint = load(large, dtype=dtype)
    ours = KernelDecoder(checkpoint, load_library("auto"), 3, bits)
    plain = TorchDecoder(build(checkpoint.config, ours.tensors))
    ids = random_ids(290)[0].tolist()
    for first, last in ((0, 1), (1, 3), (3, 280), (280, 281), (281, 290)):
        expected = plain.prefill(ids[first:last])
        np.testing.assert_allclose(ours.prefill(ids[first:last]), expected, rtol=0, atol=atol)
        assert ours.decode(ids[0]).argmax() == plain.decode(ids[0]).argmax()
        ours.trim(last)
        plain.trim(last)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_weights_of_the_chosen_are_those_of_a_softmax(normalised):
    sizes = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 8, "d_mlp": 8}
    experts = {"n_experts": 6, "n_experts_per_tok": 4, "d_expert": 3}
    config = LlamaConfig(**sizes, **experts, vocab_size=9, norm_topk_prob=normalised)
    logits = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1))
    weights, chosen = route(logits, config)
    assert chosen.tolist() == logits.argsort(-1, descending=True)[..., :4].tolist()
    over = logits.gather(-1, chosen) if normalised else logits
    expected = over.softmax(-1) if normalised else over.softmax(-1).gather(-1, chosen)
    torch.testing.assert_close(weights, expected)


def test_a_file_with_all_experts_of_a_layer_in_one_tensor_is_the_same_model(saved):
    expected, ids = load(saved), random_ids(30)
    tensors = load_file(saved / "model.safetensors")
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.experts."
        gates, ups, downs = (
            torch.stack([tensors.pop(f"{name}{expert}.{part}_proj.weight") for expert in range(5)])
            for part in ("gate", "up", "down")
        )
        tensors[name + "gate_up_proj"] = torch.cat((gates, ups), dim=1)
        tensors[name + "down_proj"] = downs
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    found = load(saved)
    assert found.notes == ()
    logits = [logits_of(build(each.config, each.tensors), ids) for each in (found, expected)]
    assert torch.equal(*logits)


def with_fields(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config.pop("num_local_experts", None)
    (folder / "config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0}, "these sizes make no mixture of experts: 0 experts"),
        ({"num_experts": -3}, "n_experts must be from 0 to 1,024, not -3"),
        ({"num_experts": 10**9}, "n_experts must be from 0 to 1,024, not 1000000000"),
        ({"num_experts": "many"}, "num_experts must be a whole number, not many"),
        ({"num_experts_per_tok": 6}, "5 experts in 3 layers, of which 6 are chosen"),
        ({"num_experts_per_tok": 0}, "of which 0 are chosen"),
        ({"num_experts": 1024, "num_hidden_layers": 65}, "1,024 experts in 65 layers"),
        ({"num_experts": 7}, r"mlp.gate.weight .* must have the shape \[7, 32\]"),
        ({"intermediate_size": 23}, r"must have the shape \[23, 32\], not \[22, 32\]"),
        ({"clip_qkv": -1}, "clip_qkv must be a number above 0, not -1"),
    ],
)
def test_what_makes_no_mixture_of_experts_is_refused_in_one_line(saved, fields, message):
    with_fields(saved, **fields)
    with pytest.raises(UserError, match=message) as refused:
        load(saved)
    assert "\n" not in str(refused.value)


def test_a_missing_expert_is_named(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.down_proj.weight"]
    save_file(tensors, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"no tensor model\.layers\.1\.mlp\.experts\.3\.down_proj"):
        load(saved)


@pytest.mark.parametrize("name", MOE)
def test_gradients_are_those_of_transformers(name, tmp_path):
    theirs = random_model(*FAMILIES[name])
    theirs.save_pretrained(tmp_path)
    checkpoint, ids = load(tmp_path), random_ids(30)
    ours = build_trainable(checkpoint.config, checkpoint.arrays()).train()
    theirs(ids, labels=ids).loss.backward()
    logits = ours(ids)[0, :-1]
    torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
    # All experts take part, so that every process that shares the weights has all gradients.
    assert all(each.grad is not None for each in ours.parameters())
    torch.testing.assert_close(
        ours.token_embedding.weight.grad[1:],  # theirs may give the padding token none
        theirs.get_input_embeddings().weight.grad[1:],
        rtol=1e-3,
        atol=1e-5,
    )


def test_adapters_are_of_attention_alone(saved):
    checkpoint = load(saved)
    model = add_adapters(build(checkpoint.config, checkpoint.tensors), 2)
    adapted = [name for name, part in model.named_modules() if isinstance(part, LoRALinear)]
    assert len(adapted) == 6
    assert all(".attention." in name for name in adapted)


def inspected(folder, count=40):
    checkpoint = load(folder)
    model = build(checkpoint.config, checkpoint.tensors)
    ids = random_ids(count, seed=4)
    return InspectedText(model, checkpoint.tokenizer, tuple(ids[0].tolist())), ids


@pytest.mark.parametrize("name", MOE)
def test_the_view_names_the_experts_that_transformers_chooses(name, tmp_path):
    theirs = random_model(*FAMILIES[name])
    theirs.save_pretrained(tmp_path)
    text, ids = inspected(tmp_path)
    chosen = {}

    def keep(layer):
        def hook(_module, _inputs, output):
            chosen[layer] = output[2], output[1]  # numbers and weights of the experts

        return hook

    for layer, block in enumerate(theirs.model.layers):
        mlp = getattr(block, "block_sparse_moe", None) or block.mlp
        router = getattr(mlp, "router", None) or getattr(mlp, "gate", None)
        if router is not None:
            router.register_forward_hook(keep(layer))
    with torch.no_grad():
        theirs(ids)
    view = experts.compute(text)
    assert [each.layer for each in view.layers] == sorted(chosen)
    for each in view.layers:
        numbers, weights = chosen[each.layer]
        assert each.experts == tuple(map(tuple, numbers.tolist()))
        np.testing.assert_allclose(each.weights, weights, atol=1e-5)
        counts = np.bincount(numbers.flatten(), minlength=view.n_experts)
        np.testing.assert_allclose(each.load, counts / counts.sum())
        assert experts.compute(text, each.layer).layers == (each,)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("layer", [None, 2])
def test_the_view_is_drawn_at_any_width(saved, width, layer):
    view = experts.compute(inspected(saved)[0], layer)
    drawn = plain_text(view, width)
    assert all(len(line) <= width for line in drawn.splitlines())
    assert "2 of 5" in drawn


def test_a_layer_without_experts_is_named(tmp_path):
    random_model(*FAMILIES["qwen3_moe, dense layers, all switches"]).save_pretrained(tmp_path)
    text = inspected(tmp_path)[0]
    with pytest.raises(UserError, match="layer 0 has one MLP, and no experts"):
        experts.compute(text, 0)
    with pytest.raises(UserError, match="no layer 3"):
        experts.compute(text, 3)


def test_a_model_without_experts_says_so(tmp_path):
    random_model(*FAMILIES["qwen3"]).save_pretrained(tmp_path)
    view = experts.compute(inspected(tmp_path)[0], 1)
    assert view.layers == ()
    assert "This model has none" in plain_text(view, 80)
