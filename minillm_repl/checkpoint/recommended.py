"""The samplers that a model's files recommend, by the name of the setting, and written back.

Values are as the files have them: `repl/settings.py`, which knows the limits, checks them.
"""

from collections.abc import Mapping
from typing import Any

_GENERATION_CONFIG = {  # from the fields of a generation_config.json
    "temperature": "temp",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical-p",
    "repetition_penalty": "repeat-penalty",
}
_GGUF = {  # from the keys of a GGUF file, as llama.cpp reads them
    "general.sampling.temp": "temp",
    "general.sampling.top_k": "top-k",
    "general.sampling.top_p": "top-p",
    "general.sampling.min_p": "min-p",
    "general.sampling.xtc_probability": "xtc",
    "general.sampling.xtc_threshold": "xtc-threshold",
    "general.sampling.penalty_repeat": "repeat-penalty",
}
_ONE = 1.0  # the temperature that leaves the distribution of the model as it is


def from_generation_config(fields: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return what a generation_config.json recommends; `do_sample: false` is temperature 0.

    A file that asks for sampling without a temperature means 1. One that does not speak of
    sampling says nothing of the temperature. What no setting can be has its own name in the
    result, and the check of the values tells that it is ignored.
    """
    found = _renamed(fields, _GENERATION_CONFIG)
    ends = fields.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not (type(end) is int and 0 <= end < vocab_size):
            found["eos_token_id"] = end
    match fields.get("do_sample"):
        case None:
            return found
        case True:
            return {"temp": _ONE, **found}
        case False:
            return {**found, "temp": 0.0}
        case other:
            return {**found, "do_sample": other}


def to_generation_config(recommended: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a generation_config.json that recommend the same."""
    fields = {
        field: recommended[name]
        for field, name in _GENERATION_CONFIG.items()
        if name in recommended
    }
    if "temperature" not in fields:
        return fields
    if fields["temperature"] > 0:
        return {"do_sample": True, **fields}
    del fields["temperature"]  # the transformers library refuses 0
    return {"do_sample": False, **fields}


def from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the metadata of a GGUF file recommends."""
    return _renamed(metadata, _GGUF)


def to_gguf(recommended: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a GGUF file that recommends the same."""
    return {key: recommended[name] for key, name in _GGUF.items() if name in recommended}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that a file has, by other names; null is no value."""
    return {name: values[key] for key, name in names.items() if values.get(key) is not None}
