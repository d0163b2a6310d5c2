"""`:format`: a grammar that an answer obeys, compiled by llguidance for one vocabulary.

At each step the grammar says with which tokens it can go on: a mask, which `sampling.keep` applies.
What a stranger's schema or grammar does is tried in the sandbox first, with limits.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from minillm_repl.errors import UserError
from minillm_repl.generate.sampling import Mask
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.sandbox import run_sandboxed
from minillm_repl.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_FILE = 1 << 18  # bytes of a schema or a grammar
_MAX_TYPED = 1 << 12  # characters of an expression, or of choices
# A small model may write spaces for ever where the grammar lets it.
_JSON_OPTIONS = {"whitespace_pattern": "[ ]?"}
ANY_OBJECT = '{"type": "object"}'


class FormatSource(NamedTuple):
    """What `:format` says, read: the kind, and the text of the schema, expression or grammar."""

    kind: Literal["json", "regex", "choice", "grammar"]
    text: str
    name: str  # what it is called in messages: `:format json`


def read_format(said: str) -> FormatSource:
    """Return what a value of `:format` means; a schema or a grammar is read. Raises UserError."""
    kind, _equals, value = said.partition("=")
    name = f":format {safe_line(said[:60])}"
    if said == "json":
        return FormatSource("json", ANY_OBJECT, name)
    if kind in ("json", "grammar"):
        return FormatSource("json" if kind == "json" else "grammar", _read(value), name)
    if len(value) > _MAX_TYPED:
        raise UserError(_("{what} is too long", what=f":format {kind}"))
    return FormatSource("regex" if kind == "regex" else "choice", value, name)


def _read(name: str) -> str:
    path = Path(name).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        why = safe_line(error.strerror or str(error))
        raise UserError(_("cannot read {name}: {why}", name=safe_line(name), why=why)) from None
    if len(data) > MAX_FILE:
        raise UserError(
            _("{name} has more than {size:,} bytes", name=safe_line(name), size=MAX_FILE)
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(_("{name} is no UTF-8 text", name=safe_line(name))) from None


def parse_choices(text: str) -> list[str]:
    """Return the choices of `A,B,"C, D"`. Raises UserError for fewer than one, or an empty one."""
    rows = list(csv.reader([text], skipinitialspace=True, strict=False))
    choices = [each.strip() for each in rows[0]] if len(rows) == 1 else []
    if not choices or not all(choices):
        raise UserError(_("choice= needs texts with commas between them: choice=yes,no"))
    return choices


def _grammar(source: FormatSource, tokenizer: Tokenizer) -> str:
    """Return the grammar of a format as llguidance takes it. Raises UserError."""
    kind, text, name = source
    if kind == "choice":
        choices = parse_choices(text)
        unknown = "".join(
            dict.fromkeys(part for each in choices for part in tokenizer.find_unknown(each))
        )
        if unknown:
            raise UserError(
                _("the vocabulary lacks {characters}", characters=safe_line(unknown[:40]))
            )
        strings = (json.dumps(each, ensure_ascii=False) for each in choices)
        return json.dumps({"grammars": [{"lark_grammar": f"start: {' | '.join(strings)}"}]})
    request: dict[str, Any] = {"kind": kind, "text": text, "options": _JSON_OPTIONS}
    grammar: str = run_sandboxed("grammar", name, **request)
    return grammar


class Vocabulary:
    """A vocabulary as llguidance reads it: the bytes of each token, and those that end an answer.

    More tokens stand for each byte that has none, because the library cannot go on with a part of
    a character otherwise, and for the end, which not every model has. No answer contains these.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.size = tokenizer.vocab_size
        self.ends = np.zeros(self.size, np.bool_)  # (vocab_size,)
        self.ends[[token for token in eos_token_ids if token < self.size]] = True
        # What TokenizerWrapper reads.
        self._tokenizer = tokenizer
        pieces = [tokenizer.token_bytes(token) for token in range(self.size)]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        for token in self.special_token_ids:
            pieces[token] = tokenizer.special_name(token).encode("utf-8", "replace")
        known = set(pieces)
        missing = [
            each for each in map(bytes, ([byte] for byte in range(256))) if each not in known
        ]
        self._byte_ids = {
            piece[0]: token for token, piece in enumerate([*pieces, *missing]) if len(piece) == 1
        }
        end = self.size + len(missing)
        self.tokens = [*pieces, *missing, b"<end of the format>"]
        # A bit for each, in words of 32: the tokens of the vocabulary that end nothing.
        words = np.zeros(-(-len(self.tokens) // 32) * 32, np.bool_)
        words[: self.size] = ~self.ends
        self.goes_on = np.packbits(words, bitorder="little")
        self.special_token_ids.append(end)
        self.eos_token_id, self.bos_token_id = end, None
        ends = [*np.flatnonzero(self.ends).tolist(), end]
        self.library: LLTokenizer = LLTokenizer(TokenizerWrapper(self), eos_token=ends)

    def __call__(self, text: bytes) -> list[int]:
        """Return the tokens of a text; its bytes where the vocabulary cannot write all of it."""
        ids = self._tokenizer.encode(text.decode("utf-8", "replace"), add_special=False)
        if b"".join(self.tokens[token] for token in ids) == text:
            return ids
        return [self._byte_ids[byte] for byte in text]


class Constraint:
    """A compiled format. `start` begins an answer."""

    def __init__(self, source: FormatSource, tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
        self.name = source.name
        self._vocabulary = vocabulary
        self._matcher = make_matcher(vocabulary.library, _grammar(source, tokenizer))
        if self._matcher.is_error():
            error = safe_line(self._matcher.get_error().partition("\n")[0])
            raise UserError(_("{what} cannot be used: {error:.200}", what=self.name, error=error))

    def start(self, ids: Sequence[int] = ()) -> "FormatState":
        """Return the state after the tokens of an answer so far.

        Raises UserError if these do not fit the format, or if no token can begin it.
        """
        state = FormatState(self._matcher.deep_copy(), self._vocabulary)
        for token in ids:
            if not state.allowed[token] or self._vocabulary.ends[token]:
                raise UserError(
                    _(
                        "the answer so far does not fit `{what}`; a new prompt begins "
                        "another one, and `:format off` lets it go on",
                        what=self.name,
                    )
                )
            state.advance(token)
        if state.ended == "stuck" and not ids:
            raise UserError(_("no token of the vocabulary can begin `{what}`", what=self.name))
        return state


class FormatState:
    """Where an answer is in its format."""

    allowed: Mask  # (vocab_size,) the tokens that can come next
    is_complete: bool  # the answer may end here
    # `format`: nothing but an end can follow; `stuck`: no token of the vocabulary can go on
    ended: Literal["", "format", "stuck"] = ""

    def __init__(self, matcher: "LLMatcher", vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._bits = np.zeros_like(vocabulary.goes_on)  # a bit for each token
        self._address = self._bits.ctypes.data  # which is slow to find out
        self._look()

    def advance(self, token: int) -> None:
        """Go on with a token of the answer that is allowed, and no end token."""
        self._matcher.consume_token(token)
        self._look()

    def _look(self) -> None:
        """Find out what can come next."""
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
        # After an error the library lets an answer end; it is not complete.
        failed = self._matcher.is_error()
        self.is_complete = not failed and self._matcher.is_accepting()
        bits = np.unpackbits(self._bits, None, self._vocabulary.size, "little")
        self.allowed = bits.view(np.bool_)
        if failed or not np.count_nonzero(self._bits & self._vocabulary.goes_on):
            self.ended = "format" if self.is_complete else "stuck"


def make_matcher(library: "LLTokenizer", grammar: str) -> "LLMatcher":
    """Return a matcher with limits: one step takes milliseconds, whatever the grammar is."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )
    return LLMatcher(library, grammar, log_level=0, limits=limits)
