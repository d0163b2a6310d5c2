"""Every sampler against those of transformers and llama.cpp, alone, together, and at the edges."""

import ctypes
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from minillm_repl.checkpoint.gguf.write import save_gguf
from minillm_repl.generate import Sampling, TokenRules
from minillm_repl.generate import fast_sampling as fast
from minillm_repl.generate.options import LLAMA_CPP_ORDER
from minillm_repl.generate.sampling import (
    Situation,
    next_mu,
    process_logits,
    sample_token,
    softmax,
    stages,
)
from minillm_repl.generate.sampling import draw as plain_draw

EDGES = {
    "ties": [1.0, 3.0, 3.0, 2.0, 3.0, 1.0, 2.0, 2.0],
    "all equal": [0.5] * 8,
    "one far above": [50.0, 0, 0, 0, 0, 0, 0, 0],
    "exact halves": list(
        np.log2([0.5, 0.25, 0.125, 0.125, 2**-30, 2**-30, 2**-30, 2**-30]) * np.log(2)
    ),
    "negative": [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0],
    "large": [1e4, 9e3, -1e4, 0, 1, 2, 3, 4],
}
SETTINGS = [
    Sampling(
        **dict(zip(("temp", "top_k", "top_p", "min_p", "repeat_penalty"), values, strict=True))
    )
    for values in itertools.product(
        (1.0, 0.3, 2.5), (0, 1, 3, 100), (1.0, 0.5, 0.9, 0.0), (0.0, 0.1, 1.0), (1.0, 1.3)
    )
]
SETTINGS += [
    Sampling(temp=temp, top_k=top_k, typical_p=typical_p)
    for temp, top_k, typical_p in itertools.product((1.0, 0.5), (0, 5), (0.05, 0.5, 0.9, 0.99))
]


def by_transformers(logits, sampling, seen):
    scores, ids = torch.tensor(logits)[None], torch.tensor([seen])
    processors = []
    if sampling.repeat_penalty != 1:
        processors.append(theirs.RepetitionPenaltyLogitsProcessor(sampling.repeat_penalty))
    if sampling.temp != 1:
        processors.append(theirs.TemperatureLogitsWarper(sampling.temp))
    if sampling.top_k:
        processors.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        processors.append(theirs.MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p < 1:
        processors.append(theirs.TypicalLogitsWarper(sampling.typical_p))
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0]


def agrees(logits, sampling, seen):
    ours = process_logits(logits.astype(np.float32), sampling, seen)
    expected = by_transformers(logits.astype(np.float32), sampling, seen)
    assert (np.isinf(ours) == torch.isinf(expected).numpy()).all(), (sampling, ours, expected)
    probabilities = torch.softmax(expected.double(), -1).numpy()
    np.testing.assert_allclose(softmax(ours)[0], probabilities, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 8, 300])
def test_each_combination_agrees_with_transformers_on_random_logits(size):
    rng = np.random.default_rng(size)
    for sampling in SETTINGS:
        agrees(rng.normal(0, 3, size), sampling, rng.integers(0, size, 5).tolist())


@pytest.mark.parametrize("name", EDGES)
def test_each_combination_agrees_with_transformers_at_the_edges(name):
    for sampling in SETTINGS:
        agrees(np.array(EDGES[name]), sampling, [0, 3, 3])


def test_of_a_large_vocabulary_the_shortcuts_keep_what_the_plain_samplers_keep():
    """But for tokens on the very boundary of top-p: its sums are rounded to float32, in another
    order.
    """
    # With the first spread, too many tokens stay for the shortcut of top-p.
    for spread in (0.5, 3.0):
        logits = np.random.default_rng(0).normal(0, spread, 50_000).astype(np.float32)
        logits[:100] = logits[7]
        probabilities = softmax(logits)[0]
        for sampling in SETTINGS:
            ours = fast.process_logits(logits, sampling, [0, 3])
            expected = process_logits(logits, sampling, [0, 3])
            apart = np.isinf(ours) != np.isinf(expected)
            assert probabilities[apart].sum() < 1e-4
            assert sampling.top_p not in (0.0, 1.0) or not apart.any()
            np.testing.assert_array_equal(ours[~apart], expected[~apart])


