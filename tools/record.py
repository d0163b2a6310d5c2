"""Record the first minute with the program, in both languages, as moving pictures:
`python -m tools.record` writes docs/pictures/first-minute*.svg.

The program runs in a real terminal of 80 x 24 cells, and somebody types. The screens are its own;
only how long each stays is ours. A test records it again and compares the screens at which the
program waits for a line.
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from pathlib import Path
from time import monotonic

from rich.cells import cell_len

from tests.terminal import Screen, Terminal
from tools.pictures import FOLDER, ROOT

COLUMNS, ROWS = 80, 24
# name: language, and what is typed
VISITS = {
    "first-minute": ("en", ("My name is Ben", "What's my name?", ":why Ben", ":lens @Ben")),
    "first-minute-ko": (
        "ko",
        ("나는 민수야", "내 이름 기억해?", ":이유 민", ":lens 오늘은 날씨가 참 좋"),
    ),
}
_KEY, _WRITES, _READ, _READ_MORE = 0.09, 0.12, 2.5, 4.5  # seconds that a screen stays
_SHOWN = 15  # screens of an answer that is being written
_TOO_LONG = 120  # seconds for one answer
_BURST = 3  # letters that come at once in a long line
_CELL, _LINE, _FONT = 9.6, 20, 16  # pixels
_FONTS = "'DejaVu Sans Mono', Menlo, Consolas, 'Noto Sans Mono CJK KR', 'Malgun Gothic', monospace"
_COLORS = {
    "default": "#c5c8c6", "black": "#1d1f21", "red": "#cc6666", "green": "#98a84b",
    "brown": "#d0b344", "blue": "#608ab1", "magenta": "#98729f", "cyan": "#68a0b3",
    "white": "#c5c8c6",
}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """A screen: its rows as SVG, its text, where the cursor is, and how long it stays."""

    rows: tuple[str, ...]
    cursor: tuple[int, int]
    seconds: float
    waits: bool  # for a line: nothing more comes by itself


def record(language: str, typed: Sequence[str]) -> list[Frame]:
    """Return the screens of one visit, from the first prompt to the end."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "HOME": home, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8",
            "TERM": "xterm-256color", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        # The most likely tokens, so that it says the same each time.
        flags = ["--lang", language, "--temp", "0", "--max-tokens", "40", "--threads", "1"]
        with Terminal(flags, environment=environment, folder=Path(home)) as terminal:
            terminal.wait_for_prompt(timeout=120)
            terminal.wait_for_toolbar("temp 0")
            frames = [_frame(terminal.screen, _READ, waits=True)]
            for line in typed:
                frames += _type(terminal, line)
                frames += _answer(terminal)
            terminal.keys("ctrl-d")
            assert terminal.wait_for_end() == 0
    return frames


def _type(terminal: Terminal, line: str) -> Iterable[Frame]:
    step = 1 if len(line) < 20 else _BURST
    for end in range(step, len(line) + step, step):
        terminal.type(line[end - step : end])
        shown = line[:end].rstrip()
        terminal.wait_for(lambda screen, shown=shown: f">>> {shown}" in screen.text)
        terminal.pump(0.05)
        yield _frame(terminal.screen, _KEY)


def _answer(terminal: Terminal) -> Iterable[Frame]:
    before = terminal.prompts
    terminal.keys("enter")
    until, writing = monotonic() + _TOO_LONG, list[Frame]()
    while terminal.prompts == before or not terminal.at_empty_prompt:
        assert monotonic() < until, terminal
        terminal.pump(0.1)
        writing.append(_frame(terminal.screen, _WRITES))
    yield from writing[-_SHOWN:]  # not how long a busy machine takes to import torch
    terminal.wait_for_toolbar(" · ")
    for _quiet in range(5):
        terminal.pump(0.1)
    yield _frame(terminal.screen, _READ_MORE, waits=True)


