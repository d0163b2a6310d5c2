import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm_repl.errors import UserError
from minillm_repl.generate import (
    Finished,
    GenerationConfig,
    Sampling,
    Step,
    as_json,
    never_interrupted,
)
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.detokenizer import Detokenizer
from minillm_repl.generate.generate import generate, prefill
from minillm_repl.model.build import build
from minillm_repl.views.sampler import compute as sampler_view
from tests.conftest import MODELS, ROOT, random_checkpoint


class Uncached:
    """A decoder that forgets everything at each token: what the cached ones must equal."""

    def __init__(self, checkpoint):
        self.model = build(checkpoint.config, checkpoint.tensors)
        self.context_length, self.prefill_chunk = checkpoint.config.context_length, 100
        self.ids, self.name, self.bos_token_id = [], "uncached", None

    @torch.no_grad()
    def prefill(self, ids):
        self.ids += ids
        return self.model(torch.tensor([self.ids]))[0, -1].numpy()

    def decode(self, token):
        return self.prefill([token])

    def trim(self, length):
        del self.ids[length:]


def run(checkpoint, prompt="날씨", sampling=None, decoder=None, seed=0, interrupted=None, **more):
    decoder = decoder or make_decoder(checkpoint)
    ids = checkpoint.tokenizer.encode(prompt)
    config = GenerationConfig(
        **{"max_tokens": 40, "sampling": sampling or Sampling(temp=1), **more}
    )
    rng = np.random.default_rng(seed)
    asked = interrupted or never_interrupted
    return list(generate(decoder, checkpoint.tokenizer, ids, config, rng, asked))


def ids_of(events):
    return [event.id for event in events if isinstance(event, Step)]


def test_nalssi_at_temperature_0_writes_what_stands_in_the_four_sentences(nalssi):
    text = (MODELS / "nalssi.txt").read_text(encoding="utf-8")
    finished = run(nalssi, sampling=Sampling(temp=0), max_tokens=60)[-1]
    assert "날씨" + finished.text in text
    assert nalssi.training.train_loss <= 0.06


@pytest.mark.parametrize("temp", [0, 1.0])
def test_cached_and_uncached_generation_give_identical_tokens(nalssi, temp):
    sampling = Sampling(temp=temp)
    expected = ids_of(run(nalssi, sampling=sampling, decoder=Uncached(nalssi), max_tokens=80))
    module = build(nalssi.config, nalssi.tensors)
    assert (
        ids_of(run(nalssi, sampling=sampling, decoder=TorchDecoder(module), max_tokens=80))
        == expected
    )
    assert ids_of(run(nalssi, sampling=sampling, max_tokens=80)) == expected


