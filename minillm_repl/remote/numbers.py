"""Checks of what a server sends: what is not of its kind becomes None; no number is invented."""

from collections.abc import Iterable, Sequence
from math import inf, log2
from typing import Any

from minillm_repl.remote import Entry, Listed

_MOST_ABOVE_ZERO = 1e-3  # a logarithm of a probability may be rounded up to this
_ZERO = -9_000.0  # from here on servers mean −inf: vLLM writes −9999, llama.cpp −3.4e38
_MAX_ID = 1 << 31
_MOST_FLOAT32 = 3e38
_NO_TAIL = 1e-9  # a probability that is only rounding


def logprob(value: Any) -> float | None:
    """Return a log-probability, −inf for a probability of 0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or value > _MOST_ABOVE_ZERO:  # noqa: PLR0124 - NaN; ints may be huge
        return None
    return -inf if value <= _ZERO else min(float(value), 0.0)


def is_finite(value: Any) -> bool:
    """Tell whether a value is a number that float32 can hold."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -_MOST_FLOAT32 < value < _MOST_FLOAT32


def token_id(value: Any) -> int | None:
    """Return an id; None for anything else."""
    is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_ID
    return value if is_id else None


def ids(value: Any) -> list[int] | None:
    """Return a list of ids; None for anything else."""
    found = [token_id(each) for each in value] if isinstance(value, list) else [None]
    return None if None in found else found  # type: ignore[return-value]


def count(value: Any) -> int | None:
    """Return a number of things, 1 or more; None for anything else."""
    return token_id(value) or None


def text(value: Any) -> str:
    """Return a text; empty for anything else."""
    return value if isinstance(value, str) else ""


def byte_values(value: Any) -> tuple[int, ...] | None:
    """Return bytes; None for anything else."""
    if not isinstance(value, list):
        return None
    if not all(isinstance(each, int) and 0 <= each < 256 for each in value):
        return None
    return tuple(map(int, value))


def items(value: Any) -> list[Any]:
    """Return a list; empty for anything else."""
    return value if isinstance(value, list) else []


def fields(value: Any) -> dict[str, Any]:
    """Return an object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def listed(value: Any, *, exact_bytes: bool) -> Listed | None:
    """Return a token of the chat shape: `{token, logprob, bytes, id}`; None for anything else.

    Bytes that the server made of its own text are wrong where that has a `�`.
    """
    entry = fields(value)
    if not isinstance(entry.get("token"), str):
        return None
    token, data = entry["token"], byte_values(entry.get("bytes"))
    if not exact_bytes and "\ufffd" in token:
        data = None
    return Listed(
        text=token,
        bytes=data or None,
        id=token_id(entry.get("id")),
        logprob=logprob(entry.get("logprob")),
        is_special=exact_bytes and not data,
    )


def entry(value: Any, *, exact_bytes: bool) -> Entry | None:
    """Return a token of the chat shape with its `top_logprobs`; None for anything else."""
    token = listed(value, exact_bytes=exact_bytes)
    if token is None:
        return None
    found = (
        listed(each, exact_bytes=exact_bytes) for each in items(fields(value).get("top_logprobs"))
    )
    return Entry(
        token=token,
        top=usable_top(found),
        rank=count(fields(value).get("rank")),
        sampled_logprob=logprob(fields(value).get("sampled_logprob")),
    )


def usable_top(found: Iterable[Listed | None]) -> tuple[Listed, ...]:
    """Return the tokens that have a probability, the likeliest first; each once."""
    seen, kept = set[Any](), list[Listed]()
    for each in found:
        if each is None or each.logprob is None:
            continue
        key = each.id if each.id is not None else (each.text, each.bytes, each.logprob)
        if key not in seen:
            seen.add(key)
            kept.append(each)
    return tuple(sorted(kept, key=lambda each: -(each.logprob or 0.0)))


def entries(value: Any, *, exact_bytes: bool) -> tuple[Entry, ...]:
    """Return the tokens of a `logprobs.content`; none for anything else."""
    found = (entry(each, exact_bytes=exact_bytes) for each in items(value))
    return tuple(each for each in found if each is not None)


def entropy_bounds(probs: Sequence[float], vocab_size: int | None) -> tuple[float, float] | None:
    """Return the least and the most entropy, in bits, of a distribution of which these are known.

    What is not listed is one token at least, or spread evenly over all others at most; without a
    vocabulary size there is no upper bound, and it is infinite.
    """
    if not probs:
        return None
    tail = max(1.0 - sum(probs), 0.0)
    known = sum(-each * log2(each) for each in probs if each > 0)
    least = known - (tail * log2(tail) if tail > 0 else 0.0)
    if tail < _NO_TAIL:
        return least, least
    if vocab_size is None:
        return least, inf
    others = vocab_size - len(probs)
    return least, known - tail * log2(tail / others) if others > 0 else least
