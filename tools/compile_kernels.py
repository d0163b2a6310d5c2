"""Compile the C library in minillm_repl/kernels, each variant by itself.

    python tools/compile_kernels.py                  for an editable installation, if it is old
    python tools/compile_kernels.py --sanitize DIR   there, with AddressSanitizer and UBSan
    python tools/compile_kernels.py --target linux-arm64 DIR   there, by the ziglang package

The compiler is the one that CC names, cc, clang or gcc; where none works, that of the `ziglang`
package, if it is installed. hatch_build.py does the same when the program is installed.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from minillm_repl.kernels import digest, file_name, sources  # noqa: E402

KERNELS = ROOT / "minillm_repl" / "kernels"

# No -ffast-math: NaN and infinity must be seen. `contract` lets a product and a sum be one FMA.
FLAGS = ("-std=gnu11", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wextra")
OPTIMISED = ("-O3",)
SANITIZED = (
    "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)  # fmt: skip
OLDEST_GLIBC = 17  # 2.17, of 2014: ziglang links against it, and no tag claims less
OLDEST_MACOS = "11.0"  # the first for arm64


@dataclass(frozen=True)
class Variant:
    """What a variant is compiled with."""

    needs: str  # the level that cpu.c asks the processor for
    arch: str  # as -march= of GCC and Clang has it
    zig_arch: str  # as zig has it
    features: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


_DOT_PRODUCTS = ("avx512vnni", "avx512bf16")
_TILES = ("amx-tile", "amx-int8", "amx-bf16")
_WIDE = ("-mprefer-vector-width=512",)  # Clang would cut vectors of 64 bytes in two
BASELINE = Variant("BASELINE", "x86-64-v2", "x86_64_v2")
AVX2 = Variant("AVX2", "x86-64-v3", "x86_64_v3")
AVX512 = Variant("AVX512", "x86-64-v4", "x86_64_v4", _DOT_PRODUCTS, _WIDE)
AMX = Variant("AMX", "x86-64-v4", "x86_64_v4", _DOT_PRODUCTS + _TILES, _WIDE)
ARM_BASELINE = Variant("BASELINE", "armv8-a", "generic")
NEON = Variant("NEON", "armv8.2-a", "generic+v8_2a", ("dotprod",))

_X86 = {"baseline": BASELINE, "avx2": AVX2}
_ARM = {"baseline": ARM_BASELINE, "neon": NEON}


@dataclass(frozen=True)
class Target:
    """A system and its processor."""

    system: str  # as sys.platform has it: linux, darwin, win32
    machine: str  # x86_64 or arm64
    triple: str  # as zig has it
    variants: dict[str, Variant]
    tag: str  # of a wheel; that of Linux has a {glibc}


_GLIBC = f"linux-gnu.2.{OLDEST_GLIBC}"
TARGETS = {
    "linux-x86_64": Target(
        "linux", "x86_64", f"x86_64-{_GLIBC}", {**_X86, "avx512": AVX512, "amx": AMX},
        "manylinux_2_{glibc}_x86_64",
    ),
    "linux-arm64": Target(
        "linux", "arm64", f"aarch64-{_GLIBC}", _ARM, "manylinux_2_{glibc}_aarch64"
    ),
    # No Mac has bfloat16 in AVX-512.
    "macos-x86_64": Target(
        "darwin", "x86_64", f"x86_64-macos.{OLDEST_MACOS}", _X86, "macosx_11_0_x86_64"
    ),
    "macos-arm64": Target(
        "darwin", "arm64", f"aarch64-macos.{OLDEST_MACOS}", _ARM, "macosx_11_0_arm64"
    ),
    # Only Linux tells how a process gets the tiles of AMX.
    "windows-x86_64": Target(
        "win32", "x86_64", "x86_64-windows-gnu", {**_X86, "avx512": AVX512}, "win_amd64"
    ),
}  # fmt: skip


def native_target() -> Target | None:
    """Return the target of the Python that runs this, or None if the C is not for it."""
    if sys.maxsize < 2**32:
        return None
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    for target in TARGETS.values():
        if (target.system, target.machine) == (sys.platform, machine):
            return target
    return None


def platform_tag(target: Target, libraries: list[Path]) -> str:
    """Return the tag of a wheel with these libraries: the oldest system that can load them."""
    if target.system != "linux":
        return target.tag
    versions = [
        int(minor)
        for path in libraries
        for minor in re.findall(rb"\0GLIBC_2\.(\d+)", path.read_bytes())
    ]
    if not versions:  # linked against musl, on a system with musl
        from packaging.tags import platform_tags

        return next(iter(platform_tags()))
    return target.tag.format(glibc=max(OLDEST_GLIBC, *versions))


class CompilerError(Exception):
    """A compiler that does not compile: its name and its messages."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: the words that call it, and whether it is zig."""

    command: tuple[str, ...]
    is_zig: bool = False

    def run(self, *arguments: str) -> None:
        """Run it. Raises CompilerError with the end of its messages."""
        command = [*self.command, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"{shlex.join(self.command)}: {done.stderr.strip()[-2000:]}")

    def flags(self, target: Target, variant: Variant) -> list[str]:
        """Return the flags for a system and the instructions of a variant."""
        flags = [*FLAGS, *variant.flags, *(["-fPIC"] if target.system != "win32" else [])]
        if self.is_zig:
            features = "".join(f"+{name.replace('-', '_')}" for name in variant.features)
            return [*flags, "-target", target.triple, f"-mcpu={variant.zig_arch}{features}"]
        if target.system == "darwin":
            flags += ["-arch", target.machine, f"-mmacosx-version-min={OLDEST_MACOS}"]
        if target.machine == "arm64":
            return [*flags, f"-march={'+'.join((variant.arch, *variant.features))}"]
        return [*flags, f"-march={variant.arch}", *(f"-m{name}" for name in variant.features)]


