"""Names of special tokens in a text: found as the library finds them, or escaped as plain text."""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import tokenizers

from minillm_repl.tokenizer.base import Escapes
from minillm_repl.tokenizer.description import rename_tokens
from minillm_repl.tokenizer.library import make_tokenizer, replace_surrogates


def find_prefix_ids(library: tokenizers.Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the ids that a tokenizer puts before every text.

    The first text that has tokens shows them. Ids after the text (`</s>`) are left out: they
    would end a text that the model is to continue.
    """
    for text in texts:
        encoding = library.encode(text)
        without_special = library.encode(text, add_special_tokens=False)
        if without_special.ids:
            # 1 marks a special token; the prefix ends at the first 0.
            mask = [*encoding.special_tokens_mask, 0]
            return encoding.ids[: mask.index(0)]
    return []


def names_pattern(tokens: Iterable[tokenizers.AddedToken]) -> re.Pattern[str]:
    """Return the pattern that finds names of added tokens, the longest first as in the library."""
    ordered = sorted(
        (each for each in tokens if each.content), key=lambda each: len(each.content), reverse=True
    )
    edges = {False: "{}", True: r"(?<!\w){}(?!\w)"}
    alternatives = [edges[each.single_word].format(re.escape(each.content)) for each in ordered]
    return re.compile("|".join(alternatives) or "(?!)")


def random_names(added: Mapping[int, tokenizers.AddedToken]) -> dict[str, str]:
    """Return an unguessable name for each special token, with the same first and last character."""
    # Random, so that no text can contain such a name on purpose.
    nonce = secrets.token_hex(8)
    names = {token: each.content for token, each in added.items() if each.special and each.content}
    return {name: f"{name[0]}{nonce}{token:x}{name[-1]}" for token, name in names.items()}


class EscapeEncoder:
    """Encodes a text in which some names mean special tokens, and others are plain text.

    The library has one switch for a whole text. A text cut at the names would get other tokens at
    each cut: a space comes before a part, or is lost. Therefore a second tokenizer has random
    names for the special tokens, and the text is encoded once with these names where a special
    token is meant.
    """

    def __init__(self, description: str, added: Mapping[int, tokenizers.AddedToken]) -> None:
        self._added_tokens, self._aliases = added, random_names(added)
        self._pattern = names_pattern(each for each in added.values() if each.special)
        # A post-processor would add a start token.
        aliased = rename_tokens(json.loads(description), self._aliases)
        self._library = make_tokenizer(
            json.dumps({**aliased, "post_processor": None}, ensure_ascii=False)
        )

    @cached_property
    def _ids(self) -> dict[int | None, int]:
        """The ids of added tokens, by their ids in the second tokenizer."""
        named = {
            self._aliases.get(each.content, each.content): token
            for token, each in self._added_tokens.items()
        }
        return {self._library.token_to_id(name): token for name, token in named.items()}

    def encode(
        self, text: str, escapes: Escapes, positions: Sequence[int] = ()
    ) -> tuple[list[int], tokenizers.Encoding, list[int]]:
        """Return the ids, the library's encoding, and `positions` moved to the text it read.

        The random names are longer or shorter than the real ones, so the positions move.
        """
        matches = list(self._pattern.finditer(text))
        aliased = self._pattern.sub(lambda name: self._aliases[name[0]], text).translate(escapes)
        growth = [(name.end(), len(self._aliases[name[0]]) - len(name[0])) for name in matches]
        shifted = [place + sum(more for end, more in growth if end <= place) for place in positions]
        encoding = self._library.encode(replace_surrogates(aliased), add_special_tokens=False)
        return [self._ids.get(token, token) for token in encoding.ids], encoding, shifted
