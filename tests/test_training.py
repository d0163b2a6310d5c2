import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.commands.trained import describe_failure
from minillm_repl.commands.training_screen import describe_method
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.model.config import GPTConfig
from minillm_repl.storage.paths import resume_path
from minillm_repl.training import (
    Evaluated,
    NotSaved,
    Saved,
    Started,
    TrainingFinished,
    TrainStep,
    resume,
)
from minillm_repl.training.corpus import open_corpus
from minillm_repl.training.defaults import resolve_loop
from minillm_repl.training.evaluation import evenly_spaced_starts
from minillm_repl.training.history import remake_run, resume_run, same_weights
from minillm_repl.training.optimizers import Muon, lr_scale, orthogonalise
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import find_corpus, start_run
from minillm_repl.training.run import RunContext
from minillm_repl.training.run_metadata import parse_plan
from minillm_repl.training.splits import IGNORE_INDEX, Split
from minillm_repl.training.trainer import _RETRY_SECONDS
from tests.conftest import MODELS

TEXT = (MODELS / "nalssi.txt").read_text(encoding="utf-8")
SMALL = TrainPlan(
    steps=40,
    context_length=8,
    batch_size=16,
    lr=0.006,
    arch="gpt",
    d_model=16,
    n_layers=2,
    n_heads=2,
    precision="float32",
    eval_interval=10,
)
LLAMA = dataclasses.replace(SMALL, arch="llama", n_kv_heads=1, lr=0.02)
# what a model that is trained further may be told
FURTHER = TrainPlan(steps=20, context_length=8, batch_size=16, precision="float32")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture
def long_corpus(tmp_path):
    """Long enough to have a part held out: 30,000 characters in which each word follows from the
    two before it.
    """
    rng, words = np.random.default_rng(0), ["봄", "여름", "가을", "겨울", "비", "눈", "바람", "해"]
    places = [0, 1]
    for _ in range(12_000):
        places.append((places[-1] * 3 + places[-2] + int(rng.random() < 0.2)) % len(words))
    path = tmp_path / "long.txt"
    path.write_text(" ".join(words[place] for place in places), encoding="utf-8")
    return str(path)


def begin(corpus, plan=SMALL, start=None, path=None, **around):
    where = path or Path(corpus).parent / "m.safetensors"
    return start_run(start, corpus, plan, RunContext(path=where, device="cpu", threads=1, **around))


def run(corpus, plan=SMALL, start=None, interrupted=lambda: False, **more):
    trainee = begin(corpus, plan, start, **more)
    *events, finished = trainee.events(interrupted)
    return events, finished, trainee.checkpoint(finished)


@pytest.mark.parametrize("plan", [SMALL, LLAMA, dataclasses.replace(LLAMA, optimizer="adamw")])
def test_a_fresh_model_knows_nothing_and_learns(corpus, plan):
    events, finished, checkpoint = run(corpus, plan)
    assert isinstance(finished, TrainingFinished)
    assert finished.first_loss == pytest.approx(math.log(checkpoint.config.vocab_size), abs=1e-5)
    assert finished.last_loss < finished.first_loss / 2
    assert (finished.reason, finished.steps, finished.tokens) == ("done", 40, 40 * 16 * 8)
    steps = [event for event in events if isinstance(event, TrainStep)]
    assert [event.step for event in steps] == list(range(1, 41))
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 10, 20, 30, 40]
    assert all(event.grad_norm > 0 for event in steps)
    assert steps[20].lr == pytest.approx(plan.lr * lr_scale(21, resolve_loop(plan)))


def test_the_same_seed_trains_the_same_weights(corpus):
    first, second, other = (
        run(corpus, dataclasses.replace(LLAMA, seed=seed))[2] for seed in (5, 5, 6)
    )
    name = "blocks.0.attention.qkv.weight"
    assert (first.tensors[name] == second.tensors[name]).all()
    assert (first.tensors[name] != other.tensors[name]).any()


def test_the_recorded_loss_is_cross_entropy_over_every_window(corpus):
    _, finished, checkpoint = run(corpus)
    model = build(checkpoint.config, checkpoint.tensors).double()
    every = torch.tensor(checkpoint.tokenizer.encode(TEXT)).unfold(0, 9, 1)
    with torch.no_grad():
        expected = F.cross_entropy(
            model(every[:, :-1]).flatten(0, 1), every[:, 1:].flatten()
        ).item()
    assert finished.last_loss == pytest.approx(expected, abs=1e-5)
    assert checkpoint.training.train_loss == pytest.approx(expected, abs=1e-5)
    bits = expected / math.log(2) * len(checkpoint.tokenizer.encode(TEXT)) / len(TEXT)
    assert finished.bits_per_character == pytest.approx(bits, rel=1e-4)


