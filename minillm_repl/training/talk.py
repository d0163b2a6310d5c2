"""Talks: conversations written by hand, multiplied by what stands for their slots.

`recipes/talk/` has a file for each topic and `slots.txt`; its README.md says how they are written.
The same seed gives the same conversations.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.language import PARTICLES, _, choose_particle

TALK_FOLDER = Path(__file__).with_name("recipes") / "talk"
SLOTS_FILE = "slots.txt"
_PAUSE = "…"  # here some single exchanges of other talks come between
_LONGEST_PAUSE = 3
# The files that these come from: what fits anywhere.
_SMALL_TALK = re.compile(
    r"(clothes|exams|feelings|games|health|hobbies|home|meals|pets|plans|school|sports|things"
    r"|travel|weather)\d*\.txt:"
)
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
    place: str  # file and lines, for messages
    pauses: tuple[int, ...] = ()  # the turns before which others come between

    @property
    def slots(self) -> frozenset[str]:
        """The lists that it takes values of."""
        said = " ".join(wording for turn in self.turns for wording in turn)
        return frozenset(name.rstrip("23") for name, *_endings in _SLOT.findall(said))


@dataclass(frozen=True)
class _Exchange:
    """What a user may say and what the model answers, in a block of lines."""

    asks: tuple[str, ...]
    number: int  # of its first line
    depth: int  # how far it is indented, in steps of two spaces
    pause: bool
    answers: tuple[str, ...] = ()


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
    """Yield the conversations of one file. Raises UserError.

    A blank line ends a block. Each way through its branches is a conversation.
    """
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip() and not line.startswith("#"):
            block.append((number, line))
        else:
            yield from _ways(list(_read_exchanges(block, name)), name)
            block = []


def _read_exchanges(block: list[tuple[int, str]], name: str) -> Iterator[_Exchange]:
    asked, pause = None, False
    for number, line in block:
        text = line.lstrip(" ")
        depth = (len(line) - len(text)) // 2
        wordings = tuple(each.strip() for each in text[2:].split(" | "))
        if text == _PAUSE and asked is None:
            pause = True
        elif text[:2] != ("< " if asked else "> ") or not all(wordings):
            raise UserError(
                _("{place}: `> ` and `< ` take turns, and say something", place=f"{name}:{number}")
            )
        elif asked:
            yield replace(asked, answers=wordings)
            asked = None
        else:
            asked, pause = _Exchange(wordings, number, depth, pause), False
    if asked or pause:
        raise UserError(_("{place}: a talk ends with an answer", place=f"{name}:{block[-1][0]}"))


def _ways(exchanges: list[_Exchange], name: str) -> Iterator[Talk]:
    """Yield each way through a block: of indented exchanges, one of each depth follows another."""
    ends: list[tuple[_Exchange, ...]] = [()]
    last: list[list[tuple[_Exchange, ...]]] = []  # the ways to the last exchange of each depth
    for each in exchanges:
        if each.depth > len(last):
            raise UserError(
                _(
                    "{place}: a line is indented by two spaces more than what it follows",
                    place=f"{name}:{each.number}",
                )
            )
        begun = last[each.depth - 1] if each.depth else ends
        longer = [(*way, each) for way in begun]
        ends = [way for way in ends if way not in begun] + longer
        last[each.depth :] = [longer]
    for way in filter(None, ends):
        yield Talk(
            tuple(turn for each in way for turn in (each.asks, each.answers)),
            f"{name}:{'-'.join(str(each.number) for each in way)}",
            tuple(2 * place for place, each in enumerate(way) if each.pause),
        )


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
        self._small_talk = [
            (talk, talk.slots)
            for talk in talks
            if len(talk.turns) == 2 and _SMALL_TALK.match(talk.place)
        ]

    def conversations(self, rounds: int) -> list[list[Message]]:
        """Return different conversations in a random order: in each round, every talk is begun
        with each of its first wordings, three times where others come between.
        """
        made = dict[tuple[Message, ...], None]()
        for _round in range(rounds):
            for talk in self._talks:
                times = len(talk.turns[0]) * (_LONGEST_PAUSE if talk.pauses else 1)
                made |= {tuple(self._expand(talk)): None for _time in range(times)}
        conversations = [list(each) for each in made]
        self._rng.shuffle(conversations)
        return conversations

    def _expand(self, talk: Talk) -> Iterator[Message]:
        wordings = [self._wordings[talk.place, i].deal() for i in range(len(talk.turns))]
        values = self._draw_numbers(wordings)
        for index, wording in enumerate(wordings):
            if index in talk.pauses:
                yield from self._pause(talk.slots)
            text = _SLOT.sub(lambda slot: self._fill(slot, values), wording)
            if index % 2:
                yield Message("assistant", text)
            else:
                yield Message("user", _type(text, self._rng))

    def _pause(self, used: frozenset[str]) -> Iterator[Message]:
        """Yield some exchanges that have nothing to do with the values of a talk."""
        others = [talk for talk, slots in self._small_talk if not slots & used]
        count = min(self._rng.randint(1, _LONGEST_PAUSE), len(others))
        for talk in self._rng.sample(others, count):
            yield from self._expand(talk)

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
