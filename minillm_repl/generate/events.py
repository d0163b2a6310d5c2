"""The events of a generation: `Prefill` during a long prompt, a `Step` per token, one `Finished`.

Fields have their names in the `--json` output, which leaves `Prefill` out.
"""

from dataclasses import dataclass
from typing import Any, Literal

# `care`: the program answered in the place of the model, which was not run.
Reason = Literal["length", "stop", "end", "context", "interrupt", "care"]


@dataclass(frozen=True, slots=True)
class Prefill:
    """The part of a long prompt that is read so far."""

    done: int  # tokens, those that the cache held already included
    total: int  # tokens that the model sees of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One token that could come next."""

    id: int
    text: str  # the name of a token that is not text: `<|im_end|>`
    bytes: tuple[int, ...]  # none if it is not text
    model_prob: float  # by the model's own softmax
    prob: float  # of being drawn, after the samplers
    kept: bool  # False if a sampler filtered it out
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One generated token and the numbers behind it."""

    index: int  # from 0
    id: int
    text: str  # what became certain at this step; may be empty
    bytes: tuple[int, ...]
    prob: float  # of the token, under the distribution that was drawn from
    logprob: float  # its natural logarithm
    model_prob: float  # of the token, under the model's own softmax
    rank: int  # 1 = likeliest, by the model
    entropy: float  # of the model's softmax, in bits
    top: tuple[Candidate, ...]  # the likeliest by the model; the chosen one always, even from below


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a generation ended."""

    reason: Reason
    text: str
    prompt_tokens: int
    tokens: int
    prompt_seconds: float  # of reading what the cache did not hold; 0 if nothing was read
    seconds: float  # all tokens after that


GenerationEvent = Prefill | Step | Finished


def as_json(event: Step | Finished) -> dict[str, Any]:
    """Return the event as JSON-ready data, named `step` or `finished`."""
    data = {"event": type(event).__name__.lower(), **_shallow(event)}
    if isinstance(event, Step):
        data["top"] = [_shallow(candidate) for candidate in event.top]
    return data


def _shallow(event: Step | Finished | Candidate) -> dict[str, Any]:
    # dataclasses.asdict copies each number of each candidate, which doubles the time of a step.
    return {name: getattr(event, name) for name in event.__slots__}
