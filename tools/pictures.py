"""Make the pictures of the documents again: `python -m tools.pictures` writes docs/pictures/*.svg.

Each is a view as `:export` saves it, after the lines below. A test makes them all again and
compares them, so a picture shows what the program shows.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "pictures"
_SAD, _TALE = "Tom was sad. His mom gave him a big", "Once upon a time, there was a little"

# The language and the model of a session; in it, for each picture, the lines after which the last
# view is saved.
SESSIONS: tuple[tuple[str, str, dict[str, tuple[str, ...]]], ...] = (
    (
        "en",
        "story",
        {
            "lens": (f":lens {_SAD}",),
            "why": (f':why hug "{_SAD}"',),
            "attention": (f":attn 3.1 {_SAD} hug.",),
            "sampler": (":temp 0.7", ":top-k 6", ":top-p 0.9", f":sampler {_TALE}"),
        },
    ),
    ("ko", "nalssi", {"lens-ko": (":lens 날씨가 좋",)}),
)


def make(folder: Path) -> None:
    """Write all pictures into a folder. One thread: sums of the same numbers in one order."""
    for language, model, pictures in SESSIONS:
        typed = [
            line
            for name, lines in pictures.items()
            for line in (*lines, f":export {folder / name}.svg --overwrite")
        ]
        flags = ["--ckpt", model, "--lang", language, "--threads", "1"]
        with tempfile.TemporaryDirectory() as home:
            subprocess.run(
                [sys.executable, "-m", "minillm_repl", *flags],
                input="\n".join([*typed, ""]),
                env=os.environ | {"HOME": home, "PYTHONPATH": str(ROOT)},
                cwd=ROOT, check=True, text=True, encoding="utf-8", capture_output=True,
            )  # fmt: skip


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    make(FOLDER)
