"""The C kernels are held to `transformers` and to the torch model, for every family, every kind of
weights, and every variant that this processor runs.
"""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.generate import GenerationConfig, Prefill, Sampling, choose_prefill_chunk
from minillm_repl.generate.backends import kernels, make_decoder
from minillm_repl.generate.backends.kernel_model import rotary_angles
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.generate import generate, prefill, read_prompt
from minillm_repl.kernels.library import available
from minillm_repl.model.bfloat16 import BFLOAT16, convert
from minillm_repl.model.build import build
from minillm_repl.model.config import LlamaConfig
from minillm_repl.model.config_base import Rope
from minillm_repl.model.rope import compute_cos_sin as torch_rotation
from minillm_repl.storage.paths import find_checkpoint
from tests.conftest import ROOT, random_checkpoint
from tests.test_huggingface import FAMILIES, LLAMA, logits_of, random_ids, random_model
from tests.test_real_models import STORY, TEXT, stories  # noqa: F401 - a fixture


def of_length(overrides, length):
    """The same model with room for a longer text."""
    name = "n_positions" if "n_positions" in overrides else "max_position_embeddings"
    return overrides | {name: length}


# longrope has other frequencies for long texts; its context is limited, and these tests need 300.
@pytest.fixture(scope="module", params=[name for name in FAMILIES if "longrope" not in name])
def family(request, tmp_path_factory):
    """A model of random weights with room for 300 tokens: theirs, and the checkpoint read here."""
    kind, overrides = FAMILIES[request.param]
    theirs = random_model(kind, of_length(overrides, 300))
    folder = tmp_path_factory.mktemp("family")
    theirs.save_pretrained(folder)
    return theirs, load(folder)


@pytest.fixture(params=["transposed", "as they are"])
def matrices(request, monkeypatch):
    """Matrices of models as small as those of these tests are transposed; of larger ones, not."""
    if request.param == "as they are":
        monkeypatch.setattr(kernels, "_SMALL", 0)


@pytest.fixture(
    params=["auto", *(pytest.param(v, marks=pytest.mark.slow) for v in available()[1:])]
)
def variant(request):
    """The variant that the program takes, and each other one that runs here."""
    return request.param


