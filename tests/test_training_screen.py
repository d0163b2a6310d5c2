"""What training looks like: on terminals of several sizes, on none, and as JSON lines."""

import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from wcwidth import wcswidth

from minillm_repl import commands, views
from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.environment import process_environment
from minillm_repl.render.console import make_screen
from minillm_repl.render.json_lines import print_training_json
from minillm_repl.render.plot import Throughput, loss_plot, smooth
from minillm_repl.render.training import Curve, TrainingView
from minillm_repl.render.training_summary import perplexity, summary
from minillm_repl.repl.registry import discover
from minillm_repl.training import Evaluated, NotSaved, Saved, TrainingFinished, TrainStep
from tests.conftest import ROOT, random_checkpoint
from tests.terminal import Terminal

CURVE = [(step, 4.2 * (step + 5) ** -0.15 + 0.1 * math.sin(step * 7)) for step in range(1, 201)]
VAL = [(step, 4.3 * (step + 5) ** -0.14) for step in range(0, 201, 20)]
DONE = TrainingFinished(
    reason="done",
    steps=60,
    kept=60,
    tokens=46_080,
    seconds=12.0,
    step_seconds=10.0,
    first_loss=4.1744,
    last_loss=1.8843,
    train_loss=1.7012,
    val_loss=1.8843,
    bits_per_character=2.7184,
    curve=((1, 4.2),),
    val_curve=((0, 4.1744),),
)

# Draws a recorded run, slowly enough for several frames; says where it is, so that the tests need
# not guess.
SCRIPT = """
import sys, time
from rich.text import Text
from minillm_repl.environment import process_environment
from minillm_repl.render.console import make_screen
from minillm_repl.render.training import TrainingView
from minillm_repl.render.training_summary import summary
from minillm_repl.training import Evaluated, TrainingFinished, Saved, TrainStep

samples = [
    "날씨가 좋다.\\n그래서 오늘은 산책을 했다. " * 8,
    "\\x1b[2J\\x1b]0;taken over\\x07\\x9b31mred\\rover [bold]x[/] \\u202etxet",
    Text("a table of its own"),
    None,
]
losses = {0: (4.1744, 65.5), 20: (2.25, 10.8249), 40: (1.9, 2.0), 60: (1.7, 1e9)}

def events():
    for step in range(61):
        if step:
            yield TrainStep(
                step=step, loss=4.0 / step, lr=0.003, grad_norm=1.234, tokens=768 * step,
                seconds=0.1 * step,
            )
        if step % 20 == 0:
            train, val = losses[step]
            yield Evaluated(
                step=step, train_loss=train, val_loss=val, bits_per_character=2.7184,
                best=step in (0, 20, 40),
            )
        if step == 30:
            yield Saved(30)
        if step == 35 or step == 59 and "stop" in sys.argv:
            time.sleep(0.6)
            yield Saved(step)
            "stop" in sys.argv and input()
    curve = ((0, 4.0), (40, 2.0), (60, 1e9))
    yield TrainingFinished(
        reason="done", steps=60, kept=40, tokens=46_080, seconds=12.0, step_seconds=10.0,
        first_loss=4.1744,
        last_loss=2.0, train_loss=1.9, val_loss=2.0, bits_per_character=2.7184, curve=(),
        val_curve=curve,
    )

screen = make_screen(process_environment(), interactive="side" not in sys.argv)
told = iter(samples)
print("BEGIN", file=screen.notes_console.file, flush=True)
with TrainingView(screen, 60, 20) as view:
    finished = view.draw(events(), lambda: next(told))
screen.notes_console.print(summary(finished))
print("END", file=screen.notes_console.file, flush=True)
"""


