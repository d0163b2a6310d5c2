"""Hatchling's build hook: every wheel gets the C library of minillm_repl/kernels, compiled.

A wheel for another system is built with MINILLM_TARGET, one of TARGETS in tools/compile_kernels.py;
tools/wheels.py does that. MINILLM_KERNELS=off builds a wheel without the library, as happens
where no compiler works: torch runs the models there. docs/kernels.md has the details.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from tools import compile_kernels as kernels  # noqa: E402

_ZIGLANG = "ziglang>=0.13"  # a C compiler of 100 MB, for machines without one


class KernelsHook(BuildHookInterface):
    """Compiles the library before the wheel is packed."""

    PLUGIN_NAME = "custom"
    _folder: Path | None = None

    def dependencies(self) -> list[str]:
        """Return ziglang if the library is to be compiled and no C compiler here can."""
        target = _target()
        if target is None or (not os.environ.get("MINILLM_TARGET") and kernels.has_compiler()):
            return []
        return [_ZIGLANG]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile: into the source tree for an editable installation, else into the wheel."""
        target = _target()
        if target is None:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="minillm-kernels-"))
        os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(self._folder / "zig"))
        try:
            if version == "editable":
                kernels.compile_in_place()
            else:
                self._compile_into_wheel(target, self._folder / "libraries", build_data)
        except kernels.CompilerError as error:
            self.app.display_warning(f"the kernels were not compiled: {error}")

    def _compile_into_wheel(
        self, target: kernels.Target, folder: Path, build_data: dict[str, Any]
    ) -> None:
        if os.environ.get("MINILLM_TARGET"):
            libraries = kernels.compile_all(kernels.zig(), target, folder)
        else:
            libraries = kernels.compile_with_any(target, folder)
        build_data["pure_python"] = False
        # No part of it depends on the version of Python.
        build_data["tag"] = f"py3-none-{kernels.platform_tag(target, libraries)}"
        for path in libraries:
            build_data["force_include"][str(path)] = f"minillm_repl/kernels/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled: it is in the wheel, or in the source tree."""
        if self._folder is not None:
            shutil.rmtree(self._folder)


def _target() -> "kernels.Target | None":
    if os.environ.get("MINILLM_KERNELS") == "off":
        return None
    named = os.environ.get("MINILLM_TARGET")
    return kernels.TARGETS[named] if named else kernels.native_target()
