"""What could come next: in stages, by temperature, of a continuation, on several ways, by hand."""

import math
import random
import re

import numpy as np
import pytest
import torch

from minillm_repl.errors import UsageError, UserError
from minillm_repl.generate import GenerationConfig, Sampling, Step, never_interrupted
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.generate import generate
from minillm_repl.generate.interactive import InteractiveDecoder
from minillm_repl.generate.sampling import make_rng
from minillm_repl.model.build import build
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.views.branch import compute as branches_view
from minillm_repl.views.choose import Continuations
from minillm_repl.views.choose import compute as choose_view
from minillm_repl.views.prob import compute as prob_view
from minillm_repl.views.sampler import compute as sampler_view
from minillm_repl.views.sampler import next_logits
from minillm_repl.views.sweep import compute_sweep as sweep_view
from tests.test_lessons import printed, shell_for
from tests.test_sampling import by_transformers

ALL = Sampling(temp=0.7, top_k=9, top_p=0.9, min_p=0.02, repeat_penalty=1.3)


@pytest.fixture(params=["kernels", "torch"])
def decoder(request, nalssi):
    return (
        make_decoder(nalssi)
        if request.param == "kernels"
        else TorchDecoder(build(nalssi.config, nalssi.tensors))
    )


def test_the_last_stage_is_what_transformers_would_draw_from(nalssi):
    rng = np.random.default_rng(0)
    logits, seen = rng.normal(0, 3, 44).astype(np.float32), [3, 3, 7, 12]
    view = sampler_view(logits, ALL, seen, nalssi.tokenizer, 44)
    assert [stage.name for stage in view.stages] == [
        "model", "repeat-penalty 1.3", "temp 0.7", "top-k 9", "top-p 0.9", "min-p 0.02",
    ]  # fmt: skip
    for count in range(len(view.stages)):
        on = dict(
            zip(
                ("repeat_penalty", "temp", "top_k", "top_p", "min_p"),
                (1.3, 0.7, 9, 0.9, 0.02),
                strict=True,
            )
        )
        sampling = Sampling(**({"temp": 1.0} | dict(list(on.items())[:count])))
        scores = by_transformers(logits, sampling, seen)
        expected = torch.distributions.Categorical(logits=scores.double())
        stage = view.stages[count]
        assert stage.kept == int(scores.isfinite().sum())
        assert stage.cut == (view.stages[count - 1].kept if count else 44) - stage.kept
        some = expected.probs[expected.probs > 0]
        assert stage.entropy == pytest.approx(float(-(some * some.log2()).sum()), abs=1e-5)
        for each in view.candidates:
            if scores[each.token.id].isfinite():
                assert each.probs[count] == pytest.approx(
                    float(expected.probs[each.token.id]), rel=1e-5
                )
            else:
                assert each.probs[count] is None
    order = torch.tensor(logits).argsort(descending=True, stable=True).tolist()
    assert [each.token.id for each in view.candidates] == order
    assert {each.token.id for each in view.candidates if each.seen} == set(seen)


def test_the_sweep_has_the_temperature_that_is_set_and_draws_as_each_would(nalssi):
    logits = np.random.default_rng(1).normal(0, 3, 44).astype(np.float32)
    sampling = Sampling(temp=0.9, top_k=5)
    view = sweep_view(logits, sampling, [1], nalssi.tokenizer, 10)
    assert view.now in view.temps
    assert view.temps == (0, 0.3, 0.6, 0.9, 1, 1.5, 2)
    for place, temp in enumerate(view.temps[1:], 1):
        expected = by_transformers(logits, Sampling(temp=temp, top_k=5), [1]).double().softmax(-1)
        for each in view.candidates:
            assert (each.probs[place] or 0) == pytest.approx(
                float(expected[each.token.id]), rel=1e-5
            )
    assert [each.probs[0] for each in view.candidates] == [1] + [None] * 9
    assert view.entropies[0] == 0


def test_the_probability_of_a_continuation_is_e_to_minus_its_cross_entropy(nalssi, decoder):
    text, more = nalssi.tokenizer.encode("날씨가"), nalssi.tokenizer.encode(" 하늘")
    view = prob_view(decoder, nalssi.tokenizer, text, more, never_interrupted)
    with torch.no_grad():
        logits = build(nalssi.config, nalssi.tensors)(torch.tensor([text + more]))[
            0, len(text) - 1 : -1
        ].double()
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(more), reduction="none")
    assert [each.prob for each in view.chances] == pytest.approx((-loss).exp().tolist(), rel=1e-4)
    assert [each.rank for each in view.chances] == [
        int((row > row[token]).sum()) + 1 for row, token in zip(logits, more, strict=True)
    ]
    assert [each.likeliest.id for each in view.chances] == logits.argmax(-1).tolist()
    assert view.prob == pytest.approx(math.exp(-float(loss.sum())), rel=1e-4)
    assert view.bits == pytest.approx(float(loss.sum()) / math.log(2), rel=1e-5)