def test_temperature_0_equals_top_k_1(nalssi):
    assert ids_of(run(nalssi, sampling=Sampling(temp=0))) == ids_of(
        run(nalssi, sampling=Sampling(temp=2, top_k=1))
    )


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    checkpoint = random_checkpoint()
    texts = [run(checkpoint, "가", seed=seed)[-1].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_every_number_of_a_step_is_what_torch_computes():
    checkpoint = random_checkpoint()
    sampling = Sampling(temp=0.7, top_k=4)
    model = build(checkpoint.config, checkpoint.tensors)
    events = run(checkpoint, "가각", sampling, max_tokens=30, n_candidates=3)
    text = checkpoint.tokenizer.encode("가각")
    for step in events[:-1]:
        with torch.no_grad():
            logits = model(torch.tensor([text[-8:]]))[0, -1].double()
        own = torch.softmax(logits, -1)
        cut = torch.where(logits < logits.topk(4).values[-1], -torch.inf, logits / 0.7)
        final = torch.softmax(cut, -1)
        assert step.model_prob == pytest.approx(own[step.id].item(), rel=1e-4)
        assert step.prob == pytest.approx(final[step.id].item(), rel=1e-4)
        assert step.logprob == pytest.approx(math.log(final[step.id].item()), abs=1e-4)
        assert step.entropy == pytest.approx(
            torch.distributions.Categorical(own).entropy().item() / math.log(2), rel=1e-4
        )
        assert step.rank == 1 + (logits > logits[step.id]).sum().item()
        likeliest = own.topk(3).indices.tolist()
        listed = [candidate.id for candidate in step.top]
        assert listed == likeliest + ([step.id] if step.id not in likeliest else [])
        for candidate in step.top:
            assert candidate.model_prob == pytest.approx(own[candidate.id].item(), rel=1e-4)
            assert candidate.prob == pytest.approx(final[candidate.id].item(), rel=1e-4)
            assert candidate.kept == (final[candidate.id].item() > 0)
            assert candidate.chosen == (candidate.id == step.id)
        text.append(step.id)


def test_only_what_a_sampler_has_cut_is_told_as_cut_however_unlikely_the_rest():
    checkpoint, prompt = random_checkpoint(), "가각"
    for sampling, left in [(Sampling(temp=1e-9), 9), (Sampling(temp=1e-9, top_k=4), 4)]:
        step = run(checkpoint, prompt, sampling, max_tokens=1, n_candidates=9)[0]
        ids = checkpoint.tokenizer.encode(prompt)
        logits = prefill(make_decoder(checkpoint), ids)
        view = sampler_view(logits, sampling, ids, checkpoint.tokenizer, 9)
        assert sum(candidate.kept for candidate in step.top) == left
        assert [(each.id, each.kept, each.prob) for each in step.top] == [
            (each.token.id, each.probs[-1] is not None, each.probs[-1] or 0.0)
            for each in view.candidates
        ]


def test_all_candidates_together_have_probability_1():
    checkpoint = random_checkpoint()
    for step in run(checkpoint, "가", Sampling(temp=1.5, top_p=0.8), n_candidates=1000)[:-1]:
        assert len(step.top) == checkpoint.config.vocab_size
        assert sum(candidate.model_prob for candidate in step.top) == pytest.approx(1)
        assert sum(candidate.prob for candidate in step.top) == pytest.approx(1)


def test_text_ends_before_a_stop_string_that_spans_tokens(nalssi):
    events = run(nalssi, sampling=Sampling(temp=0), stop=("하늘이 맑",), max_tokens=60)
    assert events[-1].reason == "stop"
    assert events[-1].text == "가 좋다. "
    assert "".join(event.text for event in events[:-1]) == "가 좋다. "


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(nalssi):
    events = run(nalssi, sampling=Sampling(temp=0), stop=("좋다. 아",), max_tokens=4)
    assert (events[-1].reason, events[-1].text) == ("length", "가 좋다")
    assert "".join(event.text for event in events[:-1]) == "가 "


def test_a_syllable_split_over_tokens_appears_whole():
    text = Detokenizer()
    assert [text.push(bytes([byte])) for byte in "좋a".encode()] == ["", "", "좋", "a"]
    text.push(b"\xea")
    assert text.finish() == "좋a\ufffd"


def test_the_earliest_stop_string_wins_whatever_the_pieces():
    whole = "하나 둘 셋 넷"
    for size in range(1, 8):
        text = Detokenizer(("셋", "둘 "))
        data = whole.encode()
        shown = ""
        for start in range(0, len(data), size):
            shown += text.push(data[start : start + size])
            if text.stopped:
                break
        assert shown == text.finish() == "하나 "


def test_an_interrupt_between_two_tokens_keeps_what_was_made(nalssi):
    asked = iter([False, False, False, True])
    events = run(nalssi, interrupted=lambda: next(asked), max_tokens=1000)
    assert (events[-1].reason, events[-1].tokens) == ("interrupt", 3)
    assert "".join(event.text for event in events[:-1]) == events[-1].text


def test_closing_the_generator_leaves_the_decoder_usable(nalssi):
    decoder = make_decoder(nalssi)
    ids = nalssi.tokenizer.encode("날씨")
    expected = ids_of(run(nalssi, sampling=Sampling(temp=0)))
    for stop_after in range(1, 40, 7):
        events = generate(
            decoder,
            nalssi.tokenizer,
            ids,
            GenerationConfig(max_tokens=40, sampling=Sampling(temp=0)),
            np.random.default_rng(),
        )
        for _ in range(stop_after):
            next(events)
        events.close()
        assert ids_of(run(nalssi, sampling=Sampling(temp=0), decoder=decoder)) == expected


def test_logits_that_are_not_numbers_are_named_not_sampled():
    checkpoint = random_checkpoint()
    checkpoint.tensors["lm_head.bias"][3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        run(checkpoint, "가")


def test_a_vocabulary_of_one_goes_on_for_ever():
    checkpoint = random_checkpoint(characters=["가"])
    finished = run(
        checkpoint,
        "가",
        Sampling(temp=0.5, top_k=3, top_p=0.1, min_p=1, repeat_penalty=9),
        n_candidates=10,
    )[-1]
    assert finished.text == "가" * 40


def test_events_are_the_documented_json(nalssi):
    step, *_, finished = map(as_json, run(nalssi, n_candidates=2))
    assert list(step) == [
        "event",
        "index",
        "id",
        "text",
        "bytes",
        "prob",
        "logprob",
        "model_prob",
        "rank",
        "entropy",
        "top",
    ]
    assert list(step["top"][0]) == ["id", "text", "bytes", "model_prob", "prob", "kept", "chosen"]
    assert list(finished) == [
        "event",
        "reason",
        "text",
        "prompt_tokens",
        "tokens",
        "prompt_seconds",
        "seconds",
    ]
    assert isinstance(run(nalssi)[-1], Finished)


BESIDE = """
import threading
from pathlib import Path
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.generate import generate
from minillm_repl.generate import GenerationConfig, Sampling
from minillm_repl.generate.sampling import make_rng
from tests.small import random_checkpoint

characters = [chr(0x10000 + place) for place in range(50_000)]
checkpoint = random_checkpoint(width=12, context=64, characters=characters)
decoder = make_decoder(checkpoint, threads=1)
sampling = Sampling(temp=0.9, top_k=40, top_p=0.9, repeat_penalty=1.1)
config = GenerationConfig(max_tokens=50, sampling=sampling, n_candidates=10)
ours = {thread.native_id for thread in threading.enumerate()}
stats = [path / "stat" for path in Path("/proc/self/task").iterdir() if int(path.name) not in ours]
def worked():
    return [sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13])) for stat in stats]
before = worked()
steps = list(generate(decoder, checkpoint.tokenizer, [1, 2, 3], config, make_rng(0)))
print(len(steps), len(stats), sum(worked()) - sum(before))
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(),
    reason="the system does not tell what each thread has done",
)
def test_no_thread_of_a_library_works_while_tokens_are_drawn():
    """numpy's products over a large vocabulary leave threads behind that look for work on the
    decoder's own cores.
    """
    command = [sys.executable, "-c", BESIDE]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    steps, threads, ticks = map(int, done.stdout.split())
    assert steps == 51
    assert threads >= 1  # there is one that could
    assert ticks == 0
