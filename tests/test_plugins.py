"""Commands of other packages: docs/extending.md is installed and runs, and a broken one is told."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def run(lines, *folders, arguments=("--ckpt", "nalssi")):
    path = os.pathsep.join([str(ROOT), *map(str, folders)])
    return subprocess.run(
        [sys.executable, "-m", "minillm_repl", *arguments],
        input="".join(f"{line}\n" for line in lines),
        env=os.environ | {"PYTHONPATH": path, "MINILLM_LANG": "en", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def plugin(folder, name, value, source=""):
    """A package as pip leaves it: a module, and a folder that says what its entry point is."""
    module = value.partition(":")[0]
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[minillm_repl.commands]\n{name} = {value}\n")
    return folder


COMMAND = '''
from minillm_repl.repl.registry import command

@command("{name}", aliases=("{alias}",))
def hello(shell, asked):
    """Say hello."""
    shell.screen.note("hello from {name}")
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip and setuptools: pip install -e '.[dev]'")
    project, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    for name, text in re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL):
        (project / name).write_text(text, encoding="utf-8")
    line = ["-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, *line, "--target", target, project], check=True)
    return target


def test_the_plugin_of_the_page_is_installed_and_runs(installed, tmp_path):
    file = tmp_path / "lead.json"
    done = run([":lead 오늘은 날씨가", f":lead 오늘은 --json {file}", ":help lead"], installed)
    assert done.returncode == 0, done.stderr
    assert "lead, nats" in done.stdout
    assert ":lead [TEXT]" in done.stdout
    assert "Temperature divides it." in done.stdout
    view = json.loads(file.read_text(encoding="utf-8"))
    assert view["view"] == "lead"
    assert len(view["leads"]) == len(view["tokens"]) == 3
    assert all(lead >= 0 for lead in view["leads"])


def test_it_is_listed_and_a_method(installed):
    assert ":lead" in run([":help"], installed).stdout
    code = "import minillm_repl as mr; print(mr.load('nalssi').lead('오늘은').to_dict()['view'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{installed}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "lead\n"


def test_a_command_can_be_named_alone(tmp_path):
    source = COMMAND.format(name="hello", alias="hi")
    done = run([":hi"], plugin(tmp_path, "greeting", "greeting:hello", source))
    assert "hello from hello" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('two\\nlines \\x1b[31m')", "ValueError: two"),
    ],
)
def test_a_broken_plugin_is_told_in_one_line_and_stops_nothing(tmp_path, source, reason):
    done = run([":help", ":help", ":temp 0.5"], plugin(tmp_path, "bad", "bad_one", source))
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if "the plugin bad (bad_one)" in line]
    assert len(told) == 1
    assert reason in told[0]
    assert "\x1b" not in done.stderr


def test_names_of_the_program_win(tmp_path):
    source = COMMAND.format(name="temp", alias="greet")
    done = run([":temp 0.5", ":help", ":temp"], plugin(tmp_path, "takeover", "takeover", source))
    assert "hello" not in done.stdout + done.stderr
    assert done.stderr.count("a plugin has a command :temp, which exists") == 1
    source = COMMAND.format(name="greet", alias="top-k")
    (tmp_path / "second").mkdir()
    done = run([":top-k 3", ":greet"], plugin(tmp_path / "second", "greeting", "greeting", source))
    assert (done.stdout + done.stderr).count("hello from greet") == 1


def test_the_start_does_not_look_for_plugins(tmp_path):
    folder = plugin(tmp_path, "loud", "loud", "print('imported')")
    done = run([], folder, arguments=("--ckpt", "nalssi", "-p", "오늘은", "-n", "1"))
    assert "imported" not in done.stdout
