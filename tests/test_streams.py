"""Standard streams as shells leave them: closed, full, piped away, not text; and prompts."""

import codecs
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("termios")  # the shell lines are those of Unix

from tests.conftest import MODELS, ROOT
from tests.test_terminal import models, visit  # noqa: F401 - fixtures

PROGRAM = f"{sys.executable} -m minillm_repl --ckpt nalssi --temp 0 -n 4 --seed 1"
SAID = "가 좋다"  # after 날씨
AFTER_A_LINE = "가 좋으"  # after 하늘, a line break and 날씨
SLOW = pytest.mark.slow


@pytest.fixture
def line(tmp_path):
    """Runs a line of bash in which `$M` is the program; returns exit status, stdout and stderr."""

    def run(text, given=b"", **variables):
        environment = (
            os.environ | {"M": PROGRAM, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)} | variables
        )
        done = subprocess.run(
            ["bash", "-c", text],
            input=given,
            capture_output=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )
        assert b"Traceback" not in done.stderr + done.stdout
        assert b"bug" not in done.stderr
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


CLOSED_IN = "error: cannot read stdin: it is closed\n"
CLOSED_OUT = "error: cannot write stdout: it is closed\n"
FULL = "error: cannot write stdout: No space left on device\n"
LOST = [
    ("$M <&-", CLOSED_IN),
    ("$M -p - <&-", CLOSED_IN),
    ("$M -p 날씨 >&-", CLOSED_OUT),
    ("$M >&- <<< :model", CLOSED_OUT),
    pytest.param("$M --version >&-", CLOSED_OUT, marks=SLOW),
    ("$M --help >/dev/full", FULL),
    pytest.param("$M --version >/dev/full", FULL, marks=SLOW),
    ("$M -p 날씨 --json >/dev/full", FULL),
    pytest.param("$M -p 날씨 --verbose >/dev/full", FULL, marks=SLOW),
    pytest.param("$M >/dev/full <<< :help", FULL, marks=SLOW),
    pytest.param("$M <&- >&- 2>&-", "", marks=SLOW),
    pytest.param("$M -p '' 2>/dev/full", "", marks=SLOW),
]


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=SLOW)])
@pytest.mark.parametrize(("command", "told"), LOST)
def test_what_cannot_be_read_or_written_is_told_in_one_line(line, command, told, unbuffered):
    assert line(command, PYTHONUNBUFFERED=unbuffered) == (1, "", told)


def test_a_stream_that_is_not_needed_may_be_closed_or_full(line, tmp_path):
    assert line("$M -p 날씨 <&-")[:2] == (0, SAID + "\n")
    assert line("$M -p 날씨 2>&-") == (0, SAID + "\n", "")
    assert line("$M -p 날씨 2>/dev/full") == (0, SAID + "\n", "")


@SLOW
@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
def test_training_needs_no_stream(line, tmp_path, streams):
    corpus = MODELS / "nalssi.txt"
    train = (
        f"$M --ckpt new.safetensors --train {corpus} --steps 1 --batch 2 --width 8 --layers 1 "
        "--heads 1 --context 8"
    )
    assert line(f"{train} {streams}")[0] == 0
    assert (tmp_path / "new.safetensors").stat().st_size < 100_000
    assert line("$M --ckpt new.safetensors -p 날씨")[0] == 0


@SLOW
@pytest.mark.parametrize(
    "how", ["-p 날씨 -n 4000", "--help", "-p 날씨 -n 900 --verbose", "<<< $':help\n:help'"]
)
def test_a_reader_that_has_enough_ends_the_program_without_a_word(line, how):
    code, out, told = line(f"$M {how} | head -c 8 | wc -c; exit ${{PIPESTATUS[1]}}")
    assert (code, out.strip(), told) == (0, "8", "")


# -- what is piped in


def script(text, encoding="utf-8", mark=b""):
    return mark + text.encode(encoding)


def test_a_script_may_have_a_byte_order_mark_and_windows_line_ends(line):
    windows = script(
        ':temp 0\r\n:max-tokens 4\r\n"""\r\n하늘\r\n날씨\r\n"""\r\n날씨', mark=codecs.BOM_UTF8
    )
    unix = script(':temp 0\n:max-tokens 4\n"""\n하늘\n날씨\n"""\n날씨')
    assert line("$M", windows)[:2] == line("$M", unix)[:2]
    assert (
        line("$M -p - --echo", script("하늘\r\n날씨\r\n", mark=codecs.BOM_UTF8))[1]
        == f"하늘\n날씨{AFTER_A_LINE}\n"
    )


NOT_TEXT = {
    "UTF-16, not UTF-8; `iconv -f UTF-16 -t UTF-8`": script(
        "날씨\n", "utf-16-le", codecs.BOM_UTF16_LE
    ),
    "UTF-16, not UTF-8": script("날씨\n", "utf-16-be", codecs.BOM_UTF16_BE),
    "UTF-32, not UTF-8": script("날씨\n", "utf-32-le", codecs.BOM_UTF32_LE),
    "line 2 has a NUL byte": "하늘\n날\0씨\n".encode(),
    "not UTF-8 text (line 2); for Korean, try `iconv -f CP949": "하늘\n".encode()
    + "날씨\n".encode("cp949"),
    "not UTF-8 text (line 1)": b"\xff\x80 a\n",
}


