"""Ctrl-Z, fg and bg in a real shell with job control, at whatever is going on."""

import re
import sys
import time

import pytest

pytest.importorskip("termios")

from tests.test_terminal import CORPUS, line_is, models, visit  # noqa: F401 - fixtures

# dash leaves a terminal as it is
BASH, PLAIN_BASH, DASH = "bash --norc -i", "bash --norc --noediting -i", "dash -i"
PASTED = ("가\n나\n다", line_is(">>> 가", "... 나", "... 다"))


@pytest.fixture
def job(visit):
    """Opens a terminal on a shell in which `$M` is the program, and starts that."""

    def open_(shell, *arguments, start="$M"):
        begin = f'export M="$*"; exec {shell}'
        command = ("sh", "-c", begin, "sh", sys.executable, "-m", "minillm_repl")
        terminal = visit(*arguments, command=command, variables={"PS1": "sh> "}, rows=40)
        terminal.wait_for("sh>")
        terminal.type(start + "\n")
        return terminal

    return open_


def stopped(terminal):
    """Press Ctrl-Z, wait for the shell, and check that the terminal is one for a shell."""
    times = terminal.raw.count(b"Stopped")
    terminal.type("\x1a")
    terminal.wait_for(
        lambda terminal: terminal.raw.count(b"Stopped") > times and terminal.line.endswith("sh>")
    )
    said = len(terminal.raw)
    terminal.type("stty -a; echo don''e\n")
    terminal.wait_for(
        lambda terminal: b"done" in terminal.raw[said:] and terminal.line.endswith("sh>")
    )
    assert b"stty -a" in terminal.raw[said:], "what is typed is not echoed"
    modes = terminal.raw[said:].decode().split()
    assert {"icanon", "echo", "icrnl", "isig"} <= {mode.strip(";") for mode in modes}
    assert terminal.raw.rfind(b"\x1b[?25h") >= terminal.raw.rfind(b"\x1b[?25l"), (
        "the cursor stays hidden"
    )
    return terminal