def test_shares_are_among_the_continuations_and_all_single_tokens_sum_to_one(nalssi, decoder):
    tokenizer, text = nalssi.tokenizer, nalssi.tokenizer.encode("날씨가")
    single = [
        (tokenizer.token_bytes(token).decode(), [[token]]) for token in range(tokenizer.vocab_size)
    ]
    everything = choose_view(decoder, tokenizer, text, single, never_interrupted)
    assert sum(option.prob for option in everything.options) == pytest.approx(1, abs=1e-6)
    assert [option.share for option in everything.options] == pytest.approx(
        [option.prob for option in everything.options], abs=1e-6
    )
    words = [(word, [tokenizer.encode(word)]) for word in (" 좋다.", " 맑다", " 시원하다.")]
    view = choose_view(decoder, tokenizer, text, words, never_interrupted)
    with torch.no_grad():
        model = build(nalssi.config, nalssi.tensors)
        losses = [
            float(
                torch.nn.functional.cross_entropy(
                    model(torch.tensor([text + ids]))[0, len(text) - 1 : -1].double(),
                    torch.tensor(ids),
                    reduction="sum",
                )
            )
            for _word, [ids] in words
        ]
    shares = torch.tensor(losses).neg().softmax(0).tolist()
    assert [option.share for option in view.options] == pytest.approx(shares, rel=1e-4)
    rates = [
        loss / math.log(2) / len(word.encode())
        for loss, (word, _ids) in zip(losses, words, strict=True)
    ]
    assert [option.bits_per_byte for option in view.options] == pytest.approx(rates, rel=1e-4)
    assert view.chosen == losses.index(min(losses))
    assert view.chosen_per_byte == rates.index(min(rates))


def test_the_continuations_of_one_token_are_all_there_is(nalssi, decoder):
    tokenizer, text = nalssi.tokenizer, nalssi.tokenizer.encode("날씨가 ")
    words = [(character, [[token]]) for token, character in enumerate(tokenizer.characters)]
    assert len(words) == tokenizer.vocab_size
    view = choose_view(decoder, tokenizer, text, words, never_interrupted)
    assert sum(option.prob for option in view.options) == pytest.approx(1, abs=1e-6)
    assert [option.share for option in view.options] == pytest.approx(
        [option.prob for option in view.options], abs=1e-6
    )


def test_the_product_of_many_tokens_may_be_below_the_smallest_number(nalssi, decoder):
    tokenizer, text = nalssi.tokenizer, nalssi.tokenizer.encode("날씨가")
    long = "하" * 300  # a probability of 0 in float64
    words = [(word, [tokenizer.encode(word)]) for word in (long, long + "하")]
    view = choose_view(decoder, tokenizer, text, words, never_interrupted)
    assert view.options[0].prob == 0
    assert sum(option.share for option in view.options) == pytest.approx(1)
    assert view.chosen == 0


@pytest.mark.parametrize(
    ("typed", "continuations", "text"),
    [
        ("a | b", ("a", "b"), ""),
        ('" a" | " b" "그 뒤"', (" a", " b"), "그 뒤"),
        ('a| "b | c"', ("a", "b | c"), ""),  # in quotes it is a part of the continuation
        ('a | b c "d" "e"', ("a", 'b c "d"'), "e"),
    ],
)
def test_continuations_are_read_as_they_are_typed(typed, continuations, text):
    values, rest = Continuations().take(typed)
    assert values == {"continuations": continuations, "text": text}
    assert not rest


@pytest.mark.parametrize("typed", ["", "a", "a |", "| a", "a | | b", '"a" "b"'])
def test_fewer_than_two_continuations_are_refused(typed):
    with pytest.raises(UsageError):
        Continuations().take(typed)


def test_each_way_is_the_completion_of_its_seed(nalssi, decoder):
    ids, sampling = nalssi.tokenizer.encode("날씨가 "), Sampling(temp=1.5)
    config = GenerationConfig(max_tokens=12, sampling=sampling)
    view = branches_view(decoder, nalssi.tokenizer, ids, config, 7, 4)
    assert len(view.branches) == 4
    for way, branch in enumerate(view.branches):
        events = generate(
            make_decoder(nalssi),
            nalssi.tokenizer,
            ids,
            GenerationConfig(max_tokens=12, sampling=sampling),
            np.random.default_rng(7 + way),
        )
        steps = [event for event in events if isinstance(event, Step)]
        assert [token.id for token in branch.tokens] == [step.id for step in steps]
        assert branch.probs == pytest.approx([step.model_prob for step in steps], rel=1e-3)
        assert branch.prob == pytest.approx(
            math.exp(sum(math.log(step.model_prob) for step in steps)), rel=1e-3
        )


