"""Talks: conversations written by hand, multiplied by what stands for their slots.

`recipes/talk/` has a file for each topic and `slots.txt`; its README.md says how they are written.
The same seed gives the same conversations.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.language import PARTICLES, _, choose_particle

TALK_FOLDER = Path(__file__).with_name("recipes") / "talk"
SLOTS_FILE = "slots.txt"
# A slot, and the two endings of which one fits: a pair of particles, or such as `이라고/라고`.
_SLOT = re.compile(
    r"\{([^{}]+)\}(?:(은|이|을|과|으로|이에요)/(는|가|를|와|로|예요)|(이[가-힣]+)/([가-힣]+))?"
)
_COUNTS = re.compile(r"([a-d]([+*-][a-d1])?|max|min)(:고유어)?")  # a slot that is a number
_IN_WORDS = ":고유어"  # 하나, 둘, 셋
_TO_TEN = ("", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉", "열")
_NATIVE = ("영", *_TO_TEN[1:], *(f"열{each}" for each in _TO_TEN[1:10]), "스물")
_LARGEST = 20  # of the numbers that are counted with
_MARKS = ("!", "~", "..", "^^")
_MADE_NAMES = 0.5  # share of the given names that are put together from syllables
# Of what users type, these shares lack the last sign, have another, or have no spaces (_type).
_BARE, _MARKED, _UNSPACED = 0.3, 0.1, 0.06


@dataclass(frozen=True)
class Talk:
    """One conversation: for each turn, the user's first, the wordings that it may have."""

    turns: tuple[tuple[str, ...], ...]
    place: str  # file and line, for messages


class Deck:
    """Cards that are dealt in a random order, each once before any comes again."""

    def __init__(self, cards: Iterable[str], rng: random.Random) -> None:
        self._cards, self._rng = list(cards), rng
        self._left: list[str] = []

    def deal(self, *, but: Iterable[str] = ()) -> str:
        """Return the next card that is not one of `but`."""
        if not self._left:
            self._left = self._rng.sample(self._cards, len(self._cards))
        refused = set(but)
        place = next((p for p, card in enumerate(self._left) if card not in refused), None)
        if place is None:  # what is left is refused: the next round begins early
            self._left += self._rng.sample(self._cards, len(self._cards))
            return self.deal(but=but)
        return self._left.pop(place)


def read_talks(folder: Path = TALK_FOLDER) -> list[Talk]:
    """Return the conversations of a folder. Raises UserError for a file that is written wrong."""
    return [
        talk
        for path in sorted(folder.glob("*.txt"))
        if path.name != SLOTS_FILE
        for talk in parse_talks(path.read_text(encoding="utf-8"), path.name)
    ]


def parse_talks(text: str, name: str) -> Iterator[Talk]:
    """Yield the conversations of one file; a blank line ends each. Raises UserError."""
    turns: list[tuple[str, ...]] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        mark, wordings = line[:2], tuple(each.strip() for each in line[2:].split(" | "))
        if not line.strip() or line.startswith("#"):
            if len(turns) % 2:
                raise UserError(_("{place}: a talk ends with an answer", place=f"{name}:{number}"))
            if turns:
                yield Talk(tuple(turns), f"{name}:{number - len(turns)}")
            turns = []
        elif mark != "><"[len(turns) % 2] + " " or not all(wordings):
            raise UserError(
                _("{place}: `> ` and `< ` take turns, and say something", place=f"{name}:{number}")
            )
        else:
            turns.append(wordings)


def read_slots(folder: Path = TALK_FOLDER) -> dict[str, list[str]]:
    """Return the values of each slot."""
    lines = (folder / SLOTS_FILE).read_text(encoding="utf-8").splitlines()
    parts = [line.partition(" = ") for line in lines if line.strip() and not line.startswith("#")]
    return {name: [each.strip() for each in values.split(" | ")] for name, _is, values in parts}


