"""Files as others leave them: what `transformers` opens opens with the same logits, and what is
not done is told.
"""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.errors import UserError
from minillm_repl.generate.backends import make_decoder
from minillm_repl.model.build import build
from tests.test_folders import edited
from tests.test_huggingface import GPT2, LLAMA, NEOX, logits_of, random_ids, random_model

t = transformers
UNTIED = {
    "llama": (t.LlamaConfig, LLAMA),
    "qwen2": (t.Qwen2Config, LLAMA),
    "gpt2": (t.GPT2Config, GPT2 | {"tie_word_embeddings": False}),
    "gpt_neox": (t.GPTNeoXConfig, NEOX),
}
EMBEDDING = {"gpt2": "transformer.wte.weight", "gpt_neox": "gpt_neox.embed_in.weight"}
HEAD = {"gpt_neox": "embed_out.weight"}


@pytest.fixture(scope="module", params=UNTIED)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def untied(kind):
    return random_model(*UNTIED[kind])


@pytest.fixture(scope="module")
def llama():
    return random_model(*UNTIED["llama"])


def written(model, folder, change=lambda tensors: tensors, **fields):
    """Save a model, with its tensors and its config.json changed."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = change(dict(safetensors.torch.load_file(path)))
    safetensors.torch.save_file(
        {name: each.contiguous() for name, each in tensors.items()}, path, {"format": "pt"}
    )
    edited(folder, **fields)
    return folder


def assert_alike(folder, path=None):
    """Open a folder, and compare its logits with transformers', in float32, by both decoders."""
    checkpoint = load(path or folder)
    theirs = t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = random_ids(30)
    expected = logits_of(theirs, ids)
    ours = logits_of(build(checkpoint.config, checkpoint.tensors), ids)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    last = torch.from_numpy(make_decoder(checkpoint).prefill(ids[0].tolist()))
    torch.testing.assert_close(last, expected[0, -1], rtol=0, atol=1e-4)
    return checkpoint


# -- Which head


def heads(kind):
    return EMBEDDING.get(kind, "model.embed_tokens.weight"), HEAD.get(kind, "lm_head.weight")