def walk_of(decoder, nalssi, ids, seed=3, **more):
    return InteractiveDecoder(decoder, nalssi.tokenizer, ids, Sampling(temp=1.6), seed, **more)


def test_taking_what_is_drawn_again_and_again_writes_what_a_generation_would(nalssi, decoder):
    ids = nalssi.tokenizer.encode("날씨가")
    walk = walk_of(decoder, nalssi, ids)
    for place in range(50):  # past the context, too
        step = walk.next_step()
        assert step.index == place
        walk.append(step.id)
    events = generate(
        make_decoder(nalssi),
        nalssi.tokenizer,
        ids,
        GenerationConfig(max_tokens=50, sampling=Sampling(temp=1.6)),
        np.random.default_rng(3),
    )
    assert walk.new_ids == [event.id for event in events if isinstance(event, Step)]


@pytest.mark.parametrize("seed", range(8))
def test_where_a_walk_stands_does_not_depend_on_how_it_came_there(nalssi, decoder, seed):
    """Text, cache and random state are those of somebody who has just typed that text."""
    rng, ids = random.Random(seed), nalssi.tokenizer.encode("날씨가 ")
    walk = walk_of(decoder, nalssi, ids)
    for _ in range(40):
        step = walk.next_step()
        match rng.randrange(4):
            case 0:
                walk.append(step.id)
            case 1:
                walk.append(rng.choice(step.top).id)
            case 2:
                walk.append(*nalssi.tokenizer.encode("하늘이"))
            case 3:
                could = len(walk.ids) > len(ids)
                assert walk.undo() == could
    straight = walk_of(make_decoder(nalssi), nalssi, ids)
    if walk.new_ids:
        straight.append(*walk.new_ids)
    here, there = walk.next_step(), straight.next_step()
    assert walk._decoder.ids == straight._decoder.ids  # what is in the cache
    assert (here.id, here.rank, here.index) == (there.id, there.rank, there.index)
    assert here.prob == pytest.approx(there.prob, rel=1e-4)
    assert [each.id for each in here.top] == [each.id for each in there.top]
    typed = next_logits(make_decoder(nalssi), walk.ids)
    np.testing.assert_allclose(next_logits(decoder, walk.ids), typed, atol=1e-4)


def test_a_walk_ends_where_the_text_does_and_begins_where_it_began(nalssi):
    walk = walk_of(make_decoder(nalssi), nalssi, [3], eos_token_ids=[13])
    assert not walk.undo()
    assert not walk.append(13)
    assert walk.ids == [3]
    assert walk.append(5)
    assert walk.undo()
    assert walk.ids == [3]


def test_writing_on_after_a_walk_goes_on_with_the_numbers_of_its_seed(nalssi):
    session = Session(Settings(temp=1.6, seed=11, max_tokens=30))
    model = LoadedModel(nalssi, make_decoder(nalssi))
    session.conversation.start_turn(nalssi.tokenizer.encode("날씨가"), session.settings)
    whole = [
        event.id
        for event in session.conversation.generate(model, session.settings, never_interrupted, 0)
        if isinstance(event, Step)
    ]
    session.conversation.start_turn(nalssi.tokenizer.encode("날씨가"), session.settings)
    session.conversation.set_text(session.conversation.ids + whole[:12], nalssi.tokenizer)
    rest = [
        event.id
        for event in session.conversation.generate(model, session.settings, never_interrupted, 0)
        if isinstance(event, Step)
    ]
    assert whole[12:] == rest
    assert session.conversation.ids == nalssi.tokenizer.encode("날씨가") + whole


def test_random_numbers_can_begin_at_any_place():
    every = make_rng(5)
    drawn = [every.random() for _ in range(20)]
    assert drawn == np.random.default_rng(5).random(20).tolist()
    assert [make_rng(5, place).random() for place in range(20)] == drawn


def test_a_stopped_look_is_an_error_in_one_line(nalssi):
    with pytest.raises(UserError, match="stopped"):
        walk_of(make_decoder(nalssi), nalssi, [3]).next_step(lambda: True)


def test_no_number_of_a_step_is_cut_in_a_narrow_terminal(nalssi):
    shell = shell_for(nalssi, width=40)
    for line in (":temp 0", ":verbose 3", ":max-tokens 4", "날씨"):
        shell.run_line(line)
    shown = printed(shell)
    rows = re.findall(r"^[▶ ] +\d+  .*$", shown, re.MULTILINE)
    assert len(rows) == 12
    assert all(row.count("%") + row.count("dropped") == 2 for row in rows)
    assert shown.count("bits") == 8  # entropy and surprisal of each step
