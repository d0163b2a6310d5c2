"""From a prompt to tokens: the options of a generation, its events, and the decoder that it needs.

Needs no numpy, so that the prompt line starts without it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, Protocol

from minillm_repl.generate.options import Sampling as Sampling

if TYPE_CHECKING:  # A chat needs no torch.
    import numpy as np
    from numpy.typing import NDArray

    from minillm_repl.generate.constraint import Constraint
    from minillm_repl.model.build import LanguageModel

# `care`: the program answered in the place of the model, which was not run. Of a server, `done` is
# an end that may be an end token or a stop string, and `cut` a server that broke off.
# `format`: nothing can follow in the format; `stuck`: no token of the vocabulary can go on with it.
Reason = Literal[
    "length", "stop", "end", "context", "interrupt", "care", "done", "cut", "format", "stuck"
]
# What a server's probabilities are of: the model's logits, or what the samplers made of them.
Stage = Literal["raw", "sampled", "unknown"]

_CHUNK_MULTIPLE = 16  # tokens; a tile of a matrix is multiplied with this many together
# Tokens per chunk: smaller ones stream all weights too often, and larger ones gain nothing.
_MIN_CHUNK, _MAX_CHUNK = 32, 128
_CHUNK_MULTIPLICATIONS = 18_000_000_000  # a tenth to a third of a second of two CPU cores


# -- options


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """What a user says of single tokens, as ids of the vocabulary, and of the form of an answer."""

    banned: tuple[int, ...] = ()
    biases: tuple[tuple[int, float], ...] = ()  # what is added to the logit of a token
    breakers: frozenset[int] = frozenset()  # tokens that a repetition does not reach over (DRY)
    constraint: "Constraint | None" = None  # the format of the answer


NO_RULES = TokenRules()


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a text is continued, and what ends it."""

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()  # the text ends before the first of these strings
    eos_token_ids: Collection[int] = ()  # the text ends at one of these tokens, which has no text
    context_shift: bool = True  # past the context, see the last tokens; otherwise, end there
    n_candidates: int = 0  # candidates that each step lists
    rules: TokenRules = NO_RULES
    answer_start: int | None = None  # where the answer begins in the ids; None: at their end
    mu: float | None = None  # bits; where Mirostat goes on


def never_interrupted() -> bool:
    """Return False: the default where Ctrl-C has no effect."""
    return False


# -- events. Fields have their names in the `--json` output, which leaves `Prefill` out.


@dataclass(frozen=True, slots=True)
class Prefill:
    """The part of a long prompt that is read so far."""

    done: int  # tokens, those that the cache held already included
    total: int  # tokens that the model sees of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """How much a server tells of a step that it computed; probabilities are of its `stage`."""

    source: str  # the engine and its address
    k: int  # tokens that it lists
    mass: float | None  # their probability together, with that of the chosen token; None if none
    stage: Stage
    entropy: tuple[float, float] | None  # bits: the least and the most; inf: no upper bound
    exact_bytes: bool  # the bytes are the vocabulary's, not those of a decoded text


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One token that could come next."""

    id: int
    text: str  # the name of a token that is not text: `<|im_end|>`
    bytes: tuple[int, ...]  # none if it is not text
    model_prob: float | None  # by the model's own softmax; None where a server does not tell
    prob: float | None  # of being drawn, after the samplers; None where a server does not tell
    kept: bool  # False if a sampler filtered it out
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatMask:
    """What a format allowed at a step; it dropped all else."""

    allowed: int  # tokens
    mass: float  # their probability together, by the model's own softmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One generated token and the numbers behind it: None where a server does not tell."""

    index: int  # from 0
    id: int
    text: str  # what became certain at this step; may be empty
    bytes: tuple[int, ...]
    prob: float | None  # of the token, under the distribution that was drawn from
    logprob: float | None  # its natural logarithm
    model_prob: float | None  # of the token, under the model's own softmax
    rank: int | None  # 1 = likeliest, by the model
    entropy: float | None  # of the model's softmax, in bits
    top: tuple[Candidate, ...]  # the likeliest by the model; the chosen one always, even from below
    listing: Listing | None = None  # of a server that does not tell all; else None
    format: FormatMask | None = None  # of an answer with a format; else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inserted:
    """Tokens that the program wrote into the text: the end of thoughts that were too long."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a generation ended."""

    reason: Reason
    text: str
    prompt_tokens: int
    tokens: int
    prompt_seconds: float  # of reading what the cache did not hold; 0 if nothing was read
    seconds: float  # all tokens after that
    detail: str = ""  # of a server that broke off: what went wrong
    format_complete: bool | None = None  # whether the text is whole in its format; None: no format


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of a given text, under the model's own softmax after the tokens before it."""

    id: int
    logprob: float  # natural logarithm
    rank: int | None  # 1 = likeliest, ties by id; None: below those that a server lists
    top: tuple[tuple[int, float], ...]  # the likeliest ids and their logprobs, likeliest first


