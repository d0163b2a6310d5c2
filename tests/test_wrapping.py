"""Answers at a terminal break between words, however they come in pieces."""

import random

import pyte
import pytest
from rich.cells import cell_len

pytest.importorskip("termios")

from minillm_repl.render.wrapping import WordWrapper
from tests.terminal import Screen

TEXT = "오늘은 날씨가 좋아서 나갔어요. The cat, who was very small, said nothing.\n\n 끝  예요"


def drawn(text, columns, before="", seed=0):
    """The rows of a terminal after a text has come in pieces; and the cursor's cell."""
    screen = Screen(columns, 40, lambda _answer: None)
    screen.set_mode(pyte.modes.LNM)  # a newline begins a row, as a terminal's driver sees to it
    stream = pyte.Stream(screen)
    stream.feed(before)
    wrapper, pieces = WordWrapper(lambda: columns, before), random.Random(seed)
    while text:
        size = pieces.randint(1, 4)
        stream.feed(wrapper.feed(text[:size]))
        text = text[size:]
    return [screen.row(y) for y in range(screen.cursor.y + 1)]


def greedy(text, columns, before=""):
    """The rows that an editor would make, each with room in all columns but the last."""
    rows = []
    for line in (before + text).split("\n"):
        row = ""
        for word in line.split(" "):
            longer = f"{row} {word}" if row or not word else word
            if cell_len(longer) < columns or not row.strip():
                row = longer
            else:
                rows.append(row.rstrip())
                row = word
        rows.append(row.rstrip())
    return rows


@pytest.mark.parametrize("columns", [16, 23, 40, 80])
@pytest.mark.parametrize("seed", range(3))
def test_rows_break_between_words_whatever_the_pieces(columns, seed):
    words = TEXT.split("\n", maxsplit=1)[0]
    assert drawn(words, columns, seed=seed) == greedy(words, columns)
    assert drawn(words, columns, ">>> 날 ", seed) == greedy(words, columns, ">>> 날 ")
    assert "".join("".join(drawn(TEXT, columns, seed=seed)).split()) == "".join(TEXT.split())


def test_what_is_longer_than_a_row_breaks_inside_and_han_anywhere():
    assert drawn("가나다라마바사", 9) == ["가나다라", "마바사"]
    assert drawn("a 가나다라마바사", 9) == ["a", "가나다라", "마바사"]
    assert drawn("漢字漢字漢字漢字", 9) == ["漢字漢字"] * 2
    assert drawn("ab 漢字漢字", 9) == ["ab 漢字", "漢字"]


def test_a_word_that_goes_on_from_the_prompt_is_not_torn_from_it():
    assert drawn("씨가 좋다", 10, ">>> 날") == [">>> 날씨", "가 좋다"]


def test_a_resize_moves_no_word_that_may_lie_elsewhere():
    width = [20]
    wrapper = WordWrapper(lambda: width[0])
    wrapper.feed("one two th")
    width[0] = 10
    assert "\x1b" not in wrapper.feed("reeeeeeee")