def test_logits_and_greedy_text_are_those_of_transformers(family, matrices, variant):
    """Float32: logits within 1e-3 (1e-4 here) wherever the text is cut in two, and 256 tokens
    word for word.
    """
    theirs, checkpoint = family
    ours = make_decoder(checkpoint, kernels=variant)
    ids = random_ids(300)
    expected = logits_of(theirs, ids)[0].numpy()
    for first, length in ((1, 2), (5, 12), (31, 32), (32, 33), (100, 227), (127, 300)):
        ours.trim(0)
        ours.prefill(ids[0, :first].tolist())
        np.testing.assert_allclose(
            ours.prefill(ids[0, first:length].tolist()), expected[length - 1], rtol=0, atol=1e-4
        )
    text = theirs.generate(
        ids[:, :9],
        attention_mask=torch.ones(1, 9, dtype=int),
        max_new_tokens=256,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    steps = generate(
        ours,
        checkpoint.tokenizer,
        ids[0, :9].tolist(),
        GenerationConfig(max_tokens=256, sampling=Sampling(temp=0)),
        np.random.default_rng(0),
    )
    assert [step.id for step in list(steps)[:-1]] == text[0, 9:].tolist()


def test_the_cache_never_changes_what_is_read(family):
    """Any text after any other, past the context too: the logits are those of a model that has
    read nothing else.
    """
    _, checkpoint = family
    used, fresh = (
        make_decoder(checkpoint),
        TorchDecoder(build(checkpoint.config, checkpoint.tensors)),
    )
    used.context_length = fresh.context_length = 40
    rng = np.random.default_rng(2)
    text = []
    for _ in range(25):
        text = (
            text[: rng.integers(0, len(text) + 1)]
            + rng.integers(0, 97, rng.integers(1, 30)).tolist()
        )
        fresh.trim(0)
        np.testing.assert_allclose(prefill(used, text), prefill(fresh, text), rtol=0, atol=1e-4)
        assert used.ids == fresh.ids


@pytest.mark.parametrize("variant", available())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_variant_is_the_torch_model(variant, dtype, monkeypatch):
    """One token and many; widths that fill the tiles of AMX, and widths that fill no register."""
    monkeypatch.setattr(kernels, "_SMALL", 0)
    rng = np.random.default_rng(0)
    for width, heads, kv_heads, size, hidden in ((64, 4, 2, 32, 96), (84, 4, 2, 22, 100)):
        config = LlamaConfig(
            vocab_size=97, context_length=320, d_model=width, n_layers=2, n_heads=heads,
            n_kv_heads=kv_heads, head_dim=size, d_mlp=hidden,
        )  # fmt: skip
        exact = {
            name: torch.tensor(rng.normal(0, 0.2, shape)).to(getattr(torch, dtype)).float().numpy()
            for name, shape in config.shapes()
        }
        stored = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
        tensors = {name: convert(array, stored) for name, array in exact.items()}
        checkpoint = replace(random_checkpoint(vocab=97), config=config, tensors=tensors)
        definition = TorchDecoder(build(config, exact))
        for threads in (1, 2):
            ours = make_decoder(checkpoint, threads=threads, kernels=variant)
            assert variant in ours.name
            ids = rng.integers(0, 97, 310).tolist()
            for first, last in ((0, 1), (1, 3), (3, 15), (15, 32), (32, 289), (289, 290)):
                ours.trim(first)
                definition.trim(first)
                np.testing.assert_allclose(
                    ours.prefill(ids[first:last]),
                    definition.prefill(ids[first:last]),
                    rtol=0,
                    atol=1e-4,
                )


def test_the_number_of_threads_changes_no_bit(matrices):
    config = LlamaConfig(
        vocab_size=97,
        context_length=600,
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        d_mlp=100,
    )
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in config.shapes()
    }
    checkpoint = replace(random_checkpoint(vocab=97), config=config, tensors=tensors)
    ids = rng.integers(0, 97, 560).tolist()

    def logits(threads):
        decoder = make_decoder(checkpoint, threads=threads)
        return decoder.prefill(ids).copy(), decoder.decode(5).copy()

    (alone, alone_next), *others = [logits(threads) for threads in (1, 2, 3)]
    for together, together_next in others:
        assert np.array_equal(alone, together)
        assert np.array_equal(alone_next, together_next)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_read_as_they_are(dtype, tmp_path, monkeypatch):
    """They widen exactly, and nothing else is rounded: keys and values are float32."""
    random_model(*FAMILIES["llama tied, biased"], dtype).save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    exact = load(tmp_path, dtype="float32")
    ids = random_ids(60)[0].tolist()
    expected = TorchDecoder(build(exact.config, exact.tensors)).prefill(ids)
    monkeypatch.setattr(kernels, "_SMALL", 0)
    ours = make_decoder(checkpoint)
    np.testing.assert_allclose(ours.prefill(ids), expected, rtol=0, atol=1e-5)
    assert "weights in " + checkpoint.dtype in ours.backend_details


def test_the_notes_own_kind_of_gpt_runs_too():
    checkpoint = random_checkpoint(vocab=50, context=100, width=36, heads=3)
    ids = np.random.default_rng(0).integers(0, 50, 100).tolist()
    ours, definition = (
        make_decoder(checkpoint, threads=2),
        TorchDecoder(build(checkpoint.config, checkpoint.tensors)),
    )
    np.testing.assert_allclose(ours.prefill(ids), definition.prefill(ids), rtol=1e-4, atol=1e-4)
    assert "weights repacked as float32" in ours.backend_details


def test_the_story_is_told_word_for_word_and_costs_no_perplexity(stories, record_property):
    exact = load(stories, dtype="float32")
    ids = exact.tokenizer.encode(STORY + " " + TEXT)[:512]

    def perplexity(decoder):
        logits = [
            decoder.prefill(ids[:1]).copy(),
            *(decoder.decode(token).copy() for token in ids[1:-1]),
        ]
        chosen = (
            torch.tensor(np.stack(logits)).double().log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        )
        return float((-chosen.mean()).exp())

    numbers = {
        "torch float32": perplexity(TorchDecoder(build(exact.config, exact.tensors))),
        "float32": perplexity(make_decoder(exact, threads=1)),
        "int8": perplexity(make_decoder(exact, threads=1, quant="int8")),
        "int4": perplexity(make_decoder(exact, threads=1, quant="int4")),
    }
    for name, number in numbers.items():
        record_property(name, number)
        print(f"{name}: {number:.6f}")
    assert numbers["float32"] == pytest.approx(numbers["torch float32"], rel=1e-5)
    assert numbers["int8"] == pytest.approx(numbers["torch float32"], rel=1e-2)
    assert numbers["int4"] == pytest.approx(numbers["torch float32"], rel=0.08)


