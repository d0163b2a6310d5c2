"""Folders that are not what they should be: each is refused in one clean line, and nothing in
them is run.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.storage.paths import cached_models, checkpoint_title, find_checkpoint
from tests.conftest import random_checkpoint
from tests.test_huggingface import GPT2, LLAMA, logits_of, opened, random_ids, random_model


@pytest.fixture(scope="module")
def theirs():
    return random_model(transformers.LlamaConfig, LLAMA)


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edited(folder, **changes):
    """Change fields of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in (config | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def reweighted(folder, **changes):
    """Change tensors, whose names have _ for a dot here; None removes one."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, array in changes.items():
        tensors[name.replace("__", ".")] = array
    safetensors.numpy.save_file(
        {n: a for n, a in tensors.items() if a is not None}, folder / "model.safetensors"
    )


def sharded(folder, shard="a.safetensors", places=None):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    tensors = safetensors.numpy.load_file(folder / "a.safetensors")
    index = {"weight_map": places if places is not None else dict.fromkeys(tensors, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


WRONG = {
    "no config": (lambda f: (f / "config.json").unlink(), "without the config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "config NaN": (lambda f: (f / "config.json").write_text('{"a": NaN}'), "not valid JSON"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "nested too deeply"),
    "config twice": (lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}'), "twice"),
    "unknown family": (
        lambda f: edited(f, model_type="ba\x1b[31mmba"),
        "unsupported model type .*; supported types: gpt2, gpt_neox",
    ),
    "no family": (lambda f: edited(f, model_type=None), "has no model_type"),
    "code of its own": (lambda f: edited(f, auto_map={"AutoModel": "evil.Model"}), "not run"),
    "a tokenizer's own code": (
        lambda f: (f / "tokenizer_config.json").write_text('{"auto_map": {}}'),
        "refers to its own code",
    ),
    "no width": (
        lambda f: edited(f, hidden_size=None),
        "must have the shape .97, 4096., not .97, 32.",
    ),
    "width a string": (lambda f: edited(f, hidden_size="32"), "hidden_size must be a whole number"),
    "width true": (lambda f: edited(f, hidden_size=True), "hidden_size must be a whole number"),
    "less than nothing": (lambda f: edited(f, num_hidden_layers=-1), "n_layers must be from 1"),
    "a million layers": (lambda f: edited(f, num_hidden_layers=10**6), "n_layers must be from 1"),
    "a giant vocabulary": (lambda f: edited(f, vocab_size=2**40), "vocab_size must be from 1"),
    "heads that do not fit": (lambda f: edited(f, num_key_value_heads=3), "do not fit together"),
    "no heads": (lambda f: edited(f, num_attention_heads=0), "n_heads must be from 1"),
    "positions of another kind": (
        lambda f: edited(f, rope_parameters={"rope_type": "proportional"}),
        "supported: default, linear, dynamic, llama3",
    ),
    "a strange activation": (
        lambda f: edited(f, hidden_act="mish"),
        "hidden_act = mish is not supported",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pickled weights .pytorch_model.bin., which can run",
    ),
    "weights that are none": (
        lambda f: (f / "model.safetensors").write_bytes(b"no"),
        "is a text, not a checkpoint",
    ),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-4]
        ),
        "the file is truncated",
    ),
    "a missing shard": (
        lambda f: sharded(f, "b.safetensors"),
        "has no b.safetensors, one of its shards",
    ),
    "a shard outside": (lambda f: sharded(f, "../a.safetensors"), "outside the folder"),
    "a shard at the root": (lambda f: sharded(f, "/etc/passwd"), "outside the folder"),
    "a shard in Windows": (lambda f: sharded(f, "..\\a.safetensors"), "outside the folder"),
    "a shard that is a folder": (lambda f: sharded(f, ".."), "outside the folder"),
    "an index of nothing": (lambda f: sharded(f, places={}), "no weight_map"),
    "an index of numbers": (lambda f: sharded(f, places={"a": 1}), "no weight_map"),
    "a missing tensor": (
        lambda f: reweighted(f, model__norm__weight=None),
        "has no tensor model.norm.weight",
    ),
    "a wrong shape": (
        lambda f: reweighted(f, model__norm__weight=np.zeros(3, np.float32)),
        "must have the shape",
    ),
    "a wrong type": (
        lambda f: reweighted(f, model__norm__weight=np.zeros(32, np.int8)),
        "must have one of the dtypes F32",
    ),
    "a NaN": (
        lambda f: reweighted(f, model__norm__weight=np.full(32, np.nan, np.float32)),
        "not finite",
    ),
    "only SentencePiece": (
        lambda f: (f / "tokenizer.model").touch(),
        "tokenizer.model alone is not enough",
    ),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"}'),
        "the tokenizer of",
    ),
    "a tokenizer of lists": (
        lambda f: (f / "tokenizer.json").write_text("[]"),
        "not a JSON object",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_folder_is_refused_in_one_clean_line(what, folder):
    spoil, message = WRONG[what]
    spoil(folder)
    with pytest.raises(UserError, match=message) as raised:
        load(folder)
    assert str(raised.value).count(str(folder)) == 1
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


def bomb(pre_tokenizer=None, normalizer=None):
    letters = {letter: place for place, letter in enumerate("abc !")}
    model = {"type": "BPE", "vocab": letters, "merges": []}
    return {
        "version": "1.0",
        "added_tokens": [],
        "model": model,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
    }


def split(expression):
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


BOMBS = {
    "nested repeats": bomb(split("(a+)+$")),
    "overlapping choices": bomb(split("(a|aa)+$")),
    "a text that grows": bomb(
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000}
    ),
    "a text that fills the memory": bomb(
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5_000_000}
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_tokenizer_that_would_hang_or_swell_is_refused_before_it_is_used(what, folder, capfd):
    (folder / "tokenizer.json").write_text(json.dumps(BOMBS[what]))
    with pytest.raises(
        UserError, match="the tokenizer of .* (cannot be used|crashed|took more than)"
    ):
        load(folder)
    assert capfd.readouterr().err == ""


def test_a_refused_folder_leaves_the_model_as_it_was(folder):
    edited(folder, model_type="mamba")
    script = f":temp 0\n:load {folder}\n날씨\n"
    command = [sys.executable, "-m", "minillm_repl", "--ckpt", "nalssi", "-n", "3"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "날씨가 좋" in done.stdout


def test_shards_and_files_named_by_the_user_open_the_folder(theirs, folder, tmp_path):
    theirs.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    ids = random_ids(20)
    expected = logits_of(theirs, ids)
    for path in (folder, folder / "model.safetensors", tmp_path / "many", shards[1]):
        _, ours = opened(path)
        torch.testing.assert_close(logits_of(ours, ids), expected, rtol=0, atol=1e-4)


def test_a_bare_gpt2_without_prefix_and_head_opens(tmp_path):
    whole = random_model(transformers.GPT2Config, GPT2)
    whole.transformer.save_pretrained(tmp_path / "bare")
    tensors = safetensors.numpy.load_file(tmp_path / "bare" / "model.safetensors")
    assert "wte.weight" in tensors
    tensors |= {
        "h.0.attn.bias": np.tril(np.ones((1, 1, 96, 96), np.float32)),
        "h.0.attn.masked_bias": np.float32(-1e4),
    }
    safetensors.numpy.save_file(
        {name: np.asarray(array) for name, array in tensors.items()},
        tmp_path / "bare" / "model.safetensors",
    )
    _, ours = opened(tmp_path / "bare")
    ids = random_ids(20)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(whole, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["auto", "float32", "float16", "bfloat16"])
def test_weights_become_the_numbers_that_were_asked_for(stored, wanted, tmp_path):
    model = random_model(transformers.LlamaConfig, LLAMA, stored)
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path, dtype=wanted)
    dtype = stored if wanted == "auto" else getattr(torch, wanted)
    ours = build(checkpoint.config, checkpoint.tensors)
    # norms are in float32
    assert {weight.dtype for weight in ours.parameters() if weight.ndim > 1} == {dtype}
    expected = model.model.layers[1].self_attn.o_proj.weight.to(dtype)
    assert torch.equal(ours.blocks[1].attention.proj.weight, expected)


def test_a_file_cut_short_after_loading_does_no_harm(folder, theirs):
    _, ours = opened(folder)
    (folder / "model.safetensors").write_bytes(b"")
    ids = random_ids(9)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=1e-4)


def tied(checkpoint):
    """The same with one matrix for the embedding and the unembedding."""
    config = dataclasses.replace(
        checkpoint.config, lm_head_bias=False, tie_word_embeddings=True, qkv_bias=False
    )
    tensors = {name: checkpoint.tensors[name] for name, _shape in config.shapes()}
    return dataclasses.replace(checkpoint, config=config, tensors=tensors)


@pytest.mark.parametrize("kind", ["shipped", "wide", "tied"])
def test_models_trained_here_open_in_transformers(kind, nalssi, tmp_path):
    # a vocabulary wider than the stream, or not
    checkpoint = nalssi if kind == "shipped" else random_checkpoint(vocab=40, width=12)
    checkpoint = tied(checkpoint) if kind == "tied" else checkpoint
    save(checkpoint, tmp_path / "ours", folder=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = torch.arange(checkpoint.config.context_length)[None] % checkpoint.config.vocab_size
    ours = build(checkpoint.config, checkpoint.tensors)
    torch.testing.assert_close(logits_of(again, ids), logits_of(ours, ids), rtol=0, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = "".join(checkpoint.tokenizer.characters[3:9]) + "?é"
    assert tokenizer(text)["input_ids"] == checkpoint.tokenizer.encode(text)


def test_a_folder_is_replaced_by_the_same_model_only(folder, nalssi, tmp_path):
    checkpoint = load(folder)
    save(checkpoint, tmp_path / "ours", folder=True)
    save(checkpoint, tmp_path / "ours", folder=True)
    before = sorted(path.name for path in (tmp_path / "ours").iterdir())
    for target in (tmp_path / "ours", tmp_path):
        with pytest.raises(UserError, match="contains another model|not an empty folder"):
            save(nalssi, target, folder=True)
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "ours"]


def test_a_native_file_keeps_the_template_and_the_end(nalssi, tmp_path):
    template = ChatTemplate("{{ messages }}", {"bos_token": "<s>"})
    save(
        dataclasses.replace(nalssi, chat_template=template, eos_token_ids=(3, 5)),
        tmp_path / "m.safetensors",
    )
    again = load(tmp_path / "m.safetensors")
    assert (again.chat_template, again.eos_token_ids) == (template, (3, 5))


@pytest.mark.slow
def test_training_never_writes_over_a_folders_weights(folder, tmp_path):
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    # there is no tokenizer: tokens are numbers
    numbers = " ".join(str(place % 97) for place in range(400))
    (tmp_path / "t.txt").write_text(numbers)
    command = [sys.executable, "-m", "minillm_repl", "--ckpt"]
    for path in (folder, weights):
        done = subprocess.run(
            [*command, path, "--train", tmp_path / "t.txt"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "is a model folder" in done.stderr
        script = f":train {tmp_path / 't.txt'} steps=1\n:save\n:save {tmp_path / 'new'}/\n"
        done = subprocess.run(
            [*command, path], input=script, capture_output=True, text=True, check=False
        )
        assert "contains another model" in done.stderr
        assert weights.read_bytes() == before
        assert load(tmp_path / "new").config == load(folder).config
    assert weights.read_bytes() == before


def test_models_in_the_cache_are_found_by_name(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--some-body--tiny.llama" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cached_models() == {"some-body/tiny.llama": snapshot}
    assert find_checkpoint("some-body/tiny.llama") == snapshot
    assert checkpoint_title(snapshot) == "some-body/tiny.llama"
    assert load(find_checkpoint("some-body/tiny.llama")).config.n_layers == 3
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert cached_models() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HOME", "~/hf"),
        ("HF_HOME", "$HOME/hf"),
        ("HF_HUB_CACHE", "~/hf/hub"),
        ("HUGGINGFACE_HUB_CACHE", "${HOME}/hf/hub"),
        ("XDG_CACHE_HOME", "~/cache"),
    ],
)
def test_the_cache_lies_where_hugging_faces_library_says(tmp_path, monkeypatch, name, value):
    for each in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    asked = "from huggingface_hub.constants import HF_HUB_CACHE as folder; print(folder)"
    theirs = Path(
        subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True)
        .stdout.decode()
        .strip()
    )
    snapshot = theirs / "models--some-body--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert theirs.is_relative_to(tmp_path)
    assert cached_models() == {"some-body/tiny": snapshot}


MEASURE = """
import resource, sys, numpy
from pathlib import Path
from minillm_repl.checkpoint import load_save as loading
from minillm_repl.generate.backends import torch as torch_decoder
from minillm_repl.model import build
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
checkpoint = loading.load(Path(sys.argv[1]))
decoder = torch_decoder.TorchDecoder(build.build(checkpoint.config, checkpoint.tensors))
print((peak() - before) / sum(array.nbytes for array in checkpoint.tensors.values()))
"""


@pytest.mark.slow
def test_weights_are_in_memory_once(folder, tmp_path):
    config = LLAMA | {
        "vocab_size": 8000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 6,
    }
    transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**config)
    ).save_pretrained(tmp_path / "big")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "big")],
        capture_output=True,
        text=True,
        check=True,
    )
    print(f"peak memory of loading: {float(done.stdout):.2f} times the weights")
    assert float(done.stdout) <= 1.2
