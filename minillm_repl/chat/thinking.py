"""Thoughts: what a reasoning model writes in a `<think>` block before its answer."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.language import _
from minillm_repl.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"
END_OF_THOUGHT = f"\n{CLOSE}\n\n"
_SWITCHES = ("enable_thinking", "thinking")  # variables of templates: Qwen 3 and most, Granite
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
    block at the start counts: later, a tag is text. `tag_ids` are the tokens of the tags where
    these have no text of their own.
    """

    def __init__(
        self,
        *,
        is_open: bool = False,
        has_answer: bool = False,
        tag_ids: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.n_tokens = 0  # of thought, without the tags
        self.text = ""  # of the thoughts so far
        self._state = "thought" if is_open else "answer" if has_answer else "start"
        self._held = ""  # may be the beginning of a tag
        self._tags = dict(zip(tag_ids, (OPEN, CLOSE), strict=True))

    @property
    def is_thinking(self) -> bool:
        """Whether the text is inside a block now."""
        return self._state == "thought"

    def feed(self, text: str, token: int | None = None) -> list[Piece]:
        """Return what is certain of the text so far; `token` is the one that brought the text."""
        was_thinking = self.is_thinking
        if token is not None and not text:
            text = self._tags.get(token, "")
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
    tag_ids = (tokenizer.token_to_id(OPEN), tokenizer.token_to_id(CLOSE))
    names = dict(zip(tag_ids, (OPEN.encode(), CLOSE.encode()), strict=True))
    data = b"".join(tokenizer.token_bytes(each) or names.get(each, b"") for each in prompt_ids)
    last_open, last_close = data.rfind(OPEN.encode()), data.rfind(CLOSE.encode())
    is_open = last_open > last_close and (is_continued or data.rstrip().endswith(OPEN.encode()))
    return ThoughtSplitter(
        is_open=is_open, has_answer=is_continued and not is_open, tag_ids=tag_ids
    )


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
    if switch_of(template) or CLOSE not in template.source:
        return ids
    if splitter_after(tokenizer, ids).is_thinking:
        return ids + end_of_thought(tokenizer)
    empty = f"{OPEN}\n{END_OF_THOUGHT}"
    return ids + tokenizer.encode(empty, add_special=False, parse_special=True)


def switch_of(template: ChatTemplate) -> str:
    """Return the variable that turns thinking on and off in a template; empty if it has none."""
    return next((name for name in _SWITCHES if re.search(rf"\b{name}\b", template.source)), "")


def parse_variables(words: Sequence[str]) -> tuple[str, ...]:
    """Return `name=value` words as they are. Raises ValueError for others, and reserved names."""
    for word in words:
        name, equals, _value = word.partition("=")
        if not equals or not _NAME.fullmatch(name) or name in _RESERVED:
            raise ValueError(_("words such as enable_thinking=false"))
    return tuple(words)


def with_variables(
    template: ChatTemplate, words: Sequence[str], *, thinks: bool | None = None
) -> ChatTemplate:
    """Return a template with variables of the user's: `name=value` words, whose value is JSON if
    it can be, else a text. `thinks` sets the one for thinking, if the template has it.
    """
    chosen: dict[str, Any] = {}
    switch = switch_of(template)
    if switch and thinks is not None:
        chosen[switch] = thinks
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
