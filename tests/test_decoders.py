"""The C kernels are held to the torch model, and that to the study note's own program."""

import io
import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minillm_repl.checkpoint.load_save import load, read_vocabulary
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.cli import main
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.generate import prefill
from minillm_repl.model.build import build
from minillm_repl.model.hooks import caching
from tests.conftest import MODELS, random_checkpoint


def torch_decoder(checkpoint):
    return TorchDecoder(build(checkpoint.config, checkpoint.tensors))


@pytest.fixture(scope="module")
def bare(reference, tmp_path_factory):
    """The note's model with random weights, saved as the note's reader would, and loaded."""
    torch.manual_seed(7)
    model = reference.MiniLLM()
    for parameter in model.parameters():  # fresh weights are small: larger ones show a wrong scale
        parameter.data.mul_(1.5)
    path = tmp_path_factory.mktemp("bare") / "model.safetensors"
    save_file(model.state_dict(), path)
    return model, load(path, read_vocabulary(MODELS / "nalssi.txt")), path


@pytest.mark.parametrize("make", [make_decoder, torch_decoder])
def test_logits_are_the_reference_scripts(bare, make):
    model, checkpoint, _ = bare
    decoder = make(checkpoint)
    for length in range(1, 33):
        ids = torch.randint(checkpoint.config.vocab_size, (1, length))
        with torch.no_grad():
            expected = model(ids)[0][0, -1].numpy()
        decoder.trim(0)
        np.testing.assert_allclose(decoder.prefill(ids[0].tolist()), expected, rtol=0, atol=1e-5)


def test_a_bare_checkpoint_without_a_vocabulary_shows_ids(bare):
    checkpoint = load(bare[2])
    assert checkpoint.tokenizer.encode("3 43 99") == [3, 43]


