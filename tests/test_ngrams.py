"""The n-grams that a small model has to beat."""

import itertools
import math
import random

import pytest

from benchmarks.ngrams import END, START, KneserNey, unigram_bits
from benchmarks.recipe import longest_copy

DOCUMENTS = ["abab", "abc", "cab", "", "bbca", "abca"]
CHARACTERS = "abcd" + END  # d never occurs


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_probabilities_after_any_context_sum_to_one(n):
    model = KneserNey(DOCUMENTS, n, len(CHARACTERS))
    for context in itertools.product("abcd" + START, repeat=n - 1):
        total = sum(model._probability("".join(context) + each) for each in CHARACTERS)
        assert total == pytest.approx(1, abs=1e-12)


def test_a_bigram_is_what_the_formula_says():
    """`ab` twice, `b` at the end once: by hand, with the one discount of each order."""
    model = KneserNey(["ab", "ab", "b"], 2, 3)
    # Bigrams: ^a 2, ab 2, b$ 3, ^b 1; one of count 1, two of count 2: discount 1 / (1 + 2·2) = 1/5.
    # Unigrams by their places: a 1, b 2, $ 1; two of count 1, one of count 2: discount 2 / (2 +
    # 2·1) = 1/2.
    b = (2 - 1 / 2 + 3 / 2 * 1 / 3) / 4
    after_start = (1 - 1 / 5 + 1 / 5 * 2 * b) / 3
    end = (1 - 1 / 2 + 3 / 2 * 1 / 3) / 4
    after_b = (3 - 1 / 5 + 1 / 5 * 1 * end) / 3
    assert model.bits("b") == pytest.approx(-math.log2(after_start) - math.log2(after_b))


def test_a_longer_context_helps_on_text_of_the_same_kind():
    choose = random.Random(0)
    words = ["하늘이", "맑다", "바람이", "시원하다"]
    texts = [" ".join(choose.choices(words, k=6)) for _ in range(300)]
    bits = [sum(map(KneserNey(texts[:200], n, 20).bits, texts[200:])) for n in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    assert bits[0] < sum(unigram_bits([], texts[200:], 20))


def test_the_longest_copy_is_the_longest_substring_that_occurs():
    choose = random.Random(1)
    for _ in range(200):
        learnt, text = ("".join(choose.choices("abc", k=length)) for length in (60, 20))
        parts = (text[start:stop] for start in range(21) for stop in range(start, 21))
        longest = max(len(part) for part in parts if part in learnt)
        copied = longest_copy(text, learnt)
        assert (len(copied), copied in learnt, copied in text) == (longest, True, True)
