"""The tokenizer of a model that has no vocabulary here: its text is ids."""

from typing import Any

from minillm_repl.tokenizer import Tokenizer


class IdTokenizer(Tokenizer):
    """For weights without a vocabulary: a token is written as its number, `12 7 30 `."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        """The number of tokens of the model."""
        return self._vocab_size

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,  # noqa: ARG002
        parse_special: bool = False,  # noqa: ARG002
    ) -> list[int]:
        """Return the numbers in `text`; other words are skipped."""
        return [int(word) for word in text.split() if self._is_known(word)]

    def find_unknown(self, text: str) -> list[str]:
        """Return the words that are not the id of a token."""
        return [word for word in dict.fromkeys(text.split()) if not self._is_known(word)]

    def _is_known(self, word: str) -> bool:
        return (
            word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < self.vocab_size
        )

    def token_bytes(self, token: int) -> bytes:
        """Return the number and a space."""
        return f"{token} ".encode()

    def to_json(self) -> dict[str, Any]:
        """Return `{"type": "ids", "size": ...}`."""
        return {"type": "ids", "size": self.vocab_size}
