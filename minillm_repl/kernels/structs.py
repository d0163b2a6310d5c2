"""The structures and functions of kernels.h, declared for ctypes."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_size_t, c_void_p

# enum Kind: how a matrix lies in memory
F32, BF16, F16, PANELS, Q8, Q4, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K = range(14)
KINDS = {
    "float32": F32, "bfloat16": BF16, "float16": F16, "INT8": Q8, "INT4": Q4, "Q8_0": Q8_0,
    "Q4_0": Q4_0, "Q4_1": Q4_1, "Q5_0": Q5_0, "Q5_1": Q5_1, "Q4_K": Q4_K, "Q5_K": Q5_K,
    "Q6_K": Q6_K,
}  # fmt: skip
"""The kinds by the names of dtypes and of model/quantised.py."""
MAX_TOKENS = 132  # that a step reads
KEY_BLOCK = 32  # the KV cache grows by this many positions


class Matrix(ctypes.Structure):
    """A matrix (rows, inputs); without an address, there is none."""

    _fields_ = [
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("kind", c_int32),
        ("rows", c_int32),
        ("inputs", c_int32),
    ]


class Norm(ctypes.Structure):
    """The vectors of a norm."""

    _fields_ = [("gain", c_void_p), ("bias", c_void_p)]


class Expert(ctypes.Structure):
    """The matrices of one expert."""

    _fields_ = [(name, Matrix) for name in ("gate", "up", "down")]


class Layer(ctypes.Structure):
    """The weights of a transformer block."""

    _fields_ = [
        *((name, Norm) for name in ("norm1", "norm2", "post_norm1", "post_norm2")),
        *((name, Norm) for name in ("q_norm", "k_norm")),
        *((name, c_void_p) for name in ("canon1", "canon2", "taps")),
        ("gates", Matrix),
        ("qkv", Matrix * 3),
        *((name, Matrix) for name in ("proj", "gate", "up", "down", "router")),
        ("experts", POINTER(Expert)),
        ("window", c_int32),
        ("rope", c_int32),
    ]


_SIZES = (
    "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_mlp", "vocab_size",
    "context_length", "activation", "parallel_residual", "qk_norm_per_head",
    "n_experts", "n_experts_per_tok", "d_expert", "norm_topk_prob",
)  # fmt: skip
_SCALES = (
    "norm_eps", "embedding_scale", "residual_scale", "attention_scale", "logit_scale",
    "attention_softcap", "logit_softcap", "qkv_clip",
)  # fmt: skip


class Model(ctypes.Structure):
    """A model: its sizes and the addresses of its weights."""

    _fields_ = [
        *((name, c_int32) for name in _SIZES),
        *((name, c_float) for name in _SCALES),
        ("n_threads", c_int32),
        ("embedding", Matrix),
        ("head", Matrix),
        ("positions", c_void_p),
        ("norm", Norm),
        ("layers", POINTER(Layer)),
    ]


_FUNCTIONS = {
    "minillm_panel_rows": (c_int, ()),
    "minillm_check": (c_char_p, (POINTER(Model),)),
    "minillm_new": (c_void_p, (POINTER(Model),)),
    "minillm_free": (None, (c_void_p,)),
    "minillm_reserve": (c_int, (c_void_p, c_int, c_void_p, c_void_p, c_int)),
    "minillm_cache_bytes": (c_size_t, (c_void_p, c_int)),
    "minillm_forward": (c_int, (c_void_p, c_void_p, c_int, c_int, c_int, c_void_p)),
    "minillm_work": (None, (c_void_p, c_int)),
    "minillm_stop": (None, (c_void_p,)),
    "minillm_matmul": (c_int, (POINTER(Matrix), c_void_p, c_int, c_void_p)),
}


def declare(functions: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes what the functions of a library take and return; return the library."""
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions
