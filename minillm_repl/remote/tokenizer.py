"""The tokenizer of a server: its ids where it has some, and ids of our own for pieces of text.

A server without a tokenizer still says texts. Each piece of text gets an id here, from
FIRST_OWN_ID on, so that the program can keep the text as ids; tables show no number for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.remote import Listed
from minillm_repl.remote.engines import Engine
from minillm_repl.tokenizer import FIRST_OWN_ID, Tokenizer

Talk = tuple[tuple[Message, ...], Mapping[str, Any]]
"""Messages, and variables for the chat template that writes them."""


class RemoteTokenizer(Tokenizer):
    """Asks the server, and remembers each token that it has named."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.start_ids = engine.facts.start_ids
        self._known: dict[int, Listed] = {}
        self._own: list[bytes] = []
        self._own_ids: dict[bytes, int] = {}
        self._conversations: dict[int, Talk] = {}

    @property
    def vocab_size(self) -> int:
        """The number of tokens of the model; 0 if the server does not tell."""
        return self._engine.facts.vocab_size or 0

    def learn(self, tokens: Iterable[Listed]) -> None:
        """Remember the tokens that a server has named with an id."""
        for each in tokens:
            if each.id is not None and each.id not in self._known:
                self._known[each.id] = each

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the ids of the server, or one of our own for the whole text."""
        text = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
        if not text:
            return list(self.start_ids) if add_special else []
        found = self._engine.tokenize(text, add_special=add_special, parse_special=parse_special)
        if found is None:
            return [self.intern(text.encode())]
        self.learn(found)
        return [each.id for each in found if each.id is not None]

    def find_unknown(self, text: str) -> list[str]:
        """Return the characters that the server's vocabulary lacks, if it tells."""
        return self._engine.unknown(text) if text else []

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; none for a special token."""
        if token >= FIRST_OWN_ID:
            return self._own[token - FIRST_OWN_ID]
        return bytes(self._token(token).bytes or ())

    def special_name(self, token: int) -> str:
        """Return the name of a special token; empty for a token that is text."""
        if token >= FIRST_OWN_ID:
            return ""
        known = self._token(token)
        return "" if known.bytes else known.text

    def _token(self, token: int) -> Listed:
        if token not in self._known:
            first = token - token % self._engine.block
            last = min(first + self._engine.block, max(self.vocab_size, token + 1))
            self.learn(self._engine.tokens(range(first, last)))
        return self._known.get(token) or Listed(text=f"#{token}", id=token)

    def intern(self, data: bytes) -> int:
        """Return the id of a piece of text that has none of the server's."""
        if data not in self._own_ids:
            self._own_ids[data] = FIRST_OWN_ID + len(self._own)
            self._own.append(data)
        return self._own_ids[data]

    def intern_messages(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] = {},
    ) -> int:
        """Return an id that stands for a conversation, which the server writes itself with
        variables of its chat template.
        """
        shown = "".join(f"{each.role}: {each.content}\n" for each in messages)
        token = FIRST_OWN_ID + len(self._own)  # each is a new one: two may look alike
        self._own.append(shown.encode("utf-8", "replace"))
        self._conversations[token] = tuple(messages), variables
        return token

    def conversation(self, ids: Sequence[int]) -> Talk:
        """Return the conversation that ids stand for; without messages where they are a text."""
        return self._conversations.get(ids[0], ((), {})) if ids else ((), {})

    def has_server_ids(self, ids: Sequence[int]) -> bool:
        """Tell whether all ids are the server's own."""
        return all(token < FIRST_OWN_ID for token in ids)

    def to_json(self) -> dict[str, Any]:
        """Raise UserError: the vocabulary is on the server."""
        raise UserError(_("the vocabulary is on the server, and cannot be saved"))
