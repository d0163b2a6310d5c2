"""A Python for arm64 that runs here, under qemu: Debian's packages in a folder of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = [
    "libc6", "libcrypt1", "libexpat1", "libffi8", "libgcc-s1", "libpython3.11-minimal",
    "libpython3.11-stdlib", "libstdc++6", "libuuid1", "python3.11-minimal", "zlib1g",
]  # fmt: skip
APT = """APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "root";
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
"""


def installed_python(folder):
    """Unpack Python 3.11, numpy and pytest for arm64 into a folder; return the command to run it.

    The packages of this system stay as they are. Skips the test where this cannot be had.
    """
    if not (shutil.which("qemu-aarch64") and shutil.which("apt-get")):
        pytest.skip("needs qemu-user, and apt-get, to run code for arm64")
    root, site = folder / "root", folder / "site"
    try:
        _unpack_debian(folder / "apt", root)
        _install_wheels(site, "numpy", "pytest")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the packages for arm64 cannot be had: {error}")
    return ["qemu-aarch64", "-L", str(root), "-E", f"PYTHONPATH={site}:{ROOT}",
            str(root / "usr/bin/python3.11")]  # fmt: skip


def _unpack_debian(apt, root):
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "apt.conf").write_text(APT.format(folder=apt))
    environment = os.environ | {"APT_CONFIG": str(apt / "apt.conf")}
    for arguments in (["update"], ["download", *PACKAGES]):
        subprocess.run(["apt-get", "-qq", *arguments], check=True, cwd=apt, env=environment)
    for package in Path(apt).glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)


def _install_wheels(site, *names):
    platforms = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
    only = [f"--platform={name}" for name in platforms]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", site, *only,
         "--python-version=3.11", "--only-binary=:all:", "-c", ROOT / "constraints.txt", *names],
        check=True,
    )  # fmt: skip
