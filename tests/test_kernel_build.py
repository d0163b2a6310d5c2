"""How the C library gets into a wheel: with a compiler, with ziglang, and without either."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from minillm_repl import kernels as variants
from tests.conftest import ROOT
from tools import compile_kernels
from tools.compile_kernels import TARGETS, CompilerError

NATIVE = compile_kernels.native_target()
needs_compiler = pytest.mark.skipif(
    not compile_kernels.has_compiler(), reason="no C compiler on this machine"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a source distribution has, less the models, which take time to pack."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "libminillm-*")
    for name in ("minillm_repl", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("hatch_build.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "models").mkdir()
    return folder


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory):
    """A PATH on which there is no compiler."""
    return str(tmp_path_factory.mktemp("bin"))


def build_wheel(source, output, python=sys.executable, **variables):
    """Build a wheel; return its path and what the build printed."""
    done = subprocess.run(
        [python, "-m", "hatchling", "build", "-t", "wheel", "-d", str(output)],
        cwd=source, env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = Path(output).glob("*.whl")
    return wheel, done.stdout + done.stderr


def libraries(wheel):
    """The names of the libraries in a wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    return {Path(name).name for name in names if "libminillm" in name}


def requirements(source, **variables):
    """What the hook asks pip for before it builds."""
    code = "import hatchling.build as b; print(b.get_requires_for_build_wheel())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source, env=os.environ | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def hatchling():
    return pytest.importorskip("hatchling")


@needs_compiler
def test_a_wheel_has_the_libraries_and_a_tag_without_a_version_of_python(
    hatchling, source, tmp_path
):
    wheel, _ = build_wheel(source, tmp_path)
    assert variants.file_name("baseline") in libraries(wheel)
    assert libraries(wheel) <= {variants.file_name(name) for name in NATIVE.variants}
    tag = wheel.stem.split("-", 2)[2]
    assert tag.startswith("py3-none-")
    assert tag != "py3-none-any"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("/WHEEL"))
        assert f"Tag: {tag}" in archive.read(name).decode()
    # Pip takes it here.
    from packaging.tags import parse_tag, sys_tags

    assert parse_tag(tag) & set(sys_tags())


@needs_compiler
def test_a_machine_with_a_compiler_is_not_asked_for_another(hatchling, source):
    assert requirements(source) == "[]"


@pytest.mark.skipif(NATIVE is None, reason="the C is not for this processor")
def test_a_machine_without_a_compiler_is_asked_for_ziglang(hatchling, source, bare_path):
    assert "ziglang" in requirements(source, PATH=bare_path, CC="")


def test_nothing_is_asked_for_and_nothing_compiled_if_kernels_are_off(
    hatchling, source, tmp_path, bare_path
):
    assert requirements(source, PATH=bare_path, MINILLM_KERNELS="off") == "[]"
    wheel, _ = build_wheel(source, tmp_path, MINILLM_KERNELS="off")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert libraries(wheel) == set()


@pytest.mark.skipif(
    compile_kernels.find_spec("ziglang") is not None, reason="ziglang is installed here"
)
def test_without_any_compiler_the_wheel_is_pure_and_says_why(
    hatchling, source, tmp_path, bare_path
):
    wheel, printed = build_wheel(source, tmp_path, PATH=bare_path, CC="")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert libraries(wheel) == set()
    assert "the kernels were not compiled: no C compiler" in printed


@pytest.mark.skipif(
    compile_kernels.find_spec("ziglang") is not None, reason="ziglang is installed here"
)
def test_a_compiler_that_fails_leaves_the_wheel_pure(hatchling, source, tmp_path, bare_path):
    wheel, printed = build_wheel(source, tmp_path, PATH=bare_path, CC=shutil.which("false"))
    assert libraries(wheel) == set()
    assert "the kernels were not compiled: " in printed


@needs_compiler
def test_what_an_editable_installation_compiled_is_in_no_wheel(hatchling, source, tmp_path):
    stray = source / "minillm_repl" / "kernels" / "libminillm-stray.so"
    stray.write_bytes(b"")
    try:
        wheel, _ = build_wheel(source, tmp_path)
    finally:
        stray.unlink()
    assert stray.name not in libraries(wheel)


@needs_compiler
def test_what_a_compiler_does_not_know_is_left_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "rest.c").write_text("int rest;\n")
    shutil.copy(compile_kernels.KERNELS / "cpu.c", tmp_path)
    monkeypatch.setattr(compile_kernels, "KERNELS", tmp_path)
    name = next(each for each in NATIVE.variants if each != "baseline")
    variant = replace(NATIVE.variants[name], features=("no-such-instruction",))
    target = replace(NATIVE, variants=NATIVE.variants | {name: variant})
    compiler = next(compile_kernels.compilers())
    made = {path.name for path in compile_kernels.compile_all(compiler, target, tmp_path)}
    assert made == {variants.file_name(each) for each in NATIVE.variants if each != name}
    assert f"left out: {name}: " in capsys.readouterr().err


@needs_compiler
def test_an_editable_installation_is_compiled_again_only_if_a_source_is_newer(
    source, tmp_path, monkeypatch
):
    folder = tmp_path / "kernels"
    shutil.copytree(source / "minillm_repl" / "kernels", folder)
    monkeypatch.setattr(compile_kernels, "KERNELS", folder)
    library = folder / variants.file_name("baseline")
    compile_kernels.compile_in_place()
    first = library.stat().st_mtime_ns
    compile_kernels.compile_in_place()
    assert library.stat().st_mtime_ns == first
    os.utime(folder / "cpu.c")
    compile_kernels.compile_in_place()
    assert library.stat().st_mtime_ns > first


def test_without_a_compiler_the_command_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_kernels, "compilers", lambda: iter(()))
    with pytest.raises(CompilerError, match="no C compiler"):
        compile_kernels.compile_with_any(TARGETS["linux-x86_64"], tmp_path)


@pytest.mark.parametrize(
    ("symbols", "tag"),
    [
        (b"\0GLIBC_2.2.5\0", "manylinux_2_17_x86_64"),
        (b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0", "manylinux_2_34_x86_64"),
    ],
)
def test_the_tag_of_a_linux_wheel_is_the_newest_symbol_that_it_needs(tmp_path, symbols, tag):
    (tmp_path / "library.so").write_bytes(symbols)
    libraries = [tmp_path / "library.so"]
    assert compile_kernels.platform_tag(TARGETS["linux-x86_64"], libraries) == tag
