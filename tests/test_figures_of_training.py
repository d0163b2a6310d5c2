"""Figures that training tells: each is of what it says it is."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from minillm_repl.checkpoint import adapter
from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.cli import main
from minillm_repl.commands.training_screen import describe_run, estimate_seconds
from minillm_repl.errors import UserError
from minillm_repl.training import tokenize as token_files
from minillm_repl.training.corpus import open_corpus
from minillm_repl.training.evaluation import evenly_spaced_starts
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import find_corpus, start_run
from minillm_repl.training.run import RunContext
from minillm_repl.training.splits import Split
from minillm_repl.training.texts import make_tokenizer
from minillm_repl.training.tokenize import tokenise
from tests.conftest import random_checkpoint

PLAN = TrainPlan(
    steps=4, context_length=8, batch_size=2, lr=0.01, precision="float32", eval_interval=2
)


def begin(start, corpus, **settings):
    plan = dataclasses.replace(PLAN, **settings)
    return start_run(
        start,
        str(corpus),
        plan,
        RunContext(path=Path(corpus).parent / "m", device="cpu", threads=1),
    )


def put(tmp_path, text, name="t.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


# -- different tokens


@pytest.mark.parametrize(
    ("kind", "text", "different"),
    [
        ("char", "가나가나 다" * 9, 4),
        ("char", "ab\n<|endoftext|>\nba\n" * 12, 4),  # a, b, a newline, and what ends a document
        ("char:2", "aaaa bbb cc d" * 9, 5),  # two, and the bytes of the others: a space, c, d
        ("bpe:300", "the cat sat on the mat. " * 40, None),
    ],
)
def test_different_tokens_are_those_that_occur(tmp_path, kind, text, different):
    run = begin(None, put(tmp_path, text), tokenizer=kind, d_model=16, n_layers=1)
    occurs = set(run.trainer.train.ids.tolist()) | set(
        run.trainer.val.ids.tolist() if run.trainer.val else ()
    )
    assert len(occurs) == (different or len(occurs)) <= run.start.tokenizer.vocab_size
    assert (len(occurs) < run.start.tokenizer.vocab_size) == (
        kind in ("bpe:300", "char:2")
    )  # these have all bytes
    assert f"{len(occurs)} distinct" in describe_run(run)


def test_a_model_that_is_trained_further_counts_the_text_and_not_its_vocabulary(tmp_path, nalssi):
    assert "5 distinct" in describe_run(begin(nalssi, put(tmp_path, "날씨가 좋" * 20)))


def test_conversations_and_a_part_held_out_count_too(tmp_path):
    talk = json.dumps(
        {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}]}
    )
    run = begin(None, put(tmp_path, (talk + "\n") * 1_800, "t.jsonl"), d_model=16, n_layers=1)
    assert run.trainer.val is not None
    assert "5 distinct" in describe_run(run)  # a, b, two roles and the end of a turn


def test_tokens_that_are_found_again_are_counted_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "_MIN_CACHED_CHARACTERS", 0)
    opened = open_corpus(put(tmp_path, "가나다 가나다 라"))
    tokenizer = make_tokenizer("char", opened)
    first, again = (tokenise(opened, tokenizer, cache=tmp_path / "cache") for _ in range(2))
    assert first.unique_tokens == again.unique_tokens == 5


# -- LoRA


@pytest.fixture
def base(tmp_path):
    model = random_checkpoint(characters=list("0123456789 "), context=32, width=24)
    record = TrainingRecord(
        steps=150,
        tokens=9_600,
        train_loss=0.5,
        corpus="of-the-base.txt",
        corpus_sha256="0" * 64,
        curve=((1, 3.0),),
    )
    save(dataclasses.replace(model, training=record), tmp_path / "base.safetensors")
    return load(tmp_path / "base.safetensors")


@pytest.fixture
def numbers(tmp_path):
    return put(tmp_path, " ".join(str(place * 7 % 97) for place in range(300)))


@pytest.mark.parametrize("rank", [1, 3])
def test_lora_says_how_many_parameters_are_trained(base, numbers, rank):
    run = begin(base, numbers, lora_rank=rank)
    matrices = [
        array
        for name, array in base.tensors.items()
        if name.startswith("blocks.") and array.ndim == 2
    ]
    expected = sum(rank * sum(array.shape) for array in matrices)
    assert describe_run(run).startswith(
        f"training {expected:,} parameters; the other {base.config.n_params:,} are frozen"
    )
    assert describe_run(begin(base, numbers)).startswith(
        f"further training: {base.config.n_params:,} parameters"
    )


def learnt(base, numbers, **settings):
    run = begin(base, numbers, **settings)
    *_, finished = run.events(lambda: False, save=False)
    return run.checkpoint(finished)


def card(capsys, path):
    assert main(["--ckpt", str(path), "--no-history"]) == 0
    return capsys.readouterr().out


def script(monkeypatch, text):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_an_adapter_has_its_own_record_and_not_that_of_its_base(
    base, numbers, tmp_path, capsys, monkeypatch
):
    after = learnt(base, numbers, lora_rank=2)
    file = tmp_path / "adapter.safetensors"
    adapter.save_adapter(after, file)
    opened = load(file)
    assert (opened.record.steps, opened.record.tokens, opened.record.corpus) == (
        4,
        64,
        str(numbers),
    )
    assert opened.record == after.record
    assert find_corpus("", opened) == str(numbers)
    script(monkeypatch, ":model\n")
    shown = card(capsys, file)
    assert "4 steps, 64 tokens" in shown
    assert "of-the-base" not in shown
    assert "parameters of rank 2, trained on top of" in shown
    assert opened.training.steps == after.training.steps == 154  # of the two merged
    assert (
        opened.training.curve
        == after.training.curve
        == ((1, 3.0), *((150 + s, v) for s, v in opened.record.curve))
    )
    save(opened, tmp_path / "merged.safetensors")
    assert load(tmp_path / "merged.safetensors").record.steps == 154


def test_an_adapter_that_says_nothing_of_its_training_shows_none(
    base, numbers, tmp_path, capsys, monkeypatch
):
    after = learnt(base, numbers, lora_rank=2)
    old = dataclasses.replace(after, adapter=dataclasses.replace(after.adapter, training=None))
    adapter.save_adapter(old, tmp_path / "old.safetensors")
    opened = load(tmp_path / "old.safetensors")
    assert opened.record is None
    script(monkeypatch, ":model\n")
    shown = card(capsys, tmp_path / "old.safetensors")
    assert "steps" not in shown
    assert "0.5000 nats" not in shown
    with pytest.raises(UserError, match="no text is given"):
        find_corpus("", opened)


def test_a_wrong_record_of_an_adapter_is_refused(base, numbers, tmp_path):
    from safetensors.numpy import load_file, save_file

    from minillm_repl.checkpoint.header import read_header

    file = tmp_path / "adapter.safetensors"
    adapter.save_adapter(learnt(base, numbers, lora_rank=1), file)
    metadata = dict(read_header(file).metadata)
    for wrong in (
        "[]",
        "{}",
        metadata["training"].replace('"steps": 4', '"steps": -4'),
        "\x1b[31m",
    ):
        save_file(load_file(file), file, {**metadata, "training": wrong})
        with pytest.raises(UserError) as refused:
            load(file)
        assert str(refused.value).isprintable()


def test_an_adapter_of_an_adapter_run_and_a_whole_run_go_on_counting(base, numbers):
    whole = learnt(base, numbers)
    assert whole.record.steps == whole.training.steps == 154
    assert whole.record.tokens == 9_600 + 64


# -- time


def test_the_time_of_a_run_has_its_measurements_in_it():
    plan = dataclasses.replace(
        PLAN, steps=100, batch_size=10, context_length=10
    )  # 100 tokens a step
    seldom, often = (
        dataclasses.replace(plan, eval_interval=100),
        dataclasses.replace(plan, eval_interval=1),
    )
    assert estimate_seconds(seldom, 3.0, 0, 0) == pytest.approx(100 * 3 * 1.2)
    # Reading alone takes a third of a step: 2 measurements of 300 tokens, and one of 900, are 15
    # steps' tokens.
    assert estimate_seconds(seldom, 3.0, 300, 900) - estimate_seconds(
        seldom, 3.0, 0, 0
    ) == pytest.approx(15.0)
    assert estimate_seconds(often, 3.0, 300, 900) - estimate_seconds(
        often, 3.0, 0, 0
    ) == pytest.approx(101 * 3 + 9)


@pytest.mark.parametrize("held_out", [True, False])
def test_readings_are_what_the_measurements_read(tmp_path, monkeypatch, held_out):
    path = put(tmp_path, "가나다라마 " * (4_000 if held_out else 40))
    run = begin(None, path, d_model=16, n_layers=1, val="auto" if held_out else "off")
    read = []

    def mean_loss(part, starts, interrupted=None):
        read.append(len(starts) * part.context_length)
        return 1.0 + len(read)

    monkeypatch.setattr(run.trainer.evaluator, "mean_loss", mean_loss)
    reading, last = run.trainer.evaluator.token_counts
    list(run.events(lambda: False, save=False))
    each = 2 if held_out else 1  # parts that are measured
    assert sum(read[:each]) == reading
    assert sum(read[-each:]) == last


# -- what else is told


def test_parts_without_a_text_held_out_read_nothing_of_it():
    assert evenly_spaced_starts(Split(np.zeros(100, np.uint16), None, 8), 8_192).size == 92
    assert math.isfinite(
        estimate_seconds(dataclasses.replace(PLAN, steps=1, eval_interval=500), 0.0, 0, 0)
    )