@pytest.mark.parametrize(
    "sizes", [{}, {"width": 10, "heads": 5}, {"width": 7, "heads": 1, "layers": 1}, {"context": 1}]
)
def test_the_kernels_are_the_torch_model(sizes):
    checkpoint = random_checkpoint(**sizes)
    ours, definition = make_decoder(checkpoint), torch_decoder(checkpoint)
    rng = np.random.default_rng(0)
    for length in range(1, checkpoint.config.context_length + 1):
        ids = rng.integers(0, checkpoint.config.vocab_size, length).tolist()
        for decoder in (ours, definition):
            decoder.trim(0)
        np.testing.assert_allclose(ours.prefill(ids), definition.prefill(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [make_decoder, torch_decoder])
def test_reading_in_pieces_equals_reading_at_once(make):
    checkpoint = random_checkpoint(context=12)
    decoder = make(checkpoint)
    ids = np.random.default_rng(1).integers(0, 11, 12).tolist()
    whole = decoder.prefill(ids).copy()
    for first in range(1, 12):
        decoder.trim(0)
        decoder.prefill(ids[:first])
        for token in ids[first:-1]:
            decoder.decode(token)
        np.testing.assert_allclose(decoder.decode(ids[-1]), whole, rtol=1e-5, atol=1e-5)
        decoder.trim(first)
        assert decoder.ids == ids[:first]
        np.testing.assert_allclose(decoder.prefill(ids[first:]), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [make_decoder, torch_decoder])
def test_the_cache_never_changes_what_is_read(make):
    """Any text after any other, past the context too: the logits are those of a model that has
    read nothing else.
    """
    checkpoint = random_checkpoint(context=6)
    used, fresh = make(checkpoint), make(checkpoint)
    rng = np.random.default_rng(2)
    text = []
    for _ in range(60):
        text = (
            text[: rng.integers(0, len(text) + 1)]
            + rng.integers(0, 11, rng.integers(1, 4)).tolist()
        )
        fresh.trim(0)
        expected = fresh.prefill(text[-6:]).copy()
        np.testing.assert_allclose(prefill(used, text), expected, rtol=1e-5, atol=1e-5)


def test_past_the_context_the_model_sees_what_the_notes_does(bare):
    model, checkpoint, _ = bare
    decoder = make_decoder(checkpoint)
    ids = torch.randint(44, (1, 50))
    for length in (32, 33, 49, 50):
        with torch.no_grad():
            expected = model(ids[:, :length][:, -32:])[0][0, -1].numpy()
        np.testing.assert_allclose(
            prefill(decoder, ids[0, :length].tolist()), expected, rtol=0, atol=1e-5
        )


def test_taps_read_without_changing_and_override():
    checkpoint = random_checkpoint()
    model = build(checkpoint.config, checkpoint.tensors)
    ids = torch.tensor([[1, 2, 3, 4]])
    seen = {}
    with torch.no_grad():
        plain, tapped = model(ids), model(ids, hook=caching(seen))
        assert torch.equal(plain, tapped)
        attention = seen["blocks.0.attention.out"]
        mid = seen["blocks.0.residual.mid"]
        torch.testing.assert_close(seen["embedding"] + attention, mid)
        torch.testing.assert_close(mid + seen["blocks.0.mlp.out"], seen["blocks.0.residual"])
        torch.testing.assert_close(model.lm_head(seen["final"]), plain)
        z = seen["blocks.1.attention.z"]
        assert z.shape == (1, 4, 3, 4)  # batch, time, head, head_size
        torch.testing.assert_close(
            model.blocks[1].attention.proj(z.flatten(2)), seen["blocks.1.attention.out"]
        )

        def without_head_0(name, tensor):
            if name == "blocks.1.attention.z":
                tensor = tensor.clone()
                tensor[:, :, 0] = 0
            return tensor

        silenced = model(ids, hook=without_head_0)
        columns = model.blocks[1].attention.proj.weight
        columns.data[:, :4] = 0  # the same head, silenced in the weights
        torch.testing.assert_close(silenced, model(ids))
        assert not torch.allclose(silenced, plain)


def test_attention_is_causal():
    checkpoint = random_checkpoint()
    model = build(checkpoint.config, checkpoint.tensors)
    with torch.no_grad():
        a, b = model(torch.tensor([[1, 2, 3, 4]])), model(torch.tensor([[1, 2, 3, 9]]))
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert not torch.allclose(a[:, 3], b[:, 3])


LONG = {"context": 300, "heads": 2}
LIMITS = [({"context": 8}, 0), (LONG, 0), (LONG, 200), ({"context": 1}, 0)]


@pytest.mark.parametrize("make", [make_decoder, torch_decoder])
@pytest.mark.parametrize(("sizes", "limit"), LIMITS)
def test_the_cache_takes_as_much_as_is_said_once_the_context_is_full(make, sizes, limit):
    checkpoint = random_checkpoint(**sizes)
    config, decoder = checkpoint.config, make(checkpoint)
    decoder.context_length = limit or decoder.context_length
    # keys and values, float32
    exact = 2 * 4 * config.n_layers * config.n_heads * config.head_dim * decoder.context_length
    assert exact <= decoder.max_cache_bytes
    ids = np.random.default_rng(0).integers(0, config.vocab_size, decoder.context_length).tolist()
    found = []
    for token in ids:
        decoder.decode(token)
        found.append(decoder.cache_bytes)
    assert found == sorted(found)
    assert found[-1] == decoder.max_cache_bytes  # and so never more than that
    if make is torch_decoder:
        assert found[-1] == exact


def test_the_card_of_a_model_says_of_the_cache_what_its_decoder_says(tmp_path, capsys, monkeypatch):
    save(random_checkpoint(context=300, heads=2), tmp_path / "m.safetensors")
    lines = [":model", ":set max-tokens=400", "가각", ":model", ":ablate 0.0", "가각", ":model"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    main(["--ckpt", str(tmp_path / "m.safetensors"), "--context", "200", "--color", "never"])
    shown = capsys.readouterr().out
    figures = re.findall(r"\+ ([\d.]+) MiB KV\s+cache;\s+([\d.]+) MiB\s+when", shown)
    assert len(figures) == 3
    assert figures[0][0] == "0.00"
    for now, full in figures[1:]:
        assert now == full != "0.00"