@pytest.mark.parametrize(
    "told", [pytest.param(told, marks=SLOW if "32" in told else ()) for told in NOT_TEXT]
)
def test_what_is_piped_in_and_is_no_text_is_named_for_what_it_is(line, told):
    for how in ("-p 날씨", ""):
        code, _out, error = line(f"$M {how}", NOT_TEXT[told])
        assert (code, error.count("error: ")) == (1, 1)
        assert told in error


def test_what_is_piped_in_stands_before_the_prompt_on_a_line_of_its_own(line):
    for piped in ("하늘", "하늘\r\n"):
        told = line("$M -p 날씨 --echo", piped.encode())[1]
        assert told == f"하늘\n날씨{AFTER_A_LINE}\n"
    assert line("$M -p 날씨 --echo", "하늘\n\n".encode())[1].startswith("하늘\n\n날씨가")
    for nothing in ("</dev/null", "<&-", "<<< ''"):
        assert line(f"$M -p 날씨 --echo {nothing}")[1] == f"날씨{SAID}\n"
    steps = [
        json.loads(each) for each in line("$M -p 날씨 --json", "하늘\n".encode())[1].splitlines()
    ]
    assert steps[-1]["text"] == AFTER_A_LINE


@SLOW
def test_a_pipe_that_says_nothing_is_told_to_be_waited_for(line):
    code, out, told = line("(sleep 3; echo 하늘) | $M -p 날씨 --echo")
    assert (code, out) == (0, f"하늘\n날씨{AFTER_A_LINE}\n")
    assert "waiting for the end of stdin" in told
    assert "</dev/null" in told


# -- what a prompt may be


def test_a_prompt_may_begin_with_a_dash(line):
    for how in ("-p -5날씨", "--prompt=-5날씨", "-p '- 날씨'", "-p --날씨 --stop -x --stop '- 좋'"):
        code, out, told = line(f"$M {how}")
        assert (code, out) == (0, SAID + "\n"), told
    assert "expected one argument" in line("$M -p --temp 3")[2]  # a prompt that was forgotten


def test_a_prompt_may_be_of_spaces_but_not_empty_and_longer_than_any_context(line):
    assert line("$M -p '   ' --echo")[1].startswith("   ")
    for nothing in ("-p ''", "--prompt=", "-p -"):
        assert line(f"$M {nothing}") == (1, "", "error: the prompt is empty\n")
    code, out, _told = line("$M -p -", ("하늘이 맑다. " * 3_000 + "날씨").encode())
    assert (code, len(out)) == (0, 5)


@pytest.mark.parametrize("how", ["yes | $M -p 날씨", "$M < /dev/zero", "$M -p - < /dev/zero"])
def test_a_pipe_without_end_is_refused_before_it_fills_the_memory(line, how):
    code, out, told = line(f"ulimit -v 4000000; {how}")
    assert (code, out) == (1, "")
    assert told == "error: stdin is longer than 16 MiB: no model reads that much\n"


@pytest.mark.parametrize("ignored", ["", "trap '' INT; "])
def test_ctrl_c_while_modules_are_imported_ends_the_program_without_a_word(line, tmp_path, ignored):
    (tmp_path / "rich").mkdir()
    press = "import os, signal, sys; os.kill(os.getpid(), signal.SIGINT); sys.exit('it goes on')"
    (tmp_path / "rich" / "__init__.py").write_text(press)
    code, out, told = line(
        f"{ignored}exec $M --version", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"
    )
    assert (code, out, told) == ((1, "", "it goes on\n") if ignored else (-2, "", ""))


# -- stdout that leads elsewhere while somebody types


def asked(times):
    """Tell whether so many lines have been asked for, and the last is empty."""
    return lambda terminal: terminal.text.count(">>>") == times and terminal.line == ">>>"


@pytest.mark.parametrize(
    "where", ["| tee -i log > /dev/null", pytest.param("> log", marks=SLOW), "2>/dev/null > log"]
)
def test_whoever_pipes_the_output_away_sees_where_to_type(visit, tmp_path, where):
    terminal = visit(
        command=("bash", "-c", f'"$@" {where}; echo "left with $?"', "bash", *PROGRAM.split())
    )
    terminal.wait_for(":help lists the commands")
    terminal.wait_for(asked(1))
    terminal.send("가")
    terminal.wait_for(asked(2))
    terminal.send('"""')
    terminal.wait_for(lambda terminal: terminal.line == "...")
    terminal.interrupt()
    terminal.wait_for(asked(3))
    terminal.send("xyz")
    terminal.wait_for(asked(4))
    if "2>" not in where:
        terminal.wait_for("in the vocabulary: x, y, z")
    terminal.send(":model")
    terminal.keys("ctrl-d")
    terminal.wait_for("left with")
    assert terminal.wait_for_end() == 0
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "가나다라마\n" in log
    assert "parameters" in log
    assert ">>>" not in log
    assert "\x1b" not in log
