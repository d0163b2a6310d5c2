"""What the configs of all families share: checks of untrusted sizes, RoPE, the common fields."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

ACTIVATIONS = ("gelu", "gelu-tanh", "silu", "relu")
SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn", "longrope")
NORM_PLACEMENTS = ("pre", "post", "both")

# Limits of a file's sizes: far above the models that this program is for, and low enough that a
# hostile file cannot claim a giant.
_MAX_BY_FIELD = {
    "vocab_size": 2_000_000,
    "n_layers": 1_000,
    "n_heads": 1_024,
    "n_kv_heads": 1_024,
    "d_model": 65_536,
    "d_mlp": 1_000_000,
    "n_experts": 1_024,
    "d_expert": 1_000_000,
}
_MAX_OTHER = 100_000_000
# Zero switches these off, or stands for the usual value.
_MAY_BE_ZERO = {
    *("d_mlp", "attention_multiplier", "attention_softcap", "logit_softcap", "qkv_clip"),
    *("n_experts", "n_experts_per_tok", "d_expert"),
}
_CHOICES = {
    "activation": ACTIVATIONS,
    "scaling": SCALINGS,
    "norm_placement": NORM_PLACEMENTS,
}


def _check(config: object) -> None:
    """Raise UserError if a frozen dataclass's number, switch or choice is none or senseless."""
    for entry in fields(config):  # type: ignore[arg-type]
        name, value = entry.name, getattr(config, entry.name)
        choices = _CHOICES.get(name)
        if entry.type is bool:
            is_valid, expected = type(value) is bool, _("true or false")
        elif choices:
            is_valid, expected = value in choices, _("one of {words}", words=", ".join(choices))
        elif entry.type is int:
            low, high = 0 if name in _MAY_BE_ZERO else 1, _MAX_BY_FIELD.get(name, _MAX_OTHER)
            is_valid, expected = (
                type(value) is int and low <= value <= high,
                _("from {low} to {high:,}", low=low, high=high),
            )
        elif entry.type is float:
            is_valid, expected = (
                type(value) in (int, float)
                and (0 < value < 1e12 or (value == 0 and name in _MAY_BE_ZERO)),
                _("a number above 0"),
            )
        else:
            continue
        if not is_valid:
            raise UserError(
                _(
                    "{name} must be {wanted}, not {value:.40}",
                    name=name,
                    wanted=expected,
                    value=safe_line(repr(value)),
                )
            )


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (RoPE, Su et al. 2021): pairs of dimensions rotate by position.

    Pair i of the n pairs of a head rotates by theta^(−i/n) radians per position. Raises UserError
    for values that make no sense.
    """

    theta: float = 10_000.0
    rotary_pct: float = 1.0  # share of each head's dimensions that rotate, the first ones
    # linear: all frequencies divided by `factor`; llama3 and yarn: only the low ones, as in
    # Llama 3.1 and in Peng et al. 2023; longrope: each by a number of its own; dynamic: none within
    # the context that the file declares
    scaling: str = "none"
    factor: float = 1.0
    # llama3 and yarn: pairs with fewer rotations than this within the original context are slowed,
    low_freq_factor: float = 1.0
    # those with more rotations than this are not, and those between partly
    high_freq_factor: float = 4.0
    # the context that the model was first trained with
    original_max_position_embeddings: int = 8_192
    # rotated queries and keys are multiplied by this, so that attention stays as sharp (yarn)
    attention_factor: float = 1.0
    # longrope: what the frequency of each pair is divided by, in texts within the original context
    # and in longer ones, which are not read here
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check(self)
        for factors in (self.short_factors, self.long_factors):
            if not isinstance(factors, tuple) or not all(
                type(each) in (int, float) and 0 < each < _MAX_OTHER for each in factors
            ):
                raise UserError(_("unknown RoPE settings: {value}", value=printable(factors)))
        if self.scaling == "yarn" and self.theta <= 1:
            raise UserError(_("yarn needs a rope_theta above 1, not {theta:g}", theta=self.theta))
        if self.rotary_pct > 1 or self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                _(
                    "inconsistent RoPE settings: rotary_pct {share:g}, low_freq_factor "
                    "{low:g}, high_freq_factor {high:g}",
                    share=self.rotary_pct,
                    low=self.low_freq_factor,
                    high=self.high_freq_factor,
                )
            )

    def check_fits(self, head_dim: int) -> None:
        """Raise UserError if this share of a head's dimensions does not rotate in pairs."""
        rotary_dim = int(head_dim * self.rotary_pct)
        # In an odd number of dimensions, the last one rotates with one more.
        if rotary_dim < 1 or rotary_dim + rotary_dim % 2 > head_dim:
            raise UserError(
                _(
                    "RoPE cannot rotate {turning} of {head_size} dimensions in pairs",
                    turning=rotary_dim,
                    head_size=head_dim,
                )
            )
        pairs = rotary_dim // 2
        if self.scaling == "longrope" and not (
            len(self.short_factors) == len(self.long_factors) == pairs
        ):
            raise UserError(
                _(
                    "longrope needs {pairs} short and long factors, not {short} and {long}",
                    pairs=pairs,
                    short=len(self.short_factors),
                    long=len(self.long_factors),
                )
            )

    def yarn_range(self, rotary_dim: int) -> tuple[float, float]:
        """Return the pair up to which YaRN slows none, and the pair from which it slows fully.

        Whole numbers, as its authors rounded them.
        """

        def pair_with(rotations: float) -> float:
            """Return the pair that rotates this often within the original context."""
            wavelength = self.original_max_position_embeddings / (rotations * 2 * math.pi)
            return rotary_dim * math.log(wavelength) / (2 * math.log(self.theta))

        first = max(math.floor(pair_with(self.high_freq_factor)), 0)
        last = min(math.ceil(pair_with(self.low_freq_factor)), rotary_dim - 1)
        return first, last if last != first else first + 0.001  # no division by 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every family has. Raises UserError for sizes that make no model."""

    arch: ClassVar[str]

    vocab_size: int  # number of different tokens
    context_length: int = 32  # tokens that the model sees at once
    d_model: int = 64  # numbers per token in the residual stream
    n_layers: int = 4  # blocks of attention and MLP
    n_heads: int = 4  # attention heads per layer

    def __post_init__(self) -> None:
        _check(self)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        raise NotImplementedError

    def layer_ropes(self) -> tuple[Rope | None, ...]:
        """Return the RoPE of each layer; None where queries and keys are not rotated."""
        raise NotImplementedError

    def is_conv(self, _layer: int) -> bool:
        """Tell whether a layer has a short convolution in the place of attention."""
        return False

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have attention: all of them in most models."""
        return tuple(layer for layer in range(self.n_layers) if not self.is_conv(layer))

    @property
    def n_params(self) -> int:
        """The number of trainable parameters."""
        return sum(math.prod(shape) for _name, shape in self.shapes())


NO_SCALING = Rope()


def with_bias(name: str, *shape: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of a layer's weight, and of its bias: one number a row."""
    yield name + ".weight", shape
    if bias:
        yield name + ".bias", shape[:1]


def printable(data: Any) -> str:
    """Return the start of untrusted data, for a message."""
    return f"{safe_line(str(data)):.120}"
