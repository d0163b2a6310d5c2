"""From the bytes of tokens to text, as it becomes whole and certain."""

import codecs
from collections.abc import Iterable, Sequence

from minillm_repl.generate import Finished
from minillm_repl.tokenizer import Tokenizer


class Detokenizer:
    """Streams the text of tokens, up to the first stop string.

    Bytes of an unfinished character wait for the rest. Text that may be the start of a stop string
    waits too: it comes out when it is none, and is dropped when it is one. A special token has no
    text: where a stop string names it, a surrogate, which no bytes become, stands for it.
    """

    def __init__(self, stop: Sequence[str] = (), special_names: Iterable[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        names = [name for name in special_names if _occurs_in_stop(name, stop)]
        self._surrogates = {name: chr(0xD800 + place) for place, name in enumerate(names[:0x800])}
        self._surrogate_removal = dict.fromkeys(map(ord, self._surrogates.values()))
        with_surrogates = map(self._with_surrogates, stop)
        self._stop_strings = tuple(dict.fromkeys([*stop, *with_surrogates]))
        self._pending = ""
        self._emitted: list[str] = []
        self.stopped = False

    def _with_surrogates(self, stop: str) -> str:
        for name in sorted(self._surrogates, key=len, reverse=True):
            stop = stop.replace(name, self._surrogates[name])
        return stop

    def push(self, token_bytes: bytes, special_name: str = "", is_final: bool = False) -> str:
        """Add the bytes of a token, or the name of a special one; return the text now certain."""
        text = self._pending + self._decoder.decode(token_bytes, is_final)
        text += self._surrogates.get(special_name, "")
        positions = [text.find(stop) for stop in self._stop_strings if stop in text]
        if positions:
            self.stopped = True
            emitted, self._pending = text[: min(positions)], ""
        else:
            certain = len(text) if is_final else len(text) - self._stop_prefix_length(text)
            emitted, self._pending = text[:certain], text[certain:]
        emitted = emitted.translate(self._surrogate_removal)
        self._emitted.append(emitted)
        return emitted

    def _stop_prefix_length(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stop_strings), default=0)
        for length in range(min(len(text), longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop_strings):
                return length
        return 0

    def finish(self) -> str:
        """Release what still waits, and return the whole text."""
        if not self.stopped:
            self.push(b"", is_final=True)
        return "".join(self._emitted)


def text_token_ids(
    tokenizer: Tokenizer, tokens: Sequence[int], finished: Finished, stop: Sequence[str] = ()
) -> list[int]:
    """Return the generated tokens that are part of the text.

    The end token is not, and the tokens of a stop string are not.
    """
    ids = list(tokens)
    if finished.reason == "end":
        ids.pop()  # the end token
    while finished.reason == "done" and ids and tokenizer.special_name(ids[-1]):
        ids.pop()  # where a server names it
    if finished.reason in ("stop", "done"):
        text_bytes = len(finished.text.encode())
        # A stop string may begin inside a token, which then goes too.
        token_bytes = sum(len(tokenizer.token_bytes(token)) for token in ids)
        while ids and (
            token_bytes > text_bytes or _occurs_in_stop(tokenizer.special_name(ids[-1]), stop)
        ):
            token_bytes -= len(tokenizer.token_bytes(ids.pop()))
    return ids


def _occurs_in_stop(name: str, stop: Sequence[str]) -> bool:
    return bool(name) and any(name in stop_string for stop_string in stop)
