"""What depends on the language of talks: how a value fits its sentence, how numbers are written,
how people type.
"""

import random
import re
from typing import Protocol

from minillm_repl.language import PARTICLES, choose_particle


class Dialect(Protocol):
    """What `training/talk.py` asks of a language."""

    slot: re.Pattern[str]  # in a wording; its group `name` is what stands between the braces
    in_words: str  # at the end of the name of a number that is written as a word
    numbers: tuple[str, ...]  # the words, from 0 to 20
    small_talk: re.Pattern[str]  # the files whose exchanges fit anywhere
    # A list of names, and the two lists whose values make more of them.
    names: tuple[str, str, str]

    def fit(self, slot: re.Match[str], value: str) -> str:
        """Return a value as it stands in the place of a slot."""

    def type(self, text: str, rng: random.Random) -> str:
        """Return a text as somebody may type it."""


class Korean:
    """Endings go by the last syllable: `{이름}이/가`, `{음식}이라고/라고`."""

    slot = re.compile(
        r"\{(?P<name>[^{}]+)\}"
        r"(?:(은|이|을|과|으로|이에요)/(는|가|를|와|로|예요)|(이[가-힣]+)/([가-힣]+))?"
    )
    in_words = ":고유어"
    _tens = ("", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉", "열")
    numbers = ("영", *_tens[1:], *map("열{}".format, _tens[1:10]), "스물")
    small_talk = re.compile(
        r"(clothes|exams|feelings|games|health|hobbies|home|meals|pets|plans|school|sports|things"
        r"|travel|weather)\d*\.txt:"
    )
    names = ("이름", "첫음", "끝음")
    _marks = ("!", "~", "..", "^^")
    # Of what users type, these shares lack the last sign, have another, or have no spaces.
    _bare, _marked, _unspaced = 0.3, 0.1, 0.06

    def fit(self, slot: re.Match[str], value: str) -> str:
        """Return a value with the one of two endings that follows it."""
        pair = [each for each in slot.groups()[1:] if each]
        return value + (fitting(value, *pair) if pair else "")

    def type(self, text: str, rng: random.Random) -> str:
        """Return a text without its last sign, with another, or unspaced."""
        chance = rng.random()
        if chance < self._bare:
            return text.rstrip(".?!") or text
        if chance < self._bare + self._marked:
            return text.rstrip(".?!~") + rng.choice(self._marks)
        if chance < self._bare + self._marked + self._unspaced:
            return text.replace(" ", "")
        return text


class English:
    """`a {animal}` becomes `an owl`; `{Food}` begins with a capital."""

    slot = re.compile(r"(?P<article>\b[Aa] )?\{(?P<name>[^{}]+)\}")
    in_words = ":word"
    _teens = ("thir", "four", "fif", "six", "seven", "eigh", "nine")
    numbers = (
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        *("eleven", "twelve", *map("{}teen".format, _teens), "twenty"),
    )
    small_talk = re.compile(r"(short|moods|meals|hobbies|weather|school|home|pets)\w*\.txt:")
    names = ("name", "start", "end")
    # Of what users type, these shares have no last sign, no capitals, no apostrophes.
    _bare, _small, _unmarked = 0.35, 0.35, 0.15

    def fit(self, slot: re.Match[str], value: str) -> str:
        """Return a value with its article and its capital."""
        article, name = slot["article"] or "", slot["name"]
        if article and value[0] in "aeiouAEIO":
            article = f"{article[0]}n "
        return article + (value[0].upper() + value[1:] if name[0].isupper() else value)

    def type(self, text: str, rng: random.Random) -> str:
        """Return a text without its last sign, in small letters, or without apostrophes."""
        if rng.random() < self._bare:
            text = text.rstrip(".!?") or text
        if rng.random() < self._small:
            text = text.lower()
        return text.replace("'", "") if rng.random() < self._unmarked else text


def fitting(word: str, closed: str, opened: str) -> str:
    """Return the one of two endings that follows a word: `이라고/라고`, or a pair of particles."""
    if f"{closed}/{opened}" in PARTICLES:
        return choose_particle(word, f"{closed}/{opened}")
    return closed if choose_particle(word, "이/가") == "이" else opened


DIALECTS: dict[str, Dialect] = {"ko": Korean(), "en": English()}