def environment(**variables):
    names = ("PATH", "HOME", "PYTHONPATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return (
        kept
        | {"LANG": "C.UTF-8", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        | variables
    )


def run_in(columns, rows, *arguments, **variables):
    terminal = Terminal(
        ("-c", SCRIPT, *arguments),
        environment=environment(**variables),
        folder=ROOT,
        columns=columns,
        rows=rows,
        command=(sys.executable,),
    )
    terminal.child.setecho(False)
    return terminal


@pytest.fixture(scope="module")
def ended():
    """The recorded run in a terminal, at its end; each kind of terminal is run once."""
    opened = {}

    def run(columns=80, rows=24, **variables):
        key = (columns, rows, *variables.items())
        if key not in opened:
            opened[key] = run_in(columns, rows, **variables)
            opened[key].wait_for("END")
        return opened[key]

    yield run
    for each in opened.values():
        each.close()


@pytest.fixture
def stopped():
    """The recorded run in a terminal, waiting with a frame on the screen; Enter lets it go on to
    a second one.
    """
    opened = []

    def run(columns=80, rows=24):
        opened.append(run_in(columns, rows, "stop"))
        opened[-1].wait_for("step 35 of 60")
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def lines_of(terminal):
    lines = terminal.lines
    return lines[lines.index("BEGIN") + 1 : lines.index("END")]


# -- on a terminal


@pytest.mark.parametrize(
    ("columns", "rows", "no_color"),
    [(80, 24, ""), (80, 24, "1"), (200, 50, ""), (50, 16, ""), (80, 15, ""), (40, 12, "")],
)
def test_a_run_leaves_its_measurements_and_nothing_that_moved(ended, columns, rows, no_color):
    terminal = ended(columns, rows, NO_COLOR=no_color)
    lines = lines_of(terminal)
    end = lines.index(next(line for line in lines if line.startswith("done · 60 steps")))
    steps = [line for line in lines[:end] if line.startswith("step ")]
    assert [int(line.split()[1]) for line in steps] == [0, 20, 40, 60], str(terminal)
    words = [
        [(word.group(), word.start()) for word in re.finditer("[a-z/]{2,}", line)]
        for line in steps[:3]
    ]
    assert words[0] == words[1] == words[2]  # the columns are where they were
    assert [word for word, _ in words[0]][:3] == ["step", "train", "val"]
    assert len({line.index("★") for line in steps[:3]}) == 1
    assert [line.endswith("★") for line in steps] == [True, True, True, False]
    first = lines.index(steps[0])
    assert lines[first + 1].startswith("날씨가 좋다.⏎그래서")
    assert lines[first + 1].endswith("…")
    assert lines[first + 2] == steps[1]
    assert lines[first + 3].startswith(
        "␛[2J␛]0;taken over␇<U+009B>31mred␍over [bold]x[/]"[: columns - 2]
    )
    assert lines[first + 4] == steps[2]
    assert lines[first + 5 : first + 7] == ["a table of its own", steps[3]]
    assert end == first + 7
    for gone in ("┌", "└", "█", "saved at", "gradient"):
        assert gone not in "\n".join(lines), str(terminal)
    assert terminal.screen.title == ""


def test_a_frame_shows_the_curve_and_how_far_it_is(stopped):
    terminal = stopped()
    rows = [terminal.screen.row(y) for y in range(24)]
    top = next(y for y, row in enumerate(rows) if "┌" in row)
    assert "⠒⠒ train" in rows[top]
    assert "• validation" in rows[top]
    assert any("⠀" < cell <= "⣿" for row in rows[top + 1 : top + 7] for cell in row)
    assert rows[top + 8].split() == ["10", "15", "20", "25", "30", "35"]  # without the steep start
    assert rows[top + 9].startswith("loss, nats per token")
    assert re.fullmatch(
        r"█+\S? +step 35 of 60 · 0:00:0[23] left · saved at step 35", rows[top + 10]
    )
    assert rows[top + 11] == "loss 0.1143 · lr 0.003 · gradient 1.23 · 7,680 tokens/s"
    assert rows[top + 12 :] == [""] * (24 - top - 12)
    before = [line for line in terminal.lines if line.startswith("step")]
    terminal.keys("enter")
    terminal.wait_for("saved at step 59")
    terminal.keys("enter")
    terminal.wait_for("END")
    assert [line for line in terminal.lines if line.startswith("step")][: len(before)] == before
    assert "┌" not in terminal.text


@pytest.mark.parametrize(("columns", "rows"), [(49, 24), (80, 15)])
def test_a_small_terminal_has_no_room_for_the_curve_but_for_the_rest(stopped, columns, rows):
    terminal = stopped(columns, rows)
    assert "┌" not in terminal.text
    assert "loss 0.1143 · lr 0.003 · gradient 1.23" in terminal.text


def test_colours_are_the_sixteen_and_none_is_a_background(ended):
    terminal = ended(NO_COLOR="")
    lines_of(terminal)
    codes = {
        code
        for codes in re.findall(rb"\x1b\[([\d;]*)m", terminal.raw)
        for code in codes.decode().split(";")
    }
    assert {"36", "32", "2"} <= codes  # cyan, green, dim
    assert codes <= {"", "0", "1", "2", *map(str, range(30, 38)), *map(str, range(90, 98))}


def test_without_colours_there_are_none(ended):
    terminal = ended(NO_COLOR="1")
    lines_of(terminal)
    codes = {
        code
        for codes in re.findall(rb"\x1b\[([\d;]*)m", terminal.raw)
        for code in codes.decode().split(";")
    }
    assert codes <= {"", "0", "1", "2"}


def test_what_moves_is_gone_after_an_error_too(stopped):
    terminal = stopped()
    terminal.keys("ctrl-d")  # `input` raises EOFError
    terminal.wait_for("EOFError")
    assert "┌" not in terminal.text
    assert "saved at" not in terminal.text
    # the cursor is back
    assert terminal.raw.count(b"\x1b[?25l") == terminal.raw.count(b"\x1b[?25h") == 1


def test_hostile_text_is_only_text(ended):
    terminal = ended(200, 50, NO_COLOR="")
    lines = lines_of(terminal)
    assert "␛[2J␛]0;taken over␇<U+009B>31mred␍over [bold]x[/] <U+202E>txet" in lines
    for attack in (b"\x1b]0;taken", b"\x1b[2J", "\x9b".encode(), "\u202e".encode()):
        assert attack not in terminal.raw


# -- elsewhere


def plain(lines):
    facts = [re.split("  +", line) for line in lines if line.startswith("step")]
    assert len(facts) == 4
    # each with its sample at its end, but for the one that is drawn, and three of summary
    assert len(lines) == 8
    assert facts[0][-1].startswith("날씨가 좋다.⏎그래서")
    assert lines[0].rstrip().count("산책을") == 8
    assert "7,680 tokens/s" in lines[1]
    assert "lr 0.003" in lines[1]
    assert lines[1].index("tokens/s") == lines[2].index("tokens/s")
    assert lines[2].rstrip().endswith("★")
    assert lines[3] == "a table of its own"
    assert "val  1e+09" in lines[4]


def test_a_pipe_gets_one_line_for_each_measurement():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "side"], env=environment(), capture_output=True, check=True
    )
    assert done.stdout == b""
    assert b"\x1b" not in done.stderr
    assert b"\r" not in done.stderr
    text = done.stderr.decode()
    plain(text.splitlines()[1:-1])


def test_a_dumb_terminal_gets_the_same_lines(ended):
    terminal = ended(800, TERM="dumb")
    plain(lines_of(terminal))
    assert b"\x1b" not in terminal.raw


def test_json_lines_say_all_and_stay_json():
    stream = io.StringIO()
    events = [
        Evaluated(step=0, train_loss=4.0, val_loss=None, bits_per_character=6.0, best=True),
        TrainStep(step=1, loss=math.nan, lr=0.003, grad_norm=math.inf, tokens=768, seconds=0.5),
        Saved(1),
        NotSaved(2, "no space"),
        dataclasses.replace(DONE, curve=((1, math.inf), (2, 1.5))),
    ]
    assert print_training_json(events, stream) is events[-1]

    def refuse(name):
        raise AssertionError(name)

    got = [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]
    assert [each["event"] for each in got] == [
        "evaluated",
        "train_step",
        "saved",
        "not_saved",
        "finished",
    ]
    assert got[0] == {
        "event": "evaluated",
        "step": 0,
        "train_loss": 4.0,
        "val_loss": None,
        "bits_per_character": 6.0,
        "best": True,
    }
    assert got[1]["loss"] is got[1]["grad_norm"] is None
    assert got[4]["curve"] == [[1, None], [2, 1.5]]
    for event, data in zip(events, got, strict=True):
        assert list(data) == ["event", *(field.name for field in dataclasses.fields(event))]