@pytest.mark.parametrize("process", [process_logits, fast.process_logits])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_of_a_large_vocabulary_samplers_keep_what_transformers_keeps(spread, process):
    """But for tokens on the very boundary of top-p or typical-p: the sums of both are rounded to
    float32 on the way there.
    """
    logits = np.random.default_rng(0).normal(0, spread, 50_000).astype(np.float32)
    logits[:100] = logits[7]
    for sampling in SETTINGS:
        ours = process(logits, sampling, [0, 3])
        expected = by_transformers(logits, sampling, [0, 3]).numpy()
        apart = np.isinf(ours) != np.isinf(expected)
        assert softmax(logits)[0][apart].sum() < 1e-4
        is_sum = sampling.top_p not in (0.0, 1.0) or sampling.typical_p < 1
        assert is_sum or not apart.any()
        np.testing.assert_array_equal(ours[~apart], expected[~apart])


def test_softmax_in_arrays_that_have_been_used_is_the_plain_one():
    rng, scratch = np.random.default_rng(0), fast.make_scratch(5_000)
    for kept in (5_000, 3, 4_000, 1):
        logits = rng.normal(0, 3, 5_000).astype(np.float32)
        logits[rng.permutation(5_000)[kept:]] = -np.inf
        for ours, expected in zip(fast.softmax(logits, scratch), softmax(logits), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_a_draw_from_a_large_vocabulary_is_the_plain_one():
    """The token, the scores and both distributions, draw after draw in the same arrays."""
    logits = np.random.default_rng(0).normal(0, 3, (2, 5_000)).astype(np.float32)
    quick = fast.FastDraw(5_000)
    for number, sampling in enumerate(SETTINGS[::7]):
        rngs = np.random.default_rng(number), np.random.default_rng(number)
        ours = quick(logits[number % 2], sampling, [0, 3], rngs[0])
        expected = plain_draw(logits[number % 2], sampling, [0, 3], rngs[1])
        assert ours.token == expected.token
        np.testing.assert_array_equal(ours.scores, expected.scores)
        np.testing.assert_allclose(ours.model, expected.model, rtol=1e-12)
        np.testing.assert_allclose(ours.sampled, expected.sampled, rtol=1e-12)
        assert rngs[0].random() == rngs[1].random()  # one number each


def test_a_draw_is_made_of_the_parts_that_the_module_shows():
    logits = np.random.default_rng(0).normal(0, 3, 44).astype(np.float32)
    sampling = Sampling(temp=0.7, top_k=5)
    made = plain_draw(logits, sampling, [3], np.random.default_rng(4))
    scores = process_logits(logits, sampling, [3])
    np.testing.assert_array_equal(made.scores, scores)
    np.testing.assert_array_equal(made.model, softmax(logits))
    np.testing.assert_array_equal(made.sampled, softmax(scores))
    assert made.token == sample_token(made.sampled[0], np.random.default_rng(4).random())


def test_top_p_exactly_on_a_boundary_keeps_what_transformers_keeps():
    logits = np.log(np.array([0.5, 0.25, 0.25])).astype(np.float32)
    kept = np.isfinite(process_logits(logits, Sampling(temp=1, top_p=0.5), []))
    assert kept.tolist() == [True, False, False]


def test_temperature_0_equals_top_k_1():
    rng = np.random.default_rng(0)
    for _ in range(100):
        logits = rng.normal(0, 3, 50).astype(np.float32)
        greedy = process_logits(logits, Sampling(temp=0), [])
        top1 = process_logits(logits, Sampling(temp=0.7, top_k=1), [])
        assert (
            np.flatnonzero(np.isfinite(greedy))
            == np.flatnonzero(np.isfinite(top1))
            == logits.argmax()
        )


@pytest.mark.parametrize("temp", [1e-8, 1e-30, 5e-324, 1e8])
def test_extreme_temperatures_stay_finite(temp):
    logits = np.array([3.0, 2.0, -1e4], np.float32)
    probabilities = softmax(process_logits(logits, Sampling(temp=temp), []))[0]
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1)


