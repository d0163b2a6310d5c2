"""Characters of several (families, flags, skin tones, keycaps, jamo, marks) on unlike terminals."""

import re
import shlex
import shutil
import subprocess
import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth, wcwidth

pytest.importorskip("termios")

from minillm_repl.safetext import expand_to_graphemes, graphemes, show_token, strip_joiners
from tests.conftest import ROOT
from tests.test_terminal import models, prompt, visit  # noqa: F401 - fixtures

PROMPT = ">>> "
SHOWN = {
    "👨‍👩‍👧": "👨👩👧",
    "🇰🇷": "ＫＲ",
    "👍🏽": "👍",
    "1️⃣": "1⃣",
    "❤️": "❤",
    "👨‍": "👨",
    "\u1112\u1161\u11ab": "한",
    "e\u0301": "é",
    "🏳️‍🌈": "🏳🌈",
    "👩🏽‍💻": "👩💻",
    "\u1100\u1161": "가",
}


def cells(text):
    """How many cells a text takes where each character counts for itself."""
    return sum(map(wcwidth, text))


@pytest.mark.parametrize("cluster", SHOWN)
def test_a_cluster_is_one_character_and_is_shown_in_parts_that_all_terminals_count_alike(cluster):
    assert [*graphemes(f"가{cluster}나")] == ["가", cluster, "나"]
    assert strip_joiners(cluster) == SHOWN[cluster]
    assert cells(strip_joiners(cluster)) == wcswidth(strip_joiners(cluster))


def test_what_is_unknown_is_named_as_it_is_read():
    text = "e\u0301와 👨‍👩‍👧, 👨 12 2"
    assert expand_to_graphemes(["👨", "\u200d", "👩", "👧"], text) == ["👨‍👩‍👧", "👨"]
    assert expand_to_graphemes(["\u00e9", "와", "12", "뷁뷁"], text) == [
        "\u00e9",
        "와",
        "12",
        "뷁뷁",
    ]
    assert expand_to_graphemes([], text) == []


PARTS = [
    "👨",
    "\u200d",
    "👩",
    "🏽",
    "🇰",
    "🇷",
    "\ufe0f",
    "\u20e3",
    "1",
    "❤",
    "e",
    "\u0301",
    "ᄒ",
    "ᅡ",
    "ᆫ",
    "가",
    " ",
]


@given(st.lists(st.sampled_from(PARTS)).map("".join))
def test_whatever_is_joined_all_terminals_count_alike(text):
    assert cells(strip_joiners(text)) == wcswidth(strip_joiners(text))
    assert "".join(graphemes(text)) == text
    shown = show_token(text.encode())
    assert cells(shown) == wcswidth(shown)
    assert strip_joiners(text, visible=True).count("<U+200D>") == text.count("\u200d"), (
        "a table hides what a token holds"
    )


def test_clusters_leave_the_prompt_line_whole(prompt):
    for cluster, shown in SHOWN.items():
        place = len(PROMPT) + cells(shown)
        prompt.type(cluster)
        prompt.wait_for(at(shown, place))
        prompt.keys("left")
        prompt.wait_for(at(shown, len(PROMPT)))
        prompt.type("\x1b[C나")
        prompt.wait_for(at(shown + "나", place + 2))
        prompt.keys("left", "backspace")  # takes the whole cluster
        prompt.wait_for(at("나", len(PROMPT)))
        prompt.type(f"{cluster}\x1b[D\x1b[3~")
        prompt.wait_for(at("나", len(PROMPT)))
        prompt.type(f"{cluster}\x05\x15")  # Ctrl-E, Ctrl-U
        prompt.wait_for(lambda terminal: terminal.at_empty_prompt)


def at(shown, place):
    shown = shown.replace("\u20e3", "")  # which pyte leaves out

    def looks(terminal):
        row = unicodedata.normalize("NFC", terminal.line)
        return (
            row == PROMPT + unicodedata.normalize("NFC", shown)
            and terminal.screen.cursor.x == place
        )

    looks.__qualname__ = f"at({shown!r}, {place})"
    return looks