def test_what_is_held_out_is_the_last_tenth_and_is_measured_whole(long_corpus):
    events, finished, checkpoint = run(long_corpus)
    model = build(checkpoint.config, checkpoint.tensors).double()
    ids = checkpoint.tokenizer.encode(Path(long_corpus).read_text(encoding="utf-8"))
    held = torch.tensor(ids[int(len(ids) * 0.9) :])
    count = (len(held) - 1) // 8
    inputs, targets = held[: count * 8].view(count, 8), held[1 : count * 8 + 1].view(count, 8)
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    assert finished.val_loss == pytest.approx(expected, abs=1e-4)
    assert checkpoint.training.val_loss == pytest.approx(expected, abs=1e-4)
    assert all(event.val_loss is not None for event in events if isinstance(event, Evaluated))
    assert [step for step, _ in checkpoint.training.val_curve] == [0, 10, 20, 30, 40]


def test_held_out_text_is_never_trained_on(corpus, tmp_path):
    """Its characters are part of the vocabulary, but what follows what in it stays unknown."""
    held = tmp_path / "held.txt"
    held.write_text(TEXT[::-1], encoding="utf-8")
    trainee = begin(corpus, dataclasses.replace(SMALL, val=str(held)))
    assert trainee.trainer.train.ids.tolist() == trainee.start.tokenizer.encode(TEXT)
    assert trainee.trainer.val.ids.tolist() == trainee.start.tokenizer.encode(TEXT[::-1])
    *_, finished = trainee.events(lambda: False)
    # learnt by heart, and of no use there
    assert finished.val_curve[-1][1] > finished.curve[-1][1] + 1


def test_the_best_weights_are_kept_and_patience_ends_the_run(corpus, tmp_path):
    held = tmp_path / "held.txt"
    held.write_text(TEXT[::-1], encoding="utf-8")
    plan = dataclasses.replace(SMALL, val=str(held), steps=400, patience=3)
    events, finished, checkpoint = run(corpus, plan)
    measured = {event.step: event.val_loss for event in events if isinstance(event, Evaluated)}
    assert finished.reason == "patience"
    assert finished.kept == min(measured, key=measured.get)
    assert finished.steps == finished.kept + 30
    assert finished.val_loss == pytest.approx(min(measured.values()), abs=1e-4)
    ids = torch.tensor(checkpoint.tokenizer.encode(TEXT[::-1])).unfold(0, 9, 8)
    model = build(checkpoint.config, checkpoint.tensors)
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
    assert loss == pytest.approx(finished.val_loss, abs=1e-4)


def test_nalssi_has_the_loss_that_its_record_says(nalssi, tmp_path):
    """Over all windows of what it read: its text, twice."""
    model = build(nalssi.config, nalssi.tensors)
    every = torch.tensor(nalssi.tokenizer.encode(2 * TEXT)).unfold(
        0, nalssi.config.context_length + 1, 1
    )
    with torch.no_grad():
        loss = F.cross_entropy(model(every[:, :-1]).flatten(0, 1), every[:, 1:].flatten()).item()
    assert loss == pytest.approx(nalssi.training.train_loss, abs=1e-4)
    assert nalssi.config == GPTConfig(
        vocab_size=44, context_length=32, d_model=64, n_layers=4, n_heads=4
    )
    (tmp_path / "twice.txt").write_text(2 * TEXT, encoding="utf-8")
    assert nalssi.training.corpus_sha256 == open_corpus(tmp_path / "twice.txt").sha256


def test_an_interrupt_stops_between_two_steps_and_keeps_the_model(corpus):
    asked = iter([False] * 7 + [True])
    _, finished, checkpoint = run(corpus, interrupted=lambda: next(asked))
    assert (finished.reason, finished.steps, checkpoint.training.steps) == ("interrupt", 7, 7)


