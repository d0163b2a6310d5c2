"""The C library for other systems and for sanitizers: its own tests, run where they can be."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minillm_repl import kernels as variants
from minillm_repl.kernels.library import available
from tests import arm64
from tests.conftest import ROOT
from tests.test_kernel_build import NATIVE, bare_path, build_wheel, libraries, source  # noqa: F401
from tools import compile_kernels, wheels
from tools.compile_kernels import TARGETS

pytestmark = pytest.mark.slow
KERNEL_TESTS = "tests/test_kernels.py"
COMPILE = str(ROOT / "tools" / "compile_kernels.py")


@pytest.fixture(scope="module")
def zig_python(tmp_path_factory):
    """The Python of an environment with hatchling and ziglang."""
    try:
        return wheels.make_environment(tmp_path_factory.mktemp("environment"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"ziglang cannot be installed: {error}")


@pytest.fixture(scope="module")
def zig_cache(tmp_path_factory):
    return {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path_factory.mktemp("zig"))}


def test_without_a_c_compiler_ziglang_compiles_what_is_in_the_wheel(
    source, tmp_path, bare_path, zig_python, zig_cache
):  # fmt: skip
    wheel, _ = build_wheel(source, tmp_path, zig_python, PATH=bare_path, CC="", **zig_cache)
    assert libraries(wheel) == {variants.file_name(name) for name in NATIVE.variants}
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    path = tmp_path / "wheel" / "minillm_repl" / "kernels" / variants.file_name("baseline")
    library = ctypes.CDLL(str(path))
    assert library.minillm_supported() == 1
    assert library.minillm_abi() == variants.digest(ROOT / "minillm_repl" / "kernels")


# What a file begins with: its format, and the number of its processor.
HEADERS = {
    "linux-x86_64": (b"\x7fELF\x02\x01", 18, 62, "manylinux_2_17_x86_64"),
    "linux-arm64": (b"\x7fELF\x02\x01", 18, 183, "manylinux_2_17_aarch64"),
    "macos-x86_64": (b"\xcf\xfa\xed\xfe", 4, 7, "macosx_11_0_x86_64"),
    "macos-arm64": (b"\xcf\xfa\xed\xfe", 4, 12, "macosx_11_0_arm64"),
    "windows-x86_64": (b"MZ", None, 0x8664, "win_amd64"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_ziglang_compiles_every_variant_for_every_system(name, tmp_path, zig_python, zig_cache):
    subprocess.run(
        [zig_python, COMPILE, "--target", name, tmp_path], check=True, env=os.environ | zig_cache
    )
    target = TARGETS[name]
    made = sorted(tmp_path.iterdir())
    assert {path.name for path in made} == {
        variants.file_name(each, target.system) for each in target.variants
    }
    magic, at, processor, tag = HEADERS[name]
    for path in made:
        data = path.read_bytes()
        assert data.startswith(magic)
        # In a PE file, the processor follows the signature, which byte 60 points to.
        place = at if at is not None else int.from_bytes(data[60:64], "little") + 4
        assert int.from_bytes(data[place : place + 2], "little") == processor
        for function in (b"minillm_supported", b"minillm_abi"):
            assert function in data
    assert compile_kernels.platform_tag(target, made) == tag


def test_the_kernels_pass_their_tests_on_arm64(tmp_path, zig_python, zig_cache):
    python = arm64.installed_python(tmp_path)
    folder = tmp_path / "kernels"
    subprocess.run(
        [zig_python, COMPILE, "--target", "linux-arm64", folder],
        check=True, env=os.environ | zig_cache,
    )  # fmt: skip
    environment = os.environ | {"MINILLM_KERNELS_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*python, "-c", "from minillm_repl.kernels.library import available; print(available())"],
        check=True, env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "['neon', 'baseline']\n"
    # conftest.py imports torch, which takes minutes there.
    subprocess.run(
        [*python, "-m", "pytest", "-q", "-x", "--noconftest", "-o", "addopts=",
         "-p", "no:cacheprovider", KERNEL_TESTS],
        check=True, env=environment, cwd=ROOT,
    )  # fmt: skip


def sanitizer_libraries():
    """The run-time libraries of GCC's sanitizers, which must be loaded before Python's own."""
    compiler = next(compile_kernels.compilers(with_zig=False), None)
    found = []
    for name in ("libasan.so", "libubsan.so"):
        command = [*compiler.command, f"-print-file-name={name}"] if compiler else ["false"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found.append(done.stdout.strip())
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("needs GCC's sanitizers")
    return " ".join(found)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The environment of a Python that loads libraries with AddressSanitizer and UBSan."""
    preload = sanitizer_libraries()
    folder = tmp_path_factory.mktemp("sanitized")
    subprocess.run([sys.executable, COMPILE, "--sanitize", folder], check=True)
    return os.environ | {
        "MINILLM_KERNELS_DIR": str(folder),
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
    }


def test_the_sanitizers_see_a_write_past_the_end(sanitized):
    code = """
import ctypes
import numpy as np
from minillm_repl.kernels.library import load_library
from minillm_repl.kernels.structs import F32, Matrix, declare
functions = declare(load_library().functions)
weights, x = np.ones((4001, 64), np.float32), np.ones((1, 64), np.float32)
matrix = Matrix(weights.ctypes.data, None, None, kind=F32, rows=4001, inputs=64)
y = np.empty((1, 4000), np.float32)
functions.minillm_matmul(ctypes.byref(matrix), x.ctypes.data, 1, y.ctypes.data)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=sanitized, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_the_kernels_pass_their_tests_under_sanitizers(sanitized):
    assert available()  # the same variants run with sanitizers
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", KERNEL_TESTS],
        check=True, env=sanitized, cwd=ROOT,
    )  # fmt: skip
