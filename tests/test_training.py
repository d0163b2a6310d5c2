import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from minillm_repl.checkpoint.checkpoint import TrainingRecord
from minillm_repl.checkpoint.load import load
from minillm_repl.checkpoint.native import save
from minillm_repl.engine.torch_decoder import TorchDecoder
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.model.config import GPTConfig
from minillm_repl.training.data import Corpus, read_corpus, windows
from minillm_repl.training.events import Evaluated, Finished, TrainStep
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.run import TrainingRun, find_corpus
from minillm_repl.training.trainer import evaluate, schedule
from tests.conftest import MODELS

TEXT = (MODELS / "nalssi.txt").read_text(encoding="utf-8")
CORPUS = Corpus(TEXT, "nalssi.txt", "")
SMALL = TrainPlan(steps=40, context=8, width=16, layers=2, heads=2)


def run(plan=SMALL, start=None, interrupted=lambda: False):
    trainee = TrainingRun(start, CORPUS, plan, "cpu")
    *events, finished = trainee.events(interrupted)
    return events, finished, trainee.checkpoint(finished)


def test_a_fresh_model_knows_nothing_and_learns():
    events, finished, checkpoint = run()
    assert isinstance(finished, Finished)
    assert finished.first_loss == pytest.approx(math.log(checkpoint.config.vocab), abs=1e-5)
    assert finished.last_loss < finished.first_loss / 2
    assert (finished.reason, finished.steps, finished.tokens) == ("done", 40, 40 * 16 * 8)
    steps = [event.step for event in events if isinstance(event, TrainStep)]
    assert steps == list(range(1, 41))
    assert isinstance(events[0], Evaluated)


def test_the_same_seed_trains_the_same_weights():
    first, second, other = (run(dataclasses.replace(SMALL, seed=seed))[2] for seed in (5, 5, 6))
    name = "blocks.0.attention.qkv.weight"
    assert (first.tensors[name] == second.tensors[name]).all()
    assert (first.tensors[name] != other.tensors[name]).any()


def test_the_recorded_loss_is_cross_entropy_over_every_window():
    _, finished, checkpoint = run()
    model = build(checkpoint.config, checkpoint.tensors).double()
    every = torch.tensor(checkpoint.tokenizer.encode(TEXT)).unfold(0, 9, 1)
    with torch.no_grad():
        expected = F.cross_entropy(model(every[:, :-1]).flatten(0, 1), every[:, 1:].flatten()).item()
    assert finished.last_loss == pytest.approx(expected, abs=1e-5)
    assert checkpoint.training.train_loss == pytest.approx(expected, abs=1e-5)


def test_nalssi_has_the_loss_that_its_record_says(nalssi):
    model = build(nalssi.config, nalssi.tensors)
    loss = evaluate(model, windows(CORPUS, nalssi.tokenizer, nalssi.config.context))
    assert loss == pytest.approx(nalssi.training.train_loss, abs=1e-4)
    assert nalssi.config == GPTConfig(vocab=44, context=32, width=64, layers=4, heads=4)
    assert nalssi.training.corpus_sha256 == read_corpus(MODELS / "nalssi.txt").sha256


def test_an_interrupt_stops_between_two_steps_and_keeps_the_model():
    asked = iter([False] * 7 + [True])
    _, finished, checkpoint = run(interrupted=lambda: next(asked))
    assert (finished.reason, finished.steps, checkpoint.training.steps) == ("interrupt", 7, 7)


def test_training_further_keeps_the_vocabulary_and_leaves_the_start_as_it_was(nalssi):
    before = {name: tensor.copy() for name, tensor in nalssi.tensors.items()}
    plan = TrainPlan(steps=3)
    trainee = TrainingRun(nalssi, Corpus(TEXT + "새글자", "t", ""), plan, "cpu")
    assert trainee.unknown == ["새", "글", "자"]
    *_, finished = trainee.events(lambda: False)
    after = trainee.checkpoint(finished)
    assert after.tokenizer is nalssi.tokenizer
    assert after.training.steps == nalssi.training.steps + 3
    assert after.training.curve[: len(nalssi.training.curve)] == nalssi.training.curve
    assert all((nalssi.tensors[name] == before[name]).all() for name in before)
    assert any((after.tensors[name] != before[name]).any() for name in before)