def for_a_while(terminal, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        terminal.pump()


def back(terminal, there):
    """Clear the screen, bring the program back, and wait until something is drawn anew."""
    terminal.type("clear; fg\n")
    terminal.wait_for(lambda terminal: "stty" not in "\n".join(terminal.screen.display))
    terminal.wait_for(lambda terminal: there in "\n".join(terminal.screen.display))


def told(terminal, what):
    """Press Enter until the shell tells what has become of the job."""
    seen = len(terminal.raw)
    for _ in range(60):
        terminal.type("\n")
        for_a_while(terminal, 0.3)
        if what in terminal.raw[seen:]:
            return
    raise AssertionError(f"the shell does not tell {what}\n{terminal}")


def pasting(terminal):
    return terminal.raw.rfind(b"\x1b[?2004h") > terminal.raw.rfind(b"\x1b[?2004l")


def writing(terminal, text="가"):
    terminal.send(text)
    gone = len(terminal.screen.gone)
    terminal.wait_for(lambda terminal: len(terminal.screen.gone) > gone + 45)


@pytest.mark.parametrize(
    "shell", [DASH, *(pytest.param(each, marks=pytest.mark.slow) for each in (PLAIN_BASH, BASH))]
)
def test_ctrl_z_suspends_at_the_prompt_and_while_it_writes_and_fg_goes_on(job, shell):
    terminal = job(shell, "--max-tokens", "1000000")
    terminal.wait_for_prompt()
    terminal.type("가나")
    terminal.wait_for(line_is(">>> 가나"))
    for _ in range(2):
        stopped(terminal)
        assert "가나" not in terminal.line
        # bash itself asks for it, where it edits its lines
        assert pasting(terminal) == (shell == BASH)
        terminal.type("fg\n")
        terminal.wait_for(line_is(">>> 가나"))  # as if nothing had been
    terminal.keys("ctrl-c")
    terminal.wait_for(lambda terminal: terminal.at_empty_prompt)

    writing(terminal)
    for _ in range(2):
        stopped(terminal)
        assert pasting(terminal) == (shell == BASH)
        terminal.type("fg\n")
        gone = len(terminal.screen.gone)
        terminal.wait_for(lambda terminal, gone=gone: len(terminal.screen.gone) > gone + 45)
    before = terminal.prompts
    terminal.interrupt()
    terminal.wait_for_prompt(before)
    # Typed while it writes: Enter is still Enter, a paste one paste, and nothing is echoed into the
    # text.
    terminal.do(":max-tokens 20000")
    writing(terminal)
    seen = len(terminal.raw)
    terminal.type(":max-tokens 3\r")
    terminal.paste(PASTED[0])
    terminal.wait_for(PASTED[1], timeout=60)
    text = terminal.raw[seen:].decode()
    assert "max-tokens" not in text[: text.index("20000 tokens")]
    assert "\nmax-tokens 3" in terminal.text
    terminal.keys("ctrl-c")
    terminal.wait_for(lambda terminal: terminal.at_empty_prompt)
    terminal.keys("ctrl-d")
    terminal.wait_for(lambda terminal: terminal.line.endswith("sh>"))


@pytest.mark.slow
def test_a_program_in_the_background_writes_on_stops_at_its_prompt_and_comes_back_whole(job):
    terminal = job(PLAIN_BASH, "--max-tokens", "60000")
    terminal.wait_for_prompt()
    writing(terminal)
    stopped(terminal)
    terminal.type("bg\n")
    terminal.wait_for("60000 tokens", timeout=60)
    told(terminal, b"Stopped")
    before = terminal.prompts
    terminal.type("fg\n")
    terminal.wait_for_prompt(before)
    terminal.do(":max-tokens 1000000")
    writing(terminal)
    stopped(terminal)
    terminal.type("bg\n")
    for_a_while(terminal, 0.5)
    terminal.type("fg\n")  # it has not stopped: no signal tells it
    for_a_while(terminal, 1)
    terminal.type(":max-tokens 3\r")
    for_a_while(terminal, 0.5)
    assert ":max-tokens 3" not in terminal.text, "it is echoed"
    terminal.interrupt()
    terminal.wait_for("stopped by Ctrl-C")


def test_kill_ends_a_program_that_is_suspended(job):
    terminal = job(PLAIN_BASH)
    terminal.wait_for_prompt()
    stopped(terminal)
    terminal.type("kill %1\n")
    told(terminal, b"Terminated")
    terminal.type("jobs; echo no''ne\n")
    terminal.wait_for("none")
    assert "Stopped" not in terminal.text[terminal.text.index("Terminated") :]


@pytest.mark.slow
def test_ctrl_z_suspends_in_the_views_that_take_keys_in_a_lesson_and_while_it_trains(job, tmp_path):
    terminal = job(PLAIN_BASH)
    terminal.wait_for_prompt()
    for line, there, leave in (
        (":step 가", "f finish", "q"),
        (":scroll", "q leaves", "q"),
        (":learn 1", "Enter continues", ":learn off\r"),
    ):
        terminal.do(":shapes 가", timeout=60)
        terminal.send(line)
        terminal.wait_for(lambda terminal, there=there: there in "\n".join(terminal.screen.display))
        for _ in range(2):
            stopped(terminal)
            assert not pasting(terminal)
            back(terminal, there)
        before = terminal.prompts
        terminal.type(leave)
        terminal.wait_for_prompt(before)
    terminal.send(f":train {CORPUS} new steps=100000 width=8 layers=1 heads=1")
    terminal.wait_for(" left", timeout=60)
    for _ in range(2):
        stopped(terminal)
        assert not pasting(terminal)
        back(terminal, " left")
    stopped(terminal)
    terminal.type("clear; echo the shell''s; fg\n")
    terminal.wait_for(lambda terminal: " left" in "\n".join(terminal.screen.display))
    for_a_while(terminal, 1)
    assert "the shells" in "\n".join(terminal.screen.display), (
        "what the shell has shown is drawn over"
    )
    before = terminal.prompts
    terminal.paste(PASTED[0])
    for_a_while(terminal, 1)
    terminal.interrupt()  # what was typed ahead goes, as everywhere
    terminal.wait_for_prompt(before)
    assert "resume` continues from here" in terminal.text


@pytest.mark.slow
def test_ctrl_z_suspends_one_shot_and_the_cursor_is_there(job):
    terminal = job(PLAIN_BASH, start="$M -p 가 -n 1000000")
    terminal.wait_for(lambda terminal: len(terminal.screen.gone) > 45)
    for _ in range(2):
        stopped(terminal)
        terminal.type("fg\n")
        gone = len(terminal.screen.gone)
        terminal.wait_for(lambda terminal, gone=gone: len(terminal.screen.gone) > gone + 45)
    terminal.interrupt()
    terminal.wait_for(lambda terminal: terminal.line.endswith("sh>"))
    terminal.type("echo left with $?\n")
    terminal.wait_for(re.compile("^left with 130", re.MULTILINE))


def test_without_a_shell_that_could_wake_it_ctrl_z_changes_nothing(visit):
    terminal = visit()
    terminal.wait_for_prompt()
    terminal.type("가나")
    terminal.wait_for(line_is(">>> 가나"))
    terminal.type("\x1a")
    terminal.type("다")
    terminal.wait_for(line_is(">>> 가나다"))
