"""The sizes of the models, and the names and shapes of their tensors; needs no torch."""

import math
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line

ACTIVATIONS = ("gelu", "gelu-tanh", "silu", "relu")
SCALINGS = ("none", "linear", "llama3")

# Far above what this program is for, and low enough that a hostile file cannot make us build a
# giant.
_LARGEST = {
    "vocab": 2_000_000,
    "layers": 1_000,
    "heads": 1_024,
    "kv_heads": 1_024,
    "width": 65_536,
    "hidden": 1_000_000,
}
_LARGEST_OTHER = 100_000_000
_MAY_BE_ZERO = {"hidden"}


def _check(owner: object) -> None:
    """Raise UserError if a number, switch or choice of a frozen dataclass is not one, or makes
    no sense.
    """
    for entry in fields(owner):  # type: ignore[arg-type]
        name, value = entry.name, getattr(owner, entry.name)
        choices = {"activation": ACTIVATIONS, "scaling": SCALINGS}.get(name)
        if entry.type is bool:
            right, wanted = type(value) is bool, _("true or false")
        elif choices:
            right, wanted = value in choices, _("one of {words}", words=", ".join(choices))
        elif entry.type is int:
            low, high = 0 if name in _MAY_BE_ZERO else 1, _LARGEST.get(name, _LARGEST_OTHER)
            right, wanted = (
                type(value) is int and low <= value <= high,
                _("from {low} to {high:,}", low=low, high=high),
            )
        elif entry.type is float:
            right, wanted = type(value) in (int, float) and 0 < value < 1e12, _("a number above 0")
        else:
            continue
        if not right:
            raise UserError(
                _(
                    "{name} must be {wanted}, not {value:.40}",
                    name=name,
                    wanted=wanted,
                    value=safe_line(repr(value)),
                )
            )


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021): pairs of a head's numbers turn with the position, each at
    its own speed.

    Pair i of n turns by theta^(−i/n) radians per position. Raises UserError for values that make no
    sense.
    """

    theta: float = 10_000.0
    share: float = 1.0  # of each head's numbers that turn, the first ones
    # linear: all slower by `factor`; llama3: only the slow ones, as in Llama 3.1
    scaling: str = "none"
    factor: float = 1.0
    # llama3: pairs that turn less than this often within the `original` context are slowed,
    low: float = 1.0
    high: float = 4.0  # those that turn more often than this are not, and those between partly
    original: int = 8_192  # the context that the model was first trained with

    def __post_init__(self) -> None:
        _check(self)
        if self.share > 1 or self.high <= self.low:
            raise UserError(
                _(
                    "rotary positions with share {share:g}, low {low:g} and high {high:g}",
                    share=self.share,
                    low=self.low,
                    high=self.high,
                )
            )


@dataclass(frozen=True)
class ModelConfig:
    """What every family has. Raises UserError for sizes that make no model."""

    arch: ClassVar[str]

    vocab: int  # how many different tokens there are
    context: int = 32  # how many tokens the model sees at once
    width: int = 64  # numbers per token in the residual stream
    layers: int = 4
    heads: int = 4  # points of view per layer

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read `{"arch": "gpt", "vocab": 44, ...}`; what has a default may be left out.

        Raises UserError.
        """
        known = {entry.name: entry for entry in fields(cls)}
        sizes = {entry.name for entry in fields(ModelConfig)}
        if (
            not isinstance(data, dict)
            or data.get("arch") != cls.arch
            or not {"arch", *sizes} <= set(data)
        ):
            raise UserError(
                _(
                    "it must be arch = {arch} with {sizes}, not {value}",
                    arch=cls.arch,
                    sizes=", ".join(sorted(sizes)),
                    value=_shown(data),
                )
            )
        given = {name: value for name, value in data.items() if name != "arch"}
        extra = sorted(set(given) - set(known))
        missing = [
            name for name, entry in known.items() if entry.default is MISSING and name not in given
        ]
        if extra or missing:
            raise UserError(
                _(
                    "arch = {arch} which is unknown: {name:.40}",
                    arch=cls.arch,
                    name=safe_line(extra[0]),
                )
                if extra
                else _("arch = {arch} without {name}", arch=cls.arch, name=missing[0])
            )
        if isinstance(given.get("rope"), dict):
            try:
                given["rope"] = Rope(**given["rope"])
            except TypeError:
                raise UserError(
                    _("unknown rotary positions: {value}", value=_shown(given["rope"]))
                ) from None
        if isinstance(given.get("windows"), list):
            given["windows"] = tuple(given["windows"])
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads: the sizes, and what differs from its default."""
        always = {entry.name for entry in fields(ModelConfig)}
        data: dict[str, Any] = {"arch": self.arch}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in always or value != entry.default:
                data[entry.name] = asdict(value) if isinstance(value, Rope) else value
        return data

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """How many numbers training may change."""
        return sum(math.prod(shape) for _, shape in self.shapes())


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """A GPT: LayerNorm, a plain feed-forward.

    By default the study note's own; GPT-2 and GPT-NeoX differ in details.
    """

    arch: ClassVar[str] = "gpt"

    hidden: int = 0  # numbers per token inside the feed-forward; 0 is four times the width
    activation: str = "gelu"
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    head_bias: bool = True
    tied: bool = False  # the output head is the token embedding
    rope: Rope | None = None  # instead of one learned vector per position
    # attention and feed-forward read the same stream (GPT-NeoX), not one after the other
    parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rope, Rope | None):
            raise UserError(_("unknown rotary positions: {value}", value=_shown(self.rope)))
        if self.width % self.heads:
            raise UserError(
                _(
                    "width {width} cannot be shared out evenly among {heads} heads",
                    width=self.width,
                    heads=self.heads,
                )
            )
        turning = int(self.head_size * self.rope.share) if self.rope is not None else 2
        # of an odd number, the last turns with one more
        if turning < 1 or turning + turning % 2 > self.head_size:
            raise UserError(
                _(
                    "rotary positions cannot turn {turning} of {head_size} numbers in pairs",
                    turning=turning,
                    head_size=self.head_size,
                )
            )
        if self.tied and self.head_bias:
            raise UserError(_("a head that is the token embedding has no bias"))

    @property
    def head_size(self) -> int:
        """Numbers per head."""
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """How many heads have keys and values of their own: all."""
        return self.heads

    @property
    def ff_width(self) -> int:
        """Numbers per token inside the feed-forward."""
        return self.hidden or 4 * self.width

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        width, hidden = self.width, self.ff_width
        yield "token_embedding.weight", (self.vocab, width)
        if self.rope is None:
            yield "position_embedding.weight", (self.context, width)
        for layer in range(self.layers):
            block = f"blocks.{layer}."
            yield from _with_bias(block + "ln1", width)
            yield from _with_bias(block + "attention.qkv", 3 * width, width, bias=self.qkv_bias)
            yield from _with_bias(block + "attention.proj", width, width)
            yield from _with_bias(block + "ln2", width)
            yield from _with_bias(block + "ff.up", hidden, width)
            yield from _with_bias(block + "ff.down", width, hidden)
        yield from _with_bias("ln_f", width)
        if not self.tied:
            yield from _with_bias("lm_head", self.vocab, width, bias=self.head_bias)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """A Llama: RMSNorm, rotary positions, a gated feed-forward, and fewer keys and values than
    queries.

    Mistral, Qwen 2 and Qwen 3 differ in details.
    """

    arch: ClassVar[str] = "llama"

    kv_heads: int  # each key and value serves heads / kv_heads queries
    head_size: int  # numbers per head; all heads together need not be as wide as the stream
    hidden: int  # numbers per token inside the feed-forward
    activation: str = "silu"
    norm_eps: float = 1e-5
    rope: Rope = Rope()
    tied: bool = False  # the output head is the token embedding
    qkv_bias: bool = False
    out_bias: bool = False
    ff_bias: bool = False
    qk_norm: bool = False  # each query and key is normalised, as in Qwen 3
    # how many tokens back each layer sees, itself included; 0 sees all, () is all 0
    windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rope, Rope):
            raise UserError(_("unknown rotary positions: {value}", value=_shown(self.rope)))
        if (
            self.hidden < 1
            or self.heads % self.kv_heads
            or self.head_size % 2
            or self.rope.share != 1
        ):
            raise UserError(
                _(
                    "{heads} heads of {head_size} numbers with {kv_heads} keys and values, "
                    "and {hidden} numbers in"
                    " the feed-forward, do not go together",
                    heads=self.heads,
                    head_size=self.head_size,
                    kv_heads=self.kv_heads,
                    hidden=self.hidden,
                )
            )
        right = isinstance(self.windows, tuple) and all(
            type(window) is int and window >= 0 for window in self.windows
        )
        if not right or len(self.windows) not in (0, self.layers):
            raise UserError(
                _(
                    "windows must be {layers} whole numbers, not {value}",
                    layers=self.layers,
                    value=_shown(self.windows),
                )
            )

    @property
    def query_rows(self) -> int:
        """Rows of the fused projection that make queries; keys and values follow."""
        return self.heads * self.head_size

    @property
    def key_rows(self) -> int:
        """Rows of the fused projection that make keys, and as many that make values."""
        return self.kv_heads * self.head_size

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name and shape of every tensor, in the order of the computation."""
        width = self.width
        yield "token_embedding.weight", (self.vocab, width)
        for layer in range(self.layers):
            block = f"blocks.{layer}."
            yield block + "norm1.weight", (width,)
            rows = self.query_rows + 2 * self.key_rows
            yield from _with_bias(block + "attention.qkv", rows, width, bias=self.qkv_bias)
            if self.qk_norm:
                yield block + "attention.q_norm.weight", (self.head_size,)
                yield block + "attention.k_norm.weight", (self.head_size,)
            yield from _with_bias(
                block + "attention.proj", width, self.query_rows, bias=self.out_bias
            )
            yield block + "norm2.weight", (width,)
            yield from _with_bias(block + "ff.gate_up", 2 * self.hidden, width, bias=self.ff_bias)
            yield from _with_bias(block + "ff.down", width, self.hidden, bias=self.ff_bias)
        yield "norm_f.weight", (width,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, width)


AnyConfig = GPTConfig | LlamaConfig


def config_from_json(data: Any) -> AnyConfig:
    """Read the config of a native checkpoint, of either family. Raises UserError."""
    arch = data.get("arch") if isinstance(data, dict) else None
    return LlamaConfig.from_json(data) if arch == LlamaConfig.arch else GPTConfig.from_json(data)


def _with_bias(name: str, *shape: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name + ".weight", shape
    if bias:
        yield name + ".bias", shape[:1]


def _shown(data: Any) -> str:
    return f"{safe_line(str(data)):.120}"