def test_stories_greedy_text_is_torchs(stories):
    checkpoint = load(stories, dtype="float32")
    start = checkpoint.tokenizer.encode("")

    def greedy(decoder):
        steps = generate(
            decoder,
            checkpoint.tokenizer,
            start,
            GenerationConfig(max_tokens=256, sampling=Sampling(temp=0)),
            np.random.default_rng(0),
        )
        return [step.id for step in list(steps)[:-1]]

    definition = TorchDecoder(build(checkpoint.config, checkpoint.tensors))
    assert greedy(make_decoder(checkpoint)) == greedy(definition)


@pytest.mark.parametrize(
    "rope",
    [
        Rope(),
        Rope(theta=1e6, scaling="linear", factor=3.0),
        Rope(scaling="llama3", factor=8.0, theta=5e5),
        Rope(rotary_pct=0.5),
        Rope(scaling="yarn", factor=4.0, low_freq_factor=1.0, high_freq_factor=32.0,
             original_max_position_embeddings=1_000, attention_factor=1.2),
    ],
)  # fmt: skip
def test_rotary_positions_are_those_of_the_torch_model(rope):
    config = LlamaConfig(
        vocab_size=9, n_layers=2, n_kv_heads=1, head_dim=64, d_mlp=9, sliding_rope=rope,
        rope=Rope(theta=9.0, rotary_pct=rope.rotary_pct), sliding_windows=(0, 5),
    )  # fmt: skip
    cos, sin = (angles[1] for angles in rotary_angles(config, 5_000))
    expected = torch_rotation(rope, 64, torch.arange(5_000), torch.float32)
    half = cos.shape[1]
    np.testing.assert_allclose(cos, expected[0][:, :half], rtol=0, atol=1e-3)
    np.testing.assert_allclose(sin, expected[1][:, :half], rtol=0, atol=1e-3)
    np.testing.assert_allclose(cos[:500], expected[0][:500, :half], rtol=0, atol=1e-4)


def test_an_interrupted_read_leaves_what_was_read(tmp_path):
    random_model(
        transformers.LlamaConfig, LLAMA | {"max_position_embeddings": 1000}
    ).save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    decoder = make_decoder(checkpoint, threads=2)
    ids = random_ids(900)[0].tolist()
    asked = []
    stop = lambda: bool(asked.append(len(decoder.ids)) or len(asked) == 3)  # noqa: E731
    told = list(read_prompt(decoder, ids, stop))
    assert 0 < asked[0] < asked[1] < asked[2] < 900
    assert told == [Prefill(done, 900) for done in asked]
    assert decoder.ids == ids[: asked[2]]
    np.testing.assert_allclose(
        prefill(decoder, ids), make_decoder(checkpoint, threads=1).prefill(ids), rtol=0, atol=1e-5
    )


def test_a_large_model_reads_fewer_tokens_before_it_looks_up(tmp_path):
    random_model(transformers.LlamaConfig, LLAMA).save_pretrained(tmp_path)
    decoder, ids = make_decoder(load(tmp_path)), random_ids(60)[0].tolist()
    expected = np.array(prefill(decoder, ids))
    assert decoder.prefill_chunk == 128
    for parameters, size in ((135_000_000, 128), (300_000_000, 48), (10**12, 32)):
        decoder.prefill_chunk = choose_prefill_chunk(parameters)
        assert decoder.prefill_chunk == size
        decoder.trim(0)
        np.testing.assert_allclose(prefill(decoder, ids), expected, rtol=0, atol=1e-5)


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_real_model_answers_without_torch(stories):
    code = f"""
import sys, minillm_repl.cli
flags = ['-p', 'Once', '-n', '5', '--temp', '0']
assert minillm_repl.cli.main(['--ckpt', {str(stories)!r}, *flags]) == 0
print('torch' in sys.modules)"""
    assert run(code).endswith("False\n")


