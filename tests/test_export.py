"""An exported view is whole, whatever the size of the terminal it was shown on."""

import re
from html import unescape
from xml.etree import ElementTree

import pytest

from tests.small import random_checkpoint
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - the last is a fixture

LETTERS = [*"abcdefghijklmnopqrstuvwxyz "]
TEXT = "the quick brown fox jumps over the lazy dog " * 3
WIDTHS = (30, 200)


@pytest.fixture(scope="module")
def checkpoint():
    return random_checkpoint(characters=LETTERS, context=160, width=48, layers=5, heads=8)


def shell_of(checkpoint, width):
    made = shell_for(checkpoint, width=width)
    made.session.set("max-tokens", "1")
    made.session.set("seed", "3")
    made.run_line(TEXT)
    return made


VIEWS = [
    ":attn", ":attn 1", ":attn 0.1", ":qkv 0.1", ":qkv 0.1 key=3", ":lens", ":why", ":why a vs b",
    ":residual", ":neurons 0", ":neurons 0.3", ":grad", ":surprise", ":sampler", ":temp sweep",
    ":prob quick", ":branch 3 tokens=30", ":tokens some words", ":near a", ":map",
    ":compare nalssi", ":descent", ":source attention", ":source", ":shapes", ":ablate 0.1",
    ":ablate scan", ":patch the quick brown fox jumps -> the quick brown dog jumps",
    ":steer good vs bad layer=1",
]  # fmt: skip


@pytest.mark.parametrize("line", VIEWS)
def test_a_picture_does_not_depend_on_the_terminal(checkpoint, tmp_path, line):
    pictures = set()
    for width in WIDTHS:
        shell, file = shell_of(checkpoint, width), tmp_path / f"{width}.txt"
        shell.run_line(line)
        shell.run_line(f":export {file}")
        pictures.add(file.read_text(encoding="utf-8"))
    assert len(pictures) == 1
    lines = pictures.pop().splitlines()
    # the end of a cut row
    assert not any(set(row.rstrip()) <= set("█▏▎▍▌▋▊▉░▒▓") and row.strip() for row in lines)


def of_txt(text):
    return text.split("\n\n", 1)[1]


def of_svg(text):
    rows = {}
    for piece in ElementTree.fromstring(text).iter():
        if piece.tag.endswith("}text") and piece.get("y") and piece.get("textLength"):
            rows.setdefault(float(piece.get("y")), []).append(piece.text.replace("\xa0", " "))
    return "\n".join("".join(rows[y]).rstrip("\n") for y in sorted(rows))


def of_html(text):
    body = text.partition("<pre>")[2].partition("</pre>")[0]
    return unescape(re.sub(r"<[^>]*>", "", body))


@pytest.mark.parametrize(("ending", "read"), [("txt", of_txt), ("svg", of_svg), ("html", of_html)])
def test_all_of_a_matrix_is_in_each_kind_of_picture(checkpoint, tmp_path, ending, read):
    shell = shell_of(checkpoint, 60)
    shell.run_line(":attn 0.1")
    assert "the last" in printed(shell)  # there was no room for all
    file = tmp_path / f"a.{ending}"
    shell.run_line(f":export {file}")
    shown = read(file.read_text(encoding="utf-8"))
    rows = [row for row in shown.splitlines() if re.match(r"\s*\d+ ", row)]
    count = len(shell.session.conversation.ids)
    assert [int(row.split()[0]) for row in rows] == [*range(count)]
    assert "the last" not in shown
    cells = [re.sub(r"^\s*\d+ .{6}", "", row) for row in rows]
    assert all(len(row.rstrip()) <= 2 * count for row in cells)
    assert cells[0].count("·") == count - 1  # what a token cannot see, to the right of it


def test_a_session_is_as_wide_as_its_widest_part(checkpoint, tmp_path):
    shell = shell_of(checkpoint, 200)
    shell.run_line(":attn 0.1")
    wide = printed(shell)
    shell.screen.out.width = 40
    shell.run_line(":lens")
    shell.run_line(f":export {tmp_path / 'all.txt'} session")
    kept = (tmp_path / "all.txt").read_text(encoding="utf-8")
    matrix = [
        row.rstrip() for row in wide.splitlines() if re.match(r"\s*\d+ \S", row) and "·" in row
    ]
    assert len(matrix) > 50
    assert all(row in kept for row in matrix)


def test_a_session_that_was_too_long_to_keep_says_so(checkpoint, tmp_path):
    shell = shell_of(checkpoint, 80)
    for _line in range(2_010):
        shell.screen.out.print("x")
    shell.run_line(f":export {tmp_path / 'all.txt'} session")
    assert "outputs are no longer kept" in printed(shell)


def test_the_curve_is_a_view_too(tmp_path):
    from minillm_repl.storage.paths import find_checkpoint

    shell = shell_for(find_checkpoint("nalssi"))
    shell.run_line("날씨")
    shell.run_line(":lens")
    shell.run_line(":plot")
    shell.run_line(f":export {tmp_path / 'curve.txt'}")
    assert "nats per token" in (tmp_path / "curve.txt").read_text(encoding="utf-8")
