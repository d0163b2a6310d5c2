"""Canon layers against torch's own grouped convolution: gradients, cache, kernels, views, files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minillm_repl.checkpoint.gguf.write import save_gguf
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.errors import UserError
from minillm_repl.generate.backends import kernels, make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.generate import prefill
from minillm_repl.model.attention import KVCache
from minillm_repl.model.build import build, build_new, float32_weights
from minillm_repl.model.config import CanonConfig, LlamaConfig
from minillm_repl.model.layers import add_causal_conv
from minillm_repl.model.llama import Llama
from minillm_repl.render.export import plain_text
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.views import canon, why
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import random_checkpoint

SIZES = {
    "vocab_size": 23, "context_length": 300, "d_model": 20, "n_layers": 3, "n_heads": 4,
    "n_kv_heads": 2, "head_dim": 6, "d_mlp": 28,
}  # fmt: skip


def canon_checkpoint(seed=0, scale=0.3, **sizes):
    config = CanonConfig(**SIZES | sizes)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in config.shapes()
    }
    tokenizer = CharacterTokenizer([chr(0xAC00 + place) for place in range(config.vocab_size)])
    return replace(random_checkpoint(), config=config, tokenizer=tokenizer, tensors=tensors)


def oracle_logits(checkpoint, ids):
    """The logits of a Llama whose norms are followed by torch's own depthwise convolution."""
    config = checkpoint.config
    plain = LlamaConfig(**SIZES | {"qk_norm": config.qk_norm})
    weights = {name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()}
    model = Llama(plain)
    model.load_state_dict({name: each for name, each in weights.items() if "canon" not in name})

    def mixing(name):
        kernel = weights[name].T[:, None]  # (w, 1, 4)

        def hook(_norm, _inputs, x):
            padded = F.pad(x.transpose(1, 2), (3, 0))  # (b, w, 3 + t)
            return x + F.conv1d(padded, kernel, groups=kernel.shape[0]).transpose(1, 2)

        return hook

    for layer, block in enumerate(model.blocks):
        block.norm1.register_forward_hook(mixing(f"blocks.{layer}.canon1.weight"))
        block.norm2.register_forward_hook(mixing(f"blocks.{layer}.canon2.weight"))
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


@pytest.fixture(params=["turned over", "as they are"])
def matrices(request, monkeypatch):
    if request.param == "as they are":
        monkeypatch.setattr(kernels, "_SMALL", 0)


def test_logits_are_those_of_torchs_own_convolution():
    checkpoint = canon_checkpoint()
    ids = np.random.default_rng(1).integers(0, 23, 50).tolist()
    model = build(checkpoint.config, checkpoint.tensors)
    np.testing.assert_allclose(
        model(torch.tensor([ids]))[0].numpy(), oracle_logits(checkpoint, ids), rtol=0, atol=1e-5
    )


