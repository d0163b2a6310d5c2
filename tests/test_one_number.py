"""A number is the same wherever it is shown: in float32, from the weights as they are stored,
quantised ones too.

What is sampled from, `:verbose`, `:sampler`, `:prob`, `:surprise`, `:lens`, `:why` and `:compare`
are held to each other, to a text written under a change of strength 0, and to `transformers` in
float32 where it knows the model.
"""

import os
import subprocess
import sys
from dataclasses import replace
from math import log

import numpy as np
import pytest
import torch
import transformers

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.generate import GenerationConfig, Sampling
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.generate import generate
from minillm_repl.model.bfloat16 import convert
from minillm_repl.model.build import build
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.views import grad, lens, why
from minillm_repl.views.ablate_scan import compute_scan as scan_view
from minillm_repl.views.compare import compute as compare_view
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.prob import compute as prob_view
from minillm_repl.views.sampler import compute as sampler_view
from minillm_repl.views.sampler import next_logits
from minillm_repl.views.steering import steering_hook as steering
from minillm_repl.views.surprise import compute as surprise_view
from tests.conftest import ROOT
from tests.test_huggingface import FAMILIES, random_model
from tests.test_real_models import smollm2  # noqa: F401 - a fixture

NEAR = 1e-4
IDS = (5, 17, 90, 3, 3, 41, 17, 8, 60)
SAVED = [  # a family and how it is stored: each family, each kind, tied and untied heads
    ("gpt2", torch.float32),
    ("gpt2", torch.float16),
    ("gpt2 untied, relu, wide", torch.bfloat16),
    ("gpt_neox", torch.bfloat16),
    ("gpt_neox in turn, half rotary", torch.float16),
    ("llama", torch.float32),
    ("llama tied, biased", torch.float16),
    ("llama, rope llama3", torch.bfloat16),
    ("mistral", torch.bfloat16),
    ("qwen2", torch.float16),
    ("qwen3", torch.bfloat16),
    ("qwen3 tied, biased", torch.float32),
]
SHIPPED = ["nalssi", "hangul", "story"]
TEXTS = {"nalssi": "날씨가 좋", "hangul": "오늘은 날씨가", "story": "The king said to"}


def large_activations():
    """A Llama in float16 whose feed-forwards exceed float16, and whose answers are ordinary."""
    model = random_model(*FAMILIES["llama"], torch.float32)
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data *= 400
        layer.mlp.gate_proj.weight.data *= 40
    return model.to(torch.float16)


@pytest.fixture(
    scope="module",
    params=[*(f"{name}, {str(dtype)[6:]}" for name, dtype in SAVED), *SHIPPED, "large"],
)
def case(request, tmp_path_factory):
    """A checkpoint, a text, and what the logits after it are in transformers, in float32."""
    if request.param in SHIPPED:
        checkpoint = load(find_checkpoint(request.param))
        return checkpoint, tuple(checkpoint.tokenizer.encode(TEXTS[request.param])), None
    folder = tmp_path_factory.mktemp("one")
    name, _, dtype = request.param.rpartition(", ")
    model = random_model(*FAMILIES[name], getattr(torch, dtype)) if name else large_activations()
    model.save_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return load(folder), IDS, theirs(torch.tensor([IDS])).logits[0].double().numpy()


def logs(logits):
    logits = np.asarray(logits, np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def sampled(decoder, tokenizer, ids, seed=3):
    """What one token was drawn with, and the ten candidates that `:verbose` shows."""
    events = generate(
        decoder,
        tokenizer,
        ids,
        GenerationConfig(max_tokens=1, n_candidates=10, sampling=Sampling(temp=1)),
        np.random.default_rng(seed),
    )
    step = next(events)
    return {step.id: step.logprob, **{each.id: log(each.model_prob) for each in step.top}}


def shown(checkpoint, ids, quant):
    """Every way of telling log-probabilities after a text: {where: {token: log-probability}}."""
    decoder, tokenizer = make_decoder(checkpoint, quant=quant), checkpoint.tokenizer
    subject = InspectedText(decoder.model, tokenizer, tuple(ids))
    found = {"sampled, :verbose": sampled(decoder, tokenizer, ids)}
    view = sampler_view(next_logits(decoder, ids), Sampling(temp=1), ids, tokenizer, 10)
    found[":sampler"] = {each.token.id: log(each.probs[0]) for each in view.candidates}
    asked = view.candidates[1].token.id
    found[":prob"] = {asked: log(prob_view(decoder, tokenizer, ids, [asked], lambda: False).prob)}
    longer = InspectedText(decoder.model, tokenizer, (*ids, asked))
    found[":surprise"] = {asked: -surprise_view(longer, len(ids)).mean}
    found[":lens"] = {each.token.id: log(each.prob) for each in lens.compute(subject).rows[-1].top}
    why_view = why.compute(subject, asked)
    found[":why"] = {asked: log(why_view.prob)}
    assert sum(part.value for part in why_view.parts) == pytest.approx(why_view.logit, abs=NEAR)
    assert not [part for part in why_view.parts if part.name == "rounding"]
    both = compare_view(
        subject,
        InspectedText(make_decoder(checkpoint, quant=quant).model, tokenizer, tuple(ids)),
        ("", ""),
    )
    assert both.kl == (0, 0)
    found[":compare"] = {each.token.id: log(each.prob) for each in both.top[1]}
    along = torch.nn.functional.normalize(torch.randn(checkpoint.config.d_model), dim=0)
    for change, tap in (
        ("steered by 0", steering(along, 0, 0.0)),
        ("by 1e-4", steering(along, 0, 1e-4)),
    ):
        found[change] = sampled(TorchDecoder(decoder.model, tap), tokenizer, ids)
    return found, decoder.model


@pytest.mark.parametrize("quant", ["off", "int8", "int4"])
def test_a_logit_is_one_number_everywhere(case, quant):
    checkpoint, ids, expected = case
    found, model = shown(checkpoint, ids, quant)
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1].double().numpy()
    if quant == "off" and expected is not None:
        np.testing.assert_allclose(logits, expected[-1], rtol=0, atol=NEAR)
    exact = logs(logits)
    for where, told in found.items():
        for token, log_probability in told.items():
            apart = abs(log_probability - exact[token])
            assert apart < (3e-4 if where == "by 1e-4" else NEAR), (
                f"{where}: {apart:.2g} off at token {token}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["off", "int8", "int4"])
def test_a_logit_of_smollm2_is_one_number_everywhere(smollm2, quant):
    checkpoint = load(smollm2)
    ids = checkpoint.tokenizer.encode("The largest city in the world is")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].double().numpy()
    test_a_logit_is_one_number_everywhere((checkpoint, tuple(ids), expected), quant)


