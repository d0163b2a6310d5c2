"""Events as OpenAI's JSON. Every probability is the model's own, of its float32 logits; what the
samplers made of it stands beside it. docs/server.md describes the fields.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

from minillm_repl.chat.thinking import ThoughtSplitter
from minillm_repl.generate import Candidate, Finished, Inserted, Step
from minillm_repl.serve.engine import Event, Scored
from minillm_repl.serve.requests import Completion
from minillm_repl.tokenizer import Token, Tokenizer

Json = dict[str, Any]

# Why a generation ended, in OpenAI's words.
_FINISH_REASONS = {
    "end": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "format": "stop",
    "stuck": "length",  # nothing can follow; it is cut
}


@dataclass(frozen=True, kw_only=True)
class TokenEntry:
    """One token with its numbers: those of `logprobs.content`, and an id where OpenAI has none."""

    id: int
    text: str  # of partial characters, with �; the bytes are exact
    bytes: tuple[int, ...] | None  # None for a token that is no text
    logprob: float | None  # by the model's own softmax; None for the first token of a prompt
    sampled_logprob: float | None = None  # after the samplers; None for a token of the prompt
    rank: int | None = None  # by the model; 1 = most likely
    top: tuple["TokenEntry", ...] = ()

    def to_dict(self, *, with_top: bool = True) -> Json:
        """Return it in the shape of a chat's `logprobs.content`."""
        data: Json = {
            "token": self.text,
            "logprob": self.logprob,
            "bytes": None if self.bytes is None else list(self.bytes),
            "id": self.id,
        }
        if with_top:
            data |= {"sampled_logprob": self.sampled_logprob, "rank": self.rank}
            data["top_logprobs"] = [each.to_dict(with_top=False) for each in self.top]
        return data


def entry_of_step(step: Step, tokenizer: Tokenizer, n_candidates: int) -> TokenEntry:
    """Return the entry of a generated token, with the most likely tokens in its place."""
    token = Token.from_id(tokenizer, step.id)
    return TokenEntry(
        id=step.id,
        text=token.text,
        bytes=step.bytes or None,
        logprob=_log(step.model_prob),
        sampled_logprob=step.logprob,
        rank=step.rank,
        top=tuple(map(_entry_of_candidate, step.top[:n_candidates])),
    )


def _entry_of_candidate(each: Candidate) -> TokenEntry:
    return TokenEntry(
        id=each.id, text=each.text, bytes=each.bytes or None, logprob=_log(each.model_prob)
    )


def _log(probability: float | None) -> float | None:
    return log(probability) if probability else None  # 0 is below the smallest number


def entries_of_prompt(scored: Scored, tokenizer: Tokenizer) -> list[TokenEntry]:
    """Return the entries of a prompt; the first token has no probability."""

    def entry(token: int, logprob: float | None, **more: Any) -> TokenEntry:
        shown = Token.from_id(tokenizer, token)
        return TokenEntry(
            id=token, text=shown.text, bytes=shown.bytes or None, logprob=logprob, **more
        )

    first = [entry(token, None) for token in scored.ids[:1]]
    return first + [
        entry(
            each.id,
            each.logprob,
            rank=each.rank,
            top=tuple(entry(token, logprob) for token, logprob in each.top),
        )
        for each in scored.scores
    ]


@dataclass(frozen=True)
class Added:
    """What an event adds to an answer."""

    text: str
    thought: str  # where thoughts stand apart
    entries: list[TokenEntry]


@dataclass
class Answer:
    """What has come of one answer so far."""

    completion: Completion
    tokenizer: Tokenizer
    eos_token_ids: Sequence[int]
    prompt_tokens: int
    splitter: ThoughtSplitter | None = None  # of thoughts that stand apart
    text: str = ""
    thought: str = ""
    entries: list[TokenEntry] = field(default_factory=list)
    finished: Finished | None = None
    _generated: str = ""  # the part of the text that is no prompt

    def add(self, event: Event) -> Added:
        """Take an event; return the text and the tokens that it adds. An end token is not one."""
        text, entries = "", list[TokenEntry]()
        if isinstance(event, Scored):
            data = b"".join(map(self.tokenizer.token_bytes, event.ids))
            text = data.decode("utf-8", "replace").removeprefix(self.tokenizer.prefix)
            entries = entries_of_prompt(event, self.tokenizer)
        elif isinstance(event, Step):
            text = event.text
            self._generated += text
            if event.id not in self.eos_token_ids:
                n_candidates = self.completion.n_candidates or 0
                entries = [entry_of_step(event, self.tokenizer, n_candidates)]
        elif isinstance(event, Inserted):
            text = event.text
            self._generated += text
        else:
            self.finished = event
            text = event.text[len(self._generated) :]  # what waited, lest it begin a stop string
        thought = ""
        if self.splitter:
            thought, text = self._apart(self.splitter, text)
        self.thought += thought
        self.text += text
        self.entries += entries
        return Added(text, thought, entries)

    def _apart(self, splitter: ThoughtSplitter, text: str) -> tuple[str, str]:
        """Return what a text adds to the thoughts and to the answer, without the lines between."""
        pieces = splitter.feed(text) + (splitter.finish() if self.finished else [])
        thought = "".join(piece.text for piece in pieces if piece.is_thought)
        answer = "".join(piece.text for piece in pieces if not piece.is_thought)
        if not self.thought:
            thought = thought.lstrip("\n")
        if splitter.text and not self.text:
            answer = answer.lstrip("\n")
        return thought, answer

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, in OpenAI's words; None before the end, and for one that was stopped."""
        return _FINISH_REASONS.get(self.finished.reason) if self.finished else None

    @property
    def usage(self) -> Json:
        """The numbers of tokens."""
        made = self.finished.tokens if self.finished else 0
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }


def chat_logprobs(entries: Iterable[TokenEntry]) -> Json:
    """Return `logprobs` of a chat."""
    return {"content": [each.to_dict() for each in entries]}


def text_logprobs(entries: Sequence[TokenEntry], start: int) -> Json:
    """Return `logprobs` of a completion, whose first token begins at character `start`.

    `top_logprobs` is by text, and has one of several tokens with the same text: the likeliest.
    `content` has every token, with its id and bytes.
    """
    offsets, place = [], start
    for each in entries:
        offsets.append(place)
        place += len(each.text) if each.bytes else 0
    return {
        "tokens": [each.text for each in entries],
        "token_logprobs": [each.logprob for each in entries],
        "top_logprobs": [
            None if each.rank is None else {top.text: top.logprob for top in reversed(each.top)}
            for each in entries
        ],
        "text_offset": offsets,
        **chat_logprobs(entries),
    }
