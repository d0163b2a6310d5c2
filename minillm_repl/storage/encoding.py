"""Text files in UTF-8, UTF-16, UTF-32 or CP949; the bytes tell which. Others are refused."""

import codecs
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.compression import Decompressed
from minillm_repl.storage.files import SIGNATURE_BYTES, describe_file, open_regular

UTF8 = "UTF-8"
_MARKS = {  # UTF-32 before UTF-16: the mark of UTF-32-LE begins with that of UTF-16-LE
    codecs.BOM_UTF8: UTF8,
    codecs.BOM_UTF32_LE: "UTF-32-LE",
    codecs.BOM_UTF32_BE: "UTF-32-BE",
    codecs.BOM_UTF16_LE: "UTF-16-LE",
    codecs.BOM_UTF16_BE: "UTF-16-BE",
}
_SAMPLE = 1 << 18  # bytes from the first one that is not ASCII; they decide the encoding
_MAX_INSPECTED = 10_000  # characters of the sample whose Unicode category is looked up
_MAX_UNKNOWN_SHARE = 0.01  # of the characters of a text may be unassigned or controls
_RUNS = re.compile("[가-힣]+")
_BEFORE_LATIN = re.compile("[가-힣]+(?=[A-Za-z])")
_MIN_HANGUL_SHARE = 0.8  # of the letters beyond ASCII are Hangul of EUC-KR, a part of CP949
_MIN_COMMON_SHARE = 0.2  # of these Hangul are among the most common syllables
# The most common syllables: three quarters of Korean text.
_SYLLABLES = frozenset(
    "이다는지가고하에화영을아어의한도요은나니기서만게보리로인있들그를시사라해마면오스었정좋으내수무미말대일재자것주습감음연"
    "데우과진전생상적장여와같거까문없늘질작네야드구부소운했더금세답았동모않비안제간너변할람히각잘조중봤려랑공날되분러던눈신"
    "성실때물싶남래런입느름최치바본배밌유많함걸겠원국개울볼명선위두반난"
)


