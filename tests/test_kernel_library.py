"""Which variant of the C library is loaded, and what is said where none is."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minillm_repl import kernels as variants
from minillm_repl.errors import UserError
from minillm_repl.kernels import library
from minillm_repl.kernels.library import available, load_library
from tests.conftest import ROOT
from tools import compile_kernels

KERNELS = ROOT / "minillm_repl" / "kernels"
RUNNABLE = available()

needs_library = pytest.mark.skipif(
    not RUNNABLE, reason="no library: python tools/compile_kernels.py"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is looked into instead of the package's."""
    monkeypatch.setenv("MINILLM_KERNELS_DIR", str(tmp_path))
    return tmp_path


def put(folder, *names):
    for name in names:
        shutil.copy(KERNELS / variants.file_name(name), folder)


@needs_library
def test_the_fastest_that_runs_here_is_loaded():
    loaded = load_library()
    assert loaded.variant == RUNNABLE[0]
    assert loaded.reason == "the fastest on this processor"
    assert loaded.functions.minillm_supported() == 1


@needs_library
def test_without_the_fastest_the_next_is_loaded(folder):
    put(folder, *RUNNABLE[1:])
    assert load_library().variant == (RUNNABLE[1] if len(RUNNABLE) > 1 else "off")


@pytest.mark.parametrize("name", RUNNABLE)
def test_each_variant_can_be_requested(name):
    loaded = load_library(name)
    assert (loaded.variant, loaded.reason) == (name, "as requested")
    assert loaded.functions is not None


def test_off_loads_none():
    assert load_library("off") == library.Library(None, "off", "kernels are off")


@pytest.mark.parametrize("name", ["klingon", "neon" if "neon" not in RUNNABLE else "avx2"])
def test_a_variant_that_is_not_there_is_one_line_with_those_that_are(name):
    with pytest.raises(UserError) as caught:
        load_library(name)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"kernels {name}: not built here; available here: auto, ")
    assert all(each in line for each in (*RUNNABLE, "off"))


def test_without_libraries_none_is_loaded_and_the_page_is_named(folder):
    loaded = load_library()
    assert (loaded.functions, loaded.variant) == (None, "off")
    assert (ROOT / "docs" / "kernels.md").exists()
    assert loaded.reason == "the C library was not built for this system (docs/kernels.md)"


@needs_library
def test_a_damaged_file_is_passed_over(folder):
    put(folder, "baseline")
    fastest = variants.VARIANTS[0]
    (folder / variants.file_name(fastest)).write_bytes(b"\x7fELF and no more")
    assert load_library().variant == "baseline"
    with pytest.raises(UserError, match=f"kernels {fastest}: .*(short|header|image|Win)"):
        load_library(fastest)


@needs_library
def test_only_damaged_files_are_named_with_their_problem(folder):
    (folder / variants.file_name("baseline")).write_bytes(b"")
    assert load_library().reason.startswith("baseline: ")
    assert len(load_library().reason.splitlines()) == 1


@needs_library
def test_a_library_of_other_sources_is_never_called(monkeypatch):
    monkeypatch.setattr(library, "digest", lambda _: 12345)
    loaded = load_library()
    assert loaded.variant == "off"
    assert "older than its source: run python tools/compile_kernels.py" in loaded.reason


def test_the_digest_changes_with_every_source_and_not_with_line_ends(tmp_path):
    (tmp_path / "a.c").write_bytes(b"int a;\n")
    (tmp_path / "b.h").write_bytes(b"int b;\n")
    (tmp_path / "c.py").write_bytes(b"c = 0\n")
    first = variants.digest(tmp_path)
    assert 0 < first < 2**31
    (tmp_path / "c.py").write_bytes(b"c = 1\n")
    (tmp_path / "a.c").write_bytes(b"int a;\r\n")
    assert variants.digest(tmp_path) == first
    (tmp_path / "b.h").write_bytes(b"int c;\n")
    assert variants.digest(tmp_path) != first


def processor_flags():
    """What Linux says that the processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("only Linux has /proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    return set(next(line for line in lines if line.startswith(("flags", "Features"))).split())


NEEDED = {
    "baseline": {"sse4_2", "popcnt", "cx16"},
    "avx2": {"avx2", "fma", "f16c", "bmi2", "movbe"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"},
    "amx": {"amx_tile", "amx_int8", "amx_bf16"},
}


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.skipif(
    compile_kernels.native_target() is not compile_kernels.TARGETS["linux-x86_64"],
    reason="variants of x86",
)
def test_what_the_processor_has_decides_which_run(name):
    path = KERNELS / variants.file_name(name)
    if not path.exists():
        pytest.skip(f"{name} was not built")
    needed = set.union(*(NEEDED[each] for each in list(NEEDED)[: list(NEEDED).index(name) + 1]))
    supported = ctypes.CDLL(str(path)).minillm_supported()
    assert supported == int(needed <= processor_flags())


def test_the_compiler_knows_the_variants_that_the_program_looks_for():
    known = {name for target in compile_kernels.TARGETS.values() for name in target.variants}
    assert known == set(variants.VARIANTS)


def test_the_choice_needs_neither_numpy_nor_torch():
    code = (
        "import sys\nfrom minillm_repl.kernels.library import load_library\nload_library()\n"
        "print(*{'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "\n"
