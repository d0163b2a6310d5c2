"""The compiled decoder is held to `transformers` and to the torch model, for every family and
every kind of weights.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from minillm_repl.checkpoint.load import load
from minillm_repl.generate.backends.compiled import decoder as compiled_decoder
from minillm_repl.generate.backends.compiled.decoder import CompiledDecoder
from minillm_repl.generate.backends.compiled.rotation import rotation
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.decoder import Prefill, choose_prefill_chunk, prefill, prefill_chunks
from minillm_repl.generate.generate import generate
from minillm_repl.generate.options import GenerationConfig, Sampling
from minillm_repl.model.build import build
from minillm_repl.model.config import LlamaConfig, Rope
from minillm_repl.model.rope import compute_cos_sin as torch_rotation
from tests.conftest import ROOT, random_checkpoint, run_on
from tests.test_huggingface import FAMILIES, LLAMA, logits_of, random_ids, random_model
from tests.test_real_models import STORY, TEXT, stories  # noqa: F401 - a fixture


def of_length(overrides, length):
    """The same model with room for a longer text."""
    name = "n_positions" if "n_positions" in overrides else "max_position_embeddings"
    return overrides | {name: length}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A model of random weights with room for 300 tokens: theirs, and the checkpoint read here."""
    kind, overrides = FAMILIES[request.param]
    theirs = random_model(kind, of_length(overrides, 300))
    folder = tmp_path_factory.mktemp("family")
    theirs.save_pretrained(folder)
    return theirs, load(folder)


@pytest.fixture(params=["turned over", "as they are"])
def matrices(request, monkeypatch):
    """Every model of these tests is small enough to be turned over; larger ones are not."""
    if request.param == "as they are":
        monkeypatch.setattr(compiled_decoder, "_SMALL", 0)


def test_logits_and_greedy_text_are_those_of_transformers(family, matrices):
    """Float32: logits within 1e-3 (1e-4 here) wherever the text is cut in two, and 256 tokens
    word for word.
    """
    theirs, checkpoint = family
    ours = CompiledDecoder(checkpoint)
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
        CompiledDecoder(checkpoint),
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


