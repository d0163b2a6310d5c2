"""Files of format version 1: the same content under older names (docs/format.md).

Version 2 changed only names, so renaming is enough to read version 1. Nothing writes it.
"""

from typing import Any

VERSION = "1"

_CONFIG = {
    "vocab": "vocab_size",
    "context": "context_length",
    "width": "d_model",
    "layers": "n_layers",
    "heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "head_size": "head_dim",
    "hidden": "d_mlp",
    "tied": "tie_word_embeddings",
    "parallel": "parallel_residual",
    "windows": "sliding_windows",
    "head_bias": "lm_head_bias",
    "ff_bias": "mlp_bias",
}
_ROPE = {
    "share": "rotary_pct",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original": "original_max_position_embeddings",
}
_RUN = {"folder": "working_folder", "further": "is_finetuning", "base": "base_model"}
_STATE = {
    "measured": "last_eval_step",
    "best": "best_loss",
    "waited": "evals_since_best",
    "stretch": "recent_losses",
}
_FIELDS = {"config": _CONFIG, "run": _RUN, "state": _STATE}  # by the name of the metadata field


def renamed_field(field: str, data: Any) -> Any:
    """Return the parsed JSON of a version-1 metadata field with the names of version 2."""
    data = _renamed(data, _FIELDS.get(field, {}))
    if field == "config" and isinstance(data, dict) and "rope" in data:
        data["rope"] = _renamed(data["rope"], _ROPE)
    return data


def renamed_tensor(name: str) -> str:
    """Return the version-2 name of a version-1 tensor."""
    return name.replace(".ff.", ".mlp.")


def old_tensor_name(name: str) -> str:
    """Return the version-1 name of a tensor.

    Digests of weights include these names, so that older adapters and resume files still match
    their weights.
    """
    return name.replace(".mlp.", ".ff.")


def _renamed(data: Any, names: dict[str, str]) -> Any:
    if not isinstance(data, dict) or set(data) & set(names.values()):
        return data  # not of version 1: the reader refuses it
    return {names.get(key, key): value for key, value in data.items()}
