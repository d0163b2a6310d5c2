"""Every sampler against transformers' processors, alone, together, and at the edges."""

import itertools

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from minillm_repl.generate import Sampling
from minillm_repl.generate import fast_sampling as fast
from minillm_repl.generate.sampling import draw as plain_draw
from minillm_repl.generate.sampling import process_logits, sample_token, softmax

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
    """But for tokens on the very boundary of top-p: the sums of both are rounded to float32 on
    the way there.
    """
    logits = np.random.default_rng(0).normal(0, spread, 50_000).astype(np.float32)
    logits[:100] = logits[7]
    for sampling in SETTINGS:
        ours = process(logits, sampling, [0, 3])
        expected = by_transformers(logits, sampling, [0, 3]).numpy()
        apart = np.isinf(ours) != np.isinf(expected)
        assert softmax(logits)[0][apart].sum() < 1e-4
        assert sampling.top_p not in (0.0, 1.0) or not apart.any()
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
    assert made.token == sample_token(made.sampled[0], np.random.default_rng(4))


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
    counts = np.bincount([draw(probabilities, rng) for _ in range(20_000)], minlength=size) / 20_000
    assert counts[first] + counts[second] == 1
    assert abs(counts[first] - 0.7) < 4 * (0.21 / 20_000) ** 0.5  # four standard deviations


@DRAWS
def test_a_draw_is_where_the_sum_of_all_before_it_says(draw):
    rng = np.random.default_rng(0)
    for size in (1, 44, 256, 257, 50_000):
        probabilities = softmax(rng.normal(0, 3, size).astype(np.float32))[0]
        for seed in range(200):
            expected = probabilities.cumsum().searchsorted(
                np.random.default_rng(seed).random(), side="right"
            )
            assert draw(probabilities, np.random.default_rng(seed)) == expected


@DRAWS
@pytest.mark.parametrize("before", [0, 5_000])
@pytest.mark.parametrize("after", [1, 300])
def test_a_draw_at_the_very_end_takes_the_last_candidate(before, after, draw):
    class Highest:
        def random(self):
            return np.nextafter(1.0, 0.0)

    probabilities = np.array([0.0] * before + [0.1] * 3 + [0.7 - 1e-17] + [0.0] * after)
    assert draw(probabilities, Highest()) == before + 3
