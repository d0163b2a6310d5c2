"""What a config.json leaves out, or says in an older way, means what it means to `transformers`."""

import dataclasses
import json
import math
import re

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from minillm_repl.checkpoint.families import find_family
from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.model.build import build
from minillm_repl.model.config import GPTConfig, LlamaConfig
from minillm_repl.model.config_base import Rope
from tests.test_huggingface import (
    GPT2,
    LLAMA,
    LLAMA3,
    NEOX,
    YARN,
    logits_of,
    random_ids,
    random_model,
)

t = transformers
THEIRS = {
    "gpt2": t.GPT2Config,
    "gpt_neox": t.GPTNeoXConfig,
    "llama": t.LlamaConfig,
    "mistral": t.MistralConfig,
    "qwen2": t.Qwen2Config,
    "qwen3": t.Qwen3Config,
}
SMALL = {
    "gpt2": GPT2 | {"n_inner": 50},
    "gpt_neox": NEOX,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "relu": "relu", "silu": "silu"}
WINDOWED = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
OLD_ROPE = {"rope_theta": 5e5, "rope_scaling": None}
SAID = {
    "gpt2": [
        {},
        {"activation_function": "relu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False},
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
            "num_attention_heads": 2,
        },
    ],
    "gpt_neox": [
        {},
        {"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_theta": 7, "layer_norm_eps": 1e-3},
        {"hidden_act": "gelu_new", "use_parallel_residual": False, "tie_word_embeddings": True},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 1.0},
    ],
    "llama": [
        {},
        OLD_ROPE | {"hidden_act": "relu"},
        {"rope_scaling": {"type": "linear", "factor": 3}, "rope_theta": 9},
        {"rope_parameters": LLAMA3},
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {k: v for k, v in LLAMA3.items() if k[0] != "o"}},
        {
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        {"head_dim": None, "num_key_value_heads": None},
        {"head_dim": 12},
    ],
    "mistral": [
        {},
        {"sliding_window": 6},
        {"sliding_window": None, "head_dim": None},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
        {
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        {"layer_types": ["full_attention"] * 3},
        {"sliding_window": None, "layer_types": None},
    ],
    "qwen2": [
        {},
        WINDOWED,
        {"use_sliding_window": True, "max_window_layers": 1},
        {"sliding_window": 4},
        {"use_sliding_window": True},
        WINDOWED | {"sliding_window": None},
        {"attention_bias": True},
        WINDOWED | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        WINDOWED | {"layer_types": None},
        {"layer_types": ["attention"] * 3},
        {"num_key_value_heads": None},
    ],
    "qwen3": [
        {},
        WINDOWED,
        {"head_dim": 12, "attention_bias": True},
        {"use_sliding_window": True},
        WINDOWED | {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ],
}


def _windows(theirs):
    """How far each layer sees.

    Raises UserError for what transformers refuses once the model is asked for something.
    """
    if isinstance(theirs, t.MistralConfig):
        return [theirs.sliding_window or 0] * theirs.num_hidden_layers
    slides = [kind == "sliding_attention" for kind in getattr(theirs, "layer_types", None) or []]
    if any(slides) and theirs.sliding_window is None:
        raise UserError("no window")
    return [theirs.sliding_window if sliding else 0 for sliding in slides]


def said_by(theirs):
    """What their config object says, as one of ours."""
    what = theirs.model_type
    if what == "gpt2":
        return GPTConfig(
            vocab_size=theirs.vocab_size,
            context_length=theirs.n_positions,
            d_model=theirs.n_embd,
            n_layers=theirs.n_layer,
            n_heads=theirs.n_head,
            d_mlp=theirs.n_inner if theirs.n_inner is not None else 4 * theirs.n_embd,
            activation=ACTIVATIONS[theirs.activation_function],
            norm_eps=theirs.layer_norm_epsilon,
            qkv_bias=True,
            lm_head_bias=False,
            tie_word_embeddings=theirs.tie_word_embeddings,
        )
    turns = theirs.rope_parameters
    common = {
        "vocab_size": theirs.vocab_size,
        "context_length": theirs.max_position_embeddings,
        "d_model": theirs.hidden_size,
        "n_layers": theirs.num_hidden_layers,
        "n_heads": theirs.num_attention_heads,
        "d_mlp": theirs.intermediate_size,
        "activation": ACTIVATIONS[theirs.hidden_act],
        "tie_word_embeddings": theirs.tie_word_embeddings,
    }
    rope = {"theta": turns["rope_theta"]}
    if turns["rope_type"] != "default":
        rope |= {"scaling": turns["rope_type"], "factor": turns["factor"]}
    if turns["rope_type"] == "llama3":
        bounds = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        rope |= {name: turns[name] for name in bounds}
    if what == "gpt_neox":
        return GPTConfig(
            **common,
            norm_eps=theirs.layer_norm_eps,
            qkv_bias=True,
            lm_head_bias=False,
            rope=Rope(**rope, rotary_pct=turns["partial_rotary_factor"]),
            parallel_residual=theirs.use_parallel_residual,
        )
    # What the code of each model asks its config for: biases, norms of queries and keys, windows.
    bias = getattr(theirs, "attention_bias", False) if what in ("llama", "qwen3") else False
    windows = _windows(theirs)
    head_size = (
        getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    )
    return LlamaConfig(
        **common,
        n_kv_heads=theirs.num_key_value_heads,
        head_dim=head_size,
        norm_eps=theirs.rms_norm_eps,
        rope=Rope(**rope),
        qkv_bias=bias or what == "qwen2",
        out_bias=bias,
        qk_norm=what == "qwen3",
        mlp_bias=theirs.mlp_bias if what == "llama" else False,
        sliding_windows=tuple(windows) if any(windows) else (),
    )


def theirs_of(kind, fields):
    """What the library's AutoConfig makes of a config.json."""
    other = t.MinistralConfig if kind == "mistral" and "layer_types" in fields else THEIRS[kind]
    return other.from_dict(json.loads(json.dumps(fields)))


def assert_the_same(kind, fields, gone=None):
    """Compare what both understand; tell whether transformers takes it.

    What is no model is refused here too.
    """
    try:
        config = theirs_of(kind, fields)
    except (KeyError, StrictDataclassError):
        return False
    try:
        expected = said_by(config)
    except UserError:
        with pytest.raises(UserError):
            find_family(kind).parse_config(fields)
    else:
        assert find_family(kind).parse_config(fields) == expected, gone
    return True


@pytest.mark.parametrize(("kind", "more"), [(kind, more) for kind in SAID for more in SAID[kind]])
def test_each_field_that_is_left_out_is_as_in_transformers(kind, more):
    fields = SMALL[kind] | more
    # as it writes it today
    saved = json.loads(json.dumps(theirs_of(kind, fields).to_dict())) | {"model_type": kind}
    for whole in (fields, saved):
        assert assert_the_same(kind, whole)
        taken = [
            assert_the_same(
                kind, {name: value for name, value in whole.items() if name != gone}, gone
            )
            for gone in whole
        ]
        assert sum(taken) >= len(whole) - 3
    assert assert_the_same(kind, {})


# Only sizes that a test can afford: what else is there is left to the library.
BARE = {
    "gpt2": {"vocab_size": 97, "n_embd": 36, "n_layer": 2},
    "gpt_neox": {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    **{
        kind: {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
        }
        for kind, heads in (
            *(("llama", 4), ("mistral", 8), ("qwen2", 32), ("qwen3", 32), ("phi3", 4)),
            *(("smollm3", 4), ("granite", 4), ("hyperclovax", 4), ("olmo2", 4), ("olmo3", 4)),
            *(("exaone4", 32), ("gemma2", 4), ("gemma3_text", 4)),
        )
    },
}
FITTING = {  # what the library's own defaults leave it unable to build
    "qwen2": {"head_dim": 2},  # it divides 32 by 32
    "exaone4": {"head_dim": 2},
    "phi3": {"pad_token_id": None},
    "smollm3": {"pad_token_id": None},
}


@pytest.mark.parametrize("kind", BARE)
def test_a_model_whose_config_says_little_has_the_logits_of_transformers(kind, tmp_path):
    extra = FITTING.get(kind, {})
    theirs = random_model(t.CONFIG_MAPPING[kind], BARE[kind] | extra)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **BARE[kind], **extra}))
    theirs = t.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    checkpoint = load(tmp_path)
    ids = random_ids(40)
    expected = logits_of(theirs, ids)
    torch.testing.assert_close(
        logits_of(build(checkpoint.config, checkpoint.tensors), ids), expected, rtol=0, atol=1e-4
    )
    mine = torch.from_numpy(make_decoder(checkpoint).prefill(ids[0].tolist()))
    torch.testing.assert_close(mine, expected[0, -1], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [("mistral", {}), ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}),
     ("qwen3", {"use_sliding_window": True, "layer_types": ["sliding_attention"]})],
)  # fmt: skip
def test_a_window_that_the_file_leaves_to_the_library_is_seen_past_its_end(kind, said, tmp_path):
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    sizes = LLAMA | heads | {"max_position_embeddings": 8192, "num_hidden_layers": 1} | said
    random_model(THEIRS[kind], sizes).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes}))
    theirs = t.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    checkpoint = load(tmp_path)
    assert checkpoint.config.sliding_windows == (4096,)
    ids = random_ids(4110)
    expected = logits_of(theirs, ids)
    ours = build(checkpoint.config, checkpoint.tensors)
    torch.testing.assert_close(logits_of(ours, ids), expected, rtol=0, atol=1e-4)
    compiled, cached = make_decoder(checkpoint), TorchDecoder(ours)
    for decoder in (compiled, cached):
        decoder.prefill(ids[0, :4100].tolist())
        for place in range(4100, 4110):
            mine = torch.from_numpy(decoder.decode(int(ids[0, place])))
            torch.testing.assert_close(mine, expected[0, place], rtol=0, atol=1e-4)
    whole = dataclasses.replace(checkpoint.config, sliding_windows=())
    unlike = logits_of(build(whole, checkpoint.tensors), ids)[0, 4105] - expected[0, 4105]
    assert unlike.abs().max() > 1e-4  # else this shows nothing


NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}
OTHER = {"rope_type": "default", "rope_theta": 1e4}
ALIKE = {"full_attention": LLAMA3, "sliding_attention": LLAMA3}


@pytest.mark.parametrize(
    ("fields", "rope"),
    [
        ({"rope_parameters": NESTED}, Rope(theta=5e5)),
        (
            {"rope_parameters": ALIKE},
            Rope(theta=5e3, scaling="llama3", factor=4.0, original_max_position_embeddings=32),
        ),
        ({"rope_scaling": NESTED, "rope_parameters": OTHER}, Rope(theta=5e5)),
        (
            {
                "rope_parameters": NESTED | {"sliding_attention": OTHER},
                "layer_types": ["full_attention"] * 3,
            },
            Rope(theta=5e5),
        ),
        (
            {
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}},
                "rope_theta": 7.0,
            },
            Rope(theta=7.0, scaling="linear", factor=2.0),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            Rope(scaling="dynamic", factor=2.0),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 2, "mscale_all_dim": 1.0}},
            Rope(
                scaling="yarn",
                factor=4.0,
                high_freq_factor=32.0,
                original_max_position_embeddings=96,
                attention_factor=(0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1),
            ),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_rotary_positions_by_layer_type_are_read_where_all_layers_turn_alike(kind, fields, rope):
    assert find_family(kind).parse_config(LLAMA | fields).rope == rope