def test_gradients_are_those_of_torchs_own_convolution():
    rng = torch.Generator().manual_seed(0)
    recent = torch.randn(3, 3 + 7, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(add_causal_conv, (recent, weight))
    expected = recent[:, 3:] + F.conv1d(
        recent.transpose(1, 2), weight.T[:, None], groups=5
    ).transpose(1, 2)
    torch.testing.assert_close(add_causal_conv(recent, weight), expected)


def test_the_cache_changes_no_logit_wherever_a_text_is_cut():
    """The torch model with a cache, cut anywhere and trimmed to any length, is the one without."""
    checkpoint = canon_checkpoint()
    expected = oracle_logits(
        checkpoint, ids := np.random.default_rng(2).integers(0, 23, 160).tolist()
    )
    decoder = TorchDecoder(build(checkpoint.config, checkpoint.tensors))
    for kept, first, last in ((0, 1, 2), (1, 2, 4), (2, 130, 160), (129, 129, 131), (3, 7, 8)):
        decoder.trim(kept)
        if first > kept:
            decoder.prefill(ids[kept:first])
        np.testing.assert_allclose(
            decoder.prefill(ids[first:last]), expected[last - 1], rtol=0, atol=1e-5
        )


def test_the_static_cache_of_a_cuda_graph_gives_the_same_logits():
    checkpoint = canon_checkpoint()
    ids = np.random.default_rng(3).integers(0, 23, 12).tolist()
    expected = oracle_logits(checkpoint, ids)
    model = build(checkpoint.config, checkpoint.tensors)
    cache = KVCache(checkpoint.config, torch.device("cpu"))
    cache.reserve(40)
    for place, token in enumerate(ids):  # from the first one: zeros stand before it
        with cache.static(torch.tensor([place])):
            logits = model(torch.tensor([[token]]), cache, last_only=True)[0, -1]
        np.testing.assert_allclose(logits.numpy(), expected[place], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernels_are_the_torch_model_wherever_a_text_is_cut(matrices, threads):
    checkpoint = canon_checkpoint()
    ids = np.random.default_rng(4).integers(0, 23, 290).tolist()
    expected = oracle_logits(checkpoint, ids)
    ours = make_decoder(checkpoint, threads=threads)
    assert "C kernels" in ours.name
    # 132 tokens are read at once at most, and the cache grows at 128 and at 256.
    for first, last in ((0, 1), (1, 3), (3, 5), (4, 133), (130, 290), (131, 132), (2, 3)):
        ours.trim(first)
        np.testing.assert_allclose(
            ours.prefill(ids[first:last]), expected[last - 1], rtol=0, atol=1e-4
        )


def test_any_text_after_any_other_is_read_alike(matrices):
    """Past the context too, where the window is read anew."""
    checkpoint = canon_checkpoint(context_length=30)
    used, fresh = (
        make_decoder(checkpoint),
        TorchDecoder(build(checkpoint.config, checkpoint.tensors)),
    )
    rng = np.random.default_rng(5)
    text = []
    for _ in range(25):
        kept = text[: rng.integers(0, len(text) + 1)]
        text = kept + rng.integers(0, 23, rng.integers(1, 20)).tolist()
        fresh.trim(0)
        np.testing.assert_allclose(prefill(used, text), prefill(fresh, text), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantised_canon_models_keep_their_canon_weights(bits):
    checkpoint = canon_checkpoint()
    decoder = make_decoder(checkpoint, quant=bits)
    for name, array in checkpoint.tensors.items():
        if "canon" in name:
            assert np.array_equal(decoder.tensors[name], array)
    ids = np.random.default_rng(6).integers(0, 23, 20).tolist()
    rounded = {
        name: each[np.arange(each.shape[0])] if hasattr(each, "packed_weights") else each
        for name, each in decoder.tensors.items()
    }
    expected = oracle_logits(replace(checkpoint, tensors=rounded), ids)[-1]
    np.testing.assert_allclose(decoder.prefill(ids), expected, rtol=0, atol=2e-3)


def test_a_new_model_begins_as_the_llama_without_them():
    torch.manual_seed(7)
    canon = build_new(CanonConfig(**SIZES))
    torch.manual_seed(7)
    llama = build_new(LlamaConfig(**SIZES))
    for name, weight in float32_weights(llama).items():
        assert torch.equal(weight, float32_weights(canon)[name])
    ids = torch.randint(0, 23, (2, 9))
    assert torch.equal(canon(ids), llama(ids))


def test_the_file_gives_back_the_same_model(tmp_path):
    checkpoint = canon_checkpoint()
    save(checkpoint, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.config == checkpoint.config
    assert again.config.arch == "canon"
    assert set(again.tensors) == set(checkpoint.tensors)
    for name, array in checkpoint.tensors.items():
        assert np.array_equal(again.tensors[name], array)


def test_a_file_for_another_program_is_refused_plainly(tmp_path):
    with pytest.raises(UserError, match="Canon layers.*arch=llama"):
        save(canon_checkpoint(), tmp_path / "folder", folder=True)
    assert not (tmp_path / "folder").exists()
    with pytest.raises(UserError, match="llama.cpp has this model's Canon layers"):
        save_gguf(canon_checkpoint(), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_the_parts_of_why_sum_to_the_logit():
    """Canon layers write nothing themselves: what they mix comes out of heads and MLPs."""
    checkpoint = canon_checkpoint()
    model = build(checkpoint.config, checkpoint.tensors)
    ids = np.random.default_rng(8).integers(0, 23, 12).tolist()
    inspected = InspectedText(model, checkpoint.tokenizer, tuple(ids))
    view = why.compute(inspected, token=3)
    expected = oracle_logits(checkpoint, ids)[-1, 3]
    assert sum(part.value for part in view.parts) == pytest.approx(expected, abs=1e-4)
    view = why.compute(inspected, token=3, versus=5)
    assert sum(part.value for part in view.parts) == pytest.approx(view.logit, abs=1e-4)


def test_what_canon_shows_sums_to_what_attention_and_mlp_read():
    """`:canon` against the activations that the model itself hands on, at each position."""
    checkpoint = canon_checkpoint()
    model = build(checkpoint.config, checkpoint.tensors)
    ids = np.random.default_rng(9).integers(0, 23, 8).tolist()
    inspected = InspectedText(model, checkpoint.tokenizer, tuple(ids))
    _logits, cache = inspected.run_with_cache(".normed", ".mixed")
    for position in range(len(ids)):
        view = canon.compute(inspected, position)
        assert [(row.layer, row.part) for row in view.rows] == [
            (layer, part) for layer in range(3) for part in ("attention", "feed-forward")
        ]
        for row in view.rows:
            part = row.part.replace("feed-forward", "mlp")
            name = f"blocks.{row.layer}.{part}"
            normed, mixed = cache[name + ".normed"][: position + 1], cache[name + ".mixed"]
            weight = checkpoint.tensors[f"blocks.{row.layer}.canon{1 + (part == 'mlp')}.weight"]
            parts = canon.contributions(normed, torch.from_numpy(weight))
            assert len(parts) == len(row.shares) == min(4, position + 1)
            torch.testing.assert_close(parts.sum(0), mixed[position], rtol=0, atol=1e-5)
            own = float(normed[-1].norm())
            assert row.mixed * own == pytest.approx(float(mixed[position].norm()), rel=1e-5)


def test_other_models_have_no_canon_layers():
    checkpoint = random_checkpoint()
    model = build(checkpoint.config, checkpoint.tensors)
    view = canon.compute(InspectedText(model, checkpoint.tokenizer, (1, 2)))
    assert view.rows == ()
    assert "This model has none" in plain_text(view, 80)