def compilers(*, with_zig: bool = True) -> Iterator[Compiler]:
    """Yield the C compilers of this machine, the one to try first first; ziglang comes last."""
    named = shlex.split(os.environ.get("CC", ""))
    # Without the command line tools, cc on a Mac is a window that offers to install them.
    hollow = sys.platform == "darwin" and not _succeeds(["xcode-select", "-p"])
    usual = [] if hollow else [["cc"], ["clang"], ["gcc"]]
    for command in [named, *usual] if named else usual:
        if shutil.which(command[0]):
            yield Compiler(tuple(command))
    if with_zig and find_spec("ziglang") is not None:
        yield zig()


def zig() -> Compiler:
    """Return the compiler of the ziglang package, which must be installed."""
    return Compiler((sys.executable, "-m", "ziglang", "cc"), is_zig=True)


def has_compiler() -> bool:
    """Whether a C compiler of this machine can make the baseline of cpu.c, ziglang left out."""
    target = native_target()
    if target is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        for compiler in compilers(with_zig=False):
            flags = [*compiler.flags(target, target.variants["baseline"]), "-shared"]
            facts = ["-DMINILLM_NEEDS=BASELINE", "-DMINILLM_SOURCES=0", "-o", f"{scratch}/library"]
            with suppress(CompilerError):
                compiler.run(*flags, *facts, str(KERNELS / "cpu.c"))
                return True
    return False


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compile_variant(
    compiler: Compiler, target: Target, name: str, folder: Path, how: tuple[str, ...] = OPTIMISED
) -> Path:
    """Compile one variant into a folder, and return its file. Raises CompilerError."""
    oldest = compiler.flags(target, target.variants["baseline"])
    chosen = compiler.flags(target, target.variants[name])
    facts = [
        f"-DMINILLM_NEEDS={target.variants[name].needs}",
        f"-DMINILLM_SOURCES={digest(KERNELS)}",
    ]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = []
        for source in (path for path in sources(KERNELS) if path.suffix == ".c"):
            # cpu.c runs on every processor, to tell whether the rest of the library can.
            flags = [*oldest, *facts] if source.name == "cpu.c" else chosen
            objects.append(str(Path(scratch, source.stem + ".o")))
            compiler.run(*how, *flags, "-c", str(source), "-o", objects[-1])
        new = Path(scratch, file_name(name, target.system))
        libraries = ["-pthread", "-lm"] if target.system == "linux" else []
        if target.system == "darwin":  # else its name is the folder that it was compiled in
            libraries = [f"-Wl,-install_name,@rpath/{new.name}"]
        libraries += ["-s"] if compiler.is_zig and how == OPTIMISED else []  # no debug symbols
        compiler.run(*how, *oldest, "-shared", *objects, *libraries, "-o", str(new))
        return new.replace(folder / new.name)  # a program that runs keeps the old file


def compile_all(
    compiler: Compiler, target: Target, folder: Path, how: tuple[str, ...] = OPTIMISED
) -> list[Path]:
    """Compile the variants of a target that the compiler knows, and return their files.

    Raises CompilerError if it cannot compile the baseline.
    """
    folder.mkdir(parents=True, exist_ok=True)
    baseline = compile_variant(compiler, target, "baseline", folder, how)

    def attempt(name: str) -> Path | None:
        try:
            return compile_variant(compiler, target, name, folder, how)
        except CompilerError as error:  # an old compiler does not know new instructions
            print(f"left out: {name}: {error}", file=sys.stderr)
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rest = pool.map(attempt, [name for name in target.variants if name != "baseline"])
        return [baseline, *(path for path in rest if path is not None)]


def compile_with_any(target: Target, folder: Path) -> list[Path]:
    """Compile with the first compiler that works. Raises CompilerError if none does."""
    errors = ["no C compiler"]
    for compiler in compilers():
        try:
            return compile_all(compiler, target, folder)
        except CompilerError as error:
            errors.append(str(error))
    raise CompilerError(errors[-1])


def is_current() -> bool:
    """Whether the source tree has libraries that are newer than every source."""
    inputs = [Path(__file__), *sources(KERNELS)]
    outputs = [path for path in KERNELS.glob("libminillm-*") if path.is_file()]
    newest = max(path.stat().st_mtime for path in inputs)
    return bool(outputs) and min(path.stat().st_mtime for path in outputs) >= newest


def compile_in_place(*, force: bool = False) -> None:
    """Compile what an editable installation runs, if a source is newer. Raises CompilerError."""
    target = native_target()
    if target is not None and (force or not is_current()):
        compile_with_any(target, KERNELS)


def main() -> None:
    """Compile what the flags say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=KERNELS)
    parser.add_argument("--force", action="store_true", help="even if no source is newer")
    parser.add_argument("--sanitize", action="store_true", help="AddressSanitizer and UBSan")
    parser.add_argument("--target", choices=TARGETS, help="another system, by ziglang")
    flags = parser.parse_args()
    how = SANITIZED if flags.sanitize else OPTIMISED
    try:
        if flags.target:
            compile_all(zig(), TARGETS[flags.target], flags.folder, how)
        elif flags.folder == KERNELS:
            compile_in_place(force=flags.force)
        elif (target := native_target()) is not None:
            compile_all(next(compilers()), target, flags.folder, how)
    except CompilerError as error:
        sys.exit(str(error))
    print(*sorted(path.name for path in flags.folder.glob("libminillm-*")), sep="\n")


if __name__ == "__main__":
    main()