def test_training_further_keeps_the_vocabulary_and_leaves_the_start_as_it_was(nalssi, tmp_path):
    path = tmp_path / "more.txt"
    path.write_text(TEXT + "새글자", encoding="utf-8")
    before = {name: tensor.copy() for name, tensor in nalssi.tensors.items()}
    trainee = begin(str(path), TrainPlan(steps=3), nalssi)
    assert any(
        "3 characters" in note and "글, 새, 자" in note and "skipped" in note
        for note in trainee.notes
    )
    *_, finished = trainee.events(lambda: False)
    after = trainee.checkpoint(finished)
    assert after.tokenizer is nalssi.tokenizer
    assert after.training.steps == nalssi.training.steps + 3
    assert after.training.curve[: len(nalssi.training.curve)] == nalssi.training.curve
    assert all((nalssi.tensors[name] == before[name]).all() for name in before)
    assert any((after.tensors[name] != before[name]).any() for name in before)


def test_targets_are_the_inputs_shifted_by_one():
    inputs, targets = Split(np.arange(10, dtype=np.uint16), None, 3).batch(np.array([0, 4]))
    assert inputs.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert targets.tolist() == [[1, 2, 3], [5, 6, 7]]
    learned = np.array([True, False] * 5)
    _, targets = Split(np.arange(10, dtype=np.uint16), learned, 3).batch(np.array([0, 4]))
    assert targets.tolist() == [[IGNORE_INDEX, 2, IGNORE_INDEX], [IGNORE_INDEX, 6, IGNORE_INDEX]]


def test_accumulating_parts_gives_the_gradient_of_the_whole_batch(long_corpus):
    whole, parts = (
        begin(long_corpus, dataclasses.replace(LLAMA, grad_accum_steps=number)).trainer
        for number in (1, 4)
    )
    for trainer in (whole, parts):
        list(zip(trainer.events(lambda: False), range(4), strict=False))
    assert whole.state.step == parts.state.step > 1
    for name, weight in whole.trainable_parameters.items():
        assert torch.allclose(weight, parts.trainable_parameters[name], atol=1e-4), name


def test_only_matrices_decay(corpus):
    trainer = begin(corpus, dataclasses.replace(LLAMA, optimizer="adamw", weight_decay=0.3)).trainer
    decays = {
        id(parameter): group["weight_decay"]
        for group in trainer.optimizers["adamw"].param_groups
        for parameter in group["params"]
    }
    for name, parameter in trainer.trainable_parameters.items():
        matrix = name.startswith("blocks.") and parameter.ndim == 2
        assert decays[id(parameter)] == (0.3 if matrix else 0.0), name


def test_dropout_is_off_when_measuring(long_corpus):
    trainer = begin(long_corpus, dataclasses.replace(LLAMA, dropout=0.5)).trainer
    list(zip(trainer.events(lambda: False), range(4), strict=False))
    starts = evenly_spaced_starts(trainer.train, 1_000)
    assert trainer.evaluator.mean_loss(trainer.train, starts) == trainer.evaluator.mean_loss(
        trainer.train, starts
    )
    trainer.model.train()
    first, second = (trainer.loss(trainer.train, starts)[0].item() for _ in range(2))
    assert first != second


