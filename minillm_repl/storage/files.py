"""Untrusted files: regular ones only, told by their first bytes; strict JSON; free memory first."""

import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line

SIGNATURE_BYTES = 1024  # bytes that `describe_file` and `is_text` look at
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLE = N_("a pickle, which can run code when opened; it was not opened: look for .safetensors")
_GGML = N_("a GGML file of llama.cpp; look for .safetensors")
_SIGNATURES = {
    _LFS_POINTER: N_("a Git LFS pointer; run `git lfs pull` to get the real file"),
    b"GGUF": N_("a GGUF file of llama.cpp"),
    **dict.fromkeys((b"GGML", b"lmgg", b"fmgg", b"tjgg"), _GGML),
    **{
        bytes([8, version, 18]): N_("an ONNX file; look for .safetensors")
        for version in range(3, 16)
    },
    b"PK\x03\x04": N_(
        "a ZIP archive, like the files of PyTorch, which can run code; it was not opened"
    ),
    b"\x1f\x8b": N_("compressed (gzip); unpack it first"),
    b"\x28\xb5\x2f\xfd": N_("compressed (Zstandard); unpack it first"),
    b"\xfd7zXZ\x00": N_("compressed (xz); unpack it first"),
    b"\x89HDF\r\n\x1a\n": N_("an HDF5 file; look for .safetensors"),
    b"\x93NUMPY": N_("a NumPy array; look for .safetensors"),
    **dict.fromkeys((b"\x7fELF", b"MZ"), N_("a program")),
    b"%PDF": N_("a PDF document"),
    b"#!": N_("a script"),
    **{bytes([0x80, protocol]): _PICKLE for protocol in range(2, 6)},
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def describe_file(first_bytes: bytes) -> str:
    """Return the type of a file, as words after `NAME is`; empty if it is unknown."""
    if not first_bytes:
        return _("empty")
    for beginning, kind in _SIGNATURES.items():
        if first_bytes.startswith(beginning):
            return _(kind)
    # A download of a missing file is often an error page.
    text = first_bytes.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES):
        return _("a web page, not the file: the download saved the page")
    return ""


