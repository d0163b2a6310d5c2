"""The study note's own program, run from where it lies; it prints its own times."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReferenceRun:
    """What the script says about itself."""

    train_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Reference:
    """The script at a path."""

    path: Path

    def command(self, steps: int, tokens: int, save: Path | None = None) -> list[str]:
        """Return the command line of a run."""
        flags = [
            "--iters",
            str(steps),
            "--tokens",
            str(tokens),
            *(["--save", str(save)] if save else []),
        ]
        return [sys.executable, str(self.path.resolve()), *flags]

    def run(self, *, steps: int, tokens: int, save: Path | None = None) -> ReferenceRun:
        """Train for `steps` (1 or more), write `tokens` after 날씨, in a process of its own."""
        command = self.command(steps, tokens, save)
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, encoding="utf-8"
        ).stdout
        train = re.search(r"^train: ([\d.]+) s", output, re.MULTILINE)
        generate = re.search(r"^generate: ([\d.]+) tokens/s", output, re.MULTILINE)
        if train is None or generate is None:
            raise SystemExit(
                f"{self.path.name} printed no `train:` or no `generate:` line:\n{output[:500]}"
            )
        return ReferenceRun(float(train[1]), float(generate[1]))
