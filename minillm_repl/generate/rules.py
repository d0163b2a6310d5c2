"""What a user says of tokens and of the form of an answer, resolved for one vocabulary."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.generate import TokenRules
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.tokenizer.lookup import find_token_ids

if TYPE_CHECKING:
    from minillm_repl.generate.constraint import Constraint, FormatSource, Vocabulary

_BREAKERS = b'\n:"*'  # those of llama.cpp
_MAX_BIAS = 1000.0  # of a logit: more changes nothing


class RuleMaker:
    """Makes the rules of an answer, and keeps what is slow to find out about a vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabularies: dict[tuple[int, ...], Vocabulary] = {}  # by the ids of end tokens
        self._constraint: tuple[object, Constraint] | None = None  # the last, and what made it

    def make(
        self,
        *,
        ban: Sequence[str] = (),
        bias: Sequence[str] = (),
        has_dry: bool = False,
        answer_format: "str | FormatSource" = "",
        eos_token_ids: Sequence[int] = (),
    ) -> TokenRules:
        """Return the rules that words mean: tokens to ban, `TOKEN=+2`, and a value of `:format`,
        or what such a value says.

        Raises UserError, also where the library for formats is missing.

        A word means what it means in `:why`: a text with and without a space before it, the name of
        a special token, or `#123`.
        """
        banned = [token for word in ban for token in find_token_ids(self._tokenizer, word)]
        biases = [
            (token, value)
            for word, value in map(split_bias, bias)
            for token in find_token_ids(self._tokenizer, word)
        ]
        if len(set(banned)) >= self._tokenizer.vocab_size:
            raise UserError(_("no token would be left: ban fewer"))
        return TokenRules(
            banned=tuple(dict.fromkeys(banned)),
            biases=tuple(biases),
            breakers=self._breakers if has_dry else frozenset(),
            constraint=self._compile(answer_format, eos_token_ids) if answer_format else None,
        )

    def _compile(
        self, answer_format: "str | FormatSource", eos_token_ids: Sequence[int]
    ) -> "Constraint":
        """Return a format, compiled again only where it, or its file, has changed."""
        from minillm_repl.generate.constraint import Constraint, Vocabulary, read_format

        source = read_format(answer_format) if isinstance(answer_format, str) else answer_format
        ends = tuple(sorted(set(eos_token_ids)))
        key = source, ends
        if self._constraint and self._constraint[0] == key:
            return self._constraint[1]
        try:
            if ends not in self._vocabularies:
                self._vocabularies[ends] = Vocabulary(self._tokenizer, ends)
            constraint = Constraint(source, self._tokenizer, self._vocabularies[ends])
        except ImportError as error:
            raise UserError(
                _(
                    ":format needs the package {name}: `pip install 'minillm-repl[format]'`",
                    name=safe_line(str(error.name)),
                )
            ) from None
        self._constraint = key, constraint
        return constraint

    @cached_property
    def _breakers(self) -> frozenset[int]:
        size, token_bytes = self._tokenizer.vocab_size, self._tokenizer.token_bytes
        return frozenset(
            token for token in range(size) if any(mark in token_bytes(token) for mark in _BREAKERS)
        )


def split_bias(word: str) -> tuple[str, float]:
    """Return the token and the number of `TOKEN=+2`. Raises UserError."""
    token, _equals, number = word.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not token or not abs(value) <= _MAX_BIAS:
        raise UserError(
            _(
                "{word} is no bias: a token, =, and a number from -{most:g} to {most:g}",
                word=safe_line(word),
                most=_MAX_BIAS,
            )
        )
    return token, value