def test_the_format_names_every_field_of_the_json():
    text = (ROOT / "docs/format.md").read_text(encoding="utf-8")
    section = text[text.index("## Events of training") :]
    for kind in (TrainStep, Evaluated, Saved, NotSaved, TrainingFinished):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in section, field.name


# -- the curve


@pytest.mark.parametrize("size", [(40, 6), (50, 10), (80, 10), (100, 20), (200, 20)])
@pytest.mark.parametrize("colours", [True, False])
@pytest.mark.parametrize(
    ("train", "val"),
    [
        (CURVE, VAL),
        (CURVE, []),
        ([], VAL),
        ([], []),
        ([(1, 2.0)], []),
        ([(1, 2.0), (2, 2.0)], [(2, 2.0)]),
        ([(1, 0.0), (1, 0.0)], []),
        ([(1, 1e9), (2, 3.0)], [(2, 1e-300)]),
        ([(2**63 - 1, 1.0), (2**63 - 2, 2.0)], [(0, 999999999.5)]),
        ([(5, math.nan), (6, math.inf), (7, 1e308), (8, -1.0)], [(9, math.inf)]),
    ],
)
def test_a_plot_has_exactly_its_size_and_no_codes(train, val, size, colours):
    columns, rows = size
    text = loss_plot(train, val, columns, rows, colours)
    lines = text.plain.split("\n")
    assert len(lines) == rows
    assert {cell_len(line) for line in lines} == {wcswidth(line) for line in lines} == {columns}
    assert all(character.isprintable() for line in lines for character in line)
    assert bool(text.spans) == colours
    assert not any(span.style.bgcolor for span in text.spans if not isinstance(span.style, str))


def test_a_plot_tells_the_two_losses_apart_without_colours():
    lines = loss_plot(CURVE, VAL, 80, 20, colours=False).plain.split("\n")
    assert sum("⠀" < cell <= "⣿" for line in lines for cell in line) > 60
    assert sum(line.count("•") for line in lines) == len(VAL) + 1  # and one in the legend
    assert "•" not in loss_plot(CURVE, [], 80, 20, colours=False).plain


def test_a_plot_draws_values_where_its_axes_say():
    lines = loss_plot([], [(0, 1.0), (40, 2.0), (100, 3.0)], 80, 23, colours=False).plain.split(
        "\n"
    )
    where = {
        value: next(y for y, line in enumerate(lines) if line.startswith(f"{value}┤"))
        for value in ("1.0", "2.0", "3.0")
    }
    steps = lines[-2]
    for value, step in (("1.0", "0"), ("2.0", "40"), ("3.0", "100")):
        place = re.search(rf"(?<!\d){step}(?!\d)", steps)
        assert place.start() - 1 <= lines[where[value]].index("•") <= place.end() + 1, value


def test_one_plot_leaves_nothing_for_the_next():
    alone = loss_plot(VAL, [], 60, 10, colours=False).plain
    loss_plot(CURVE, VAL, 200, 30, colours=True)
    assert loss_plot(VAL, [], 60, 10, colours=False).plain == alone


def test_smoothing_is_a_mean_that_keeps_the_first_point():
    rng = np.random.default_rng(0)
    points = [(step, 2 + noise) for step, noise in enumerate(rng.normal(0, 1, 300))]
    smoothed = smooth(points)
    assert [step for step, _ in smoothed] == [step for step, _ in points]
    assert smoothed[0] == points[0]
    assert smoothed[150][1] == pytest.approx(np.mean([loss for _, loss in points[140:161]]))
    assert np.std([loss for _, loss in smoothed[30:]]) < 0.35
    assert smooth(points[:29]) == points[:29]


