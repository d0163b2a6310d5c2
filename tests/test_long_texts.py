"""Long texts: a few queries, positions or layers at a time give what the whole gives at once."""

import re
import subprocess
import sys
from io import StringIO

import pytest
import torch

from minillm_repl.errors import UserError
from minillm_repl.generate.backends import make_decoder
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.render.export import plain_text
from minillm_repl.repl.model_loading import LoadedModel, ModelLoader
from minillm_repl.repl.settings import Settings
from minillm_repl.views import cache, grad
from minillm_repl.views.ablation import ablation_hook, direction_hook, direction_places
from minillm_repl.views.attention import compute_head, compute_layer
from minillm_repl.views.attn import compute_focus
from minillm_repl.views.base import inspect_ids
from minillm_repl.views.headless import make_shell
from minillm_repl.views.knockout import knockout_hook
from tests.test_insight import make_both, of_text


@pytest.fixture(params=["gpt2", "llama tied, biased", "mistral", "gemma2", "lfm2"])
def ours(request, tmp_path):
    return make_both(request, tmp_path)[0]


def test_attention_a_few_queries_at_a_time_is_that_of_all(ours, monkeypatch):
    layer = ours.config.attention_layers[-1]
    whole = compute_focus(ours), compute_layer(ours, layer), cache.measure(ours)
    monkeypatch.setattr("minillm_repl.views.attention_patterns._MAX_NUMBERS", 5 * 21 * 4)
    parts = compute_focus(ours), compute_layer(ours, layer), cache.measure(ours)
    for there, here in zip(whole[0].heads, parts[0].heads, strict=True):
        assert {each.name: each.places for each in there.patterns} == {
            each.name: each.places for each in here.patterns
        }
        for a, b in zip(there.patterns, here.patterns, strict=True):
            assert (b.score, b.chance) == pytest.approx((a.score, a.chance), abs=1e-6)
        assert [weight for _at, weight in here.looked] == pytest.approx(
            [weight for _at, weight in there.looked], abs=1e-6
        )
    for there, here in zip(whole[1].heads, parts[1].heads, strict=True):
        torch.testing.assert_close(torch.tensor(there.weights), torch.tensor(here.weights))
    for at, there in whole[2].items():
        torch.testing.assert_close(there, parts[2][at])


def test_attention_of_a_long_text_has_the_rows_of_its_last_queries(nalssi, monkeypatch):
    ours = of_text(nalssi, "날씨가 좋다. 날씨가 좋")
    whole = compute_head(ours, 1, 2)
    assert whole.first == 0
    monkeypatch.setattr("minillm_repl.views.attention._MAX_WEIGHTS", 5 * len(ours.ids))
    part = compute_head(ours, 1, 2)
    assert part.first == len(ours.ids) - 5
    torch.testing.assert_close(torch.tensor(part.weights), torch.tensor(whole.weights[-5:]))
    assert [(e.name, e.places) for e in part.patterns] == [
        (e.name, e.places) for e in whole.patterns
    ]
    assert f"the last 5 of {len(ours.ids)} tokens" in plain_text(part, 80)
    assert len(compute_layer(ours, 1).heads[0].weights) == 1


def test_weights_that_are_cut_are_shown_cut(nalssi):
    ours = of_text(nalssi, "날씨가 좋")
    cut = ours.with_hook(knockout_hook(1, 2, 3, 1))
    assert compute_head(cut, 1, 2).weights[3][1] == 0 < compute_head(ours, 1, 2).weights[3][1]
    assert sum(compute_head(cut, 1, 2).weights[3]) == pytest.approx(1)


