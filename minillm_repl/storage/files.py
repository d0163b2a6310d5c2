"""Opening a regular file, and the kind of a file by its first bytes."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from minillm_repl.errors import UserError, reason
from minillm_repl.language import N_, _
from minillm_repl.safetext import safe_line

HEAD = 1024  # bytes: enough to tell

POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLE = N_("a pickle, which can run code when it is opened: it is not; look for .safetensors")
_GGML = N_("a GGML file, which is llama.cpp's; look for .safetensors")
_BEGINNINGS = {
    POINTER: N_("a Git LFS pointer: `git lfs pull` fetches the file it stands for"),
    b"GGUF": N_("a GGUF file, which is llama.cpp's; look for .safetensors"),
    **dict.fromkeys((b"GGML", b"lmgg", b"fmgg", b"tjgg"), _GGML),
    **{
        bytes([8, version, 18]): N_("an ONNX file; look for .safetensors")
        for version in range(3, 16)
    },
    b"PK\x03\x04": N_(
        "a ZIP archive, as PyTorch's own files are, which can run code: it is not opened"
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


def kind_of(head: bytes) -> str:
    """Return what a file is that begins with `head`, as words after `NAME is`; empty if it is
    nothing known.
    """
    if not head:
        return _("empty")
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return _(kind)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return (
        _("a web page: what was downloaded is not the file itself")
        if text.startswith(_PAGES)
        else ""
    )


def is_text(head: bytes) -> bool:
    """Tell whether a file that begins with `head` is written in UTF-8; a character may be cut
    off at its end.
    """
    text = head.decode("utf-8", "ignore")
    whole = len(head) - len(text.encode()) < 4
    return (
        whole
        and bool(text)
        and all(letter.isprintable() or letter in "\t\n\f\r" for letter in text)
    )


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a directory, FIFO or device is refused without being
    waited for.
    """
    name = safe_line(str(path))
    try:
        # Not blocking, or a FIFO without a writer would hang us before we can see that it is one.
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise UserError(
                _(
                    "{name} is a link to {target:.200}, which is not there",
                    name=name,
                    target=safe_line(str(path.readlink())),
                )
            ) from None
        raise UserError(_("cannot open {name}: {error}", name=name, error=reason(error))) from None
    except ValueError:
        raise UserError(_("cannot open {name}: no file can have this name", name=name)) from None
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        raise UserError(_("{name} is {kind}, not a regular file", name=name, kind=_kind(kind)))
    return os.fdopen(descriptor, "rb")


def _kind(mode: int) -> str:
    device = _("a device")
    kinds = {
        stat.S_IFDIR: _("a folder"),
        stat.S_IFIFO: _("a FIFO"),
        stat.S_IFCHR: device,
        stat.S_IFBLK: device,
    }
    return kinds.get(stat.S_IFMT(mode), _("a special file"))
