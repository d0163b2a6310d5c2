"""RoPE in a config.json: read in all the ways in which it is written, and written back."""

import math
from collections.abc import Mapping
from typing import Any

from minillm_repl.checkpoint.families.fields import (
    FULL_ATTENTION,
    LAYER_TYPES,
    SLIDING_ATTENTION,
    ConfigFields,
)
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config_base import SCALINGS, Rope
from minillm_repl.safetext import safe_line

_ORIGINAL_CONTEXT = "original_max_position_embeddings"


def read_rope(
    fields: ConfigFields, theta_key: str = "rope_theta", rotary_pct_key: str = ""
) -> Rope:
    """Return the one RoPE of all layers.

    Newer files have one field for it, some by layer type. Older files have `theta_key` and
    `rotary_pct_key`; without a key, all of a head rotates. Raises UserError for an unsupported
    scaling, and for layer types that differ.
    """
    described = _described(fields)
    types = _layer_types(described)
    if not types:
        # A field beside the object goes before the same field in it, as in `transformers`.
        original = fields.get(_ORIGINAL_CONTEXT)
        if original is not None:
            described = {**described, _ORIGINAL_CONTEXT: original}
        return _read(fields, described, theta_key, rotary_pct_key)
    # Settings of a layer type that no layer has do not count.
    declared = fields.get("layer_types")
    used = set(types)
    if declared and isinstance(declared, list):
        used = set(map(str, declared))
    flat = {key: value for key, value in described.items() if key not in types}
    inner = [described.get(kind) for kind in used]
    ropes = {
        _read(fields, flat | each, theta_key, rotary_pct_key)
        for each in inner
        if isinstance(each, dict)
    }
    if len(ropes) != 1 or not all(isinstance(each, dict) for each in inner):
        raise UserError(
            _(
                "RoPE settings that differ by layer type ({types:.120}) are not supported",
                types=safe_line(", ".join(sorted(types))),
            )
        )
    return ropes.pop()


def read_ropes(
    fields: ConfigFields, theta: float, sliding_theta: float, sliding_theta_key: str = ""
) -> tuple[Rope, Rope]:
    """Return the RoPE of full attention, and that of the layers with a window.

    In older files only the first is scaled; `theta` and `sliding_theta` are the defaults. Raises
    UserError for an unsupported scaling.
    """
    described = _described(fields)
    if not _layer_types(described):
        scaled = described if fields.get("rope_scaling") else {}
        if described and not scaled:
            raise UserError(
                _(
                    "rope_parameters must have {full} and {sliding} for this model",
                    full=FULL_ATTENTION,
                    sliding=SLIDING_ATTENTION,
                )
            )
        described = {FULL_ATTENTION: scaled}
    full, sliding = (described.get(kind) or {} for kind in (FULL_ATTENTION, SLIDING_ATTENTION))
    if not isinstance(full, dict) or not isinstance(sliding, dict):
        raise _not_an_object(described)
    theta = fields.number("rope_theta", theta)
    if sliding_theta_key:
        sliding_theta = fields.number(sliding_theta_key, sliding_theta)
    return (
        _read(fields, {"rope_theta": theta, **full}),
        _read(fields, {"rope_theta": sliding_theta, **sliding}),
    )


def _described(fields: ConfigFields) -> dict[str, Any]:
    """Return the object that describes the RoPE; empty without one."""
    described = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(described, dict):
        raise _not_an_object(described)
    return described


def _not_an_object(value: Any) -> UserError:
    return UserError(
        _("rope_scaling must be a JSON object, not {value:.40}", value=safe_line(str(value)))
    )


def _layer_types(described: Mapping[str, Any]) -> list[str]:
    """Return the layer types that have settings of their own; empty if all share one."""
    return [
        key for key, inner in described.items() if isinstance(inner, dict) or key in LAYER_TYPES
    ]


