"""What terminals send for keys, and what becomes of it in the prompt line."""

import base64
import re

import pytest

pytest.importorskip("termios")

from prompt_toolkit.keys import Keys

from minillm_repl.repl.keyboard import KeyParser

# For their fixtures.
from tests.test_terminal import line_is, long_generation, models, prompt, visit  # noqa: F401


def keys(*reads):
    """What the parser makes of what is read, at the end of which nothing more comes."""
    pressed = []
    keyboard = KeyParser(pressed.append)
    for data in reads:
        keyboard.feed(data)
    keyboard.flush()
    return [each.data if each.key == Keys.BracketedPaste else each.key for each in pressed]


def same(new, old):
    return keys(new) == keys(old) != []


SAME = {
    "\x1b[13;2u": "\n",
    "\x1b[27;2;13~": "\n",
    "\x1b[13;3u": "\n",
    "\x1b[13u": "\r",
    "\x1b[13;1u": "\r",
    "\x1b[13;130u": "\n",
    "\x1b[13;2:1u": "\n",
    "\x1bOM": "\r",
    "\x1b[57414u": "\r",
    "\x1b[57404u": "5",
    "\x1bOk": "+",
    "\x1b[99;5u": "\x03",
    "\x1b[27;5;99~": "\x03",
    "\x1b[122;5u": "\x1a",
    "\x1b[100;5u": "\x04",
    "\x1b[32;5u": "\0",
    "\x1b[97u": "a",
    "\x1b[97;2u": "A",
    "\x1b[97:65;2u": "A",
    "\x1b[49:33;2u": "!",
    "\x1b[97;1;44032u": "가",
    "\x1b[44032u": "가",
    "\x1b[97;3u": "\x1ba",
    "\x1b[9;2u": "\x1b[Z",
    "\x1b[9u": "\t",
    "\x1b[127u": "\x7f",
    "\x1b[127;3u": "\x1b\x7f",
    "\x1b[27u": "\x1b",
    "\x1b[1;1:1A": "\x1b[A",
    "\x1b[1;129D": "\x1b[D",
    "\x1b[3;1:2~": "\x1b[3~",
    "\x1b[1;5C": "\x1b[1;5C",
    "\x1b[1;133C": "\x1b[1;5C",
    "\x1b[[A": "\x1bOP",
    "\x1b\r": "\x1b\r",
    "가\x1b[Ib": "가b",
}
NOTHING = [
    "\x1b[I", "\x1b[O", "\x1b[97;1:3u", "\x1b[57441u", "\x1b[57441;2u", "\x1b[1;1:3A",
    "\x1b[?62;4c", "\x1b[>0;276;0c", "\x1b[?2004;1$y", "\x1b[99;99;99x", "\x1b[<0;10;10M",
    "\x1b]11;rgb:0000/0000/0000\x07", "\x1b]0;evil\x1b\\", "\x1bP>|xterm(370)\x1b\\",
    "\x1b_Gi=1;OK\x1b\\", "\x1b[?u", "\x1b[9999999999u",
]  # fmt: skip


@pytest.mark.parametrize("sent", SAME)
def test_a_key_means_the_same_however_a_terminal_tells_it(sent):
    assert same(sent, SAME[sent])
    if len(SAME[sent]) == 1:
        assert keys(*sent) == keys(sent), "a sequence that comes in pieces is another"


@pytest.mark.parametrize("sent", NOTHING)
def test_what_is_no_key_types_nothing(sent):
    assert keys(sent) == []
    assert keys(f"a{sent}b") == keys(*f"a{sent}", "b") == ["a", "b"]


def test_what_is_pasted_stays_as_it_is_in_however_many_reads_it_comes():
    pasted = "가\x1b[13;2u\r\x1b[I\x1b[A\x03\x1b]0;x\x07\x1b"
    sent = f"a\x1b[200~{pasted}\x1b[201~\x1b[Ib"
    assert keys(sent) == keys(*sent) == ["a", pasted, "b"]
    for cut in range(len(sent)):
        assert keys(sent[:cut], sent[cut:]) == ["a", pasted, "b"]