def test_weights_are_looked_at_in_float32_and_not_copied(case):
    """All that a pass makes is float32; the matrices are the checkpoint's own memory."""
    checkpoint, ids, _ = case
    model = make_decoder(checkpoint).model
    _, found = InspectedText(model, checkpoint.tokenizer, ids).run_with_cache("")
    assert found.pop("positions").dtype == torch.int64
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    for name, array in checkpoint.tensors.items():
        if array.ndim > 1:
            assert model.get_parameter(name).data_ptr() == array.ctypes.data, name


def test_every_view_of_half_precision_is_that_of_the_same_weights_widened(case):
    """The signs of `:ablate scan`, gradients, perplexity: as in float64."""
    checkpoint, ids, _ = case
    wide = {
        name: convert(array, np.dtype(np.float64)) for name, array in checkpoint.tensors.items()
    }
    ours = InspectedText(make_decoder(checkpoint).model, checkpoint.tokenizer, ids)
    exact = InspectedText(build(checkpoint.config, wide).double(), checkpoint.tokenizer, ids)
    scan, expected = scan_view(ours), scan_view(exact)
    there = {(each.layer, each.head): each.change for each in expected.effects}
    for each in scan.effects:
        assert each.change == pytest.approx(there[each.layer, each.head], abs=1e-5)
    np.testing.assert_allclose(
        grad.compute(ours, 3).times, grad.compute(exact, 3).times, rtol=1e-3, atol=1e-4
    )
    assert surprise_view(ours).perplexity == pytest.approx(
        surprise_view(exact).perplexity, rel=1e-5
    )


def test_what_overflows_float16_does_not_here(tmp_path):
    """In half precision transformers answers NaN, and so did every view here."""
    model = large_activations()
    with torch.no_grad():
        assert not model(torch.tensor([IDS])).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    subject = InspectedText(make_decoder(checkpoint).model, checkpoint.tokenizer, IDS)
    logits, found = subject.run_with_cache("mlp.hidden")
    assert max(float(each.abs().max()) for each in found.values()) > float(np.finfo(np.float16).max)
    assert logits.isfinite().all()


def test_logits_that_are_no_numbers_are_told_as_what_is_known_of_them(nalssi):
    broken = dict(nalssi.tensors)
    broken["ln_f.weight"] = np.full_like(broken["ln_f.weight"], np.nan)
    decoder = make_decoder(replace(nalssi, tensors=broken))
    with pytest.raises(
        UserError, match="not finite: a weight is not finite, or .* overflows float32"
    ):
        InspectedText(decoder.model, nalssi.tokenizer, (1, 2)).logits()
    with pytest.raises(UserError, match="at token 2 are not finite: a weight is not finite, or"):
        next_logits(decoder, [1, 2])


@pytest.mark.slow
def test_a_change_of_strength_0_and_one_that_is_switched_off_leave_every_bit(tmp_path):
    """What the program writes after them is what it writes without, and its numbers are."""
    random_model(*FAMILIES["llama"], torch.bfloat16).save_pretrained(tmp_path / "m")
    between = {
        "none": [],
        "strength 0": [":steer 41 5 vs 8 60 strength=0"],
        "switched off": [
            ":steer 41 5 vs 8 60",
            ":ablate 0.1",
            ":ablate 1 mean",
            ":ablate off",
            ":steer off",
        ],
    }
    found = set()
    for name, lines in between.items():
        folder = tmp_path / name
        folder.mkdir()
        asked = [
            ":max-tokens 12",
            ":seed 4",
            ":temp 1",
            "5 17 90 3",
            *lines,
            "8 8 60",
            ":sampler --json s.json",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "minillm_repl", "--no-history", "--ckpt", str(tmp_path / "m")],
            cwd=folder,
            input="\n".join(asked),
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        texts = [line for line in done.stdout.splitlines() if line.startswith("8 8 60 ")]
        assert len(texts) == 1, done.stdout
        found.add((*texts, (folder / "s.json").read_text()))
    assert len(found) == 1