def test_a_long_run_is_remembered_in_few_points_whose_mean_is_that_of_all():
    curve, losses = Curve(), np.random.default_rng(0).uniform(1, 2, 51_200)
    for step, loss in enumerate(losses, 1):
        curve.add(step, loss)
    assert 200 <= len(curve.points) < 400
    assert np.mean([loss for _, loss in curve.points]) == pytest.approx(np.mean(losses))
    assert curve.points[-1][0] == 51_200
    assert [step for step, _ in curve.points] == sorted(step for step, _ in curve.points)


# -- the time left


def steps_of(pace, count, seconds, start=0, at=0.0):
    for step in range(start + 1, start + count + 1):
        at += seconds
        pace.step(
            TrainStep(step=step, loss=1.0, lr=0.1, grad_norm=1.0, tokens=step * 100, seconds=at)
        )
    return at


def test_the_pace_is_that_of_the_last_steps():
    pace = Throughput()
    assert not pace.is_known
    at = steps_of(pace, 50, 1.0)
    steps_of(pace, 500, 0.1, 50, at)
    assert pace.estimate_seconds(100) == pytest.approx(10, rel=0.1)
    assert pace.speed == pytest.approx(1000, rel=0.1)


def test_a_resumed_run_does_not_count_the_time_before_as_one_step():
    pace = Throughput()
    steps_of(pace, 10, 0.5, start=1000, at=9999.0)
    assert pace.estimate_seconds(10) == pytest.approx(5)
    assert pace.speed == pytest.approx(200)


def test_measurements_are_in_the_time_left_and_not_in_the_pace():
    pace, at = Throughput(), 0.0
    for turn in range(20):
        pace.pause(is_evaluation=True)
        at = steps_of(pace, 10, 0.1, turn * 10, at + 2.0)
        # from the second step on
        assert pace.estimate_seconds(100, 10) == pytest.approx(10 + 10 * 2.0, rel=0.01), turn
    assert pace.speed == pytest.approx(1000)
    assert pace.estimate_seconds(0, 1) == pytest.approx(2.0, rel=0.01)


def test_saves_are_in_the_time_left_evenly_and_not_in_that_of_measurements():
    pace, at = Throughput(), 0.0
    for turn in range(20):
        at = steps_of(pace, 10, 0.1, turn * 10, at)
        pace.pause()
        at += 1.0
    assert pace.speed == pytest.approx(1000)
    assert (
        pace.estimate_seconds(100)
        == pace.estimate_seconds(100, 5)
        == pytest.approx(10 + 10 * 1.0, rel=0.1)
    )


def test_a_run_that_goes_on_knows_its_measurements_once_it_has_made_one():
    pace = Throughput()
    at = steps_of(pace, 10, 0.5, start=1000, at=9999.0)
    assert pace.estimate_seconds(10, 3) == pytest.approx(5)
    pace.pause(is_evaluation=True)
    steps_of(pace, 5, 0.5, 1010, at + 4.0)
    assert pace.estimate_seconds(10, 3) == pytest.approx(5 + 3 * 4)


@pytest.mark.parametrize(
    ("steps", "every", "done", "evaluated", "left"),
    [
        (60, 20, 0, -1, 4),
        (60, 20, 0, 0, 3),
        (60, 20, 19, 0, 3),
        (60, 20, 20, 0, 3),
        (60, 20, 20, 20, 2),
        (60, 20, 60, 60, 0),
        (50, 20, 41, 40, 1),
        (50, 20, 50, 50, 0),
        (5, 500, 1, 0, 1),
        (60, 20, 33, -1, 2),
    ],
)
def test_measurements_to_come_are_counted(steps, every, done, evaluated, left):
    view = TrainingView(
        make_screen(process_environment(), interactive=False), steps, every, final_eval_cost=16.0
    )
    view._evaluated = evaluated
    assert view._evaluations_left(done) == left + 16