def is_text(first_bytes: bytes) -> bool:
    """Tell whether the first bytes of a file are UTF-8 text; the last character may be cut off."""
    text = first_bytes.decode("utf-8", "ignore")
    ignored_bytes = len(first_bytes) - len(text.encode())
    if not text or ignored_bytes >= 4:  # a cut-off character has at most 3 bytes
        return False
    return all(letter.isprintable() or letter in "\t\n\f\r" for letter in text)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read.

    Raises UserError naming the file, also for a folder, a FIFO or a device.
    """
    name = safe_line(str(path))
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise UserError(
                _(
                    "{name} is a link to {target:.200}, which does not exist",
                    name=name,
                    target=safe_line(str(path.readlink())),
                )
            ) from None
        raise UserError(
            _("cannot open {name}: {error}", name=name, error=os_error_text(error))
        ) from None
    except ValueError:
        raise UserError(_("cannot open {name}: invalid file name", name=name)) from None
    # fstat: the path may lead to another file by now.
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        raise UserError(_("{name} is {kind}, not a regular file", name=name, kind=_file_type(kind)))
    return os.fdopen(descriptor, "rb")


def read_utf8(path: Path, max_bytes: int) -> str:
    """Return the content of a UTF-8 text file, without a byte order mark.

    Raises UserError naming the file if it is larger than `max_bytes`, or no text.
    """
    name = safe_line(str(path))
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(_("{path} is larger than {size} MiB", path=name, size=max_bytes >> 20))
    # A clone without git-lfs has small text files in place of the large ones.
    if not data.startswith(_LFS_POINTER):
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8-sig")
    kind = describe_file(data[:SIGNATURE_BYTES])
    raise UserError(
        _("{name} is {kind}", name=name, kind=kind)
        if kind
        else _("{path} is not UTF-8 text", path=name)
    )


def _file_type(mode: int) -> str:
    device = _("a device")
    kinds = {
        stat.S_IFDIR: _("a folder"),
        stat.S_IFIFO: _("a FIFO"),
        stat.S_IFCHR: device,
        stat.S_IFBLK: device,
    }
    return kinds.get(stat.S_IFMT(mode), _("a special file"))


# -- JSON

_MAX_PARTS = 5_000_000  # values of a JSON text; the largest tokenizer.json has 2 million
_MAX_DEPTH = 64  # nested JSON arrays and objects
# Possessive (*+) and open at the end: the pattern never backtracks, so it takes linear time.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(data: bytes | str, what: str, max_parts: int = _MAX_PARTS) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN, no lone surrogates, limited size and depth.

    Raises UserError naming `what`.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
    except UnicodeDecodeError:
        raise UserError(_("{what} is not valid JSON: it is not UTF-8", what=what)) from None
    try:
        _check_json_limits(text, max_parts)
        value = _loads(text)
        if _SURROGATE.search(text):  # a pair is a character; a lone one fails here
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        kind = describe_file(text[:SIGNATURE_BYTES].encode("utf-8", "replace"))
        raise UserError(
            _("{name} is {kind}", name=what, kind=kind)
            if kind
            else _("{what} is not valid JSON: {error:.120}", what=what, error=safe_line(str(error)))
        ) from None
    return value


def _check_json_limits(text: str, max_parts: int) -> None:
    """Raise ValueError if a JSON text has too many values. A parsed value takes far more memory."""
    # An upper bound, which nearly every text keeps: brackets and commas in strings count too.
    if text.count("[") + text.count("{") + text.count(",") <= max_parts:
        return
    # A value has at most two strings: a key and a text.
    bare, strings = _STRING.subn("", text, count=2 * max_parts + 1)
    opened = bare.count("[") + bare.count("{")
    if strings > 2 * max_parts or opened + bare.count(",") > max_parts:
        raise ValueError(_("it has more than {most:,} parts", most=max_parts))


def _loads(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError, also if it is nested too deeply."""
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except RecursionError:
        raise ValueError(_("nested too deeply")) from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Raise ValueError if a value is nested too deeply for the code that walks through it."""
    level = [value] if isinstance(value, dict | list) else []
    for _depth in range(_MAX_DEPTH + 1):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        # Types first: a vocabulary has 150,000 numbers, of which none is a container.
        nested = [values for values in inner if {dict, list} & set(map(type, values))]
        level = [each for values in nested for each in values if isinstance(each, dict | list)]
        if not level:
            return
    raise ValueError(_("nested too deeply"))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers of one file could take different values of a repeated key.
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(_("a key appears twice"))
    return value


def _no_constants(constant: str) -> Any:
    raise ValueError(_("{constant} is not a JSON number", constant=constant))


# -- free memory: the sizes in a file's header are only a claim

# The limits of a container: limit, usage and statistics of cgroup version 2, then of version 1.
_CGROUP_2 = Path("/sys/fs/cgroup")
_CGROUP_1 = _CGROUP_2 / "memory"
_LIMITS = (
    (_CGROUP_2 / "memory.max", _CGROUP_2 / "memory.current", _CGROUP_2 / "memory.stat"),
    (
        _CGROUP_1 / "memory.limit_in_bytes",
        _CGROUP_1 / "memory.usage_in_bytes",
        _CGROUP_1 / "memory.stat",
    ),
)


def available_bytes() -> int | None:
    """Return how many bytes a program can allocate without swapping; None if unknown."""
    known = []
    with suppress(OSError, ValueError, KeyError):
        known.append(_read_fields("/proc/meminfo")["MemAvailable:"] * 1024)
    for limit, usage, statistics in _LIMITS:
        with suppress(OSError, ValueError, KeyError):  # `max` is not a number: no limit
            # The kernel frees cached files at once.
            cached = _read_fields(statistics).get("inactive_file", 0)
            known.append(max(0, int(limit.read_text()) - int(usage.read_text()) + cached))
    return min(known, default=None)


def check_memory(needed: int, what: str) -> None:
    """Raise UserError, naming `what`, if fewer than `needed` bytes are free."""
    free_bytes = available_bytes()
    if free_bytes is not None and needed > free_bytes:
        raise UserError(
            _(
                "{what} needs {needed} of memory, but {there} is free; nothing was changed",
                what=what,
                needed=_format_bytes(needed),
                there=_format_bytes(free_bytes),
            )
        )


def _read_fields(path: str | Path) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}


def _format_bytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
