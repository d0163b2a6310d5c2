"""The variants of the C library, and their files. tools/compile_kernels.py makes them."""

import binascii
import sys
from pathlib import Path

# The fastest first. amx and avx512 have bfloat16 and int8 dot products, avx2 has FMA, neon has the
# int8 dot product; baseline is x86-64-v2 or armv8-a.
VARIANTS = ("amx", "avx512", "avx2", "neon", "baseline")

_SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}  # else .so


def file_name(variant: str, platform: str = sys.platform) -> str:
    """Return the name of a variant's file on a platform, as `sys.platform` names it."""
    return f"libminillm-{variant}{_SUFFIXES.get(platform, '.so')}"


def sources(folder: Path) -> list[Path]:
    """Return the C files of a folder, headers included, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".c", ".h"))


def digest(folder: Path) -> int:
    """Return a number of 31 bits that changes with the C files of a folder.

    A library answers `minillm_abi()` with the digest of what it was compiled from.
    """
    crc = 0
    for path in sources(folder):
        # Git may check text files out with other line ends.
        crc = binascii.crc32(path.read_bytes().replace(b"\r\n", b"\n"), crc)
    return crc & 0x7FFFFFFF
