"""Any GPT as a GPT-2: the same function with the biases that GPT-2 has, and no others."""

from dataclasses import replace

import numpy as np

from minillm_repl.checkpoint.weights import Array, Tensors
from minillm_repl.model.config import GPTConfig


def convert_to_gpt2(config: GPTConfig, tensors: Tensors) -> tuple[GPTConfig, dict[str, Array]]:
    """Return the same function as a GPT-2, which has biases on queries but none on the unembedding.

    d_model is doubled to hold the unembedding's bias. The second half of the residual stream is a
    copy of the first, so that each LayerNorm computes the same mean and variance. Only the last
    norm reads the copy: it turns one number of it into 1. The unembedding's weight for this number
    is the bias.
    """
    d_model = config.d_model
    untied = replace(config, qkv_bias=True, lm_head_bias=False, tie_word_embeddings=False)
    # A tied model has one matrix for both; queries, keys and values may lack a bias.
    complete = {"lm_head.weight": tensors["token_embedding.weight"], **tensors}
    zeros = np.zeros(3 * d_model, np.float32)
    doubled = {
        name: np.ascontiguousarray(_double(name, complete.get(name, zeros[: shape[0]]), d_model))
        for name, shape in untied.shapes()
    }
    # The last norm makes number d_model of every token 1: its weight is the bias.
    if config.lm_head_bias:
        doubled["ln_f.bias"][d_model] = 1
        doubled["lm_head.weight"][:, d_model] = tensors["lm_head.bias"]
    return replace(untied, d_model=2 * d_model, n_heads=2 * config.n_heads), doubled


def _double(name: str, array: Array, d_model: int) -> Array:
    """Return one tensor of a model whose residual stream is doubled: a copy follows it."""
    layer = name.rpartition(".")[0]  # without `weight` or `bias`
    match layer.split(".", 2)[-1] if layer.startswith("blocks.") else layer:
        # What writes to the residual stream writes to both halves.
        case "token_embedding" | "position_embedding":
            return _duplicate(array.T).T  # (tokens, d_model) -> (tokens, 2 · d_model)
        case "mlp.down":
            return _duplicate(array)
        # What reads the residual stream ignores the copy.
        case "mlp.up":
            return array if array.ndim == 1 else _pad(array, d_model)
        case "attention.qkv":
            array = _add_empty_heads(array, d_model)
            return array if array.ndim == 1 else _pad(array, d_model)
        # The empty heads add nothing.
        case "attention.proj":
            return _duplicate(array if array.ndim == 1 else _pad(array, d_model))
    return _pad(array, d_model)  # norms, and the matrix of the unembedding


def _pad(array: Array, d_model: int) -> Array:
    """Ignore the copy: (..., n) -> (..., n + d_model), padded with zeros."""
    return np.concatenate([array, np.zeros_like(array[..., :d_model])], axis=-1)


def _duplicate(array: Array) -> Array:
    """Write to both halves: (d_model, ...) -> (2 · d_model, ...)."""
    return np.concatenate([array, array])


def _add_empty_heads(array: Array, d_model: int) -> Array:
    """Add as many heads of zeros: (3 · d_model, ...) -> (6 · d_model, ...)."""
    parts = array.reshape(3, d_model, -1)
    padded = np.concatenate([parts, np.zeros_like(parts)], axis=1)
    return padded.reshape(6 * d_model, *array.shape[1:])
