"""`:changes`: what is changed is listed, turned off, and without effect where it adds nothing."""

import json

import pytest
import torch

from minillm_repl.checkpoint.load_save import load
from minillm_repl.model.build import build
from minillm_repl.model.hooks import compose
from minillm_repl.views.ablate import ablation_hook
from minillm_repl.views.edges import WRITES, Graph, cut_hook
from minillm_repl.views.features_use import ablating_hook
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.knockout import knockout_hook
from minillm_repl.views.steering import steering_hook
from tests.conftest import MODELS, random_checkpoint
from tests.test_features import trained
from tests.test_session import checkpoints, folder, visit  # noqa: F401 - fixtures


def test_changes_are_listed_with_what_turns_them_off_and_all_are_turned_off(visit, tmp_path):
    one, file = visit(), tmp_path / "c.json"
    assert "none: it is as in its file" in one.say(":max-tokens 4\n날씨가\n:changes\n")
    plain = one.shell.session.workspace.model.decoder
    one.say(":ablate 1.1\n:steer 눈이 vs 비가 strength=2\n:knockout 0.1 @1->@0\n")
    told = one.say(f":changes\n:changes --json {file}\n")
    for line in ("3 changes", "head 1.1 ablated", ":ablate off", ":steer off", ":knockout off"):
        assert line in told
    data = json.loads(file.read_text())
    assert data["view"] == "changes" and data["changes"][0] == {
        "kind": "ablate", "place": "1.1", "description": "head 1.1 ablated", "off": ":ablate off",
    }  # fmt: skip
    assert "3 changes turned off" in one.say(":changes off\n")
    model = one.shell.session.workspace.model
    assert not model.interventions and model.decoder is plain
    assert "nothing is changed" in one.say(":changes off\n")
    assert one.shell.recorder.saved.lines == ()


def test_an_adapter_is_a_change(visit, tmp_path):
    one = visit()
    path = tmp_path / "a.safetensors"
    one.say(f":load {MODELS / 'nalssi.safetensors'}\n")
    one.say(f":train {MODELS / 'nalssi.txt'} lora=2 steps=2\n:save {path} adapter\n")
    one.say(f":load {path}\n:load {path}\n")  # twice: the first asks about unsaved weights
    told = one.say(":max-tokens 4\n날씨가\n:ablate 0.1\n:changes\n")
    assert "2 changes" in told and ":adapter off" in told and "rank 2" in told
    assert "2 changes turned off" in one.say(":changes off\n")
    model = one.shell.session.workspace.model
    plain = load(MODELS / "nalssi.safetensors")
    assert not model.interventions
    assert (model.checkpoint.tensors["blocks.0.attention.qkv.weight"]
            == plain.tensors["blocks.0.attention.qkv.weight"]).all()  # fmt: skip


@pytest.mark.parametrize("what", ["steer", "feature", "knockout", "circuit", "together"])
def test_a_change_without_effect_changes_no_bit(what):
    checkpoint = random_checkpoint(vocab=40, context=32, layers=2)
    model = build(checkpoint.config, checkpoint.tensors)
    text = InspectedText(model, checkpoint.tokenizer, (3, 1, 4, 1, 5, 9))
    width = checkpoint.config.d_model
    silent = trained(torch.randn(200, width), steps=1)  # no feature is ever active below
    silent.encoder_bias.fill_(-1e9)
    kept = Graph(checkpoint.config).all_edges()
    hooks = {
        "steer": steering_hook(torch.ones(width), 0, 0.0),
        "feature": ablating_hook(silent, 1),
        "knockout": knockout_hook(0, None, 2, 5),  # what a position does not see anyway
        "circuit": cut_hook(model, kept, text.run_with_cache(*WRITES)[1]),
    }
    hook = compose(*list(hooks.values())[:3]) if what == "together" else hooks[what]
    assert torch.equal(text.with_hook(hook).logits(), text.logits())
    assert not torch.equal(text.with_hook(ablation_hook(text, 0)).logits(), text.logits())
