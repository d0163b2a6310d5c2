"""Build the wheels for Linux, macOS and Windows on any one of them: `python tools/wheels.py [DIR]`.

One C compiler, that of the ziglang package, compiles for all of them. It is installed into a
temporary environment, with hatchling. The wheels go to DIR (dist/ by default); the source
distribution goes there too, and the wheels are built from it.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tools.compile_kernels import TARGETS  # noqa: E402


def make_environment(folder: Path) -> Path:
    """Make an environment that can build wheels, and return its Python."""
    venv.create(folder, with_pip=True)
    python = next(path for path in folder.glob("*/python*") if path.stem == "python")
    packages = ["hatchling", "ziglang"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "-q", *constraints, *packages], check=True)
    return python


def build(python: Path, kind: str, source: Path, output: Path, **variables: str) -> None:
    """Build one file of a kind, wheel or sdist, from a source tree."""
    command = [python, "-m", "hatchling", "build", "-t", kind, "-d", output]
    subprocess.run(command, check=True, cwd=source, env=os.environ | variables)


def main() -> None:
    """Build them all, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    flags = parser.parse_args()
    output = flags.folder.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        python = make_environment(Path(scratch, "environment"))
        build(python, "sdist", ROOT, output)
        newest = max(output.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)
        with tarfile.open(newest) as archive:
            archive.extractall(scratch, filter="data")
        source = Path(scratch, newest.name.removesuffix(".tar.gz"))
        for target in flags.target or TARGETS:
            cache = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(Path(scratch, "zig")))
            build(
                python, "wheel", source, output,
                MINILLM_TARGET=target, ZIG_GLOBAL_CACHE_DIR=cache,
            )  # fmt: skip


if __name__ == "__main__":
    main()
