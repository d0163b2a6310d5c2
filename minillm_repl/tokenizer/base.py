"""What every tokenizer can do."""

from typing import Any, Protocol


class Tokenizer(Protocol):
    """Turns text into token ids, and each id into the bytes it stands for."""

    @property
    def size(self) -> int:
        """How many different ids there are."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; what the vocabulary lacks is skipped (`unknown` tells what)."""

    def unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that the vocabulary lacks, each once, in order."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token: possibly only a part of a character."""

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold for `tokenizer_from_json` to make this tokenizer again."""


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of whole tokens; bytes that are no UTF-8 become `�`."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