def _read(
    fields: ConfigFields,
    described: Mapping[str, Any],
    theta_key: str = "rope_theta",
    rotary_pct_key: str = "",
) -> Rope:
    """Return the RoPE of one object; what it leaves out is beside it in the config."""
    inner = ConfigFields(described)
    # `type` is the older name.
    kind = described.get("rope_type") or described.get("type") or "default"
    if kind not in ("default", *SCALINGS[1:]):
        raise UserError(
            _(
                "RoPE scaling {kind!r:.40} is not supported; supported: default, {names}",
                kind=safe_line(str(kind)),
                names=", ".join(SCALINGS[1:]),
            )
        )
    common: dict[str, Any] = {"theta": inner.number("rope_theta", fields.number(theta_key, 10_000))}
    if rotary_pct_key:
        common["rotary_pct"] = inner.number("partial_rotary_factor", fields.number(rotary_pct_key))
    elif kind != "default":  # without scaling, these models ignore it
        inner.require("partial_rotary_factor", 1.0)
        fields.require("partial_rotary_factor", 1.0)
    if kind == "default":
        return Rope(**common)
    common["scaling"] = kind
    if kind in ("linear", "dynamic"):
        return Rope(**common, factor=inner.number("factor"))
    context = fields.integer("max_position_embeddings")
    original = inner.integer(_ORIGINAL_CONTEXT, context)
    common[_ORIGINAL_CONTEXT] = original
    if kind == "llama3":
        return Rope(
            **common,
            factor=inner.number("factor"),
            low_freq_factor=inner.number("low_freq_factor"),
            high_freq_factor=inner.number("high_freq_factor"),
        )
    if kind == "longrope":
        return _read_longrope(inner, common, context)
    inner.require("truncate", True)  # yarn: the pairs that it slows are counted in whole numbers
    factor = inner.number("factor", context / max(1, original))
    return Rope(
        **common,
        factor=factor,
        low_freq_factor=inner.number("beta_slow", 1.0),
        high_freq_factor=inner.number("beta_fast", 32.0),
        attention_factor=inner.number("attention_factor", _attention_factor(inner, factor)),
    )


def _read_longrope(inner: ConfigFields, common: dict[str, Any], context: int) -> Rope:
    """Return a RoPE in which each pair has a factor of its own (Phi-3 and 4-mini)."""
    original = common[_ORIGINAL_CONTEXT]
    factor = inner.number("factor", context / max(1, original))
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if min(factor, original) > 1 else 1
    return Rope(
        **common,
        factor=factor,
        attention_factor=inner.number("attention_factor", usual),
        short_factors=inner.numbers("short_factor"),
        long_factors=inner.numbers("long_factor"),
    )


def _attention_factor(inner: ConfigFields, factor: float) -> float:
    """Return YaRN's usual factor, 0.1 · ln(factor) + 1, or the quotient of two like it."""

    def mscale(name: str) -> float:
        by = inner.number(name, 1.0)
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    if inner.get("mscale") and inner.get("mscale_all_dim"):
        return mscale("mscale") / (mscale("mscale_all_dim") or math.inf)
    return mscale("")


def rope_scaling(rope: Rope) -> dict[str, Any] | None:
    """Return the `rope_scaling` field of a RoPE config, which `read_rope` reads back."""
    if rope.scaling == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    original = {_ORIGINAL_CONTEXT: rope.original_max_position_embeddings}
    if rope.scaling == "llama3":
        scaling |= original | {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    if rope.scaling == "longrope":
        scaling |= original | {
            "attention_factor": rope.attention_factor,
            "short_factor": list(rope.short_factors),
            "long_factor": list(rope.long_factors),
        }
    if rope.scaling == "yarn":
        scaling |= original | {
            "beta_slow": rope.low_freq_factor,
            "beta_fast": rope.high_freq_factor,
            "attention_factor": rope.attention_factor,
        }
    return scaling


def rope_by_layer_type(full: Rope, sliding: Rope) -> dict[str, Any]:
    """Return the `rope_parameters` field of two RoPE configs, which `read_ropes` reads back."""
    return {
        kind: {"rope_theta": rope.theta, **(rope_scaling(rope) or {"rope_type": "default"})}
        for kind, rope in ((FULL_ATTENTION, full), (SLIDING_ATTENTION, sliding))
    }
