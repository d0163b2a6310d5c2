"""GGUF files of models of `transformers`, written by the `gguf` package of llama.cpp.

Names are those of the package's own map; the rest follows llama.cpp's convert_hf_to_gguf.py.
"""

from pathlib import Path

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "smollm3": "smollm3", "granite": "granite", "exaone4": "exaone4",
    "olmo2": "olmo2", "phi3": "phi3", "gemma2": "gemma2", "gemma3_text": "gemma3",
    "qwen3_moe": "qwen3moe", "olmoe": "olmoe", "granitemoe": "granitemoe",
    "lfm2": "lfm2",
}  # fmt: skip
_INTERLEAVED = ("llama", "smollm3", "granite", "granitemoe")  # rows of q and k
_PLUS_ONE = ("gemma2", "gemma3_text")  # the norms of a file have 1 + weight


def letters(vocab_size: int) -> list[str]:
    """A vocabulary of single letters of GPT-2, of Hangul, and a space first."""
    return ["Ġ", *map(chr, range(0x61, 0x7B)), *map(chr, range(0xC0, 0x100))][:vocab_size] + [
        f"{chr(0xE0 + n % 20)}{n}" for n in range(vocab_size - 91)
    ]


def stored(array: np.ndarray, kind: Type) -> tuple[np.ndarray, Type]:
    """A tensor as llama.cpp stores it: vectors, and rows that no block fits, stay float32."""
    block, _size = gguf.GGML_QUANT_SIZES[kind]
    if array.ndim == 1 or array.shape[-1] % block:
        kind = Type.F32
    return gguf.quants.quantize(array, kind), kind


def write(model, path: Path, kind: Type = Type.F32, metadata=None, kinds=None, split=0) -> None:
    """Write a model; the weights in it become those of the file, rounded as it has them.

    `kinds` are other types by the ends of names of tensors.
    """
    config = model.config
    name = ARCHITECTURES[config.model_type]
    options = {"split_max_tensors": split, "small_first_shard": False} if split else {}
    writer = gguf.GGUFWriter(path, name, **options)
    write_config(writer, config)
    for add, value in (metadata or {}).items():
        getattr(writer, add)(value)
    if not metadata:
        write_vocabulary(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(
        next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name),
        config.num_hidden_layers,
    )
    for parameter, tensor in parameters(model):
        array = tensor.detach().float().numpy()
        # The package's map has Granite's names of older versions of the library only.
        usual = parameter.replace("block_sparse_moe.router", "mlp.gate")
        usual = usual.replace("block_sparse_moe", "mlp")
        theirs = names.get_name(usual, (".weight", ".bias"))
        turned = config.model_type == "gpt2" and any(
            part in parameter for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        )
        array, back = layout(config, parameter, array.T if turned else array)
        usual = {"ffn_gate_inp.weight": Type.F32, "shortconv.conv.weight": Type.F32}
        ends = usual | (kinds or {})
        wanted = next((t for end, t in ends.items() if theirs.endswith(end)), kind)
        data, chosen = stored(array, wanted)
        writer.add_tensor(theirs, data, raw_dtype=chosen)
        rounded = back(gguf.quants.dequantize(data, chosen).reshape(array.shape))
        tensor.data.copy_(type(tensor.data)(np.ascontiguousarray(rounded.T if turned else rounded)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parameters(model):
    """The parameters of a model, by name; gates and up-projections of experts apart."""
    for name, tensor in model.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.data.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        else:
            yield name + (".weight" if name.endswith("experts.down_proj") else ""), tensor


def layout(config, parameter, array):
    """A parameter in the layout of a file, and the function back."""
    if config.model_type == "gpt_neox" and "query_key_value" in parameter:
        # By head in transformers, all queries first in a file.
        heads = config.num_attention_heads
        shape = array.shape
        apart = array.reshape(heads, 3, -1, *shape[1:]).swapaxes(0, 1).reshape(shape)
        return apart, lambda x: x.reshape(3, heads, -1, *shape[1:]).swapaxes(0, 1).reshape(shape)
    if config.model_type in _PLUS_ONE and parameter.endswith("norm.weight"):
        return array + np.float32(1), lambda x: x - np.float32(1)
    if parameter.endswith("conv.conv.weight"):
        return array[:, 0], lambda x: x[:, None]
    which = next((part for part in ("q_proj", "k_proj") if part in parameter), None)
    if which and ARCHITECTURES[config.model_type] in _INTERLEAVED:
        heads = config.num_attention_heads if which == "q_proj" else config.num_key_value_heads
        shape = array.shape
        beside = array.reshape(heads, 2, -1, *shape[1:]).swapaxes(1, 2).reshape(shape)
        return beside, lambda x: x.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    return array, lambda x: x


def write_config(writer, config) -> None:
    """Write the sizes."""
    text = config.to_dict()
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * config.hidden_size
    writer.add_feed_forward_length(inner)
    if config.model_type in ("gpt2", "gpt_neox"):
        writer.add_layer_norm_eps(text.get("layer_norm_eps") or text.get("layer_norm_epsilon"))
    if config.model_type == "gpt2":
        return
    rope = text.get("rope_parameters") or {}
    if "full_attention" in rope:
        if writer.arch == gguf.MODEL_ARCH.GEMMA3:
            writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    head_dim = text.get("head_dim") or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "llama3":
        writer.add_tensor(
            gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight",
            llama3_factors(rope, head_dim),
        )
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
        return
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps") or text["norm_eps"])
    heads = config.num_key_value_heads
    if config.model_type == "lfm2":
        heads = [0 if kind == "conv" else heads for kind in config.layer_types]
        writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_head_count_kv(heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if text.get("sliding_window"):
        writer.add_sliding_window(text["sliding_window"])
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if text.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if text.get("num_experts_per_tok"):
        writer.add_expert_count(text.get("num_experts") or text["num_local_experts"])
        writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type == "qwen3_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type in ("granite", "granitemoe"):
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def llama3_factors(rope, head_dim) -> np.ndarray:
    """What each frequency is divided by, in Llama 3.1."""
    factors = []
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    for pair in range(0, head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (pair / head_dim)
        if wavelength < context / high:
            factors.append(1)
        elif wavelength > context / low:
            factors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def write_vocabulary(writer, vocab_size: int, pre: str = "gpt-2") -> None:
    """Write a byte-level BPE of single letters."""
    tokens = letters(vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([])