class Expander:
    """Makes conversations of talks: picks wordings, and fills slots, each value as often."""

    def __init__(self, talks: list[Talk], slots: dict[str, list[str]], seed: int) -> None:
        self._talks = talks
        self._rng = random.Random(seed)  # noqa: S311 - nothing secret
        self._decks = {name: Deck(values, self._rng) for name, values in slots.items()}
        self._wordings = {
            (talk.place, index): Deck(turn, self._rng)
            for talk in talks
            for index, turn in enumerate(talk.turns)
        }

    def conversations(self, rounds: int) -> list[list[Message]]:
        """Return different conversations in a random order: in each round, every talk is begun
        with each of its first wordings.
        """
        made = dict[tuple[Message, ...], None]()
        for _round in range(rounds):
            for talk in self._talks:
                made |= {tuple(self._expand(talk)): None for _first in talk.turns[0]}
        conversations = [list(each) for each in made]
        self._rng.shuffle(conversations)
        return conversations

    def _expand(self, talk: Talk) -> Iterator[Message]:
        wordings = [self._wordings[talk.place, i].deal() for i in range(len(talk.turns))]
        values = self._draw_numbers(wordings)
        for index, wording in enumerate(wordings):
            text = _SLOT.sub(lambda slot: self._fill(slot, values), wording)
            if index % 2:
                yield Message("assistant", text)
            else:
                yield Message("user", _type(text, self._rng))

    def _fill(self, slot: re.Match[str], values: dict[str, str]) -> str:
        name, *endings = slot.groups()
        if name not in values:
            values[name] = self._draw(name.rstrip("23"), values)
        pair = [each for each in endings if each]
        return values[name] + (fitting(values[name], *pair) if pair else "")

    def _draw(self, name: str, values: dict[str, str]) -> str:
        if name == "성이름":
            return self._decks["성"].deal() + self._draw("이름", values)
        if name == "이름" and self._rng.random() < _MADE_NAMES:
            return self._decks["첫음"].deal() + self._decks["끝음"].deal()
        others = [value for slot, value in values.items() if slot.rstrip("23") == name]
        return self._decks[name].deal(but=others)

    def _draw_numbers(self, wordings: list[str]) -> dict[str, str]:
        """Return the values of all slots that count, for numbers with which all of them can be."""
        names = {
            name for name, *_endings in _SLOT.findall(" ".join(wordings)) if _COUNTS.fullmatch(name)
        }
        if not names:
            return {}
        letters = sorted({letter for name in names for letter in _letters(name)})
        counted = dict.fromkeys(names, -1)
        while not all(0 <= value <= _LARGEST for value in counted.values()):
            numbers = {letter: self._rng.randint(1, _LARGEST) for letter in letters}
            counted = _count(names, numbers)
        return {
            name: _NATIVE[value] if name.endswith(_IN_WORDS) else str(value)
            for name, value in counted.items()
        }


def _letters(name: str) -> str:
    """Return the numbers that a slot counts with: `a+b` -> ab; `max` and `min` are of a and b."""
    return "ab" if name[:3] in ("max", "min") else "".join(re.findall("[a-d]", name))


def _count(names: Iterable[str], numbers: dict[str, int]) -> dict[str, int]:
    """Return the value of each slot that counts; −1 where there is none."""
    counted = dict[str, int]()
    for name in names:
        first, sign, second = re.fullmatch(  # type: ignore[union-attr]
            r"(max|min|[a-d])([+*-]?)([a-d1]?)", name.removesuffix(_IN_WORDS)
        ).groups()
        if first in ("max", "min"):
            larger, smaller = max(numbers["a"], numbers["b"]), min(numbers["a"], numbers["b"])
            counted[name] = larger if first == "max" else smaller
            counted[name] = -1 if larger == smaller else counted[name]
        else:
            left, right = numbers[first], numbers.get(second, 1)
            results = {"": left, "+": left + right, "-": left - right, "*": left * right}
            counted[name] = results[sign]
    return counted


def fitting(word: str, closed: str, opened: str) -> str:
    """Return the one of two endings that follows a word: `이라고/라고`, or a pair of particles."""
    if f"{closed}/{opened}" in PARTICLES:
        return choose_particle(word, f"{closed}/{opened}")
    return closed if choose_particle(word, "이/가") == "이" else opened


def _type(text: str, rng: random.Random) -> str:
    """Return a text as somebody may type it: without its last sign, with another, or unspaced."""
    chance = rng.random()
    if chance < _BARE:
        return text.rstrip(".?!") or text
    if chance < _BARE + _MARKED:
        return text.rstrip(".?!~") + rng.choice(_MARKS)
    return text.replace(" ", "") if chance < _BARE + _MARKED + _UNSPACED else text