SHORT_REGISTERS = """
from dataclasses import replace
import ml_dtypes, numpy as np
from minillm_repl.generate.backends.compiled.decoder import CompiledDecoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.model.build import build
from minillm_repl.model.config import LlamaConfig
from tests.small import random_checkpoint
import minillm_repl.generate.backends.compiled.decoder as compiled_decoder
compiled_decoder._SMALL = 0
config = LlamaConfig(
    vocab_size=97, context_length=60, d_model=84, n_layers=2, n_heads=4,
    n_kv_heads=2, head_dim=22, d_mlp=100,
)
rng = np.random.default_rng(0)
for kind in (np.float32, ml_dtypes.bfloat16, np.float16):
    tensors = {name: rng.normal(0, 0.2, shape).astype(kind) for name, shape in config.shapes()}
    exact = {name: array.astype(np.float32) for name, array in tensors.items()}
    checkpoint = replace(random_checkpoint(vocab=97), config=config, tensors=tensors)
    ours, definition = CompiledDecoder(checkpoint, 2), TorchDecoder(build(config, exact))
    for decoder in (ours, definition):
        decoder.prefill([5, 9, 13])
    for token in (3, 4):
        np.testing.assert_allclose(ours.decode(token), definition.decode(token), rtol=0, atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_processors_with_shorter_registers_get_the_same(processor):
    """They read matrices row by row, and not four rows side by side."""
    run_on(processor, SHORT_REGISTERS)


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
        decoder = CompiledDecoder(checkpoint, threads)
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
    monkeypatch.setattr(compiled_decoder, "_SMALL", 0)
    ours = CompiledDecoder(checkpoint)
    np.testing.assert_allclose(ours.prefill(ids), expected, rtol=0, atol=1e-5)
    assert "compiled; weights in " + checkpoint.dtype in ours.backend_details


def test_the_notes_own_kind_of_gpt_runs_too():
    checkpoint = random_checkpoint(vocab=50, context=100, width=36, heads=3)
    ids = np.random.default_rng(0).integers(0, 50, 100).tolist()
    ours, definition = (
        CompiledDecoder(checkpoint, 2),
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
        "float32": perplexity(CompiledDecoder(exact, 1)),
        "int8": perplexity(CompiledDecoder(exact, 1, bits=8)),
        "int4": perplexity(CompiledDecoder(exact, 1, bits=4)),
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
    assert greedy(CompiledDecoder(checkpoint)) == greedy(definition)


@pytest.mark.parametrize(
    "rope",
    [
        Rope(),
        Rope(theta=1e6, scaling="linear", factor=3.0),
        Rope(scaling="llama3", factor=8.0, theta=5e5),
        Rope(rotary_pct=0.5),
    ],
)
def test_rotary_positions_are_those_of_the_torch_model(rope):
    class Config:
        head_dim = 64

    Config.rope = rope
    cos, sin = rotation(Config, 5_000)
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
    decoder = CompiledDecoder(checkpoint, 2)
    ids = random_ids(900)[0].tolist()
    asked = []
    stop = lambda: bool(asked.append(len(decoder.ids)) or len(asked) == 3)  # noqa: E731
    told = list(prefill_chunks(decoder, ids, stop))
    assert 0 < asked[0] < asked[1] < asked[2] < 900
    assert told == [Prefill(done, 900) for done in asked]
    assert decoder.ids == ids[: asked[2]]
    np.testing.assert_allclose(
        prefill(decoder, ids), CompiledDecoder(checkpoint, 1).prefill(ids), rtol=0, atol=1e-5
    )


def test_a_large_model_reads_fewer_tokens_before_it_looks_up(tmp_path):
    random_model(transformers.LlamaConfig, LLAMA).save_pretrained(tmp_path)
    decoder, ids = CompiledDecoder(load(tmp_path)), random_ids(60)[0].tolist()
    expected = np.array(prefill(decoder, ids))
    assert decoder.prefill_chunk == 132
    for parameters, size in ((135_000_000, 60), (10**12, 24)):
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


@pytest.mark.slow
def test_the_compiled_decoder_serves_where_nothing_can_be_written(tmp_path):
    """Neither beside the program nor in the user's cache: it is compiled for this visit alone."""
    (tmp_path / "file").touch()
    code = """
import sys, minillm_repl.cli
assert minillm_repl.cli.main(['-p', '날씨', '-n', '5', '--temp', '0']) == 0
print('numba' in sys.modules, 'torch' in sys.modules)"""
    assert run(code, NUMBA_CACHE_DIR=str(tmp_path / "file" / "none")).endswith("True False\n")


WITHOUT_NUMBA = """
import sys
sys.modules['numba'] = None  # as if it were not installed
from minillm_repl.checkpoint.load import load
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.generate.backends import make_decoder
decoder = make_decoder(load(find_checkpoint('nalssi')))
print(decoder.name, '|', decoder.backend_details)
"""


def test_torch_serves_where_numba_does_not_and_says_why(tmp_path):
    said = run(WITHOUT_NUMBA, NUMBA_CACHE_DIR=str(tmp_path))
    assert said.startswith("torch on cpu | numba does not work here: ")


BROKEN_NUMBA = """
import sys
class Finder:
    def find_spec(self, name, *rest):
        if name.partition('.')[0] == 'numba':
            raise error
sys.meta_path.insert(0, Finder())
from minillm_repl.checkpoint.load import load
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.generate.backends import make_decoder
errors = [AttributeError("_ARRAY_API not found"),
          SystemError("initialization failed\\nof a module"),
          KeyError("x86"), AssertionError(), TypeError("\\x1b[31mwrong"),
          OSError("no libllvmlite.so"), RuntimeError("LLVM ERROR")]
for error in errors:
    decoder = make_decoder(load(find_checkpoint('nalssi')))
    print(decoder.name, '|', decoder.backend_details, len(decoder.prefill([1, 2])))
error = MemoryError()
try:
    make_decoder(load(find_checkpoint('nalssi')))
except MemoryError:
    print('no memory')
"""


