"""Thoughts: what a reasoning model writes in a `<think>` block before its answer."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.language import _
from minillm_repl.tokenizer import THOUGHT_TAGS, Tokenizer

OPEN, CLOSE = THOUGHT_TAGS
START_OF_THOUGHT = f"{OPEN}\n"
END_OF_THOUGHT = f"\n{CLOSE}\n\n"
SWITCHES = ("enable_thinking", "thinking")  # variables of templates: Qwen 3 and most, Granite
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_RESERVED = frozenset(  # a template is given these by the program
    {"messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token"}
)
_LITERALS = {"True": True, "False": False, "None": None}  # as Python writes them


@dataclass(frozen=True)
class Piece:
    """Some text of a generation, without the tags."""

    text: str
    is_thought: bool


class ThoughtSplitter:
    """Tells thoughts from the answer in a text that comes in pieces.

    `is_open` says that the text begins inside a block, `has_answer` that the block is over. Only a
    block at the start counts: later, a tag is text.
    """

    def __init__(self, *, is_open: bool = False, has_answer: bool = False) -> None:
        self.n_tokens = 0  # of thought, without the tags
        self.text = ""  # of the thoughts so far
        self._state = "thought" if is_open else "answer" if has_answer else "start"
        self._held = ""  # may be the beginning of a tag

    @property
    def is_thinking(self) -> bool:
        """Whether the text is inside a block now."""
        return self._state == "thought"

    def feed(self, text: str, token: int | None = None) -> list[Piece]:
        """Return what is certain of the text so far; `token` is the one that brought the text."""
        was_thinking = self.is_thinking
        pieces = self._split(self._held + text)
        if was_thinking and self.is_thinking and token is not None:
            self.n_tokens += 1
        self.text += "".join(piece.text for piece in pieces if piece.is_thought)
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back."""
        held, self._held = self._held, ""
        self.text += held if self.is_thinking else ""
        return [Piece(held, self.is_thinking)] if held else []

    def _split(self, text: str) -> list[Piece]:
        self._held = ""
        if self._state == "start":
            begun = text.lstrip()
            if begun != OPEN and OPEN.startswith(
                begun
            ):  # nothing but spaces so far, or a part of the tag
                self._held = text
                return []
            self._state = "thought" if begun.startswith(OPEN) else "answer"
            text = begun.removeprefix(OPEN) if self.is_thinking else text
        if self._state == "answer":
            return [Piece(text, is_thought=False)] if text else []
        thought, is_closed, answer = text.partition(CLOSE)
        if is_closed:
            self._state = "answer"
        else:
            ends = (size for size in range(len(CLOSE) - 1, 0, -1) if text.endswith(CLOSE[:size]))
            certain = len(text) - next(ends, 0)
            thought, self._held = text[:certain], text[certain:]
        pieces = [Piece(thought, is_thought=True), Piece(answer, is_thought=False)]
        return [piece for piece in pieces if piece.text]


def splitter_after(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], *, is_continued: bool = False
) -> ThoughtSplitter:
    """Return the splitter of what a model writes after a prompt; some prompts open the block.

    `is_continued` says that the prompt ends with a part of the answer.
    """
    data = b"".join(map(tokenizer.token_bytes, prompt_ids))
    last_open, last_close = data.rfind(OPEN.encode()), data.rfind(CLOSE.encode())
    is_open = last_open > last_close and (is_continued or data.rstrip().endswith(OPEN.encode()))
    return ThoughtSplitter(is_open=is_open, has_answer=is_continued and not is_open)


def end_of_thought(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that end a block."""
    return tokenizer.encode(END_OF_THOUGHT, add_special=False, parse_special=True)


def without_thought(
    template: ChatTemplate, tokenizer: Tokenizer, prompt_ids: Sequence[int]
) -> list[int]:
    """Return a prompt after which the model answers at once: with an empty block, if its template
    knows blocks but has no variable for them.
    """
    ids = list(prompt_ids)
    if switches_of(template) or CLOSE not in template.source:
        return ids
    if splitter_after(tokenizer, ids).is_thinking:
        return ids + end_of_thought(tokenizer)
    empty = f"{START_OF_THOUGHT}{END_OF_THOUGHT}"
    return ids + tokenizer.encode(empty, add_special=False, parse_special=True)


def switches_of(template: ChatTemplate) -> tuple[str, ...]:
    """Return the variable that turns thinking on and off in a template; none if it has none.

    Of a template that a server keeps to itself, all that there are: others change nothing.
    """
    if template.remote is not None and not template.source:
        return SWITCHES
    known = (name for name in SWITCHES if re.search(rf"\b{name}\b", template.source))
    return tuple(known)[:1]


def parse_variables(words: Sequence[str]) -> tuple[str, ...]:
    """Return `name=value` words as they are. Raises ValueError for others, and reserved names."""
    for word in words:
        name, equals, _value = word.partition("=")
        if not equals or not _NAME.fullmatch(name) or name in _RESERVED:
            raise ValueError(_("words such as enable_thinking=false"))
    return tuple(words)


def without_thoughts(text: str) -> str:
    """Return an answer without the block at its start."""
    splitter = ThoughtSplitter()
    pieces = [*splitter.feed(text), *splitter.finish()]
    answer = "".join(piece.text for piece in pieces if not piece.is_thought)
    return answer.lstrip("\n") if splitter.text else answer


def with_variables(
    template: ChatTemplate, words: Sequence[str], *, thinks: bool | None = None
) -> ChatTemplate:
    """Return a template with variables of the user's: `name=value` words, whose value is JSON if
    it can be, else a text. `thinks` sets the one for thinking, if the template has it.
    """
    chosen: dict[str, Any] = {}
    if thinks is not None:
        chosen = dict.fromkeys(switches_of(template), thinks)
    chosen |= {word.partition("=")[0]: _value(word.partition("=")[2]) for word in words}
    if not chosen:
        return template
    variables: Mapping[str, Any] = {**template.variables, **chosen}
    return replace(template, variables=variables)


def _value(text: str) -> Any:
    if text in _LITERALS:
        return _LITERALS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
