"""Character models without a network, to beat: unigram, and n-gram by interpolated Kneser-Ney.

Chen and Goodman 1998, section 3.3: one discount for each order, n1 / (n1 + 2 n2), and continuation
counts below the highest order. Every document begins after (n - 1) start marks and ends with an end
mark, which is predicted too.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

START, END = "\x02", "\x03"


class KneserNey:
    """An n-gram model of documents' characters; `vocabulary` counts all that can be predicted."""

    def __init__(self, documents: Iterable[str], n: int, vocabulary: int) -> None:
        self.n, self._uniform = n, 1 / vocabulary
        counts = Counter(
            text[place : place + n]
            for text in (f"{START * (n - 1)}{document}{END}" for document in documents)
            for place in range(len(text) - n + 1)
        )
        self._orders = [_Order(counts)]
        for _ in range(n - 1):
            # in how many different places each occurs
            counts = Counter(gram[1:] for gram in counts)
            self._orders.append(_Order(counts))

    def bits(self, document: str) -> float:
        """Return the surprisal of a document and its end, in bits."""
        text = f"{START * (self.n - 1)}{document}{END}"
        grams = (text[place : place + self.n] for place in range(len(text) - self.n + 1))
        return sum(-math.log2(self._probability(gram)) for gram in grams)

    def _probability(self, gram: str) -> float:
        probability = self._uniform
        for shorter, order in enumerate(reversed(self._orders), 1):
            probability = order.probability(gram[self.n - shorter :], probability)
        return probability


class _Order:
    """What is known of n-grams of one length."""

    def __init__(self, counts: Counter[str]) -> None:
        once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
        self._discount = once / max(1, once + 2 * twice)
        self._counts = counts
        self._totals, self._kinds = Counter[str](), Counter[str]()
        for gram, count in counts.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1

    def probability(self, gram: str, shorter: float) -> float:
        """Return the probability of the last character after the others, given a shorter one's."""
        total = self._totals[gram[:-1]]
        if not total:
            return shorter
        kept = max(0.0, self._counts[gram] - self._discount)
        return (kept + self._discount * self._kinds[gram[:-1]] * shorter) / total


def unigram_bits(train: Sequence[str], documents: Iterable[str], vocabulary: int) -> list[float]:
    """Return the surprisal of each document and its end by how often each character occurs, one
    added, in bits.
    """
    counts = Counter(character for text in train for character in text + END)
    total = counts.total() + vocabulary
    return [
        sum(-math.log2((counts[character] + 1) / total) for character in document + END)
        for document in documents
    ]
