"""Typed, strict access to the config.json of a Hugging Face folder."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import Rope
from minillm_repl.safetext import safe_line

# what a layer sees: all that came before, or a window of it
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
_LAYER_TYPES = {
    FULL_ATTENTION: FULL_ATTENTION,
    SLIDING_ATTENTION: SLIDING_ATTENTION,
    "attention": FULL_ATTENTION,
}
_ORIGINAL_CONTEXT_KEY = "original_max_position_embeddings"
_ACTIVATIONS = {
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
    """Typed access to a config.json. Raises UserError naming the field."""

    def __init__(
        self, data: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._data, self._defaults = {**defaults, **data}, defaults

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number; null counts as not there."""
        return int(self._get(name, (int,), _("a whole number"), default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        return float(self._get(name, (int, float), _("a number"), default))

    def boolean(self, name: str) -> bool:
        """Return true or false."""
        return bool(self._get(name, (bool,), _("true or false"), None))

    def layer_types(self, layers: int) -> list[str]:
        """Return what each layer sees, FULL or SLIDING; empty if the file does not say."""
        kinds = self._data.get("layer_types") or []
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
        """Raise UserError if the field is there and is not the one value that is supported."""
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
        """Return our name of an activation function."""
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
        """Return the rotary positions; newer files keep them in one field, by layer type or not.

        `theta` and `share` are what older files call the two numbers. Raises UserError for what is
        not supported.
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
            # what is said beside the object counts for more than what is in it
            before = self._data.get(_ORIGINAL_CONTEXT_KEY)
            return self._rope(
                described if before is None else {**described, _ORIGINAL_CONTEXT_KEY: before},
                theta_key,
                rotary_pct_key,
            )
        declared = self._data.get("layer_types")
        used = (
            {str(kind) for kind in declared}
            if declared and isinstance(declared, list)
            else set(types)
        )
        flat = {key: value for key, value in described.items() if key not in types}
        inner = [described.get(kind) for kind in used]
        ropes = {
            self._rope(flat | each, theta_key, rotary_pct_key)
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

    def _rope(self, described: Mapping[str, Any], theta_key: str, rotary_pct_key: str) -> Rope:
        inner = ConfigFields(described)
        kind = described.get("rope_type") or described.get("type") or "default"
        rope_theta = inner.number("rope_theta", self.number(theta_key, 10_000.0))
        # A Llama without scaling turns all of each head, whatever its file says.
        rotary_pct = (
            1.0
            if not rotary_pct_key and kind == "default"
            else inner.number("partial_rotary_factor", self._rotary_pct(rotary_pct_key))
        )
        match kind:
            case "default":
                return Rope(rope_theta, rotary_pct)
            case "linear":
                return Rope(rope_theta, rotary_pct, kind, inner.number("factor"))
            case "llama3":
                low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
                original = inner.integer(
                    _ORIGINAL_CONTEXT_KEY, self.integer("max_position_embeddings")
                )
                return Rope(
                    rope_theta, rotary_pct, kind, inner.number("factor"), low, high, original
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
        if value is None:  # null may mean something else than what is left out
            value = self._defaults.get(name) if default is None else default
        if value is None:
            raise UserError(_("{name} is missing", name=name))
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
    """Return the `rope_scaling` that `Fields.rope` reads back."""
    if rope.scaling == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        scaling |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
        scaling |= {"original_max_position_embeddings": rope.original_max_position_embeddings}
    return scaling


def activation_name(activation: str) -> str:
    """Return the name that a config.json has for one of our activation functions."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)
