"""Typed, strict access to the config.json of a Hugging Face folder."""

from collections.abc import Mapping
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import Rope
from minillm_repl.safetext import safe_line

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class Fields:
    """Typed access to a config.json. Raises UserError naming the field."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def whole(self, name: str, default: int | None = None) -> int:
        """Return a whole number; null counts as not there."""
        return int(self._get(name, (int,), _("a whole number"), default))

    def number(self, name: str, default: float) -> float:
        """Return a number."""
        return float(self._get(name, (int, float), _("a number"), default))

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        return bool(self._get(name, (bool,), _("true or false"), default))

    def kinds(self, name: str) -> list[Any] | None:
        """Return a list, or None if there is none."""
        value = self._data.get(name)
        return list(value) if isinstance(value, list) else None

    def must(self, name: str, value: Any) -> None:
        """Raise UserError if the field is there and says something else than the one value that is supported."""
        if self._data.get(name, value) != value:
            raise UserError(
                _("{name} = {value} is not supported, only {names}", name=name, value=self._shown(name), names=value)
            )

    def activation(self, name: str, default: str) -> str:
        """Return our name of an activation function."""
        theirs = self._data.get(name, default)
        if theirs not in _ACTIVATIONS:
            raise UserError(
                _(
                    "{name} = {value} is not supported, only {names}",
                    name=name,
                    value=self._shown(name),
                    names=", ".join(_ACTIVATIONS),
                )
            )
        return _ACTIVATIONS[theirs]

    def rope(self, theta: float = 10_000.0, share: float = 1.0) -> Rope:
        """Return the rotary positions; newer files keep all about them in `rope_parameters`."""
        described = self._data.get("rope_parameters") or self._data.get("rope_scaling") or {}
        if not isinstance(described, dict):
            raise UserError(_("rope_scaling must be an object, not {value:.40}", value=safe_line(str(described))))
        inner = Fields(described)
        kind = described.get("rope_type", described.get("type", "default"))
        theta = inner.number("rope_theta", self.number("rope_theta", theta))
        share = inner.number("partial_rotary_factor", self.number("partial_rotary_factor", share))
        match kind:
            case "default":
                return Rope(theta, share)
            case "linear":
                return Rope(theta, share, kind, inner.number("factor", 1.0))
            case "llama3":
                low, high = inner.number("low_freq_factor", 1.0), inner.number("high_freq_factor", 4.0)
                original = inner.whole("original_max_position_embeddings", self.whole("max_position_embeddings"))
                return Rope(theta, share, kind, inner.number("factor", 1.0), low, high, original)
        raise UserError(
            _(
                "rotary scaling {kind!r:.40} is not supported, only default, linear and llama3",
                kind=safe_line(str(kind)),
            )
        )

    def _get(self, name: str, types: tuple[type, ...], wanted: str, default: Any) -> Any:
        value = self._data.get(name)
        if value is None:
            value = default
        if value is None:
            raise UserError(_("{name} is missing", name=name))
        if type(value) not in types:
            raise UserError(
                _("{name} must be {wanted}, not {value:.40}", name=name, wanted=wanted, value=safe_line(str(value)))
            )
        return value

    def _shown(self, name: str) -> str:
        return f"{safe_line(str(self._data.get(name))):.40}"


def rope_scaling(rope: Rope) -> dict[str, Any] | None:
    """Return the `rope_scaling` that `Fields.rope` reads back."""
    if rope.scaling == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "llama3":
        scaling |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
        scaling |= {"original_max_position_embeddings": rope.original}
    return scaling


def activation_name(activation: str) -> str:
    """Return the name that a config.json has for one of our activation functions."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)
