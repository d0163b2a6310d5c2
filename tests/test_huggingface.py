"""Hugging Face folders: `transformers` makes them, saves them, and says what the logits are."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.generate import GenerationConfig, Sampling
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.generate import generate
from minillm_repl.model.build import build

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
}
NEOX = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 96}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.15,
    "logits_scaling": 6.0,
}
GEMMA = LLAMA | {"head_dim": 10, "query_pre_attn_scalar": 24, "sliding_window": 5}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
EXPERTS = LLAMA | {"intermediate_size": 22, "num_experts": 5, "num_experts_per_tok": 2}
# Its plain code: the fused one of experts takes only some sizes.
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
t = transformers
FAMILIES = {
    "gpt2": (t.GPT2Config, GPT2),
    "gpt2 untied, relu, wide": (
        t.GPT2Config,
        GPT2 | {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 50},
    ),
    "gpt_neox": (t.GPTNeoXConfig, NEOX),
    "gpt_neox in turn, half rotary": (
        t.GPTNeoXConfig,
        NEOX | {"use_parallel_residual": False, "rotary_pct": 0.5},
    ),
    "gpt_neox, 3 of 8 numbers rotary": (t.GPTNeoXConfig, NEOX | {"rotary_pct": 0.4}),
    "gpt_neox, 1 of 8, linear": (
        t.GPTNeoXConfig,
        NEOX
        | {
            "rotary_pct": 0.15,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        },
    ),
    "llama": (t.LlamaConfig, LLAMA),
    "llama tied, biased": (
        t.LlamaConfig,
        LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, rope linear": (
        t.LlamaConfig,
        LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama, rope llama3": (t.LlamaConfig, LLAMA | {"rope_parameters": LLAMA3}),
    "llama, one key for all": (t.LlamaConfig, LLAMA | {"num_key_value_heads": 1, "head_dim": 12}),
    "mistral": (t.MistralConfig, LLAMA | {"sliding_window": 7}),
    "mistral without window": (t.MistralConfig, LLAMA | {"sliding_window": None}),
    "qwen2": (t.Qwen2Config, LLAMA),
    "qwen2, late windows": (
        t.Qwen2Config,
        LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen2, windows by layer": (
        t.Qwen2Config,
        LLAMA
        | {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": (t.Qwen3Config, LLAMA | {"head_dim": 12}),
    "qwen3, a window of two": (
        t.Qwen3Config,
        LLAMA
        | {"head_dim": 12, "use_sliding_window": True, "sliding_window": 2, "max_window_layers": 2},
    ),
    "qwen3 tied, biased": (
        t.Qwen3Config,
        LLAMA | {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "qwen3, yarn": (
        t.Qwen3Config,
        LLAMA | {"rope_parameters": YARN | {"original_max_position_embeddings": 24}},
    ),
    "qwen2, yarn by its own numbers": (
        t.Qwen2Config,
        LLAMA
        | {
            "head_dim": 22,
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 48,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "attention_factor": 1.3,
            },
        },
    ),
    "llama, rope dynamic": (
        t.LlamaConfig,
        LLAMA | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "smollm3": (
        t.SmolLM3Config,
        LLAMA | {"no_rope_layer_interval": 2, "tie_word_embeddings": True, "pad_token_id": 0},
    ),
    "smollm3, windows where there is no rope": (
        t.SmolLM3Config,
        LLAMA
        | {
            "no_rope_layers": [0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 6,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "granite": (t.GraniteConfig, LLAMA | MULTIPLIERS),
    "granite tied, biased": (
        t.GraniteConfig,
        LLAMA
        | MULTIPLIERS
        | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "granite 4": (
        t.GraniteMoeHybridConfig,
        LLAMA
        | MULTIPLIERS
        | {
            "layer_types": ["full_attention"] * 3,
            "mamba_n_heads": 8,
            "num_local_experts": 0,
            "shared_intermediate_size": 50,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        },
    ),
    "granite 4 without positions": (
        t.GraniteMoeHybridConfig,
        LLAMA
        | {
            "layer_types": ["full_attention"] * 3,
            "mamba_n_heads": 8,
            "num_local_experts": 0,
            "shared_intermediate_size": 22,
            "attention_bias": True,
        },
    ),
    "hyperclovax": (t.HyperCLOVAXConfig, LLAMA | MULTIPLIERS | {"logits_scaling": 0.125}),
    "hyperclovax without post-norms": (
        t.HyperCLOVAXConfig,
        LLAMA
        | MULTIPLIERS
        | {"use_post_norm": False, "head_dim": 14, "attention_multiplier": None},
    ),
    "olmo2": (t.Olmo2Config, LLAMA),
    "olmo2 tied, biased": (
        t.Olmo2Config,
        LLAMA | {"head_dim": 14, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "olmo3": (
        t.Olmo3Config,
        LLAMA
        | {
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": YARN | {"original_max_position_embeddings": 24},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "exaone4": (
        t.Exaone4Config,
        LLAMA | {"sliding_window": None, "layer_types": ["full_attention"] * 3},
    ),
    "exaone4, windows": (
        t.Exaone4Config,
        LLAMA | {"sliding_window": 6, "sliding_window_pattern": 2, "tie_word_embeddings": True},
    ),
    "gemma2": (t.Gemma2Config, GEMMA | {"attn_logit_softcapping": 2.0}),
    "gemma2 untied, biased, without caps": (
        t.Gemma2Config,
        GEMMA
        | {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3": (
        t.Gemma3TextConfig,
        GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3, two ropes, a cap": (
        t.Gemma3TextConfig,
        GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": TWO_ROPES,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3_moe": (
        t.Qwen3MoeConfig,
        EXPERTS | {"head_dim": 12, "moe_intermediate_size": 19, "norm_topk_prob": True},
    ),
    "qwen3_moe, dense layers, all switches": (
        t.Qwen3MoeConfig,
        EXPERTS
        | {
            "moe_intermediate_size": 7,
            "num_experts_per_tok": 3,
            "mlp_only_layers": [0],
            "tie_word_embeddings": True,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
        },
    ),
    "qwen3_moe, every second layer": (
        t.Qwen3MoeConfig,
        EXPERTS | {"moe_intermediate_size": 33, "num_experts_per_tok": 5, "decoder_sparse_step": 2},
    ),
    "lfm2": (
        t.Lfm2Config,
        LLAMA
        | {
            "layer_types": ["conv", "full_attention", "conv"],
            "block_multiple_of": 16,
            "conv_L_cache": 3,
        },
    ),
    "lfm2 untied, of four tokens": (
        t.Lfm2Config,
        LLAMA
        | {
            "layer_types": ["full_attention", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 4,
            "tie_word_embeddings": False,
        },
    ),
    "olmoe": (t.OlmoeConfig, EXPERTS | {"pad_token_id": 0}),
    "olmoe tied, biased, clipped": (
        t.OlmoeConfig,
        EXPERTS
        | {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "clip_qkv": 0.7,
            "norm_topk_prob": True,
            "pad_token_id": 0,
        },
    ),
    "granitemoe": (
        t.GraniteMoeConfig,
        LLAMA | MULTIPLIERS | {"num_local_experts": 6, "num_experts_per_tok": 3},
    ),
    "granitemoe tied, biased": (
        t.GraniteMoeConfig,
        LLAMA
        | MULTIPLIERS
        | {
            "intermediate_size": 21,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
    ),
    "phi3": (t.Phi3Config, LLAMA | {"pad_token_id": 0}),
    "phi3, 6 of 8 numbers rotary, a window": (
        t.Phi3Config,
        LLAMA
        | {
            "pad_token_id": 0,
            "sliding_window": 7,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "phi3, longrope": (
        t.Phi3Config,
        LLAMA
        | {
            "pad_token_id": 0,
            "max_position_embeddings": 384,
            "original_max_position_embeddings": 96,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.25, 1.5],
                "long_factor": [1.5, 3.0, 8.0],
            },
        },
    ),
}


def random_model(kind, overrides, dtype=torch.float32):
    """A model of random weights, all of them large enough to matter: norms and biases too."""
    torch.manual_seed(0)
    config = kind(**overrides, **EAGER)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name or "ln_" in name else 0.0, 0.2)
    return model.to(dtype)


@pytest.fixture(params=FAMILIES)
def theirs(request):
    return random_model(*FAMILIES[request.param])


@pytest.fixture
def saved(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def random_ids(length, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 97, (1, length)))


def logits_of(model, ids):
    with torch.no_grad():
        result = model(ids)
    return result if torch.is_tensor(result) else result.logits


def opened(folder, **more):
    checkpoint = load(folder, **more)
    return checkpoint, build(checkpoint.config, checkpoint.tensors)


def test_the_logits_are_those_of_transformers(theirs, saved):
    _, ours = opened(saved)
    for length in (1, 2, 7, 8, 33, 96):
        ids = random_ids(length, seed=length)
        torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=1e-4)


def test_token_by_token_with_the_cache_too(theirs, saved):
    checkpoint, _ = opened(saved)
    decoder = make_decoder(checkpoint)
    ids = random_ids(40)
    expected = logits_of(theirs, ids)[0].numpy()
    np.testing.assert_allclose(decoder.prefill(ids[0, :5].tolist()), expected[4], rtol=0, atol=1e-4)
    for place in range(5, 40):
        np.testing.assert_allclose(
            decoder.decode(int(ids[0, place])), expected[place], rtol=0, atol=1e-4
        )
    decoder.trim(11)  # and from the middle, many at once
    np.testing.assert_allclose(
        decoder.prefill(ids[0, 11:].tolist()), expected[39], rtol=0, atol=1e-4
    )


def test_greedy_text_is_the_same(theirs, saved):
    checkpoint, _ = opened(saved)
    prompt = random_ids(9, seed=3)
    expected = theirs.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=64,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = GenerationConfig(max_tokens=64, sampling=Sampling(temp=0))
    decoder, ids = make_decoder(checkpoint), prompt[0].tolist()
    rng = np.random.default_rng(0)
    events = list(generate(decoder, checkpoint.tokenizer, ids, config, rng))
    assert [event.id for event in events[:-1]] == expected[0, 9:].tolist()


def test_what_is_saved_as_a_folder_is_opened_by_transformers(theirs, saved, tmp_path):
    checkpoint, _ = opened(saved)
    save(checkpoint, tmp_path / "ours", folder=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", **EAGER).eval()
    assert again.config.model_type == theirs.config.model_type
    ids = random_ids(50)
    assert torch.equal(logits_of(again, ids), logits_of(theirs, ids))


def renamed(folder, names, fields):
    """Give the tensors and the config of a saved folder other names."""
    tensors = load_file(folder / "model.safetensors")
    for old, new in names:
        tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields(config)))


def test_an_exaone_3_is_a_llama_by_other_names(tmp_path):
    theirs = random_model(t.LlamaConfig, LLAMA | {"tie_word_embeddings": True, "head_dim": 12})
    theirs.save_pretrained(tmp_path)
    names = [
        (r"model\.embed_tokens", "transformer.wte"),
        (r"model\.norm", "transformer.ln_f"),
        (r"model\.layers", "transformer.h"),
        (r"self_attn\.o_proj", "attn.attention.out_proj"),
        (r"self_attn", "attn.attention"),
        (r"mlp\.gate_proj", "mlp.c_fc_0"),
        (r"mlp\.up_proj", "mlp.c_fc_1"),
        (r"mlp\.down_proj", "mlp.c_proj"),
        (r"input_layernorm", "ln_1"),
        (r"post_attention_layernorm", "ln_2"),
    ]

    def fields(config):
        config |= {
            "model_type": "exaone",
            "auto_map": {"AutoConfig": "configuration_exaone.ExaoneConfig"},
            "num_layers": config.pop("num_hidden_layers"),
            "layer_norm_epsilon": config.pop("rms_norm_eps"),
            "activation_function": config.pop("hidden_act"),
        }
        return config

    renamed(tmp_path, names, fields)
    checkpoint, ours = opened(tmp_path)
    ids = random_ids(40)
    assert checkpoint.model_type == "exaone"
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_model_of_a_gemma_3_that_reads_images_opens(tmp_path, prefix):
    theirs = random_model(*FAMILIES["gemma3"])
    theirs.save_pretrained(tmp_path)
    renamed(
        tmp_path,
        [(r"^model\.", prefix)],
        lambda config: {"model_type": "gemma3", "text_config": config, "vision_config": {}},
    )
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["vision_tower.vision_model.post_layernorm.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint, ours = opened(tmp_path)
    ids = random_ids(40)
    assert checkpoint.notes == ()
    torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=0, atol=1e-4)
    save(checkpoint, tmp_path / "ours", folder=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert again.config.model_type == "gemma3_text"
    torch.testing.assert_close(logits_of(again, ids), logits_of(theirs, ids), rtol=0, atol=1e-4)


def test_what_is_saved_as_a_file_is_the_same_model(theirs, saved, tmp_path):
    checkpoint, ours = opened(saved)
    save(checkpoint, tmp_path / "m.safetensors")
    again, model = opened(tmp_path / "m.safetensors")
    assert again.config == checkpoint.config
    ids = random_ids(20)
    assert torch.equal(logits_of(model, ids), logits_of(ours, ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is_and_computed_in_float32(theirs, tmp_path, dtype):
    """Theirs loads what they saved, widened, as our arithmetic does with the stored numbers."""
    theirs.to(dtype).save_pretrained(tmp_path / "half")
    exact = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "half", dtype=torch.float32, **EAGER
    ).eval()
    checkpoint, ours = opened(tmp_path / "half")
    assert checkpoint.dtype == str(dtype).removeprefix("torch.")
    ids = random_ids(64)
    torch.testing.assert_close(logits_of(ours, ids), logits_of(exact, ids), rtol=0, atol=1e-4)