def test_softmax_is_torchs_in_float64():
    logits = np.random.default_rng(1).normal(0, 20, 1000).astype(np.float32)
    probabilities, logs = softmax(logits)
    exact = torch.tensor(logits).double()
    np.testing.assert_allclose(probabilities, exact.softmax(-1).numpy(), rtol=1e-12, atol=0)
    np.testing.assert_allclose(logs, exact.log_softmax(-1).numpy(), rtol=0, atol=1e-12)


DRAWS = pytest.mark.parametrize("draw", [sample_token, fast.sample_token])


@DRAWS
@pytest.mark.parametrize(
    "places", [(1, 3, 5), (300, 4_351, 5_000), (0, 255, 4_097), (256, 4_096, 4_097)]
)
def test_draws_follow_the_distribution_and_never_reach_what_was_cut(places, draw):
    first, second, size = places
    probabilities = np.zeros(size)
    probabilities[[first, second]] = 0.7, 0.3
    rng = np.random.default_rng(0)
    drawn = [draw(probabilities, rng.random()) for _ in range(20_000)]
    counts = np.bincount(drawn, minlength=size) / 20_000
    assert counts[first] + counts[second] == 1
    assert abs(counts[first] - 0.7) < 4 * (0.21 / 20_000) ** 0.5  # four standard deviations


@DRAWS
def test_a_draw_is_where_the_sum_of_all_before_it_says(draw):
    rng = np.random.default_rng(0)
    for size in (1, 44, 256, 257, 50_000):
        probabilities = softmax(rng.normal(0, 3, size).astype(np.float32))[0]
        for number in np.random.default_rng(1).random(200):
            expected = probabilities.cumsum().searchsorted(number, side="right")
            assert draw(probabilities, number) == expected


@DRAWS
@pytest.mark.parametrize("before", [0, 5_000])
@pytest.mark.parametrize("after", [1, 300])
def test_a_draw_at_the_very_end_takes_the_last_candidate(before, after, draw):
    probabilities = np.array([0.0] * before + [0.1] * 3 + [0.7 - 1e-17] + [0.0] * after)
    assert draw(probabilities, np.nextafter(1.0, 0.0)) == before + 3


# -- samplers that transformers does not have, by llama.cpp


@pytest.fixture(scope="module")
def llama_cpp():
    return pytest.importorskip(
        "llama_cpp.llama_cpp", reason="needs llama.cpp itself: pip install llama-cpp-python"
    )


def by_llama_cpp(llama_cpp, logits, sampler, seen=()):
    """The logits after a sampler of llama.cpp, which has accepted some tokens before."""
    items = (llama_cpp.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        items[token] = llama_cpp.llama_token_data(token, logit, 0.0)
    array = llama_cpp.llama_token_data_array(items, len(logits), -1, False)
    for token in seen:
        llama_cpp.llama_sampler_accept(sampler, token)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    scores = np.full(len(logits), -np.inf, np.float32)
    for place in range(array.size):
        scores[array.data[place].id] = array.data[place].logit
    llama_cpp.llama_sampler_free(sampler)
    return scores


def same(ours, expected):
    assert (np.isinf(ours) == np.isinf(expected)).all(), (ours, expected)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 8, 300])
def test_samplers_keep_what_llama_cpp_keeps(llama_cpp, size):
    rng = np.random.default_rng(size)
    for spread, value in itertools.product((1, 3, 8), (0.05, 0.2, 0.45, 0.9)):
        logits, seen = rng.normal(0, spread, size).astype(np.float32), rng.integers(0, size, 9)
        make, seen = llama_cpp, seen.tolist()
        penalties = make.llama_sampler_init_penalties
        cases = [
            (make.llama_sampler_init_top_n_sigma(5 * value), {"top_n_sigma": 5 * value}),
            (make.llama_sampler_init_xtc(1.0, value, 1, 0), {"xtc": 1, "xtc_threshold": value}),
            (make.llama_sampler_init_typical(value, 1), {"typical_p": value}),
            (penalties(size, 99, 1, value, 0), {"frequency_penalty": value}),
            (penalties(size, 99, 1, 0, value), {"presence_penalty": value}),
            (
                penalties(size, 99, 1 + value, value, -value),
                {
                    "repeat_penalty": 1 + value,
                    "frequency_penalty": value,
                    "presence_penalty": -value,
                },
            ),
        ]
        for sampler, on in cases:
            sampling = Sampling(temp=1.0, **on)
            expected = by_llama_cpp(llama_cpp, logits, sampler, seen)
            same(process_logits(logits, sampling, seen), expected)
            same(fast.process_logits(logits, sampling, seen), expected)