@dataclass
class DetectedEncoding:
    """The encoding of a text file, as far as the file has been read."""

    encoding: str = UTF8
    has_byte_order_mark: bool = False
    has_foreign_newlines: bool = False  # \r\n or \r

    @property
    def display_name(self) -> str:
        """The encoding's usual name; empty for UTF-8, which needs no note."""
        if self.encoding == UTF8:
            return ""
        return self.encoding.removesuffix("-LE").removesuffix("-BE")

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return notes for the user on the file at `path`, a line each."""
        if not self.display_name:
            return ()
        read_as = _("read as {encoding}", encoding=self.display_name)
        return (f"{safe_line(str(path))}: {read_as}",)


def read_text(path: Path, detected: DetectedEncoding | None = None) -> str:
    r"""Return the content of a text file with `\n` line ends, without a byte order mark.

    Raises UserError naming the file.
    """
    return "".join(read_text_chunks(path, detected or DetectedEncoding()))


def read_text_chunks(
    path: Path,
    detected: DetectedEncoding,
    size: int = _SAMPLE,
    digest: "hashlib._Hash | None" = None,
) -> Iterator[str]:
    r"""Yield the content of a text file in chunks of about `size` bytes, with `\n` line ends.

    `detected` gets the encoding: UTF-8, UTF-16, UTF-32 or CP949, of which EUC-KR is a part.
    `digest` gets the text in UTF-8. Raises UserError naming the file, the first invalid byte, and
    the remedy.
    """
    name = safe_line(str(path))
    # \r\n may be split over two chunks.
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    with open_regular(path) as raw:
        file_size = os.fstat(raw.fileno()).st_size
        file = Decompressed(raw, name)
        head = file.read(SIGNATURE_BYTES)
        mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
        offset = len(mark)
        file.put_back(head[offset:])
        detected.has_byte_order_mark |= bool(mark)
        decoder = _decoder(_MARKS[mark]) if mark else None
        detected.encoding = _MARKS.get(mark, UTF8)
        more = True
        while more:
            data = file.read(size)
            more = bool(data)
            # ASCII is the same in UTF-8 and CP949: the decision waits for another byte.
            if decoder is None and not (data.isascii() and b"\0" not in data):
                more_data = file.read(_SAMPLE)
                file.put_back(more_data)
                sample = data + more_data
                detected.encoding = _guess_encoding(sample, first=offset == 0)
                decoder = _decoder(detected.encoding)
            text = _decode(data, decoder, (name, detected.encoding, offset, file_size, head))
            offset += len(data)
            text = newlines.decode(text, final=not more)
            if digest is not None:
                digest.update(text.encode())
            yield text
    detected.has_foreign_newlines |= newlines.newlines not in (None, "\n")


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(encoding)("strict")


def _decode(
    data: bytes, decoder: codecs.IncrementalDecoder | None, file: tuple[str, str, int, int, bytes]
) -> str:
    """Return the text of a chunk of a file.

    `file` is the file's name, its encoding, the offset of the chunk, the file's size, and its
    first bytes. Raises UserError for a byte that the encoding does not allow.
    """
    if decoder is None:  # all bytes so far are ASCII
        return data.decode("ascii")
    name, encoding, offset, file_size, head = file
    pending = len(decoder.getstate()[0])
    try:
        text = decoder.decode(data, final=not data)
        if "\0" not in text:
            return text
        at = offset + max(0, data.find(b"\0"))
        byte = 0
    except UnicodeDecodeError as error:
        at = offset - pending + error.start
        byte = error.object[error.start]
    kind = describe_file(head)
    if kind:
        raise UserError(_("{name} is {kind}", name=name, kind=kind))
    wrong = _("byte {byte:#04x} at {at:,} of {size:,}", byte=byte, at=at, size=file_size)
    raise UserError(
        _(
            "{file} is not {encoding} text: {wrong}; text in another encoding is converted "
            "by `iconv -f ENCODING -t UTF-8 FILE > NEW`",
            file=name,
            encoding=encoding,
            wrong=wrong,
        )
    )


def _guess_encoding(sample: bytes, *, first: bool) -> str:
    """Return the encoding of a sample that is not all ASCII; UTF-8 if no other one is likely.

    `first` says that the sample begins the file.
    """
    if b"\0" in sample:
        return (first and _guess_wide_encoding(sample)) or UTF8
    if _decode_prefix(sample, UTF8) is not None:
        return UTF8
    text = _decode_prefix(sample, "CP949")
    return "CP949" if text is not None and _is_korean(text) else UTF8


def _decode_prefix(sample: bytes, encoding: str) -> str | None:
    """Return the text of bytes, or None if they are invalid; the last character may be cut off."""
    try:
        return _decoder(encoding).decode(sample)
    except UnicodeDecodeError:
        return None


def _is_korean(text: str) -> bool:
    """Tell whether a text read as CP949 is Korean.

    Bytes of another encoding become rare syllables, or syllables right before Latin letters.
    """
    letters = [letter for letter in text if letter > "\x7f" and letter.isalpha()]
    usual = [letter for letter in letters if "가" <= letter <= "힣" and _in_euc_kr(letter)]
    runs = len(_RUNS.findall(text))
    before_latin = len(_BEFORE_LATIN.findall(text))
    return (
        len(usual) > 0
        and len(usual) >= _MIN_HANGUL_SHARE * len(letters)
        and sum(letter in _SYLLABLES for letter in usual) >= _MIN_COMMON_SHARE * len(usual)
        and before_latin <= runs / 2
    )


def _in_euc_kr(letter: str) -> bool:
    return min(letter.encode("CP949")) > 0xA0


def _guess_wide_encoding(sample: bytes) -> str:
    """Return the UTF-16 or UTF-32 encoding of a text without a byte order mark; empty if none."""
    for encoding in ("UTF-32-LE", "UTF-32-BE"):
        if _is_text(_decode_prefix(sample, encoding)):
            return encoding
    even_zeros = sample[::2].count(0)
    odd_zeros = sample[1::2].count(0)
    encoding = "UTF-16-LE" if odd_zeros > even_zeros else "UTF-16-BE"
    zeros = max(even_zeros, odd_zeros)
    # In UTF-16, ASCII text has a zero byte in each character.
    if sample.isascii() and zeros < 0.9 * (len(sample) // 2):
        return ""
    return encoding if _is_text(_decode_prefix(sample, encoding)) else ""


def _is_text(text: str | None) -> bool:
    if not text or "\0" in text:
        return False
    looked_at = text[:_MAX_INSPECTED]
    odd = sum(
        unicodedata.category(letter) in ("Cc", "Cn", "Co") and letter not in "\t\n\f\r"
        for letter in looked_at
    )
    return odd <= _MAX_UNKNOWN_SHARE * len(looked_at)