@pytest.mark.parametrize("changed", [False, True])
def test_a_gradient_that_goes_back_layer_by_layer_is_the_same(ours, changed, monkeypatch):
    if changed:
        along = torch.nn.functional.normalize(torch.arange(1.0, 1 + ours.config.d_model), dim=0)
        ours = ours.with_hook(direction_hook(along, direction_places(ours.config.n_layers)))
        ours = ours.with_hook(ablation_hook(ours, 1, "mlp"))
    whole = grad.compute(ours, 3, 5)
    monkeypatch.setattr("minillm_repl.views.grad._MAX_NUMBERS", 0)
    monkeypatch.setattr("minillm_repl.views.grad._at_once", None)  # nobody falls back on it
    parts = grad.compute(ours, 3, 5)
    assert parts.logit == pytest.approx(whole.logit, abs=1e-5)
    assert parts.norms == pytest.approx(whole.norms, rel=1e-4, abs=1e-6)
    assert parts.times == pytest.approx(whole.times, rel=1e-4, abs=1e-6)


class Terminal(StringIO):
    def isatty(self):
        return True


def test_a_long_pass_tells_its_layer_ends_after_ctrl_c_and_leaves_no_line(nalssi, monkeypatch):
    monkeypatch.setattr("minillm_repl.views.watching._LONG_WORK", 0)
    loaded = LoadedModel(nalssi, make_decoder(nalssi))
    shell = make_shell(ModelLoader(), loaded, Settings(), print)
    file = Terminal()
    console = Transcript(file=file, force_terminal=True, width=60)
    shell.screen = Screen(console, console, interactive=True)
    shell.session.conversation.ids = nalssi.tokenizer.encode("날씨가 좋다")
    said = []
    monkeypatch.setattr(Screen, "update_working", lambda _self, text: said.append(text))
    shell.run_line(":lens")
    assert said == [f"reading 6 tokens · layer {each} of 4" for each in (1, 2, 3, 4)]
    assert "reading 6 tokens" in file.getvalue()
    assert not shell.screen.working
    shell.interrupted = lambda: len(said) >= 6
    for line in (":lens", ":attn"):
        del said[4:]
        with pytest.raises(UserError, match="stopped"):
            shell.run_line(line)
        assert len(said) == 6
        assert not shell.screen.working
    shell.interrupted = lambda: False
    with shell.screen.waiting("mine"):  # keeps its own line
        inspect_ids(shell, loaded, shell.session.conversation.ids).logits()
    assert "reading" not in file.getvalue().rpartition("mine")[2]


WITHIN = """
import resource, sys, torch
import numpy as np
from minillm_repl.checkpoint import Checkpoint
from minillm_repl.generate.backends import make_decoder
from minillm_repl.model.config import LlamaConfig
from minillm_repl.repl.model_loading import LoadedModel, ModelLoader
from minillm_repl.repl.settings import Settings
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.views.headless import make_shell, run_view
torch.set_num_threads(1)
characters = [chr(0xAC00 + each) for each in range(500)]
config = LlamaConfig(vocab_size=500, context_length=8192, d_model=128, n_layers=6, n_heads=8,
                     n_kv_heads=2, head_dim=16, d_mlp=512)
rng = np.random.default_rng(0)
tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in config.shapes()}
model = Checkpoint(config=config, tokenizer=CharacterTokenizer(characters), tensors=tensors)
loaded = LoadedModel(model, make_decoder(model))
shell = make_shell(ModelLoader(), loaded, Settings(), print)
shell.session.conversation.ids = [5, 6, 7]
run_view(shell, "lens", "")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shell.session.conversation.ids = rng.integers(0, 500, 8000).tolist()
name, _space, rest = sys.argv[1].partition(" ")
run_view(shell, name, rest).draw(80)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["attn", "attn 2.1", "attn 2", "lens", "lens grid", "why", "why by=position", "grad",
             "qkv 2.1", "residual", "neurons 2", "surprise", "cache"],
)  # fmt: skip
def test_a_view_of_8000_tokens_takes_less_than_a_gigabyte(line):
    """All weights of one layer of this model would take 2 GB."""
    done = subprocess.run(
        [sys.executable, "-c", WITHIN, line], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"(\d+)\n$", done.stdout)[1]) < 1000, done.stdout