def test_a_head_that_differs_is_used_although_the_flag_says_that_it_is_the_embedding(
    kind, untied, tmp_path
):
    folder = written(untied, tmp_path / "m", tie_word_embeddings=True)
    checkpoint = assert_alike(folder)
    assert not checkpoint.config.tie_word_embeddings
    assert len(checkpoint.notes) == 1
    assert heads(kind)[1] in checkpoint.notes[0]
    save(checkpoint, tmp_path / "again", folder=True)  # and what is saved says so
    assert (
        json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    assert assert_alike(tmp_path / "again").notes == ()


def test_so_it_is_where_the_head_lies_in_another_shard(llama, tmp_path):
    llama.save_pretrained(tmp_path, max_shard_size="20KB")
    edited(tmp_path, tie_word_embeddings=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert assert_alike(tmp_path).notes


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_a_head_that_is_equal_to_the_embedding_is_the_embedding(kind, untied, stored, tmp_path):
    embedding, head = heads(kind)
    same = lambda tensors: tensors | {head: tensors[embedding].to(stored).clone()}  # noqa: E731
    checkpoint = assert_alike(written(untied, tmp_path, same, tie_word_embeddings=True))
    assert checkpoint.config.tie_word_embeddings
    assert checkpoint.notes == ()


@pytest.mark.parametrize("lost", [0, 1])
def test_of_two_tied_names_one_is_enough(kind, untied, lost, tmp_path):
    gone = heads(kind)[lost]
    drop = lambda tensors: {name: each for name, each in tensors.items() if name != gone}  # noqa: E731
    checkpoint = assert_alike(written(untied, tmp_path, drop, tie_word_embeddings=True))
    assert checkpoint.config.tie_word_embeddings
    assert checkpoint.notes == ()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_model_that_is_not_tied_needs_both(kind, untied, lost, tmp_path):
    """The library makes up random numbers for the one that is not there."""
    gone = heads(kind)[lost]
    drop = lambda tensors: {name: each for name, each in tensors.items() if name != gone}  # noqa: E731
    with pytest.raises(UserError, match=f"has no tensor {gone}"):
        load(written(untied, tmp_path, drop, tie_word_embeddings=False))


def test_a_head_of_another_shape_is_refused(llama, tmp_path):
    smaller = lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"][:90]}  # noqa: E731
    with pytest.raises(
        UserError, match=r"lm_head.weight in .* must have the shape \[97, 32\], not \[90, 32\]"
    ):
        load(written(llama, tmp_path, smaller, tie_word_embeddings=True))


# -- What tensors are called, and what else there is


PREFIX = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}
NAMES = {
    "bare": lambda name, prefix: name.removeprefix(prefix),
    "bare in part": lambda name, prefix: name.removeprefix(prefix) if ".1." in name else name,
    "inside a model": lambda name, prefix: name if prefix == "gpt_neox." else prefix + name,
    "newer": lambda name, prefix: name.replace("embed_out", "lm_head"),
}
WRAPPED = ("module.", "_orig_mod.", "base_model.model.", "_orig_mod.module.")


@pytest.mark.parametrize("called", NAMES)
def test_names_may_lack_the_prefix_of_the_family_or_have_one_more(kind, untied, called, tmp_path):
    rename = lambda tensors: {  # noqa: E731
        NAMES[called](name, PREFIX.get(kind, "model.")): each for name, each in tensors.items()
    }
    assert assert_alike(written(untied, tmp_path, rename)).notes == ()


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_may_tell_of_a_wrapper_that_the_model_was_saved_from(kind, untied, wrapper, tmp_path):
    """The library makes up random numbers for all of these."""
    plain = load(written(untied, tmp_path / "plain"))
    rename = lambda tensors: {wrapper + name: each for name, each in tensors.items()}  # noqa: E731
    wrapped = load(written(untied, tmp_path / "wrapped", rename))
    assert wrapped.config == plain.config
    assert all(
        np.array_equal(wrapped.tensors[name], array) for name, array in plain.tensors.items()
    )


def test_buffers_that_older_files_hold_are_left_out_without_a_word(kind, untied, tmp_path):
    layer = {"gpt2": "transformer.h.1.attn", "gpt_neox": "gpt_neox.layers.1.attention"}
    at = layer.get(kind, "model.layers.1.self_attn")
    buffers = {
        f"{at}.rotary_emb.inv_freq": torch.ones(4),
        f"{at}.rotary_emb.cos_cached": torch.ones(1, 1, 8, 8),
        f"{PREFIX.get(kind, 'model.')}position_ids": torch.arange(9),
        **(
            {}
            if kind in ("llama", "qwen2")
            else {
                f"{at}.bias": torch.ones(1, 1, 9, 9, dtype=torch.bool),
                f"{at}.masked_bias": torch.tensor(-1e4),
            }
        ),
    }
    assert assert_alike(written(untied, tmp_path, lambda tensors: tensors | buffers)).notes == ()


def test_tensors_that_the_model_has_no_place_for_are_named(llama, tmp_path):
    more = {
        "score.weight": torch.ones(2, 32),
        "model.layers.3.mlp.up_proj.weight": torch.ones(2),
        "model.layers.0.self_attn.q_proj.bias": torch.ones(32),
        "\x1b]0;x\x07": torch.ones(1),
    }
    checkpoint = assert_alike(written(llama, tmp_path, lambda tensors: tensors | more))
    [note] = checkpoint.notes
    assert "Llama does not use 4 tensors of the file" in note
    assert note.isprintable()


STORED = {
    "float64": lambda name, each: each.double(),
    "some in float16": lambda name, each: each.half() if "mlp" in name else each,
    "some in bfloat16, some in float16": lambda name, each: (
        each.half() if "mlp" in name else each.bfloat16()
    ),
    "some in 8 bits": lambda name, each: each.to(torch.float8_e4m3fn) if "mlp" in name else each,
    "some in 8 bits, with a wide range": lambda name, each: (
        each.to(torch.float8_e5m2) if "proj" in name else each
    ),
    "bfloat16 but for norms in float64": lambda name, each: (
        each.double() if "norm" in name else each.bfloat16()
    ),
}


@pytest.mark.parametrize("how", STORED)
def test_other_kinds_of_numbers_are_read_as_float32(llama, how, tmp_path):
    change = lambda tensors: {name: STORED[how](name, each) for name, each in tensors.items()}  # noqa: E731
    checkpoint = assert_alike(written(llama, tmp_path, change))
    assert checkpoint.dtype == "float32"


def test_numbers_that_the_kind_that_is_wanted_cannot_hold_are_an_error(llama, tmp_path):
    large = {"model.norm.weight": torch.full((32,), 1e300, dtype=torch.float64)}
    folder = written(llama, tmp_path, lambda tensors: tensors | large)
    with pytest.raises(
        UserError, match=r"model.norm.weight in .* has values too large for float32"
    ):
        load(folder)
    edited(
        written(
            llama, tmp_path, lambda tensors: tensors | {"model.norm.weight": torch.full((32,), 1e5)}
        )
    )
    with pytest.raises(UserError, match="too large for float16"):
        load(folder, dtype="float16")
    assert load(folder).dtype == "float32"


@pytest.mark.parametrize(
    ("layer_types", "windows"),
    [
        (["full_attention", "sliding_attention", "full_attention"], (0, 7, 0)),
        (["full_attention"] * 3, ()),
        (["sliding_attention"] * 3, (7, 7, 7)),
        (None, (7, 7, 7)),
    ],
)
def test_a_mistral_slides_where_its_layer_types_say_so(layer_types, windows, tmp_path):
    folder = written(random_model(t.MistralConfig, LLAMA | {"sliding_window": 7}), tmp_path / "m")
    edited(folder, **({"layer_types": layer_types} if layer_types else {}))
    checkpoint = assert_alike(folder)
    assert (checkpoint.config.sliding_windows, checkpoint.notes) == (windows, ())
    save(checkpoint, tmp_path / "again", folder=True)
    assert assert_alike(tmp_path / "again").config == checkpoint.config


def test_layer_types_that_a_llama_does_not_read_are_told(llama, tmp_path):
    """The library's Llama does not either; its cache does, and fails."""
    kinds = ["full_attention", "full_attention", "sliding_attention"]
    checkpoint = load(written(llama, tmp_path, layer_types=kinds))
    theirs = t.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = random_ids(30)
    with torch.no_grad():
        expected = theirs(ids, use_cache=False).logits
    torch.testing.assert_close(
        logits_of(build(checkpoint.config, checkpoint.tensors), ids), expected, rtol=0, atol=1e-4
    )
    assert checkpoint.notes == (
        "layer_types in config.json is ignored: all layers of a Llama have the same window",
    )