def test_targets_are_the_inputs_shifted_by_one():
    class Tokens:
        def encode(self, text, *, start):
            assert not start  # a corpus goes on where another piece of it ended
            return list(range(len(text)))

    got = windows(Corpus("abcdef", "t", ""), Tokens(), 3)
    assert got.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_a_corpus_that_cannot_train_is_refused_with_the_numbers(tmp_path):
    path = tmp_path / "t.txt"
    for data, message in ((b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "not UTF-8")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_corpus(path)
    with pytest.raises(UserError, match="is a folder"):
        read_corpus(tmp_path)
    path.write_text("가" * 32, encoding="utf-8")
    with pytest.raises(UserError, match="32 tokens .* context of 32 needs at least 33"):
        TrainingRun(None, read_corpus(path), TrainPlan(), "cpu")
    with pytest.raises(UserError, match="cannot be shared out evenly"):
        TrainingRun(None, CORPUS, TrainPlan(width=10, heads=3), "cpu")


def test_a_corpus_of_one_character_trains():
    trainee = TrainingRun(None, Corpus("가" * 40, "t", ""), TrainPlan(steps=2), "cpu")
    *_, finished = trainee.events(lambda: False)
    assert finished.last_loss == pytest.approx(0, abs=1e-6)


def test_a_loss_that_explodes_is_named():
    trainee = TrainingRun(None, CORPUS, SMALL, "cpu")
    trainee.model.lm_head.bias.data[0] = float("inf")
    with pytest.raises(UserError, match="the loss became .*; try a smaller lr"):
        list(trainee.events(lambda: False))


def test_a_model_spoilt_by_its_last_step_is_not_handed_out():
    trainee = TrainingRun(None, CORPUS, dataclasses.replace(SMALL, steps=3), "cpu")
    with pytest.raises(UserError, match="the loss became nan"):
        for event in trainee.events(lambda: False):
            if isinstance(event, TrainStep) and event.step == 3:
                trainee.model.lm_head.bias.data[0] = float("nan")


def test_a_sample_leaves_the_model_on_its_device():
    trainee = TrainingRun(None, CORPUS, SMALL, "cpu")
    model = trainee.model.to("meta")
    assert TorchDecoder(model).name == "torch on meta"
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_threads_are_given_back():
    before = torch.get_num_threads()
    trainee = TrainingRun(None, CORPUS, SMALL, "cpu", threads=before + 1)
    seen = {torch.get_num_threads() for _ in trainee.events(lambda: False)}
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


def test_the_learning_rate_rises_holds_and_falls_to_nearly_nothing():
    shares = [schedule(step, 100) for step in range(1, 101)]
    assert shares[0] == 1 / 20
    assert shares[19:51] == [1.0] * 32
    assert shares[-1] == 1 / 50
    assert shares[50:] == sorted(shares[50:], reverse=True)
    assert all(0 < schedule(step, steps) <= 1 for steps in range(1, 30) for step in range(1, steps + 1))


def test_the_corpus_of_a_checkpoint_is_found_beside_it_if_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "deep" / "t.txt"
    corpus.parent.mkdir()
    corpus.write_text(TEXT, encoding="utf-8")
    _, _, trained = run(TrainPlan(steps=1))
    record = TrainingRecord(1, 1, 1.0, corpus="elsewhere/t.txt", corpus_sha256=read_corpus(corpus).sha256)
    checkpoint = save(dataclasses.replace(trained, training=record), tmp_path / "deep" / "m.safetensors")
    assert find_corpus("", load(checkpoint.path)).text == TEXT
    corpus.write_text(TEXT + "!", encoding="utf-8")
    with pytest.raises(UserError, match="not here, or has changed"):
        find_corpus("", checkpoint)
    for start in (None, dataclasses.replace(trained, training=None)):
        with pytest.raises(UserError, match="which text"):
            find_corpus("", start)
    hostile = dataclasses.replace(record, corpus="x" * 5000)
    with pytest.raises(UserError, match="not here"):
        find_corpus("", dataclasses.replace(checkpoint, training=hostile))
