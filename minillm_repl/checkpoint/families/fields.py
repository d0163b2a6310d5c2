"""Strict, typed access to the fields of a config.json."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import Rope
from minillm_repl.safetext import safe_line

# The attention of a layer: to all earlier tokens, or to a window of them.
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
_LAYER_TYPES = {
    FULL_ATTENTION: FULL_ATTENTION,
    SLIDING_ATTENTION: SLIDING_ATTENTION,
    "attention": FULL_ATTENTION,
}
_ORIGINAL_CONTEXT = "original_max_position_embeddings"
_ACTIVATIONS = {  # names of the `transformers` library -> ours
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_python_tanh": "gelu-tanh",
    "gelu_accurate": "gelu-tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class ConfigFields:
    """The fields of a config.json. Every method raises UserError naming the field."""

    def __init__(
        self, data: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        # A null in the file replaces the default here; `_get` decides what it means.
        self._data, self._defaults = {**defaults, **data}, defaults

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number; null counts as missing."""
        return int(self._get(name, (int,), _("a whole number"), default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        return float(self._get(name, (int, float), _("a number"), default))

    def boolean(self, name: str) -> bool:
        """Return true or false."""
        return bool(self._get(name, (bool,), _("true or false"), None))

    def layer_types(self, layers: int) -> list[str]:
        """Return FULL_ATTENTION or SLIDING_ATTENTION for each layer; empty without the field."""
        kinds = self._data.get("layer_types") or []  # null is the same as no field
        if not isinstance(kinds, list) or len(kinds) not in (0, layers):
            wanted = _("a list of {count} names", count=layers)
            raise UserError(
                _(
                    "{name} must be {wanted}, not {value:.40}",
                    name="layer_types",
                    wanted=wanted,
                    value=_safe(kinds),
                )
            )
        # Other kinds are linear attention or state spaces, which these models cannot run.
        unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in _LAYER_TYPES]
        if unknown:
            raise UserError(
                _(
                    "layer_types has {kind:.40}, which is not supported; supported: {names}",
                    kind=_safe(unknown[0]),
                    names=", ".join(_LAYER_TYPES),
                )
            )
        return [_LAYER_TYPES[kind] for kind in kinds]

    def require(self, name: str, value: Any) -> None:
        """Raise UserError if the field has another value than the supported one."""
        if self._data.get(name, value) != value:
            raise UserError(
                _(
                    "{name} = {value} is not supported; supported: {names}",
                    name=name,
                    value=self._printable(name),
                    names=value,
                )
            )

    def activation(self, name: str) -> str:
        """Return our name of the activation function."""
        theirs = self._data.get(name) or self._defaults.get(name)
        if not isinstance(theirs, str) or theirs not in _ACTIVATIONS:
            raise UserError(
                _(
                    "{name} = {value} is not supported; supported: {names}",
                    name=name,
                    value=self._printable(name),
                    names=", ".join(_ACTIVATIONS),
                )
            )
        return _ACTIVATIONS[theirs]

    def rope(self, theta_key: str = "rope_theta", rotary_pct_key: str = "") -> Rope:
        """Return the RoPE config.

        Newer files have one field for it, some by layer type. Older files have `theta_key` and
        `rotary_pct_key`. Raises UserError for an unsupported scaling.
        """
        described = self._data.get("rope_scaling") or self._data.get("rope_parameters") or {}
        if not isinstance(described, dict):
            raise UserError(
                _("rope_scaling must be a JSON object, not {value:.40}", value=_safe(described))
            )
        types = [
            key
            for key, inner in described.items()
            if isinstance(inner, dict) or key in _LAYER_TYPES
        ]
        if not types:
            # A field beside the object goes before the same field in it, as in `transformers`.
            original = self._data.get(_ORIGINAL_CONTEXT)
            if original is not None:
                described = {**described, _ORIGINAL_CONTEXT: original}
            return self._rope(described, theta_key, rotary_pct_key)
        # Settings of a layer type that no layer has do not count.
        declared = self._data.get("layer_types")
        used = set(types)
        if declared and isinstance(declared, list):
            used = set(map(str, declared))
        flat = {key: value for key, value in described.items() if key not in types}
        inner = [described.get(kind) for kind in used]
        ropes = {
            self._rope(flat | each, theta_key, rotary_pct_key)
            for each in inner
            if isinstance(each, dict)
        }
        # One RoPE serves all layers here, so the settings of all layer types must agree.
        if len(ropes) != 1 or not all(isinstance(each, dict) for each in inner):
            raise UserError(
                _(
                    "RoPE settings that differ by layer type ({types:.120}) are not supported",
                    types=safe_line(", ".join(sorted(types))),
                )
            )
        return ropes.pop()

    def _rope(self, described: Mapping[str, Any], theta_key: str, rotary_pct_key: str) -> Rope:
        inner = ConfigFields(described)
        # `type` is the older name.
        kind = described.get("rope_type") or described.get("type") or "default"
        rope_theta = inner.number("rope_theta", self.number(theta_key, 10_000.0))
        if not rotary_pct_key and kind == "default":
            rotary_pct = 1.0  # a Llama without scaling ignores partial_rotary_factor
        else:
            rotary_pct = inner.number("partial_rotary_factor", self._rotary_pct(rotary_pct_key))
        match kind:
            case "default":
                return Rope(theta=rope_theta, rotary_pct=rotary_pct)
            case "linear":
                # Positions are divided by the factor.
                return Rope(
                    theta=rope_theta,
                    rotary_pct=rotary_pct,
                    scaling=kind,
                    factor=inner.number("factor"),
                )
            case "llama3":
                # Llama 3.1: slow rotations become slower, fast ones stay.
                low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
                original = inner.integer(_ORIGINAL_CONTEXT, self.integer("max_position_embeddings"))
                return Rope(
                    theta=rope_theta,
                    rotary_pct=rotary_pct,
                    scaling=kind,
                    factor=inner.number("factor"),
                    low_freq_factor=low,
                    high_freq_factor=high,
                    original_max_position_embeddings=original,
                )
        raise UserError(
            _(
                "RoPE scaling {kind!r:.40} is not supported; supported: default, linear, llama3",
                kind=_safe(kind),
            )
        )

    def _rotary_pct(self, name: str) -> float:
        return self.number(name) if name else self.number("partial_rotary_factor", 1.0)

    def _get(self, name: str, types: tuple[type, ...], wanted: str, default: Any) -> Any:
        value = self._data.get(name)
        if value is None:  # null in the file: it may mean something else than a missing field
            value = self._defaults.get(name) if default is None else default
        if value is None:
            raise UserError(_("{name} is missing", name=name))
        # type() is strict: isinstance would accept true for a whole number.
        if type(value) not in types:
            raise UserError(
                _(
                    "{name} must be {wanted}, not {value:.40}",
                    name=name,
                    wanted=wanted,
                    value=_safe(value),
                )
            )
        return value

    def _printable(self, name: str) -> str:
        return f"{_safe(self._data.get(name)):.40}"


def _safe(value: Any) -> str:
    return safe_line(str(value))


def rope_scaling(rope: Rope) -> dict[str, Any] | None:
    """Return the `rope_scaling` field of a RoPE config, which `ConfigFields.rope` reads back."""
    if rope.scaling == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            _ORIGINAL_CONTEXT: rope.original_max_position_embeddings,
        }
    return scaling


def activation_name(activation: str) -> str:
    """Return the name of one of our activation functions in a config.json."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)
