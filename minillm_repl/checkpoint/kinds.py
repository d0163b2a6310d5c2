"""What a file is that is not what it should be, told by how it begins; nothing of it is opened."""

HEAD = 1024  # bytes: enough to tell

_PICKLE = "a pickle, which can run code when it is opened: it is not; look for .safetensors"
_BEGINNINGS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer: `git lfs pull` fetches the file it stands for",
    b"GGUF": "a GGUF file, which is llama.cpp's; look for .safetensors",
    b"GGML": "a GGML file, which is llama.cpp's; look for .safetensors",
    b"PK\x03\x04": "a ZIP archive, as PyTorch's own files are, which can run code: it is not opened",
    b"\x1f\x8b": "compressed (gzip); unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed (Zstandard); unpack it first",
    b"\xfd7zXZ\x00": "compressed (xz); unpack it first",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; look for .safetensors",
    b"\x93NUMPY": "a NumPy array; look for .safetensors",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF document",
    b"#!": "a script",
    **{bytes([0x80, protocol]): _PICKLE for protocol in range(2, 6)},
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def kind_of(head: bytes) -> str:
    """Return what a file is that begins with `head`, as words after `NAME is`; empty if it is nothing known."""
    if not head:
        return "empty"
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "a web page: what was downloaded is not the file itself" if text.startswith(_PAGES) else ""
