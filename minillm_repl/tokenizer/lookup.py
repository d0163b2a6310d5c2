"""Tokens that a user types, and comparison of vocabularies."""

import re
from collections.abc import Iterable, Sequence

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import NEWLINE, SPACE, expand_to_graphemes, safe_line
from minillm_repl.tokenizer import Token, Tokenizer, label


def find_token_ids(tokenizer: Tokenizer, word: str) -> list[int]:
    """Return the ids that a word can mean, the most likely reading first.

    `#123` is an id. The name of a special token is that token. ␣ and ⏎ are a space and a newline.
    Any other word is the token with this text, and the token with a space before it. Raises
    UserError if there is none.
    """
    if word.startswith("#") and word[1:].isdecimal():
        # The length first: a huge number takes long to parse.
        if len(word) > 10 or int(word[1:]) >= tokenizer.vocab_size:
            raise UserError(
                _(
                    "no token {word}: tokens run from #0 to #{last}",
                    word=safe_line(word[:20]),
                    last=tokenizer.vocab_size - 1,
                )
            )
        return [int(word[1:])]
    # token_to_id also finds ordinary tokens, which special_name tells apart.
    special = tokenizer.token_to_id(word)
    if special is not None and tokenizer.special_name(special):
        return [special]
    # The marks under which views show a space and a newline.
    text = word.replace(SPACE, " ").replace(NEWLINE, "\n")
    readings = (text, " " + text)
    encoded = [tokenizer.encode(each, add_special=False) for each in readings]
    exact = [
        ids[0]
        for ids, each in zip(encoded, readings, strict=True)
        if _is_single_token(tokenizer, ids, each)
    ]
    if not exact:
        pieces = " ".join(f"{label(tokenizer, token)} (#{token})" for token in encoded[0][:8])
        remedy = (
            _("it splits into {pieces}; choose one of these", pieces=pieces)
            if pieces
            else _("its characters are not in the vocabulary")
        )
        raise UserError(
            _(
                "{word} is not a single token of this model; {remedy}",
                word=safe_line(word),
                remedy=remedy,
            )
        )
    return exact


_IDS = re.compile(r"ids:((?:\s*\d{1,10})+)\s*")


def typed_ids(tokenizer: Tokenizer, text: str) -> list[int] | None:
    """Return the ids of a text such as `ids:1 403 407`; None for any other text.

    Raises UserError for an id that the vocabulary does not have.
    """
    found = _IDS.fullmatch(text)
    if found is None:
        return None
    ids = [int(each) for each in found[1].split()]
    for each in ids:
        if each >= tokenizer.vocab_size:
            raise UserError(
                _(
                    "no token {word}: tokens run from #0 to #{last}",
                    word=f"#{each}",
                    last=tokenizer.vocab_size - 1,
                )
            )
    return ids


def _is_single_token(tokenizer: Tokenizer, ids: list[int], text: str) -> bool:
    return len(ids) == 1 and tokenizer.token_bytes(ids[0]) == text.encode()


def unknown_text_warning(
    tokenizer: Tokenizer, text: str, ids: list[int], *, is_empty: bool | None = None
) -> str | None:
    """Return what to say of the part of a text that is not in the vocabulary; None if all is.

    `ids` are the tokens of the text, maybe among others: the text is tokenised again only if they
    have an unknown token. Raises UserError if `is_empty`: nothing of the text became a token.
    """
    becomes = tokenizer.unk_token
    if becomes and tokenizer.token_to_id(becomes) not in ids:
        return None
    unknown = tokenizer.find_unknown(text)
    if not unknown:
        return None
    shown = safe_line(", ".join(expand_to_graphemes(unknown[:20], text)))
    shown += " …" if len(unknown) > 20 else ""
    if is_empty or (is_empty is None and not tokenizer.encode(text, add_special=False)):
        every = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
        known = "".join(token_bytes.decode("utf-8", "replace") for token_bytes in every)
        raise UserError(
            _(
                "no character of this is in the vocabulary: {shown}; the model knows {known}",
                shown=shown,
                known=safe_line(known[:60]).replace(" ", SPACE),
            )
        )
    if not becomes:
        return _("not in the vocabulary: {shown}; skipped", shown=shown)
    token = safe_line(becomes)
    return _("not in the vocabulary: {shown}; read as {token}", shown=shown, token=token)


def count_prefix_spaces(tokenizer: Tokenizer, ids: Sequence[int], text: str | None = None) -> int:
    """Return how many bytes the tokenizer put before the text of `ids`: a space, or none.

    If `text` is unknown, the text "a" shows whether the tokenizer puts a space before texts.
    """
    spaces = _leading_spaces(b"".join(map(tokenizer.token_bytes, ids)))
    if text is None:
        usual_spaces = _leading_spaces(b"".join(map(tokenizer.token_bytes, tokenizer.encode("a"))))
        return min(spaces, usual_spaces)
    return max(0, spaces - _leading_spaces(text.encode("utf-8", "replace")))


def _leading_spaces(text: bytes) -> int:
    return len(text) - len(text.lstrip(b" "))


def has_same_vocabulary(ours: Tokenizer, theirs: Tokenizer) -> bool:
    """Tell whether every id is the same token in both."""
    return ours.vocab_size == theirs.vocab_size and all(
        Token.from_id(ours, token) == Token.from_id(theirs, token)
        for token in range(ours.vocab_size)
    )


def word_ids(tokenizer: Tokenizer, texts: Sequence[str], plain: list[list[int]]) -> list[list[int]]:
    """Return the ids of texts as words within a text; `plain` has their ids without a space.

    Some tokenizers have the space before a word in the word's own token. So a space is added if
    the texts then take no more tokens.
    """
    # "␣dog" is one token where "dog" alone may be two.
    spaced = [tokenizer.encode(" " + text, add_special=False) for text in texts]
    return spaced if sum(map(len, spaced)) <= sum(map(len, plain)) else plain


def alternation_of(names: Iterable[str]) -> str:
    """Return a regular expression that matches any of these names, the longest first."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, ordered)) or '(?!)'})"