class Tmux:
    """A terminal that somebody else wrote."""

    def __init__(self, folder, command, columns, rows):
        self._server = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        self.run("new-session", "-d", "-x", str(columns), "-y", str(rows), command)

    def run(self, *words):
        done = subprocess.run([*self._server, *words], capture_output=True, text=True, check=False)
        return done.stdout

    def type(self, text):
        self.run("send-keys", "-l", text)

    @property
    def line(self):
        row, place = map(int, self.run("display", "-p", "#{cursor_y} #{cursor_x}").split())
        return self.run("capture-pane", "-p").splitlines()[row].rstrip(), place

    def wait_for(self, wanted):
        until = time.monotonic() + 30
        while not wanted(self.line):
            assert time.monotonic() < until, self.run("capture-pane", "-p")
            time.sleep(0.05)


@pytest.fixture
def tmux(tmp_path, models):
    """Opens the program in tmux, before the chain model."""
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    opened = []

    def open_(columns, rows, *arguments):
        program = [
            sys.executable,
            "-m",
            "minillm_repl",
            "--ckpt",
            str(models / "chain.safetensors"),
            "--no-history",
        ]
        program += ["--temp", "0", *arguments]
        here = {
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
        }
        variables = [f"{name}={value}" for name, value in here.items()]
        opened.append(Tmux(tmp_path, shlex.join(["env", *variables, *program]), columns, rows))
        opened[-1].wait_for(empty)
        return opened[-1]

    yield open_
    for each in opened:
        each.run("kill-server")


def empty(line):
    return line[0].startswith(f"{PROMPT}type the") and line[1] == len(PROMPT)


@pytest.mark.parametrize(
    ("columns", "rows"), [(80, 24), pytest.param(200, 50, marks=pytest.mark.slow)]
)
def test_clusters_leave_the_prompt_line_whole_in_tmux(tmux, columns, rows):
    terminal = tmux(columns, rows)
    for cluster, shown in SHOWN.items():
        whole = (PROMPT + unicodedata.normalize("NFC", shown), len(PROMPT) + cells(shown))
        terminal.type(cluster)
        terminal.wait_for(lambda line, whole=whole: line == whole)
        terminal.type("x\x7f\x1b[D\x1b[C")
        terminal.wait_for(lambda line, whole=whole: line == whole)
        terminal.type("\x15")
        terminal.wait_for(empty)
    terminal.type("가" * (columns // 2 - 3) + "👨‍👩‍👧")  # into the next row
    terminal.wait_for(lambda line: "👩" in line[0] and line[1] in (4, 6))
    terminal.type("\x15")
    terminal.wait_for(empty)


@pytest.mark.parametrize(
    ("columns", "rows", "text"),
    [
        (31, 8, "가" * 1_000 + "끝"),  # 67 rows, of which its cells would fill 65
        pytest.param(21, 24, "날씨가 좋다 " * 200 + "끝", marks=pytest.mark.slow),
    ],
)
def test_the_end_of_a_long_line_of_wide_letters_is_seen_in_tmux(tmux, columns, rows, text):
    terminal = tmux(columns, rows)
    terminal.type(text)
    terminal.wait_for(lambda line: line[0].endswith(text[-1]) and line[1] == cells(line[0]))
    terminal.type("\x7f하")
    terminal.wait_for(lambda line: line[0].endswith("하") and line[1] == cells(line[0]))


@pytest.mark.slow
def test_a_paste_in_tmux_while_it_writes_is_one_prompt_afterwards(tmux):
    terminal = tmux(80, 24, "--max-tokens", "30000")
    terminal.type("가\r")
    terminal.wait_for(lambda line: re.match("[가-힣:]{30}", line[0]))
    terminal.run("set-buffer", "가\n나\n다")
    terminal.run("paste-buffer", "-p")
    terminal.wait_for(lambda line: line[0] == "... 다")
    shown = terminal.run("capture-pane", "-p")
    assert re.search(r"^>>> 가\n\.\.\. 나\n\.\.\. 다$", shown, re.MULTILINE)