REFUSED = {
    "two ways to turn": (
        {"rope_parameters": NESTED | {"sliding_attention": OTHER}},
        "differ by layer type .full_att",
    ),
    "a layer that does not turn": (
        {"rope_parameters": NESTED | {"sliding_attention": None}},
        "differ by layer type",
    ),
    "a layer type that is not told": (
        {"rope_parameters": NESTED, "layer_types": ["sliding_attention"] * 3},
        "differ by layer type",
    ),
    "yarn in all layers, not in whole pairs": (
        {"rope_parameters": {"full_attention": YARN | {"truncate": False}}},
        "truncate = False is not supported",
    ),
    "linear without a factor": ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
    "llama3 without its bounds": (
        {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
        "low_freq_factor",
    ),
    "half a head that turns slowly": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5},
        "partial_rotary_factor = 0.5 is not supported",
    ),
    "longrope without its factors": (
        {"rope_scaling": {"type": "longrope", "factor": 2.0}},
        "short_factor is missing",
    ),
    "longrope for another size of heads": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2]}},
        r"longrope needs \d+ short and long factors, not 1 and 1",
    ),
    "positions that are a list": ({"rope_scaling": [1]}, "must be a JSON object"),
    **{
        kind: (
            {"rope_scaling": {"type": kind, "factor": 2.0}},
            f"RoPE scaling '{kind}' is not supported",
        )
        for kind in ("su", "proportional", "mrope", "\x1b[31m")
    },
}


@pytest.mark.parametrize("inside", [{}, {"original_max_position_embeddings": 32}])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt_neox"])
def test_where_scaled_positions_come_from_may_be_said_beside_them(kind, inside, tmp_path):
    model = random_model(THEIRS[kind], SMALL[kind])
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["rope_parameters"] |= {
        key: value for key, value in LLAMA3.items() if key[0] != "o"
    } | inside
    fields |= {"original_max_position_embeddings": 8}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    # the config alone does not show it yet
    theirs = t.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    checkpoint, ids = load(tmp_path), random_ids(50)
    assert checkpoint.config.rope.original_max_position_embeddings == 8
    ours = build(checkpoint.config, checkpoint.tensors)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_rotary_positions_that_are_not_known_here_are_refused_by_name(kind, what):
    fields, message = REFUSED[what]
    with pytest.raises(UserError) as raised:
        find_family(kind).parse_config(LLAMA | fields)
    assert re.search(message.replace("\x1b[31m", ".*31m"), str(raised.value))
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            WINDOWED | {"layer_types": ["sliding_attention"]},
            "layer_types must be a list of 3 names",
        ),
        (WINDOWED | {"layer_types": "full_attention"}, "layer_types must be a list of 3 names"),
        (
            {"layer_types": ["linear_attention"] * 3},
            "layer_types has linear_attention, which is not supported",
        ),
        (
            {"layer_types": [["full_attention"]] * 3},
            "layer_types has ..full_attention.., which is not supported",
        ),
        ({"layer_types": ["sliding_attention"] * 3, "sliding_window": None}, "set no window size"),
    ],
)
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_layer_types_that_are_not_known_here_are_refused_by_name(kind, fields, message):
    with pytest.raises(UserError, match=message):
        find_family(kind).parse_config(LLAMA | fields)
