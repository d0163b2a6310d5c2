"""Talks: conversations written by hand, multiplied by what stands for their slots.

`recipes/talk/` and, in English, `recipes/talk_en/` have a file for each topic and `slots.txt`;
their README.md says how they are written. The same seed gives the same conversations.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minillm_repl.chat import Message
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.training.talk_dialects import DIALECTS

TALK_FOLDERS = {
    language: Path(__file__).with_name("recipes") / name
    for language, name in (("ko", "talk"), ("en", "talk_en"))
}
SLOTS_FILE = "slots.txt"
_PAUSE = "…"  # here some single exchanges of other talks come between
_LONGEST_PAUSE = 3
_SLOT = re.compile(r"\{([^{}]+)\}")
_COUNTS = re.compile(r"([a-d]([+*-][a-d1])?|max|min)")  # a slot that is a number
_LARGEST = 20  # of the numbers that are counted with
_MADE_NAMES = 0.5  # share of the given names that are put together from their parts


Document = str | tuple[Message, ...]  # a text or a conversation


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
        return frozenset(map(list_of, _SLOT.findall(said)))


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


def read_talks(folder: Path = TALK_FOLDERS["ko"]) -> list[Talk]:
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


def read_slots(folder: Path = TALK_FOLDERS["ko"]) -> dict[str, list[str]]:
    """Return the values of each slot."""
    lines = (folder / SLOTS_FILE).read_text(encoding="utf-8").splitlines()
    parts = [line.partition(" = ") for line in lines if line.strip() and not line.startswith("#")]
    return {name: [each.strip() for each in values.split(" | ")] for name, _is, values in parts}


def as_record(document: Document) -> dict[str, Any]:
    """Return what a line of a JSON corpus holds of a document."""
    if isinstance(document, str):
        return {"text": document}
    return {"messages": [asdict(turn) for turn in document]}


def read_conversations(language: str, seed: int, rounds: int) -> list[tuple[Message, ...]]:
    """Return what a language's talks make: different conversations in a random order."""
    folder = TALK_FOLDERS[language]
    expander = Expander(read_talks(folder), read_slots(folder), seed, language)
    return list(map(tuple, expander.conversations(rounds)))


class Expander:
    """Makes conversations of talks: picks wordings, and fills slots, each value as often."""

    def __init__(
        self, talks: list[Talk], slots: dict[str, list[str]], seed: int, language: str = "ko"
    ) -> None:
        self._talks, self._dialect = talks, DIALECTS[language]
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
            if len(talk.turns) == 2 and self._dialect.small_talk.match(talk.place)
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
            text = self._dialect.slot.sub(lambda slot: self._fill(slot, values), wording)
            if index % 2:
                yield Message("assistant", text)
            else:
                yield Message("user", self._dialect.type(text, self._rng))

    def _pause(self, used: frozenset[str]) -> Iterator[Message]:
        """Yield some exchanges that have nothing to do with the values of a talk."""
        others = [talk for talk, slots in self._small_talk if not slots & used]
        count = min(self._rng.randint(1, _LONGEST_PAUSE), len(others))
        for talk in self._rng.sample(others, count):
            yield from self._expand(talk)

    def _fill(self, slot: re.Match[str], values: dict[str, str]) -> str:
        name = key_of(slot["name"])
        if name not in values:
            values[name] = self._draw(list_of(name), values)
        return self._dialect.fit(slot, values[name])

    def _draw(self, name: str, values: dict[str, str]) -> str:
        if name == "성이름":
            return self._decks["성"].deal() + self._draw("이름", values)
        names, *parts = self._dialect.names
        if name == names and self._rng.random() < _MADE_NAMES:
            return "".join(self._decks[part].deal() for part in parts)
        others = [value for slot, value in values.items() if list_of(slot) == name]
        return self._decks[name].deal(but=others)

    def _draw_numbers(self, wordings: list[str]) -> dict[str, str]:
        """Return the values of all slots that count, for numbers with which all of them can be."""
        suffix, words = self._dialect.in_words, self._dialect.numbers
        names = {
            name
            for name in map(key_of, _SLOT.findall(" ".join(wordings)))
            if _COUNTS.fullmatch(name.removesuffix(suffix))
        }
        if not names:
            return {}
        letters = sorted({each for name in names for each in _letters(name.removesuffix(suffix))})
        counted = dict.fromkeys(names, -1)
        while not all(0 <= value <= _LARGEST for value in counted.values()):
            numbers = {letter: self._rng.randint(1, _LARGEST) for letter in letters}
            counted = {name: _count(name.removesuffix(suffix), numbers) for name in names}
        return {
            name: words[value] if name.endswith(suffix) else str(value)
            for name, value in counted.items()
        }


def key_of(name: str) -> str:
    """Return the slot of which this is another spelling: `Food2` -> `food2`."""
    return name[0].lower() + name[1:]


def list_of(name: str) -> str:
    """Return the list whose values a slot takes: `food2` -> `food`."""
    return key_of(name).rstrip("23")


def _letters(name: str) -> str:
    """Return the numbers that a slot counts with: `a+b` -> ab; `max` and `min` are of a and b."""
    return "ab" if name[:3] in ("max", "min") else "".join(re.findall("[a-d]", name))


def _count(name: str, numbers: dict[str, int]) -> int:
    """Return the value of a slot that counts; −1 where there is none."""
    if name in ("max", "min"):
        larger, smaller = max(numbers["a"], numbers["b"]), min(numbers["a"], numbers["b"])
        if larger == smaller:
            return -1
        return larger if name == "max" else smaller
    left, sign, right = numbers[name[0]], name[1:2], numbers.get(name[2:], 1)
    return {"": left, "+": left + right, "-": left - right, "*": left * right}[sign]