def test_a_corpus_that_cannot_train_is_refused_with_the_numbers(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("가" * 32, encoding="utf-8")
    with pytest.raises(UserError, match="32 tokens .* context of 32 needs at least 33"):
        begin(str(path), TrainPlan())
    path.write_text(TEXT, encoding="utf-8")
    with pytest.raises(UserError, match="is not divisible by"):
        begin(str(path), TrainPlan(d_model=10, n_heads=3))


def test_a_corpus_of_one_character_trains(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("가" * 40, encoding="utf-8")
    _, finished, _ = run(str(path), TrainPlan(steps=2))
    assert finished.last_loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("poisoned", ["head", "gradient"])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights(corpus, poisoned):
    trainee = begin(corpus)
    good = None
    for event in trainee.events(lambda: False):
        if isinstance(event, Evaluated) and event.step == 10:
            good = {
                name: each.detach().clone()
                for name, each in trainee.trainer.trainable_parameters.items()
            }
        if isinstance(event, TrainStep) and event.step == 14:
            if poisoned == "head":
                trainee.trainer.model.lm_head.bias.data[0] = float("nan")
            else:
                trainee.trainer.trainable_parameters["blocks.0.attention.qkv.weight"].register_hook(
                    lambda grad: grad * math.inf
                )
    finished = event
    assert (finished.reason, finished.steps, finished.kept) == ("diverged", 14, 10)
    assert math.isfinite(finished.last_loss)
    for name, weight in trainee.checkpoint(finished).tensors.items():
        assert (weight == good[name].numpy()).all(), name


def test_threads_are_given_back(corpus):
    before = torch.get_num_threads()
    trainee = start_run(
        None,
        corpus,
        SMALL,
        RunContext(path=Path(corpus).parent / "m", device="cpu", threads=before + 1),
    )
    seen = {torch.get_num_threads() for _ in trainee.events(lambda: False)}
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


def test_the_learning_rate_rises_holds_and_falls_to_nearly_nothing():
    plan = TrainPlan(steps=100, warmup_steps=20)
    shares = [lr_scale(step, plan) for step in range(1, 101)]
    assert shares[0] == 1 / 20
    assert shares[19:51] == [1.0] * 32
    assert shares[-1] == 1 / 50
    assert shares[50:] == sorted(shares[50:], reverse=True)
    cosine = [
        lr_scale(step, dataclasses.replace(plan, schedule="cosine")) for step in range(1, 101)
    ]
    assert cosine[50] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert lr_scale(100, dataclasses.replace(plan, schedule="constant")) == 1.0
    for kind in ("linear", "cosine", "constant"):
        for steps in range(1, 30):
            each = resolve_loop(TrainPlan(steps=steps, schedule=kind))
            assert all(0 < lr_scale(step, each) <= 1 for step in range(1, steps + 1))


def test_a_new_model_fits_its_text(tmp_path, long_corpus, corpus):
    assert isinstance(begin(corpus, TrainPlan()).trainer.model.config, GPTConfig)
    trainee = begin(long_corpus, dataclasses.replace(TrainPlan(), precision="float32"))
    config = trainee.trainer.model.config
    assert config.arch == "canon"
    assert (config.d_model, config.n_layers, config.n_kv_heads) == (128, 4, 2)
    assert "preset small" in trainee.notes[0]
    assert trainee.step_seconds is not None
    method = describe_method(trainee.trainer, trainee.threads, trainee.step_seconds)
    assert method.rpartition(" · ")[2].startswith("about")


def test_the_corpus_of_a_checkpoint_is_found_beside_it_if_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "deep" / "t.txt"
    corpus.parent.mkdir()
    corpus.write_text(TEXT, encoding="utf-8")
    _, _, trained = run(str(corpus), TrainPlan(steps=1))
    record = TrainingRecord(
        steps=1,
        tokens=1,
        train_loss=1.0,
        corpus="elsewhere/t.txt",
        corpus_sha256=open_corpus(corpus).sha256,
    )
    checkpoint = save(
        dataclasses.replace(trained, training=record), tmp_path / "deep" / "m.safetensors"
    )
    assert find_corpus("", load(checkpoint.path)) == str(corpus)
    corpus.write_text(TEXT + "!", encoding="utf-8")
    with pytest.raises(UserError, match="is missing or has changed"):
        find_corpus("", checkpoint)
    for start in (None, dataclasses.replace(trained, training=None)):
        with pytest.raises(UserError, match="no text is given"):
            find_corpus("", start)
    hostile = dataclasses.replace(record, corpus="x" * 5000)
    with pytest.raises(UserError, match="is missing"):
        find_corpus("", dataclasses.replace(checkpoint, training=hostile))


RESUMED = {
    "normuon, canon": dataclasses.replace(LLAMA, arch="canon"),
    "muon": dataclasses.replace(LLAMA, optimizer="muon"),
    "adamw": dataclasses.replace(LLAMA, optimizer="adamw"),
    "accumulated": dataclasses.replace(LLAMA, grad_accum_steps=3, dropout=0.1),
    "gpt, cosine": dataclasses.replace(SMALL, schedule="cosine", label_smoothing=0.1),
    "patience": dataclasses.replace(SMALL, patience=2, lr=0.05),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_run_that_was_cut_ends_with_the_same_bits(long_corpus, tmp_path, kind):
    plan = RESUMED[kind]
    path = tmp_path / "m.safetensors"
    _, whole, expected = run(long_corpus, plan)
    for cut in (1, 9, 10, 11, 25, 39):
        if cut >= whole.steps:
            continue
        trainee = begin(long_corpus, plan, path=path)
        state = trainee.trainer.state
        *_, stopped = trainee.events(lambda state=state, cut=cut: state.step >= cut)
        assert stopped.steps == cut
        trainee = resume_run(path, RunContext(path=path, device="cpu"))
        *_, finished = trainee.events(lambda: False)
        again = trainee.checkpoint(finished)
        assert (finished.reason, finished.steps, finished.kept) == (
            whole.reason,
            whole.steps,
            whole.kept,
        )
        for name, weight in expected.tensors.items():
            assert weight.tobytes() == again.tensors[name].tobytes(), (kind, cut, name)
        assert finished.curve == whole.curve
        assert finished.val_curve == whole.val_curve
        assert again.training.steps == expected.training.steps


def test_a_run_cut_twice_and_a_model_trained_further_go_on_exactly_too(
    long_corpus, tmp_path, nalssi
):
    path = tmp_path / "m.safetensors"
    plan = TrainPlan(steps=12, batch_size=4, eval_interval=4, precision="float32")
    _, _, expected = run(long_corpus, plan, nalssi)
    trainee = begin(long_corpus, plan, nalssi, path)
    for cut in (3, 8, 99):
        for event in trainee.events(lambda cut=cut, each=trainee: each.trainer.state.step >= cut):
            finished = event
        if cut < 99:
            trainee = resume_run(path, RunContext(path=path, device="cpu"))
    again = trainee.checkpoint(finished)
    assert all(
        expected.tensors[name].tobytes() == again.tensors[name].tobytes()
        for name in expected.tensors
    )
    assert again.training.steps == nalssi.training.steps + 12
    assert again.training.curve == expected.training.curve


def test_ctrl_c_in_the_last_measurement_makes_it_short_and_keeps_what_was_learnt(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT * 800, encoding="utf-8")
    trainee = begin(str(tmp_path / "t.txt"), dataclasses.replace(SMALL, steps=10, val="off"))
    trainer, asked = trainee.trainer, []

    def interrupted():
        asked.append(trainer.state.last_eval_step == 10)
        return asked[-1]

    *_, finished = trainee.events(interrupted)
    assert any(asked)
    assert (finished.reason, finished.steps, finished.kept) == ("done", 10, 10)
    assert finished.train_loss == trainer.evaluator.mean_loss(
        trainer.train, evenly_spaced_starts(trainer.train, trainer.evaluator._quick_tokens)
    )
    assert finished.train_loss != trainer.evaluator.mean_loss(
        trainer.train, evenly_spaced_starts(trainer.train, 1 << 17)
    )


def test_a_second_ctrl_c_in_the_last_measurement_leaves_a_run_to_go_on_with(corpus):
    Path(corpus).write_text(TEXT * 800, encoding="utf-8")
    trainee = begin(corpus, dataclasses.replace(SMALL, val="off"))

    def pressed():
        if trainee.trainer.state.last_eval_step == 40:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        list(trainee.events(pressed))
    assert trainee.is_saved
    file = Path(corpus).parent / "m.safetensors"
    assert load(file).training.steps == resume.load_run(resume_path(file)).state.step == 40
    *_, finished = resume_run(file, RunContext(path=file, device="cpu")).events(lambda: False)
    assert (finished.reason, finished.steps) == ("done", 40)


def test_a_save_that_fails_ends_no_run_and_a_later_one_may_work(corpus, tmp_path):
    folder = tmp_path / "folder"
    folder.write_text("a file is in the way")
    trainee = begin(
        corpus, dataclasses.replace(SMALL, save_steps=10), path=folder / "m.safetensors"
    )
    told = []
    for event in trainee.events(lambda: False):
        if isinstance(event, NotSaved | Saved | TrainingFinished):
            told.append(event)
        if isinstance(event, NotSaved) and event.step == 10:
            folder.unlink()
    assert [type(event) for event in told] == [NotSaved, Saved, Saved, Saved, TrainingFinished]
    assert "could not save" in told[0].why
    assert not trainee.save_error
    assert load(folder / "m.safetensors").training.steps == told[3].step == 40


def test_the_first_and_the_last_loss_are_over_the_same_text(long_corpus):
    """Also of a run that is stopped between two measurements, whose weights were not measured."""
    plan = dataclasses.replace(SMALL, d_model=64, steps=30, eval_interval=20)
    for stop in (30, 27):
        trainee = begin(long_corpus, plan)
        trainer = trainee.trainer
        start = {name: each.clone() for name, each in trainer.trainable_parameters.items()}
        *_, finished = trainee.events(lambda trainer=trainer, stop=stop: trainer.state.step == stop)
        evaluator = trainer.evaluator
        again = (
            evaluator.quick_loss
            if stop == 27
            else lambda each=evaluator: each.losses(lambda: False)[1]
        )
        assert again() == pytest.approx(finished.last_loss, abs=1e-6)
        trainer.load_weights(start)
        assert again() == pytest.approx(finished.first_loss, abs=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, {"val": "off"}, {"context_length": 64, "batch_size": 4}, {"steps": 1_000}]
)
def test_measuring_reads_no_more_than_an_eighth_of_the_work(long_corpus, changes):
    """But for what takes no time; a step costs its tokens three times, and the optimiser."""
    plan = dataclasses.replace(SMALL, d_model=128, n_layers=4, steps=150, eval_interval=0)
    trainee = begin(long_corpus, dataclasses.replace(plan, **changes))
    plan, (on_the_way, last) = trainee.trainer.plan, trainee.trainer.evaluator.token_counts
    n_evals = plan.steps // plan.eval_interval + 1
    free = 5.5e8 * n_evals + 5.5e9  # multiplications
    trained = plan.steps * plan.batch_size * plan.context_length
    read = n_evals * on_the_way + last
    n_params = trainee.trainer.model.config.n_params
    assert read <= 3.6 * trained / 8 + free / n_params
    assert last > on_the_way >= plan.context_length


def test_epochs_are_passes_over_what_is_trained_on(long_corpus):
    plan = dataclasses.replace(SMALL, steps=0, epochs=2.5)
    trainee = begin(long_corpus, plan)
    tokens = len(trainee.trainer.train.ids)
    assert trainee.trainer.plan.steps == math.ceil(2.5 * tokens / (16 * 8))
    with pytest.raises(UserError, match="set one of them"):
        begin(long_corpus, dataclasses.replace(plan, steps=5))


@pytest.mark.parametrize("val", ["off", "auto"])
def test_a_run_that_only_got_worse_keeps_the_weights_from_before_and_says_what_to_try(
    long_corpus, val
):
    trainee = begin(long_corpus, dataclasses.replace(SMALL, lr=10.0, val=val))
    start = {name: each.clone() for name, each in trainee.trainer.trainable_parameters.items()}
    *_, finished = trainee.events(lambda: False)
    assert (finished.kept, finished.steps) == (0, 40)
    assert finished.last_loss == finished.first_loss
    for name, weight in trainee.trainer.trainable_parameters.items():
        assert torch.equal(weight, start[name])
    assert "lr=10 may be too large; try lr=1" in describe_failure(finished, trainee.trainer.plan)


def test_a_save_that_failed_is_tried_again_before_the_next_one_is_due(corpus, tmp_path):
    folder = tmp_path / "folder"
    folder.write_text("a file is in the way")
    plan = dataclasses.replace(SMALL, save_steps=10, steps=19)
    trainee = begin(corpus, plan, path=folder / "m.safetensors")
    told = []
    for event in trainee.events(lambda: False):
        if isinstance(event, NotSaved | Saved):
            told.append((type(event), event.step))
        if isinstance(event, NotSaved):
            folder.unlink()
            trainee.trainer._save_due_time -= _RETRY_SECONDS  # as if it were so long ago
    assert told == [(NotSaved, 10), (Saved, 11)]


REMADE = {
    "a new model": {"dropout": 0.1, "lr": 0.0123456789012345},
    "stopped": {"steps": 33},
    "early": {"patience": 1, "lr": 0.3, "steps": 200},
}


@pytest.mark.parametrize("kind", REMADE)
def test_a_record_makes_its_model_again_bit_for_bit(long_corpus, tmp_path, kind):
    trainee = begin(long_corpus, dataclasses.replace(LLAMA, **REMADE[kind]))
    state = trainee.trainer.state
    *_, finished = trainee.events(lambda: kind == "stopped" and state.step == 17)
    path = tmp_path / "made.safetensors"
    made = save(trainee.checkpoint(finished), path)
    assert finished.reason == {"stopped": "interrupt", "early": "patience"}.get(kind, "done")
    context = RunContext(path=tmp_path / "again.safetensors", device="cpu")
    again, stops = remake_run(load(path), "", context)
    *_, repeated = again.events(stops)
    assert (repeated.reason, repeated.kept) == (finished.reason, finished.kept)
    assert same_weights(made, again.checkpoint(repeated))
    (path.parent / "other.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(UserError, match="not the text of this model"):
        remake_run(load(path), str(path.parent / "other.txt"), context)


def test_a_model_trained_further_is_made_again_from_the_one_before(corpus, tmp_path):
    first = save(run(corpus)[2], tmp_path / "first.safetensors")
    made = save(run(corpus, FURTHER, start=first)[2], tmp_path / "second.safetensors")
    assert made.training.run.start_path == str(tmp_path / "first.safetensors")
    assert made.training.steps == 60
    context = RunContext(path=tmp_path / "again.safetensors", device="cpu")
    again, stops = remake_run(made, "", context)
    *_, finished = again.events(stops)
    assert same_weights(made, again.checkpoint(finished))
    save(made, tmp_path / "first.safetensors")
    with pytest.raises(UserError, match="other weights"):
        remake_run(made, "", context)
    (tmp_path / "first.safetensors").unlink()
    with pytest.raises(UserError, match="is not at"):
        remake_run(made, "", context)


def test_a_run_begins_with_all_that_it_is_made_of(corpus):
    trainee = begin(corpus, dataclasses.replace(SMALL, lr=0.1 / 3))
    started = next(iter(trainee.events(lambda: False)))
    assert isinstance(started, Started)
    assert parse_plan(started.plan, "it") == trainee.trainer.plan
    assert started.plan["lr"] == repr(0.1 / 3)
    assert started.corpus_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (started.training_tokens, started.threads) == (len(TEXT), 1)
    assert {"torch", "python", "minillm-repl"} == started.versions.keys()
    assert {"processor", "cores", "system", "instructions"} <= started.machine.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [("plan", []), ("plan", {"lr": 3}), ("steps", -1), ("reason", 5), ("seconds", "x"), ("x", 1)],
)
def test_a_record_of_a_run_that_is_none_is_refused(corpus, tmp_path, name, value):
    checkpoint = run(corpus)[2]
    from minillm_repl.checkpoint.native import to_metadata

    record = json.loads(to_metadata(checkpoint)["training"])
    record["run"][name] = value
    from safetensors.numpy import save_file

    metadata = {**to_metadata(checkpoint), "training": json.dumps(record)}
    save_file(checkpoint.tensors, tmp_path / "m.safetensors", metadata)
    with pytest.raises(UserError, match="training record"):
        load(tmp_path / "m.safetensors")


STAYS = """
from minillm_repl.storage.paths import resume_path, unsaved_path
print(unsaved_path(), flush=True)
input()
assert resume_path(unsaved_path()).write_bytes(b"") == 0
"""


def test_two_visits_at_once_keep_their_runs_apart_and_the_last_one_stopped_is_found_again(tmp_path):
    def visit():
        environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
        streams = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "env": environment,
            "text": True,
        }
        return subprocess.Popen([sys.executable, "-c", STAYS], **streams)

    one, other = visit(), visit()
    places = [each.stdout.readline() for each in (one, other)]
    assert len(set(places)) == 2
    for each in (one, other):
        assert each.communicate("\n") is not None
        assert each.returncode == 0
    os.utime(places_of(tmp_path)[0], (1, 1))
    latest = max(places_of(tmp_path), key=lambda file: file.stat().st_mtime)
    third = visit()
    assert Path(third.stdout.readline().strip()).stem == latest.name.split(".")[0]
    third.communicate("\n")


def places_of(folder):
    return sorted(folder.rglob("*.resume.safetensors"))


def test_saves_come_when_they_are_due_and_when_the_consumer_leaves(corpus, tmp_path):
    path = tmp_path / "m.safetensors"
    trainee = begin(corpus, dataclasses.replace(SMALL, save_steps=15), path=path)
    saved = [event.step for event in trainee.events(lambda: False) if isinstance(event, Saved)]
    assert saved == [15, 30]
    assert load(path).training.steps == 30
    trainee = begin(corpus, path=path)
    events = trainee.events(lambda: False)
    for event in events:
        if isinstance(event, TrainStep) and event.step == 4:
            break
    events.close()
    assert load(path).training.steps == 4
    assert resume.load_run(resume_path(path)).state.step == 4


def test_a_resume_file_is_not_trusted(corpus, tmp_path):
    path = tmp_path / "m.safetensors"
    asked = iter([False] * 5 + [True] * 9)
    run(corpus, path=path, interrupted=lambda: next(asked))
    file = resume_path(path)
    from safetensors.numpy import load_file, save_file

    from minillm_repl.checkpoint.header import read_header

    tensors, metadata = load_file(file), dict(read_header(file).metadata)
    around = RunContext(path=path, device="cpu")

    def refused(message, tensors=tensors, **changed):
        save_file(tensors, file, {**metadata, **changed})
        with pytest.raises(UserError, match=message):
            resume_run(path, around)

    refused("not a resume file", format="minillm")
    refused(
        "steps in .* needs a whole number",
        plan=metadata["plan"].replace('"steps": "40"', '"steps": "-1"'),
    )
    refused("has no valid state of its run", state="{}")
    refused(
        "has no valid state of its run", state=metadata["state"].replace('"step": 5', '"step": [5]')
    )
    refused("does not identify its run", run="[]")
    refused("random number state in .* damaged", random='{"torch": "zz"}')
    refused("random number state in .* damaged", random="[]")
    refused("has no tensor", {name: each for name, each in tensors.items() if "muon" not in name})
    refused("is not part of the model", {**tensors, "extra": np.zeros(1, np.float32)})
    refused("not finite", {**tensors, "model.lm_head.bias": np.full(44, np.nan, np.float32)})
    refused("has changed", run=metadata["run"].replace('sha256": "', 'sha256": "0'))
    save_file(tensors, file, metadata)
    resume_run(path, around)


@pytest.mark.parametrize("windows", [1, 2, 3, 81, 1_000, 65_537])
def test_every_window_is_read_once_before_any_is_read_again_and_a_batch_is_spread_out(windows):
    part = Split(np.zeros(windows + 8, dtype=np.uint16), None, 8)
    rounds = [part.training_starts(first * windows, windows, seed=1) for first in range(2)]
    for starts in rounds:
        assert sorted(starts) == list(range(windows))
    cut = np.concatenate(
        [
            part.training_starts(first, min(7, 2 * windows - first), 1)
            for first in range(0, 2 * windows, 7)
        ]
    )
    # as it goes on across batches, and after a resume
    assert cut.tolist() == np.concatenate(rounds).tolist()
    if windows > 100:
        assert not np.array_equal(*rounds)
        assert not np.array_equal(part.training_starts(0, windows, seed=2), rounds[0])
        gaps = np.diff(np.sort(rounds[0][:16]), append=rounds[0][:16].min() + windows)
        assert gaps.min() > windows / 16 / 3


def test_normuon_is_the_paper_s_formula():
    """Li et al. 2025, algorithm 1, in numpy and float64, from the orthogonalised updates of Muon;
    the size of a step is Muon's.
    """
    torch.manual_seed(0)
    gradients = [torch.randn(12, 5, dtype=torch.float64) for _ in range(6)]
    start = torch.randn(12, 5, dtype=torch.float64)

    def steps(**settings):
        matrix = torch.nn.Parameter(start.clone())
        optimizer = Muon([matrix], 0.01, 0.0, lambda: torch.float64, **settings)
        for gradient in gradients:
            before, matrix.grad = matrix.detach().clone(), gradient.clone()
            optimizer.step()
            yield (matrix.detach() - before).numpy()

    # Without decay a step of Muon depends on no earlier weights.
    v = np.zeros((12, 1))
    for place, (ours, muon) in enumerate(zip(steps(evens_rows=True), steps(), strict=True)):
        v = 0.95 * v + 0.05 * np.mean(muon**2, axis=1, keepdims=True)
        even = muon / np.sqrt(v)
        expected = even / np.linalg.norm(even) * np.linalg.norm(muon)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
        if place == 0:
            np.testing.assert_allclose(*np.array_split(np.linalg.norm(ours, axis=1), 2), rtol=1e-9)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_is_torchs_in_bfloat16_and_nearer_to_what_is_meant_in_float32(shape):
    """What is meant is U·Vᵀ of the singular value decomposition; five iterations bring the
    values near 1.
    """
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(5)]

    def moved(optimizer_of):
        matrix = torch.nn.Parameter(start.clone())
        optimizer = optimizer_of([matrix])
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        return matrix.detach()

    theirs = moved(
        lambda ps: torch.optim.Muon(ps, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    )
    assert torch.equal(moved(lambda ps: Muon(ps, 0.01, 0.1, lambda: torch.bfloat16)), theirs)
    exact = moved(lambda ps: Muon(ps, 0.01, 0.1, lambda: torch.float64))
    ours = moved(lambda ps: Muon(ps, 0.01, 0.1, lambda: torch.float32))
    assert (ours - exact).abs().max() < 1e-5 < (theirs - exact).abs().max()
    values = torch.linalg.svdvals(orthogonalise(gradients[0]))
    assert 0.6 < values.min() <= values.max() < 1.3
    u, _, v = torch.linalg.svd(gradients[0], full_matrices=False)
    turned = u.T @ orthogonalise(gradients[0]) @ v.T
    torch.testing.assert_close(turned, turned.diag().diag(), rtol=0, atol=1e-4)