@pytest.fixture(scope="module")
def llama_vocabulary(llama_cpp, nalssi, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "nalssi.gguf"
    save_gguf(nalssi, path)
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    yield llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


@pytest.mark.parametrize("breakers", [(), "다가"])
def test_dry_is_that_of_llama_cpp(llama_cpp, llama_vocabulary, nalssi, breakers):
    rng, size = np.random.default_rng(3), nalssi.tokenizer.vocab_size
    marks = (ctypes.c_char_p * len(breakers))(*(each.encode() for each in breakers))
    ids = frozenset(token for each in breakers for token in nalssi.tokenizer.encode(each))
    for length, base, few in itertools.product((1, 2, 4), (1.0, 1.75, 9.0), (2, 5)):
        # Few tokens that differ: many and long repetitions, of which some overlap.
        choice = [*rng.permutation(size)[:few].tolist(), *ids]
        seen = [choice[each] for each in rng.integers(0, len(choice), 120)] + choice[:1] * 20
        logits = rng.normal(0, 3, size).astype(np.float32)
        sampler = llama_cpp.llama_sampler_init_dry(
            llama_vocabulary, 0.8, base, length, 4096, marks, len(breakers)
        )
        sampling = Sampling(temp=1, dry=0.8, dry_base=base, dry_length=length)
        situation = Situation(TokenRules(breakers=ids))
        for text in (seen, seen[:100], seen[:7], []):
            ours = process_logits(logits, sampling, text, situation)
            expected = by_llama_cpp(llama_cpp, logits, sampler_of(llama_cpp, sampler), text)
            same(ours, expected)
        llama_cpp.llama_sampler_free(sampler)


def sampler_of(llama_cpp, sampler):
    """A fresh copy, which has accepted nothing."""
    copy = llama_cpp.llama_sampler_clone(sampler)
    llama_cpp.llama_sampler_reset(copy)
    return copy


def test_mirostat_keeps_and_learns_what_that_of_llama_cpp_does(llama_cpp):
    """Its generator is not ours: it is asked again until it draws our token."""
    rng, sampling = np.random.default_rng(5), Sampling(temp=1, mirostat=2.5, mirostat_rate=0.3)
    mu, drawn = None, []
    rows = rng.normal(0, 2, (6, 40)).astype(np.float32)
    for number, logits in enumerate(rows):
        made = plain_draw(logits, sampling, [], rng, Situation(mu=mu))
        mu = next_mu(mu, sampling, made.sampled[0][made.token])
        drawn.append((made.token, np.isfinite(made.scores)))
        kept = mirostat_of_llama_cpp(llama_cpp, rows[: number + 1], [each[0] for each in drawn])
        np.testing.assert_array_equal(np.isfinite(made.scores), kept)


def mirostat_of_llama_cpp(llama_cpp, rows, tokens):
    """Which tokens its Mirostat keeps of the last row, once it has drawn these before it."""
    for seed in range(100_000):
        sampler, found = llama_cpp.llama_sampler_init_mirostat_v2(seed, 2.5, 0.3), []
        for logits, token in zip(rows, tokens, strict=True):
            items = (llama_cpp.llama_token_data * len(logits))()
            for each, logit in enumerate(logits):
                items[each] = llama_cpp.llama_token_data(each, logit, 0.0)
            array = llama_cpp.llama_token_data_array(items, len(logits), -1, False)
            llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
            found = {array.data[place].id for place in range(array.size)}
            if array.data[array.selected].id != token:
                break
        else:
            llama_cpp.llama_sampler_free(sampler)
            return [token in found for token in range(len(rows[0]))]
        llama_cpp.llama_sampler_free(sampler)
    raise AssertionError


# -- the order, the coin, the text that penalties look at


def test_samplers_apply_in_the_order_that_is_set():
    sampling = Sampling(temp=0.5, top_k=4, min_p=0.1, xtc=0.5, mirostat=3)
    usual = ["temp", "top-k", "min-p", "xtc", "mirostat"]
    assert [name for name, _stage in stages(sampling, [])] == usual
    last = replace(sampling, sampler_order=LLAMA_CPP_ORDER)
    assert [name for name, _stage in stages(last, [])] == [*usual[1:4], "temp", "mirostat"]
    first = replace(sampling, sampler_order=("min-p",))
    assert [name for name, _stage in stages(first, [])] == ["min-p", "temp", "top-k", *usual[3:]]
    # min-p of 0.5 keeps more after a high temperature than before it.
    logits = np.array([3.0, 2.0, 0.0], np.float32)
    hot = Sampling(temp=3, min_p=0.5)
    before = replace(hot, sampler_order=("min-p", "temp"))
    assert np.isfinite(process_logits(logits, hot, [])).sum() == 2
    assert np.isfinite(process_logits(logits, before, [])).sum() == 1


def test_one_number_is_the_coin_of_xtc_and_the_draw():
    """As often as both said apart: what is left of the number is uniform, whatever the side."""
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    sampling, rng = Sampling(temp=1, xtc=0.25, xtc_threshold=0.2), np.random.default_rng(0)
    counts = np.bincount([plain_draw(logits, sampling, [], rng).token for _ in range(20_000)])
    without = np.array([0.5, 0.3, 0.15, 0.05])
    applied = np.array([0, 0.3, 0.15, 0.05]) / 0.5
    expected = 0.75 * without + 0.25 * applied
    assert np.abs(counts / 20_000 - expected).max() < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("process", [process_logits, fast.process_logits])
def test_penalties_may_leave_the_prompt_alone(process):
    logits = np.random.default_rng(0).normal(0, 3, 5_000).astype(np.float32)
    values = {"repeat_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": 1, "dry": 1}
    text = [7, 8, 9, 7, 8, 9, 4, 5, 4, 5, 4]
    for name, value in values.items():
        sampling = Sampling(temp=1, penalise="answer", **{name: value})
        ours = process(logits, sampling, text, Situation(answer_start=6))
        expected = process_logits(logits, replace(sampling, penalise="all"), text[6:])
        np.testing.assert_array_equal(ours, expected)
        np.testing.assert_array_equal(
            process(logits, sampling, text[:6], Situation(answer_start=6)), logits
        )


@pytest.mark.parametrize("process", [process_logits, fast.process_logits])
def test_bans_biases_and_a_mask_are_those_of_transformers(process):
    rng, size = np.random.default_rng(0), 5_000
    logits, allowed = rng.normal(0, 3, size).astype(np.float32), rng.random(size) < 0.01
    tokens = np.flatnonzero(allowed)[:4].tolist()
    rules = TokenRules(banned=tuple(tokens[:2]), biases=((tokens[2], 2.5), (tokens[3], -4)))
    sampling = Sampling(temp=0.7, top_p=0.9, min_p=0.01, typical_p=0.95, top_n_sigma=3)
    ours = process(logits, sampling, [], Situation(rules, allowed=allowed))
    scores, ids = torch.tensor(logits)[None], torch.tensor([[1]])
    scores = theirs.PrefixConstrainedLogitsProcessor(
        lambda _batch, _ids: np.flatnonzero(allowed).tolist(), 1
    )(ids, scores)
    scores = theirs.NoBadWordsLogitsProcessor([[each] for each in tokens[:2]])(ids, scores)
    biases = {(token,): float(value) for token, value in rules.biases}
    scores = theirs.SequenceBiasLogitsProcessor(biases)(ids, scores)
    left = scores[scores.isfinite()]
    scores[scores < scores.max() - 3 * left.std(correction=0)] = -torch.inf
    for processor in (
        theirs.TemperatureLogitsWarper(0.7), theirs.TopPLogitsWarper(0.9),
        theirs.MinPLogitsWarper(0.01), theirs.TypicalLogitsWarper(0.95),
    ):  # fmt: skip
        scores = processor(ids, scores)
    same(ours, scores[0].numpy())
