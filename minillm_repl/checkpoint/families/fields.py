"""Strict, typed access to the fields of a config.json."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

# The attention of a layer: to all earlier tokens, or to a window of them.
FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"
LAYER_TYPES = {
    FULL_ATTENTION: FULL_ATTENTION,
    SLIDING_ATTENTION: SLIDING_ATTENTION,
    "attention": FULL_ATTENTION,
}
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

    def get(self, name: str) -> Any:
        """Return a field as it is in the file, unchecked; None without it."""
        return self._data.get(name)

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number; null counts as missing."""
        return int(self._get(name, (int,), _("a whole number"), default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number."""
        return float(self._get(name, (int, float), _("a number"), default))

    def positive(self, name: str, default: float | None = None) -> float:
        """Return a number above 0."""
        number = self.number(name, default)
        if not number > 0:
            raise UserError(
                _(
                    "{name} must be {wanted}, not {value:.40}",
                    name=name,
                    wanted=_("a number above 0"),
                    value=self._printable(name),
                )
            )
        return number

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers."""
        values = self._get(name, (list,), _("a list of numbers"), None)
        if not all(type(each) in (int, float) for each in values):
            raise UserError(
                _(
                    "{name} must be {wanted}, not {value:.40}",
                    name=name,
                    wanted=_("a list of numbers"),
                    value=self._printable(name),
                )
            )
        return tuple(map(float, values))

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
        unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in LAYER_TYPES]
        if unknown:
            raise UserError(
                _(
                    "layer_types has {kind:.40}, which is not supported; supported: {names}",
                    kind=_safe(unknown[0]),
                    names=", ".join(LAYER_TYPES),
                )
            )
        return [LAYER_TYPES[kind] for kind in kinds]

    def require(self, name: str, *values: Any) -> None:
        """Raise UserError if the field has another value than the supported ones."""
        if self._data.get(name, values[0]) not in values:
            raise UserError(
                _(
                    "{name} = {value} is not supported; supported: {names}",
                    name=name,
                    value=self._printable(name),
                    names=", ".join(map(str, values)),
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


def activation_name(activation: str) -> str:
    """Return the name of one of our activation functions in a config.json."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)
