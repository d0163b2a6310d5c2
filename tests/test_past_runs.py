"""Runs of the past: listed, compared, drawn over each other; sweeps, and tables of losses."""

import csv
import json
import sqlite3
import subprocess
import sys

import pytest
from safetensors.numpy import load_file

from minillm_repl.checkpoint.record import RunRecord, TrainingRecord
from minillm_repl.commands.runs import expand_sweep
from minillm_repl.errors import UserError
from minillm_repl.render.plot import Losses, overlay_plot, recent
from minillm_repl.training import run_folder
from minillm_repl.training.prepare import check_log
from tests.conftest import MODELS
from tests.test_training_runs import environment

RUN = RunRecord(
    plan={"lr": "0.01"}, reason="done", steps=3, kept=3, first_loss=4.0, last_loss=2.0, seconds=1.0,
    threads=1, processes=1, machine={"cores": "2"},
)  # fmt: skip
RECORD = TrainingRecord(
    steps=3, tokens=9, train_loss=2.0, corpus="t.txt", curve=((1, 3.0),), run=RUN
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "runs_folder", lambda: tmp_path / "runs")
    return tmp_path / "runs"


def test_runs_are_numbered_kept_as_they_were_and_deleted(folder):
    assert run_folder.past_runs() == []
    assert [run_folder.add_run(RECORD, "a.safetensors"), run_folder.add_run(RECORD)] == [1, 2]
    first, second = run_folder.past_runs()
    assert (first.record, first.path, second.path) == (RECORD, "a.safetensors", "")
    assert first.loss == 2.0
    run_folder.delete_run(1)
    assert [run.number for run in run_folder.past_runs()] == [2]
    assert run_folder.add_run(RECORD) == 3
    with pytest.raises(UserError, match="no run 1"):
        run_folder.delete_run(1)


def test_the_oldest_runs_go_first(folder, monkeypatch):
    monkeypatch.setattr(run_folder, "_MAX_RUNS", 3)
    for _ in range(5):
        run_folder.add_run(RECORD)
    assert [run.number for run in run_folder.past_runs()] == [3, 4, 5]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"day": 1}', "\0", '{"day": "", "path": "", "record": {}}']
)
def test_a_damaged_file_is_left_out_of_the_list_and_named_when_asked_for(folder, text):
    run_folder.add_run(RECORD)
    (folder / "0002.json").write_text(text)
    assert [run.number for run in run_folder.past_runs()] == [1]
    with pytest.raises(UserError):
        run_folder.find_run(2)


def test_where_nothing_can_be_written_a_run_has_no_number(folder):
    folder.write_text("a file is in the way")
    assert run_folder.add_run(RECORD) is None
    assert run_folder.past_runs() == []


def test_a_sweep_has_a_plan_for_each_combination():
    plans = expand_sweep(["lr=0.1,0.2", "seed=3", "d-model=8,16"])
    assert [(label, plan.lr, plan.d_model, plan.seed) for label, plan in plans] == [
        ("lr=0.1 d-model=8", 0.1, 8, 3), ("lr=0.1 d-model=16", 0.1, 16, 3),
        ("lr=0.2 d-model=8", 0.2, 8, 3), ("lr=0.2 d-model=16", 0.2, 16, 3),
    ]  # fmt: skip
    with pytest.raises(UserError, match="needs a list"):
        expand_sweep(["lr=0.1"])
    with pytest.raises(UserError, match="too many"):
        expand_sweep(["seed=" + ",".join(map(str, range(40)))])


@pytest.mark.parametrize("colours", [False, True])
def test_an_overlay_has_a_letter_at_each_validation_loss(colours):
    one = Losses("one", ((1, 4.0), (100, 2.0)), ((1, 4.0), (50, 3.0), (100, 2.0)))
    other = Losses("other", ((1, 4.0), (100, 1.0)), ((50, 2.5), (100, 1.0)))
    lines = overlay_plot([one, other], 60, 14, colours).plain.split("\n")
    picture = "\n".join(line for line in lines if "│" in line or "┤" in line)
    assert (picture.count("a"), picture.count("b")) == (3, 2)
    assert lines[-1] == "a one  b other"
    assert {len(line) for line in lines[:-1]} == {60}


def test_the_live_curve_leaves_out_the_steep_beginning_once_there_is_enough_beside_it():
    curve = [(step, 4.0 / step) for step in range(1, 101)]
    assert recent(curve, 100)[0] == (20, 0.2)
    assert recent(curve[:15], 15) == curve[:15]


def test_runs_of_a_session_are_listed_compared_drawn_and_tabled(tmp_path):
    text = MODELS / "nalssi.txt"
    lines = [
        f":train {text} new steps=12 width=16 layers=1 seed=1 log=csv",
        f":train {text} new steps=12 width=16 layers=1 seed=2",
        ":runs", ":runs 1 2", ":plot 1 2",
        f":train sweep {text} new lr=0.001,0.02 steps=12 width=16",
        ":runs load 1", ":runs x",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "minillm_repl", "--ckpt", "m.safetensors"],
        input="\n".join(lines),
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "best: lr=0.02" in said
    assert "a 1  b 2" in said
    assert [line.split()[1:] for line in said.splitlines() if line.startswith("seed ")] == [
        ["1", "2"]
    ]
    assert "'x' is no number of a run" in said
    assert load_file(tmp_path / "m.safetensors")
    with (tmp_path / "m.csv").open(encoding="ascii") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["loss"]] == list(range(1, 13))


def test_losses_go_to_tensorboard_and_trackio_as_to_the_table(tmp_path):
    """What their own readers read is what `log=csv` has, and their words stay off the screen."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("trackio")
    text = MODELS / "nalssi.txt"
    shape = f":train {text} new steps=12 width=16 layers=1 seed=1"
    lines = [f"{shape} log=csv", ":save a.safetensors", f"{shape} log=tensorboard"]
    lines += [":save b.safetensors", f"{shape} log=trackio", ":save c.safetensors"]
    done = subprocess.run(
        [sys.executable, "-m", "minillm_repl", "--ckpt", "m.safetensors"],
        input="\n".join(lines),
        cwd=tmp_path,
        env=environment(tmp_path) | {"TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert "Trackio" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    with (tmp_path / "m.csv").open(encoding="ascii") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "a.tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    with sqlite3.connect(tmp_path / "trackio" / "minillm-repl.db") as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    told = [json.loads(metrics) for _step, metrics in rows]
    assert [row["loss"] for row in told if "loss" in row] == pytest.approx(losses)


def test_a_log_whose_package_is_missing_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("minillm_repl.training.prepare.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"minillm-repl\[log\]"):
        check_log("trackio")
