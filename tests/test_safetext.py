import unicodedata

import pytest

from minillm_repl.safetext import safe, safe_line, show_token

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    "character",
    [*CONTROLS, *BIDIRECTIONAL, "\u2028", "\u2029", "\ufeff", "\ud800", "\U000e0041", "\U000e0148"],
)
def test_nothing_that_steers_a_terminal_survives(character):
    made_safe = safe(f"a{character}b")
    assert character not in made_safe
    assert made_safe.startswith("a")
    assert made_safe.endswith("b")
    assert len(made_safe) > 2
    made_safe.encode()


def test_no_format_or_control_character_of_unicode_survives_but_newline_tab_and_joiners():
    everything = "".join(map(chr, range(0x110000)))
    left = {
        c for c in safe(everything) if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    }
    assert left == {"\n", "\t", "\u200c", "\u200d"}


@pytest.mark.parametrize(
    "text",
    [
        "날씨가 좋다.\n",
        "if x:\n\ty",
        unicodedata.normalize("NFD", "한글"),
        "👩‍👩‍👧",
        "e\u0301",
        "日本語",
        "[bold]x[/]",
        "नी‍",
    ],
)
def test_harmless_text_stays_as_it_is(text):
    assert safe(text) == text


def test_an_escape_sequence_split_at_any_place_is_caught():
    attack = "\x1b]0;title\x07\x1b[31m\x9b2J"
    for place in range(len(attack)):
        parts = safe(attack[:place]) + safe(attack[place:])
        assert parts == safe(attack) == "␛]0;title␇␛[31m<U+009B>2J"


def test_a_token_is_visible_in_a_table():
    assert show_token(b" \n") == "␣⏎"
    assert show_token("좋".encode()) == "좋"
    assert show_token(b"\xea\xb0") == "<EA B0>"
    assert show_token(b"a\xff \x1b") == "a<FF>␣␛"
    assert safe_line("a\n\tb") == "a⏎␉b"