def test_escape_alone_is_escape_and_where_the_cursor_is_is_told():
    assert keys("\x1b") == [Keys.Escape]
    assert keys("\x1b", "[", "A") == [Keys.Up]
    assert keys("\x1b[24;80R") == [Keys.CPRResponse]


def test_shift_enter_breaks_the_line_and_a_focus_report_types_nothing(prompt):
    prompt.type("가\x1b[13;2u\x1b[I나\x1b[27;2;13~\x1b[O다\x1b[?62c")
    prompt.wait_for(line_is(">>> 가", "... 나", "... 다"))
    prompt.type("\x1b[99;5u")
    prompt.wait_for(lambda terminal: terminal.at_empty_prompt)
    prompt.type("가\x1b[13u")
    prompt.wait_for(">>> 가나다라마\n4 tokens")


PASTES = {
    "three lines": "가\n나\n다",
    "ESC": "가\n\x1b[31m나\x1b[0m\n다",
    "long": "가\r\n" * 3_000 + "다",
}
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each == "ESC" else SLOW) for each in PASTES]
)
def test_a_paste_while_it_writes_is_one_prompt_afterwards(visit, name):
    text, terminal = PASTES[name], visit("--max-tokens", "20000")
    terminal.wait_for_prompt()
    before = long_generation(terminal, "가")
    half = len(text) // 2
    terminal.type("\x1b[200~" + text[:half].replace("\n", "\r"))
    terminal.pump(0.3)
    terminal.type(text[half:].replace("\n", "\r") + "\x1b[201~")
    terminal.wait_for(
        lambda terminal: terminal.prompts > before and terminal.line.endswith("다"), timeout=60
    )
    assert terminal.prompts == before + 1, "a pasted newline sent a line"
    if len(text) < 100:
        shown = text.replace("\x1b", "^[").split("\n")
        terminal.wait_for(line_is(f">>> {shown[0]}", *(f"... {row}" for row in shown[1:])))


def test_lines_typed_while_it_writes_are_lines_afterwards_and_ctrl_c_still_stops(visit):
    terminal = visit("--max-tokens", "10000")
    terminal.wait_for_prompt()
    before = long_generation(terminal, "가")
    terminal.type(":max-tokens 3\r나\r다\r")  # a terminal that does not tell a paste sends the same
    terminal.wait_for_prompt(before + 3, timeout=60)
    assert re.search(r"max-tokens 3\n>>> 나다라마\n.*\n>>> 다라마바\n", terminal.text), terminal
    terminal.do(":max-tokens 1000000")
    long_generation(terminal, "가")
    terminal.type("나나나나")
    terminal.type("\x03다")
    terminal.wait_for("stopped by Ctrl-C")
    terminal.wait_for(line_is(">>> 다"))  # what came after it is there to go on with


def test_a_line_comes_back_to_be_changed_and_an_answer_goes_to_the_clipboard(prompt):
    prompt.do("가")
    prompt.do(":temp")
    assert "1  가" in prompt.do(":history")
    prompt.send(":history 1")
    prompt.wait_for(line_is(">>> 가"))
    prompt.type("나")
    prompt.wait_for(line_is(">>> 가나"))
    before = prompt.prompts
    prompt.keys("enter")
    prompt.wait_for_prompt(before)
    prompt.send(":edit 1")
    prompt.wait_for(line_is(">>> :edit 1 가"))
    before = prompt.prompts
    prompt.type("\x03")
    prompt.wait_for(lambda terminal: terminal.at_empty_prompt)
    prompt.do(":copy")
    found = re.search(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", prompt.raw)
    assert base64.b64decode(found[1]).decode() == "다라마바"
