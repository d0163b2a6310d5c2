"""Models that run on a server, over HTTP: what a server tells of a model, of a step and of a token.

`http.py` has the connection and its limits, `sse.py` reads streams, `numbers.py` checks what comes,
`engines/` has one file for each shape of a server, `probe.py` finds out which one it is and what it
really tells. `events.py` makes the events of a generation of it, `decoder.py` a decoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minillm_repl.chat import Message
from minillm_repl.generate import Sampling, Stage

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a server tells of its model, as far as the probe has seen it."""

    engine: str  # "llama.cpp"
    source: str  # the engine and its address, for tables
    model: str  # the name that requests carry
    vocab_size: int | None = None
    context_length: int | None = None
    n_listed: int = 0  # the most tokens that it lists at a step; 0: no log-probabilities
    n_listed_chat: int | None = None  # the same of an answer to messages; None: as many
    stage: Stage = "unknown"  # what its probabilities are of
    has_ids: bool = False  # its tokens have ids, and a prompt may be ids
    exact_bytes: bool = False  # the bytes of a token are those of the vocabulary
    scores_prompt: bool = False  # it tells the log-probabilities of a prompt
    completes: bool = False  # it continues a text
    chats: bool = False  # it answers messages
    template: str = ""  # the source of its chat template, where it tells
    cares: bool = False  # it answers a crisis in the place of its model (:help care)
    eos_token_ids: tuple[int, ...] = ()
    start_ids: tuple[int, ...] = ()  # before each text
    recommended: Json = field(default_factory=dict)  # samplers of the model, as they came

    def most_listed(self, *, in_chat: bool) -> int:
        """Return the most tokens that it lists at a step."""
        is_other = in_chat and self.n_listed_chat is not None
        return (self.n_listed_chat or 0) if is_other else self.n_listed

    @property
    def is_full(self) -> bool:
        """Whether it tells the model's own probability of each token of the vocabulary."""
        return (
            self.has_ids
            and self.stage == "raw"
            and self.vocab_size is not None
            and self.n_listed >= self.vocab_size
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A token as a server names it. None is what the server did not tell, or not as a number."""

    text: str
    bytes: tuple[int, ...] | None = None  # None for a token that is no text, and where not told
    id: int | None = None
    logprob: float | None = None  # natural logarithm; −inf for a probability of 0
    is_special: bool = False  # no text: an end token


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A token of a text, and what could have come in its place."""

    token: Listed
    top: tuple[Listed, ...] = ()
    rank: int | None = None  # by the model, 1 = likeliest
    sampled_logprob: float | None = None  # after the samplers


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one chunk of an answer brings."""

    text: str = ""
    thought: str = ""  # what a server tells apart from the answer
    entries: tuple[Entry, ...] = ()
    finish: str = ""  # why it ended: "stop", "length"; empty before the end
    error: str = ""  # what the server says went wrong


@dataclass(frozen=True, kw_only=True)
class Job:
    """A text to continue, as ids or as text, or messages to answer."""

    ids: Sequence[int] = ()
    text: str = ""
    messages: Sequence[Message] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)  # for the template of messages
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: Sequence[str] = ()
    max_tokens: int = 1
    n_listed: int = 0


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The prompt of a conversation, as the server writes it."""

    ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...] = ()
