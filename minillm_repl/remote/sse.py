"""Streams of JSON: server-sent events, and lines.

Chunks may be cut anywhere: in a character, between CR and LF. Only whole events count: what a
stream that breaks off has begun is not one.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _

_MAX_LINE = 64 << 20  # bytes
DONE = object()
"""The event that ends a stream of OpenAI's: `data: [DONE]`."""


def read_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream, which end in LF, CR LF or CR; a last one without an end is not
    yielded. Raises UserError for one that is too long.
    """
    pending, was_cr = bytearray(), False
    for chunk in chunks:
        if was_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # noqa: PLW2901 - the second half of CR LF
            was_cr = False
        if not chunk:
            continue
        was_cr = chunk.endswith(b"\r")
        *ends, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for end in ends:
            pending += end
            yield bytes(pending)
            pending.clear()
        pending += rest
        if len(pending) > _MAX_LINE:
            raise UserError(_("a line of the server's answer is too long"))


def read_events(chunks: Iterable[bytes]) -> Iterator[Any]:
    """Yield the JSON of each event, and DONE. Raises UserError for one that is no JSON."""
    data: list[bytes] = []
    for line in read_lines(chunks):
        if not line and data:
            yield _parse(b"\n".join(data))
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        # Comments (`: ping`) and other fields say nothing to us.


def read_json_lines(chunks: Iterable[bytes]) -> Iterator[Any]:
    """Yield the JSON of each line that is not empty. Raises UserError for one that is no JSON."""
    for line in read_lines(chunks):
        if line.strip():
            yield _parse(line)


def _parse(data: bytes) -> Any:
    if data.strip() == b"[DONE]":
        return DONE
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise UserError(_("an event of the server's answer is no JSON")) from None
