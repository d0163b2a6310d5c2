"""Numbers, strings and arrays of a GGUF header, read from its start on and never past its end."""

import struct
from typing import Any, BinaryIO

from minillm_repl.errors import UserError
from minillm_repl.language import _

MAX_HEADER_BYTES = 128 << 20  # a vocabulary of 260,000 with its merges takes 14 MiB
_MAX_VALUES = 5_000_000  # elements of all arrays; a vocabulary of 260,000 has 1.3 million
_MAX_NAME_BYTES = 1_024
_READ_AHEAD = 1 << 18  # bytes that are read at once
_BOOL, _STRING, ARRAY = 7, 8, 9  # the types of values that are no numbers
_FORMATS = {  # of `struct`, by the type of a value
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


class Cursor:
    """Reads a file from its start on, some bytes at a time, and never past its end.

    Without `keep_strings` it passes over arrays of strings, the vocabulary, and returns them empty.
    """

    def __init__(self, file: BinaryIO, size: int, name: str, *, keep_strings: bool = True) -> None:
        self._keep_strings = keep_strings
        self._file, self._size, self.name_of_file = file, size, name
        self._data, self._at = b"", 0  # what is read, and how much of it is used
        self._start = file.tell()  # of `_data` in the file
        self._values_left = _MAX_VALUES

    @property
    def position(self) -> int:
        """Bytes from the start of the file to the next one."""
        return self._start + self._at

    def damaged(self, what: str) -> UserError:
        """Return the error for a header that has something it cannot have."""
        return UserError(
            _("{name} is a damaged GGUF file: {what}", name=self.name_of_file, what=what)
        )

    def check_count(self, count: int, least_bytes: int, most: int) -> None:
        """Raise UserError if the file is too short for `count` items of `least_bytes` each."""
        if count > most or count * least_bytes > self._size - self.position:
            raise self.damaged(_("the count {count:,}", count=count))

    def number(self, kind: str) -> Any:
        """Return the next number, of a format of `struct`."""
        size = struct.calcsize("<" + kind)
        self._need(size)
        (value,) = struct.unpack_from("<" + kind, self._data, self._at)
        self._at += size
        return value

    def name(self) -> str:
        """Return the next string, a key or the name of a tensor."""
        text = self.text(_MAX_NAME_BYTES)
        if not text:
            raise self.damaged(_("an empty name"))
        return text

    def text(self, most: int = MAX_HEADER_BYTES) -> str:
        """Return the next string, of at most some bytes."""
        length = self.number("Q")
        if length > most:
            raise self.damaged(_("a string of {length:,} bytes", length=length))
        self._need(length)
        data = self._data[self._at : self._at + length]
        self._at += length
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.damaged(_("a string that is not UTF-8")) from None

    def value(self, kind: int, key: str) -> Any:
        """Return the next value, of a type of GGUF that is no array."""
        if kind == _STRING:
            return self.text()
        if kind not in _FORMATS:
            raise self.damaged(_("{key} of the unknown type {kind}", key=key, kind=kind))
        number = self.number(_FORMATS[kind])
        return self._boolean(number, key) if kind == _BOOL else number

    def array(self, key: str) -> list[Any]:
        """Return the next array. Arrays of arrays are refused: no model has any."""
        kind, count = self.number("I"), self.number("Q")
        if kind == ARRAY:
            raise self.damaged(_("{key}, an array of arrays", key=key))
        if kind != _STRING and kind not in _FORMATS:
            raise self.damaged(_("{key} of the unknown type {kind}", key=key, kind=kind))
        size = 8 if kind == _STRING else struct.calcsize("<" + _FORMATS[kind])
        self.check_count(count, size, self._values_left)
        self._values_left -= count
        if kind == _STRING:
            return self._strings(count)
        self._need(count * size)
        numbers = struct.unpack_from(f"<{count}{_FORMATS[kind]}", self._data, self._at)
        self._at += count * size
        return [self._boolean(each, key) for each in numbers] if kind == _BOOL else list(numbers)

    def _strings(self, count: int) -> list[str]:
        """Return the next strings. The loop is plain: a vocabulary may have 260,000."""
        pieces, keep = list[bytes](), self._keep_strings
        length_at = struct.Struct("<Q").unpack_from
        data, at = self._data, self._at
        last = len(data) - 8  # where a length can begin
        for _number in range(count):
            length = length_at(data, at)[0] if at <= last else -1
            end = at + 8 + length
            if length < 0 or end > last + 8:
                self._at = at
                self._need(8)
                length = length_at(self._data, self._at)[0]
                self._need(8 + length)
                data, at = self._data, self._at
                last, end = len(data) - 8, at + 8 + length
            if keep:
                pieces.append(data[at + 8 : end])
            at = end
        self._at = at
        try:
            return list(map(bytes.decode, pieces))
        except UnicodeDecodeError:
            raise self.damaged(_("a string that is not UTF-8")) from None

    def _boolean(self, number: int, key: str) -> bool:
        if number not in (0, 1):
            raise self.damaged(
                _("{key}, which is neither true nor false: {number}", key=key, number=number)
            )
        return number == 1

    def _need(self, count: int) -> None:
        """Read on until the next bytes are there. Raises UserError at the end of the file."""
        there = len(self._data) - self._at
        if count <= there:
            return
        if self.position + count > min(self._size, MAX_HEADER_BYTES):
            raise UserError(
                _(
                    "{name} is a damaged GGUF file: its header goes beyond {size:,} bytes",
                    name=self.name_of_file,
                    size=min(self._size, MAX_HEADER_BYTES),
                )
            )
        more = self._file.read(max(count - there, _READ_AHEAD))
        # A file that became shorter meanwhile.
        if len(more) < count - there:
            raise UserError(_("{name} changed while it was being read", name=self.name_of_file))
        self._start, self._data, self._at = self.position, self._data[self._at :] + more, 0