WITHOUT_KERNELS = """
from minillm_repl.checkpoint.load_save import load
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.generate.backends import make_decoder
decoder = make_decoder(load(find_checkpoint('nalssi')))
print(decoder.name, '|', decoder.backend_details, len(decoder.prefill([1, 2])))
"""


def test_torch_serves_where_there_is_no_library_and_says_why(tmp_path):
    said = run(WITHOUT_KERNELS, MINILLM_KERNELS_DIR=str(tmp_path))
    assert said.startswith("torch on cpu | the C library was not built for this system")
    assert said.endswith(" 44\n")


def test_torch_serves_where_the_kernels_are_off():
    said = make_decoder(load(find_checkpoint("nalssi")), kernels="off")
    assert (said.name, said.backend_details) == ("torch on cpu", "kernels are off")


def test_what_needs_the_kernels_is_refused_where_torch_runs():
    with pytest.raises(UserError, match="--quant int8 needs the C kernels"):
        make_decoder(load(find_checkpoint("nalssi")), quant="int8", kernels="off")


def test_logits_outlive_their_decoder():
    checkpoint = random_checkpoint(vocab=5_000)
    kept = [make_decoder(checkpoint, threads=2).prefill([1, 2, 3]) for _ in range(20)]
    assert all(np.array_equal(each, kept[0]) for each in kept)


def test_a_token_or_position_out_of_range_is_an_error_and_not_a_read_past_the_end():
    decoder = make_decoder(random_checkpoint(vocab=11, context=8))
    for ids in ([11], [-1], [1, 2, 10**9]):
        with pytest.raises((IndexError, OverflowError)):
            decoder.prefill(ids)
    assert decoder.ids == []
    assert len(decoder.prefill([1, 2])) == 11


def test_every_size_of_head_and_width_is_read_to_its_end(matrices):
    """Sizes that divide by nothing: the ends of rows, of blocks of keys and of registers."""
    rng = np.random.default_rng(0)
    for width, heads, kv_heads, size, hidden in (
        (7, 1, 1, 2, 3),
        (19, 6, 2, 10, 37),
        (33, 5, 5, 34, 50),
    ):
        config = LlamaConfig(
            vocab_size=23,
            context_length=80,
            d_model=width,
            n_layers=2,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=size,
            d_mlp=hidden,
            sliding_windows=(0, 37),
        )
        tensors = {
            name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in config.shapes()
        }
        checkpoint = replace(random_checkpoint(vocab=23), config=config, tensors=tensors)
        ours, definition = make_decoder(checkpoint, threads=2), TorchDecoder(build(config, tensors))
        ids = rng.integers(0, 23, 80).tolist()
        np.testing.assert_allclose(ours.prefill(ids), definition.prefill(ids), rtol=1e-4, atol=1e-4)
        ours.trim(50)
        definition.trim(50)
        np.testing.assert_allclose(ours.decode(1), definition.decode(1), rtol=1e-4, atol=1e-4)


def test_a_thread_that_is_put_aside_holds_nobody_up_and_changes_no_bit():
    """Four threads on two cores, and a fifth that only spins: some are put aside all the time."""
    config = LlamaConfig(
        vocab_size=97, context_length=256, d_model=64, n_layers=3, n_heads=4, n_kv_heads=2,
        head_dim=16, d_mlp=96,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in config.shapes()
    }
    checkpoint = replace(random_checkpoint(vocab=97), config=config, tensors=tensors)
    ids = rng.integers(0, 97, 200).tolist()
    alone = make_decoder(checkpoint, threads=1)
    together = make_decoder(checkpoint, threads=4)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for round_number in range(20):
            for decoder in (alone, together):
                decoder.trim(0)
            assert np.array_equal(together.prefill(ids), alone.prefill(ids)), round_number
            for token in ids[:40]:
                assert np.array_equal(together.decode(token), alone.decode(token)), round_number
    finally:
        busy.kill()
        busy.wait()
