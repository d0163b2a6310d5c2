"""Opening of regular files, and the type of a file by its first bytes."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line

SIGNATURE_BYTES = 1024  # bytes that `describe_file` and `is_text` look at
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLE = N_("a pickle, which can run code when opened; it was not opened: look for .safetensors")
_GGML = N_("a GGML file of llama.cpp; look for .safetensors")
_SIGNATURES = {
    LFS_POINTER: N_("a Git LFS pointer; run `git lfs pull` to get the real file"),
    b"GGUF": N_("a GGUF file of llama.cpp; look for .safetensors"),
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


def _file_type(mode: int) -> str:
    device = _("a device")
    kinds = {
        stat.S_IFDIR: _("a folder"),
        stat.S_IFIFO: _("a FIFO"),
        stat.S_IFCHR: device,
        stat.S_IFBLK: device,
    }
    return kinds.get(stat.S_IFMT(mode), _("a special file"))