def _frame(screen: Screen, seconds: float, *, waits: bool = False) -> Frame:
    rows = tuple(_row(screen, y) for y in range(screen.lines))
    return Frame(rows, (screen.cursor.x, screen.cursor.y), seconds, waits)


def _row(screen: Screen, y: int) -> str:
    """Return a row as `<text>` elements, one for each run of cells of one kind."""
    runs: list[tuple[int, str, str]] = []  # first cell, attributes, text
    for x in range(screen.columns):
        cell = screen.buffer[y][x]
        weight = ' font-weight="bold"' if cell.bold else ""
        color = _COLORS.get(cell.fg, f"#{cell.fg}" if len(cell.fg) == 6 else _COLORS["default"])
        kind = f'fill="{color}"{weight}'
        # A wide letter has a run of its own: its width depends on the font.
        is_wide = cell_len(cell.data) == 2
        if runs and runs[-1][1] == kind and not is_wide and cell_len(runs[-1][2][-1:]) < 2:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + cell.data)
        elif cell.data:
            runs.append((x, kind, cell.data))
    return "".join(
        f'<text x="{x * _CELL:g}" textLength="{cell_len(text.rstrip()) * _CELL:g}" {kind}>'
        f"{escape(text.rstrip())}</text>"
        for x, kind, text in runs
        if text.strip()
    )


def film(frames: Sequence[Frame], title: str) -> str:
    """Return the screens as one SVG: a strip of them, moved up by one at a time."""
    frames = _merged(frames)
    rows = {
        row: f"r{index}"
        for index, row in enumerate(dict.fromkeys(r for f in frames for r in f.rows))
    }
    width, height = COLUMNS * _CELL + 20, ROWS * _LINE + 20
    total = sum(each.seconds for each in frames)
    starts = [0.0, *accumulate(each.seconds for each in frames)][:-1]
    moves = "".join(
        f"{100 * start / total:.3f}%{{transform:translateY({-index * height:g}px)}}"
        for index, start in enumerate(starts)
    )
    still = max(index for index, each in enumerate(frames) if each.waits)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}">',
        "<!-- made by tools/record.py -->",
        f"<title>{escape(title)}</title>",
        f"<style>text{{font:{_FONT}px {_FONTS};white-space:pre}}"
        f"#film{{animation:play {total:.2f}s step-end infinite}}@keyframes play{{{moves}}}"
        # who wants no motion sees the last screen
        f"@media(prefers-reduced-motion:reduce){{#film{{animation:none;"
        f"transform:translateY({-still * height:g}px)}}}}</style>",
        "<defs>",
        *(f'<g id="{name}">{row}</g>' for row, name in rows.items() if row),
        "</defs>",
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#292929"/><g id="film">',
    ]
    for index, each in enumerate(frames):
        x, y = each.cursor
        parts += [
            f"<g{' class=' + chr(34) + 'waits' + chr(34) if each.waits else ''} "
            f'transform="translate(10,{index * height + 24:g})">',
            *(
                f'<use href="#{rows[row]}" y="{line * _LINE}"/>'
                for line, row in enumerate(each.rows)
                if row
            ),
            f'<rect x="{x * _CELL:g}" y="{y * _LINE - 14}" width="{_CELL}" height="18" '
            'fill="#c5c8c6" opacity=".5"/></g>',
        ]
    return "\n".join([*parts, "</g></svg>", ""])


def _merged(frames: Sequence[Frame]) -> list[Frame]:
    """Return the screens without those that are as the one before; it stays longer."""
    kept: list[Frame] = []
    for each in frames:
        if kept and (each.rows, each.cursor) == (kept[-1].rows, kept[-1].cursor):
            last = kept.pop()
            longer, waits = max(last.seconds, each.seconds), last.waits or each.waits
            kept.append(replace(each, seconds=longer, waits=waits))
        else:
            kept.append(each)
    return kept


if __name__ == "__main__":
    for name in sys.argv[1:] or VISITS:
        language, typed = VISITS[name]
        text = film(record(language, typed), f"minillm-repl --lang {language}")
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")
