"""The shape of the package: who may import whom, and what stays out of the start."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools import figures

PACKAGE = ROOT / "minillm_repl"
# Each may import what stands before it; those in one set never import one another.
LAYERS = [
    {"language"}, {"errors"}, {"safetext"}, {"environment", "settings", "kernels"}, {"sandbox"},
    {"storage"}, {"model"}, {"tokenizer"}, {"checkpoint"}, {"chat"}, {"generate", "training"},
    {"remote", "evaluation"}, {"render"}, {"repl"}, {"views"}, {"lessons"}, {"commands"},
    {"configuration"},
    {"serve"}, {"app"}, {"cli"}, {"api"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module):
    """minillm_repl.generate -> generate"""
    return module.split(".")[1] if module.startswith("minillm_repl.") else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports(path):
        other = part(module)
        if own in LEVEL and other in LEVEL and other != own:
            assert LEVEL[other] < LEVEL[own], f"{own} imports {module}"
        if module.split(".")[0] == "rich" and own in LEVEL:
            assert LEVEL[own] >= LEVEL["render"], f"{own} draws"
        if module.split(".")[0] == "prompt_toolkit":
            assert own == "repl", f"{own} reads keys"


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions count; what is for the type checker only does not."""
    assert figures.in_cycles(figures.modules(PACKAGE)) == []


def test_render_sees_only_events():
    """They are in the packages themselves; the modules below these compute."""
    computing = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    for path in (PACKAGE / "render").glob("*.py"):
        for module in imports(path):
            if part(module) in ("generate", "training"):
                assert module not in computing, f"{path.name} imports {module}"


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = {"torch", "numpy", "safetensors", "babel"}


def test_help_and_the_first_prompt_need_neither_numpy_nor_torch():
    start = "import minillm_repl.cli, minillm_repl.repl.prompt"
    parse = (
        "import contextlib\nwith contextlib.suppress(SystemExit): "
        "minillm_repl.cli.main(['--version'])"
    )
    assert not loaded_by(f"{start}\n{parse}") & HEAVY


def test_a_whole_prompt_from_flag_to_text_needs_no_torch_and_the_second_no_compiler():
    visit = (
        "import minillm_repl.cli\nassert minillm_repl.cli.main(['-p', '날씨', '-n', '3', "
        "'--verbose']) == 0"
    )
    loaded_by(visit)
    loaded = loaded_by(visit)
    assert "numpy" in loaded
    assert "torch" not in loaded
    # Commands are imported when the first is looked up, and a prompt needs none.
    assert not {"minillm_repl.commands.learn", "minillm_repl.views.lens"} & loaded
    assert "prompt_toolkit" not in loaded


BANNED = {
    "import pickle": "TID251",
    "from pickle import loads": "TID251",
    "import torch\n\nmodel = torch.load('m.pt')": "TID251",
    "import numpy as np\n\narray = np.load('a.npy')": "TID251",
    "from jinja2 import Environment": "TID251",
    "import jinja2\n\ntext = jinja2.Template('{{ 1 }}').render()": "TID251",
    "from jinja2.sandbox import SandboxedEnvironment": "TID251",
    "value = eval('1')": "S307",
    "exec('1')": "S102",
}


@pytest.mark.parametrize("code", BANNED)
def test_the_linter_keeps_out_what_runs_what_a_file_says(code):
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format=concise",
        "--stdin-filename",
        "minillm_repl/new.py",
        "-",
    ]
    done = subprocess.run(
        command, input=code + "\n", capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert BANNED[code] in done.stdout


def test_the_only_templates_run_in_the_sandbox_of_the_other_process():
    using = {
        path.name
        for path in FILES
        if any(module.split(".")[0] == "jinja2" for module in imports(path))
    }
    assert using == {"worker.py"}