def test_a_measurement_after_every_step_still_has_a_pace():
    pace, at = Throughput(), 0.0
    for step in range(10):
        at = steps_of(pace, 1, 1.0, step, at)
        pace.pause()
    assert pace.estimate_seconds(10) == pytest.approx(10)


# -- the closing lines


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "done · 60 steps · 12.0 s · loss 4.1744 → 1.8843 nats per token\n"),
        ({"reason": "interrupt"}, "stopped by Ctrl-C · 60 steps · "),
        (
            {
                "reason": "patience",
                "kept": 40,
                "val_curve": ((20, 3.0), (40, 1.9), (50, 2.0), (60, 2.0)),
            },
            "stopped early: no improvement for 2 evaluations\n60 steps",
        ),
        (
            {"reason": "diverged", "kept": 40},
            "stopped: the loss was not finite after step 60\n60 steps",
        ),
    ],
)
def test_the_closing_lines_say_why_it_ended(changes, expected):
    text = summary(dataclasses.replace(DONE, **changes)).plain
    assert text.startswith(expected)
    assert ("the weights of step 40 are kept" in text) == ("kept" in changes)
    assert "46,080 tokens · 4,608 tokens/s" in text
    assert all(len(line) <= 80 for line in text.split("\n"))


def test_the_closing_lines_have_the_figures_of_the_weights_that_are_kept():
    text = summary(DONE).plain
    assert (
        "val loss 1.8843 · train loss 1.7012 · perplexity 6.58 · 2.718 bits per character" in text
    )
    assert "validation" not in summary(dataclasses.replace(DONE, val_loss=None)).plain


def test_closing_lines_of_a_run_that_did_nothing():
    nothing = TrainingFinished(
        reason="interrupt",
        steps=0,
        kept=0,
        tokens=0,
        seconds=0.0,
        step_seconds=0.0,
        first_loss=1e9,
        last_loss=1e9,
        train_loss=1e9,
        val_loss=None,
        bits_per_character=math.nan,
        curve=(),
        val_curve=(),
    )
    assert "perplexity inf · nan bits" in summary(nothing).plain


def test_perplexity_is_the_exponential_of_the_loss():
    uniform = np.full(65, 1 / 65)
    assert perplexity(-np.log(uniform).mean()) == pytest.approx(65)
    assert perplexity(710) == math.inf


# -- `:plot`


def save_with(path: Path, **record: object) -> Checkpoint:
    training = TrainingRecord(steps=200, tokens=1, train_loss=1.0, **record) if record else None
    return save(dataclasses.replace(random_checkpoint(), training=training), path)


@pytest.fixture
def plot(tmp_path):
    """Runs `:plot` on a checkpoint in a terminal, and returns what stands below."""
    opened = []

    def run(columns=80, rows=24, **record):
        path = tmp_path / "model.safetensors"
        save_with(path, **record)
        variables = {"HOME": str(tmp_path), "MINILLM_HISTORY": str(tmp_path / "history")}
        terminal = Terminal(
            ("--ckpt", str(path)),
            environment=environment(**variables),
            folder=tmp_path,
            columns=columns,
            rows=rows,
        )
        opened.append(terminal)
        terminal.wait_for_prompt()
        lines = terminal.do(":plot").split("\n")
        return [line for line in lines[1:] if line]

    yield run
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("columns", "rows", "size"),
    [(80, 24, (80, 20)), (120, 50, (100, 20)), (60, 16, (60, 12)), (22, 9, (40, 6))],
)
def test_plot_shows_the_curve_that_the_file_keeps(plot, columns, rows, size):
    lines = plot(columns, rows, curve=tuple(CURVE), val_curve=tuple(VAL))
    assert [line.rstrip() for line in lines] == [
        line[:columns].rstrip()
        for line in loss_plot(CURVE, VAL, *size, colours=False).plain.split("\n")
    ]


@pytest.mark.parametrize("record", [{}, {"corpus": "t.txt"}])
def test_plot_without_a_record_says_so_in_one_line(plot, record):
    assert plot(**record) == ["error: this model has no training record; `:train` creates one"]


def test_plot_is_a_command():
    assert discover(commands, views).has("plot")