GenerationEvent = Prefill | Step | Finished
AnswerEvent = GenerationEvent | Inserted  # of a conversation


def as_json(event: Step | Inserted | Finished) -> dict[str, Any]:
    """Return the event as JSON-ready data, named `step`, `inserted` or `finished`."""
    data = {"event": type(event).__name__.lower(), **_shallow(event)}
    if isinstance(event, Inserted):
        return data
    if isinstance(event, Step):
        data["top"] = [_shallow(candidate) for candidate in event.top]
        listing, mask = data.pop("listing"), data.pop("format")
        data |= {"format": _shallow(mask)} if mask else {}
        return data | ({"listing": _listing_json(listing)} if listing else {})
    detail, complete = data.pop("detail"), data.pop("format_complete")
    data |= {} if complete is None else {"format_complete": complete}
    return data | ({"detail": detail} if detail else {})


def _listing_json(listing: Listing) -> dict[str, Any]:
    bounds = listing.entropy and [each if isfinite(each) else None for each in listing.entropy]
    return _shallow(listing) | {"entropy": bounds}


def _shallow(
    event: Step | Inserted | Finished | Candidate | Listing | FormatMask,
) -> dict[str, Any]:
    # dataclasses.asdict copies each number of each candidate, which doubles the time of a step.
    return {name: getattr(event, name) for name in event.__slots__}


# -- decoders


class Decoder(Protocol):
    """A model with its KV cache.

    Logits are float32 arrays (vocab_size,), valid until the next call.
    """

    context_length: int  # tokens that the model sees at once
    # The token that texts begin with. It stays visible when a text outgrows the context.
    bos_token_id: int | None
    prefill_chunk: int  # tokens of a long prompt to read between two looks for Ctrl-C

    @property
    def model(self) -> "LanguageModel":
        """The model in torch, with the same weights, to look inside."""

    @property
    def name(self) -> str:
        """What runs: "C kernels (avx2) on cpu, 2 threads", "torch on cuda"."""

    @property
    def backend_details(self) -> str:
        """Why this backend runs the model, or in what form its weights are."""

    @property
    def ids(self) -> list[int]:
        """The tokens whose keys and values are in the cache; not to be changed."""

    @property
    def cache_bytes(self) -> int:
        """Memory that keys and values take."""

    @property
    def max_cache_bytes(self) -> int:
        """Memory that they take when the context is full."""

    def prefill(self, ids: Sequence[int]) -> "NDArray[np.float32]":
        """Read one or more tokens after those in the cache; return the logits after the last."""

    def decode(self, token: int) -> "NDArray[np.float32]":
        """Read one token; return the logits after it."""

    def trim(self, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def score(
        self,
        ids: Sequence[int],
        since: int = 1,
        n_candidates: int = 0,
        interrupted: Callable[[], bool] = never_interrupted,
    ) -> Iterator[TokenScore]:
        """Yield the score of each token of `ids` from position `since` on (scoring.py)."""


class LocalDecoder(Decoder, Protocol):
    """A decoder that has all logits at hand."""

    vocab_size: int

    def prefill_all(self, ids: Sequence[int]) -> "NDArray[np.float32]":
        """Read tokens after those in the cache; return the logits after each (time, vocab_size)."""


def choose_prefill_chunk(parameters: int) -> int:
    """Return the tokens per prefill chunk on a CPU, for a model with this many parameters."""
    chunk = _CHUNK_MULTIPLICATIONS // parameters // _CHUNK_MULTIPLE * _CHUNK_MULTIPLE
    return min(_MAX_CHUNK, max(_MIN_CHUNK, chunk))