def test_torch_serves_whatever_it_is_that_fails_in_compiling_and_the_reason_is_told(tmp_path):
    """As numba fails beside another numpy, on an unknown processor, or without a library of it."""
    reasons = [
        "_ARRAY_API not found",
        "initialization failed",
        "'x86'",
        "AssertionError",
        "␛[31mwrong",
        "no libllvmlite.so",
        "LLVM ERROR",
    ]
    said = run(BROKEN_NUMBA, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert said == [
        *(f"torch on cpu | numba does not work here: {why} 44" for why in reasons),
        "no memory",
    ]


def test_what_needs_the_compiled_decoder_is_refused_where_torch_runs(tmp_path):
    asked = WITHOUT_NUMBA.replace(
        "find_checkpoint('nalssi'))", "find_checkpoint('nalssi')), quant='int8'"
    )
    refused = f"""
from minillm_repl.errors import UserError
try:
    exec({asked!r})
except UserError as error:
    print(error)"""
    said = run(refused, NUMBA_CACHE_DIR=str(tmp_path))
    assert said.startswith(
        "--quant int8 needs the compiled decoder, but this model runs in torch (numba does not work"
    )


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
        ours, definition = CompiledDecoder(checkpoint, 2), TorchDecoder(build(config, tensors))
        ids = rng.integers(0, 23, 80).tolist()
        np.testing.assert_allclose(ours.prefill(ids), definition.prefill(ids), rtol=1e-4, atol=1e-4)
        ours.trim(50)
        definition.trim(50)
        np.testing.assert_allclose(ours.decode(1), definition.decode(1), rtol=1e-4, atol=1e-4)


CHATS = """
import sys
from pathlib import Path
from minillm_repl.checkpoint.load import load
from minillm_repl.generate.backends.compiled.decoder import CompiledDecoder
decoder = CompiledDecoder(load(Path(sys.argv[1])))
print('numba' in sys.modules, decoder.prefill([1, 2, 3, 4]).sum().item())
"""


@pytest.mark.slow
def test_code_that_has_changed_or_is_damaged_is_compiled_anew_and_what_has_not_is_fetched(tmp_path):
    shutil.copytree(
        ROOT / "minillm_repl",
        tmp_path / "minillm_repl",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    random_model(transformers.LlamaConfig, LLAMA).save_pretrained(tmp_path / "model")
    compiled = tmp_path / "minillm_repl" / "generate" / "backends" / "compiled"
    beside, as_it_was = (
        compiled / "pointwise.py",
        (compiled / "pointwise.py").read_text(encoding="utf-8"),
    )
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
        "PYTHONPATH": "."
    }

    def run(source):
        beside.write_text(source, encoding="utf-8")
        command = [sys.executable, "-c", CHATS, "model"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        compiling, total = done.stdout.split()
        return compiling == "True", float(total)

    compiling, first = run(as_it_was)
    assert compiling
    assert run(as_it_was) == (False, first)
    (kept,) = (compiled / "__pycache__").glob("*.code")
    kept.write_bytes(kept.read_bytes()[:-100])  # LLVM would end the process
    assert run(as_it_was) == (True, first)
    assert run(as_it_was) == (False, first)
    other = as_it_was.replace(
        "y[i] = x[i] * scale * gain[i]", "y[i] = x[i] * scale * gain[i] * np.float32(2)"
    )
    # Python's own cache tells files apart by seconds and length
    assert len(other) != len(as_it_was)
    compiling, changed = run(other)
    assert compiling
    assert changed != pytest.approx(first, abs=1e-3)
