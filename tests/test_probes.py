"""`:watch heads`, `lens` and `kl`: the views say what the numbers are."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from minillm_repl.checkpoint.record import TrainingRecord, record_from_json
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.training.head_probe import make_probe
from minillm_repl.training.probes import Probes, layer_divergences
from minillm_repl.training.run_metadata import parse_state
from minillm_repl.views import heads, lens
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.watch_curves import curves_view, lines
from tests.conftest import random_checkpoint
from tests.test_training import LLAMA, begin, corpus, run  # noqa: F401 - one is a fixture


def test_the_curves_of_heads_are_those_of_the_atlas(corpus):
    run = begin(corpus, dataclasses.replace(LLAMA, context_length=24))
    trainer, tokenizer = run.trainer, run.start.tokenizer
    with torch.no_grad():  # a model that is not at zero
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found = Probes(trainer, ("heads",), tokenizer)
    with torch.no_grad():
        values = found._heads()
    inspected = InspectedText(trainer.model, tokenizer, (0,))
    atlas = heads.compute(inspected, "m")
    best = {"induction": atlas.heads[0], "previous": max(atlas.heads, key=lambda h: h.previous)}
    for name, head in best.items():
        assert found.best[name] == f"{head.layer}.{head.head}"
        assert values[name] == getattr(head, name)
    probe = make_probe(tokenizer, trainer.model.config)
    logits = trainer.model(torch.tensor(probe.sequences)).detach()
    start = len(probe.start) + probe.half
    right = [
        logits[row, at].double().softmax(-1)[ids[at + 1]].item()
        for row, ids in enumerate(probe.sequences)
        for at in range(start, len(ids) - 1)
    ]
    assert values["copying"] == pytest.approx(np.mean(right), abs=1e-6)


def test_the_divergence_of_a_layer_is_the_mean_of_the_lens():
    checkpoint = random_checkpoint()
    model, ids = build(checkpoint.config, checkpoint.tensors), (3, 1, 4, 1, 5)
    with torch.no_grad():
        found = layer_divergences(model, torch.tensor([ids]))
    views = [
        lens.compute(InspectedText(model, checkpoint.tokenizer, ids), position)
        for position in range(5)
    ]
    for name, place in (("embedding", "embedding"), ("0", "0 feed-forward")):
        kls = [row.kl for view in views for row in view.rows if row.place == place]
        assert found[name] == pytest.approx(np.mean(kls), abs=1e-5)


def test_a_run_that_is_watched_makes_the_same_weights_and_keeps_its_curves(corpus):
    plain = run(corpus, LLAMA)[2]
    watched = begin(corpus, LLAMA)
    probes = Probes(watched.trainer, ("heads", "lens", "kl"), watched.start.tokenizer)
    probes._last = -1e9  # so that no measurement is left out, however slow the machine is
    for event in watched.events(lambda: False):
        if type(event).__name__ == "Evaluated":
            probes._spent = 0.0
            assert probes.measure()
            probes._last = 0.0
    checkpoint = watched.checkpoint(event)
    for name, tensor in plain.tensors.items():
        assert (checkpoint.tensors[name] == tensor).all()
    curves = checkpoint.training.probes
    assert {name.partition(".")[0] for name in curves} == {"heads", "lens", "kl"}
    assert [step for step, _ in curves["heads.induction"]] == [0, 10, 20, 30, 40]
    assert curves["kl.start"][0][1] == 0 < curves["kl.start"][-1][1]
    assert curves["kl.start"][-1][1] > curves["kl.before"][-1][1]
    shown = curves_view(curves, "heads", 14).draw(80).plain
    assert "induction" in shown
    assert len(lines(curves, ["heads", "kl"], probes.best, 80)) == 2
    # they come back from a file, and from a resume file's state
    again = record_from_json(json.loads(json.dumps(dataclasses.asdict(checkpoint.training))), "x")
    assert again.probes == curves
    state = json.loads(json.dumps(dataclasses.asdict(watched.trainer.state)))
    assert parse_state(state, "x").probes.keys() == curves.keys()
    longer = again.append_to(again)
    assert longer.probes["heads.copying"][-1][0] == 80


def test_what_would_take_more_than_a_seventh_of_the_time_is_left_out(corpus):
    run = begin(corpus, LLAMA)
    trainer = run.trainer
    probes = Probes(trainer, ("kl",), run.start.tokenizer)
    assert probes.measure()  # before the first step there is no time to compare with
    trainer.state.step, trainer.state.seconds = 5, 7.0
    probes._spent, probes._last = 0.7, 0.31
    assert not probes.measure()
    probes._last = 0.29
    assert probes.measure()


@pytest.mark.parametrize("odd", [[], {"a": 1}, {"a": [[1]]}, {"a": [[-1, 0.5]]}, {"a" * 101: []}])
def test_curves_that_are_none_are_refused(odd):
    record = dataclasses.asdict(TrainingRecord(steps=1, tokens=1, train_loss=1.0)) | {"probes": odd}
    with pytest.raises(UserError, match="missing or invalid field"):
        record_from_json(json.loads(json.dumps(record)), "x")
    with pytest.raises(UserError, match="nothing of this was measured"):
        curves_view({}, "heads", 10)
