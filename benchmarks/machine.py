"""What the figures were taken on: kinds and counts, no names of hosts or people."""

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def facts() -> dict[str, str]:
    """Return processor, cores, versions and how busy the machine is."""
    return {
        "processor": _processor(),
        "cores": str(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "system": platform.system(),
        "GPU": gpu() or "none",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "minillm-repl")},
        "load average": load(),
    }


@cache
def gpu() -> str:
    """Return the name of torch's GPU, if any, from another process: this one is to stay small."""
    named = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return subprocess.run(
        [sys.executable, "-c", named], check=True, capture_output=True, text=True
    ).stdout.strip()


def load() -> str:
    """Return how many processes wanted a core, on average over the last minute."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "unknown",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
