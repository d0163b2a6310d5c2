"""Lessons and quiz: the parts that they are made of. Texts are Markdown with `{placeholders}`.

They lie in `ko/` and `en/`; docs/lessons.md explains each block.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Prose:
    """A text to read."""

    markdown: str


@dataclass(frozen=True)
class Show:
    """Lines that run as if they were typed."""

    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Try:
    """A task at the prompt."""

    task: str
    do: str  # the line that does it
    match: str = ""  # a regular expression for lines that do it too
    # Markdown after the learner's line: `done` if it counts, or if there is no `otherwise`.
    done: str = ""
    otherwise: str = ""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question whose answer is a word or a number."""

    question: str
    answer: str  # several that count are divided by ` | `
    within: str = ""  # how far a number may be off: `10%`
    # Markdown: `right` after a right answer, `wrong` after any other and after none.
    right: str = ""
    wrong: str = ""
    holds: str = ""  # what these say, as in Claim; where it does not hold nothing is asked


@dataclass(frozen=True)
class AnswerOption:
    """One answer of a multiple-choice question."""

    text: str
    why: str
    right: str  # `x` if it is, a blank if not, or `if CONDITION`


@dataclass(frozen=True)
class Choose:
    """A multiple-choice question."""

    question: str
    options: tuple[AnswerOption, ...]
    holds: str = ""  # as in Ask


@dataclass(frozen=True)
class Order:
    """Steps to put into order; the file has the right order."""

    question: str
    steps: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class Explain:
    """A question to answer in a sentence, with an answer to compare it with."""

    question: str
    answer: str


@dataclass(frozen=True)
class Guess:
    """The guessing game against the model."""

    rounds: int = 5
    text: str = ""  # whose next tokens are guessed; none means the practice text


@dataclass(frozen=True)
class When:
    """Blocks that are shown only if a condition on the model holds."""

    # One of the names in LessonValues.holds; `not ` may stand before it.
    condition: str
    # Block is defined below and contains When, so the type is a string.
    blocks: "tuple[Block, ...]"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A text that is shown only where it is true."""

    holds: str  # a condition in numbers, or several, one a line: see claims.py
    # Markdown: `text` where it holds, else `otherwise`.
    text: str = ""
    otherwise: str = ""
    on: str = ""  # the text that the figures are about, if not the one that is looked at


Exercise = Ask | Choose | Order | Explain
Block = Prose | Show | Try | Exercise | Guess | When | Claim
LessonScreen = tuple[Block, ...]


def find_exercises(blocks: LessonScreen) -> Iterator[Exercise]:
    """Yield the questions of a screen in their order, for models of every kind."""
    for block in blocks:
        if isinstance(block, When):
            yield from find_exercises(block.blocks)
        elif isinstance(block, Exercise):
            yield block


@dataclass(frozen=True)
class Term:
    """A word that a lesson teaches, and what it means."""

    word: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A lesson, screen by screen."""

    number: int
    title: str
    summary: str
    minutes: int  # for doing all of it
    hour: int  # the class hour that it belongs to, from 1
    goals: tuple[str, ...]  # what one can do afterwards
    terms: tuple[Term, ...]
    texts: tuple[str, ...]  # to look at: the first that the model can read is taken
    # One or more: read_lesson refuses a lesson without a screen.
    screens: tuple[LessonScreen, ...]


@dataclass(frozen=True)
class Question:
    """A question of the quiz."""

    name: str  # `4.2`: the second one about lesson 4
    lesson: int
    intro: tuple[Block, ...]  # what is shown first
    exercise: Exercise
