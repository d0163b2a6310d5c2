"""Odd places to be started in, signals at the prompt, and two visits at once."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("termios")

from tests.conftest import ROOT
from tests.test_terminal import models, visit  # noqa: F401 - fixtures

SCRIPT = ":temp 0\n:max-tokens 4\n날씨\n:model\n:models\n:help\n"


def scripted(folder, script=SCRIPT, command=(), **variables):
    """Run a script with these variables and no others of ours; None takes one away.

    `command` runs the program.
    """
    usual = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }
    environment = {name: value for name, value in (usual | variables).items() if value is not None}
    command = [*command, sys.executable, "-m", "minillm_repl", "--ckpt", "nalssi"]
    return subprocess.run(
        command,
        input=script.encode(),
        capture_output=True,
        env=environment,
        cwd=folder,
        check=False,
    )


ODD = {
    "C": {"LANG": "C", "LC_ALL": "C"},
    "POSIX without UTF-8 mode": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
    "Korean": {"PYTHONIOENCODING": "euc-kr"},
    "UTF-16": {"PYTHONIOENCODING": "utf-16"},
    "no home": {"HOME": None},
    "an empty home": {"HOME": ""},
    "a home that is not there": {"HOME": "/nonexistent/home"},
    "a home that is a device": {"HOME": "/dev/null"},
    "a read-only home": {"HOME": "/proc"},
    "no TERM": {"TERM": None},
    "a dumb terminal": {"TERM": "dumb"},
    "an unknown terminal": {"TERM": "no-such-terminal"},
    "20 columns": {"COLUMNS": "20"},
    "0 columns": {"COLUMNS": "0", "LINES": "0"},
    "columns that are none": {"COLUMNS": "many", "LINES": "-1"},
}


QUICK = (
    "C",
    "ASCII",
    "no home",
    "a home that is a device",
    "a dumb terminal",
    "20 columns",
    "0 columns",
)
PLACES = [where if where in QUICK else pytest.param(where, marks=pytest.mark.slow) for where in ODD]
# these say nothing at a terminal
DRAWN = [where for where in ODD if where not in ("UTF-16", "Korean")]


@pytest.mark.parametrize("where", PLACES)
def test_a_script_runs_in_odd_surroundings(where, tmp_path):
    done = scripted(tmp_path, **ODD[where])
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"bug" not in done.stdout + done.stderr
    encoding = ODD[where].get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    text = done.stdout.decode(encoding)
    assert "207,020" in text
    assert (
        where in ("20 columns", "Korean") or "GPT" in text.partition("family")[2].partition("\n")[0]
    )
    assert "날씨가 좋다" in text or "\\ub0a0\\uc528" in text


@pytest.mark.parametrize(
    "where", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in DRAWN]
)
def test_a_terminal_works_in_odd_surroundings(where, visit):
    columns = 20 if where == "20 columns" else 80
    terminal = visit(
        ckpt="nalssi", variables={"MINILLM_HISTORY": None, **ODD[where]}, columns=columns
    )
    terminal.wait_for(">>>")
    terminal.send(":max-tokens 3")
    terminal.wait_for("max-tokens 3")
    terminal.send("ab")  # the model has never seen these, whatever the encoding
    terminal.wait_for("error:")
    terminal.send(":quit")
    assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.text


@pytest.mark.slow
def test_a_user_whom_the_system_does_not_know_needs_no_home(tmp_path):
    """As containers start programs: under a number that is in no /etc/passwd, and without HOME."""
    (tmp_path / "text.txt").write_text("날씨가 좋다. " * 20, encoding="utf-8")
    command = ["unshare", "--user", "--map-user=54321"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        pytest.skip("no other user can be had here")
    script = (
        ":temp 0\n:max-tokens 4\n날씨\n:lens 날씨\n:train text.txt new steps=2 width=16 layers=1 "
        "context=8\n"
    )
    done = scripted(tmp_path, script, command=command, HOME=None)
    assert done.returncode == 0, done.stderr
    assert "날씨가 좋다" in done.stdout.decode()
    assert "logit lens" in done.stdout.decode()
    assert b"the trained weights are not saved" in done.stderr
    assert os.listdir(tmp_path) == ["text.txt"], "no folder called ~"


@pytest.mark.slow
def test_a_folder_that_is_deleted_meanwhile_ends_nothing(tmp_path):
    """Libraries end the process where there is no present folder."""
    gone, home = tmp_path / "gone", tmp_path / "home"
    gone.mkdir()
    home.mkdir()
    script = ":temp 0\n:max-tokens 4\n날씨\n:lens 날씨\n:save kept\n"
    done = scripted(
        gone, script, command=["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh"], HOME=str(home)
    )
    assert done.returncode == 0, done.stderr
    assert f"no longer exists: file names now refer to {home}" in " ".join(
        done.stderr.decode().split()
    )
    assert "logit lens" in done.stdout.decode()
    assert (home / "kept.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("doing", ["typing", "writing"])
def test_a_signal_to_end_leaves_the_terminal_as_it_was(number, doing, visit):
    shell = 'stty -g; "$@"; echo "left with $?"; stty -g'
    command = ("/bin/sh", "-c", shell, "sh", sys.executable, "-m", "minillm_repl")
    terminal = visit("--max-tokens", "1000000", columns=200, command=command)
    terminal.wait_for_prompt()
    if doing == "typing":
        terminal.type("가나")
        terminal.wait_for(lambda terminal: terminal.line.endswith("가나"))
    else:
        terminal.send("가")
        terminal.wait_for(lambda terminal: len(terminal.screen.gone) > 30)
    shell = terminal.child.pid
    program = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0]
    os.kill(int(program), number)
    terminal.wait_for(f"left with {128 + number}")
    terminal.wait_for_end()
    settings = [line for line in terminal.lines if re.fullmatch("[0-9a-f]+(:[0-9a-f]+)+", line)]
    assert len(settings) == 2
    assert settings[0] == settings[1]
    assert terminal.raw.rfind(b"\x1b[?25h") >= terminal.raw.rfind(b"\x1b[?25l"), (
        "the cursor stays hidden"
    )
    assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h"), (
        "bracketed paste stays on"
    )


def test_two_visits_keep_one_history(visit, tmp_path):
    one, other = visit(), visit()
    for terminal in (one, other):
        terminal.wait_for_prompt()
    for turn in range(6):
        one.do(f":tokens 가{turn}")
        other.do(f':tokens """\n나{turn}\n"""' if turn == 3 else f":tokens 나{turn}")
    for terminal in (one, other):
        terminal.keys("ctrl-d")
        assert terminal.wait_for_end() == 0
    kept = [
        line
        for line in (tmp_path / "home" / "history").read_text("utf-8").splitlines()
        if line.startswith("+")
    ]
    for turn in range(6):
        assert f"+:tokens 가{turn}" in kept
        assert turn == 3 or f"+:tokens 나{turn}" in kept
    third = visit()
    third.wait_for_prompt()
    third.keys("up")
    third.wait_for(lambda terminal: terminal.line.startswith(">>> :tokens"))


def test_where_memory_runs_out_that_is_told_and_the_visit_goes_on(tmp_path):
    import resource

    (tmp_path / "text.txt").write_text("날씨가 좋다. " * 500, encoding="utf-8")
    sizes = "layers=1 width=128 heads=1 batch=8192 context=256"
    script = f":temp 0\n:max-tokens 4\n:train text.txt new {sizes} steps=2\n날씨\n"
    command = [sys.executable, "-m", "minillm_repl", "--ckpt", "nalssi"]
    done = subprocess.run(
        command,
        input=script.encode(),
        capture_output=True,
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
        },
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
        check=False,
    )
    assert done.returncode == 1
    assert "error: not enough memory: use a smaller model, batch or context" in done.stderr.decode()
    assert "날씨가 좋다" in done.stdout.decode()


@pytest.mark.slow
def test_a_text_of_one_character_is_learnt_and_goes_on_for_ever(tmp_path):
    (tmp_path / "one.txt").write_text("가" * 500, encoding="utf-8")
    script = (
        ":train one.txt new steps=3\n:temp 1e-8\n:max-tokens 5\n가\n:temp 1e8\n:min-p 1\n"
        ":top-p 0.0001\n:top-k 1\n가\n"
    )
    done = scripted(tmp_path, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().count("가" * 6) >= 2


@pytest.mark.slow
def test_ten_thousand_turns_take_no_more_memory_than_a_thousand(tmp_path):
    import argparse

    from tests import reliability

    assert reliability.soak(argparse.Namespace(turns=10_000), tmp_path) < 4
