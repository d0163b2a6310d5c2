"""What a lesson is made of.

Texts are Markdown with `{placeholders}`; docs/lessons.md says what each block does.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prose:
    """Something to read."""

    markdown: str


@dataclass(frozen=True)
class Show:
    """Lines that run as if they had been typed."""

    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Try:
    """Something for the learner to do at the prompt."""

    task: str
    do: str  # the line that does it
    match: str = ""  # a regular expression for lines that do it too
    done: str = ""
    otherwise: str = ""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question with a word or a number for an answer."""

    question: str
    answer: str  # several that count are divided by ` | `
    within: str = ""  # how far a number may be off: `10%`
    right: str = ""
    wrong: str = ""


@dataclass(frozen=True)
class AnswerOption:
    """One of the answers to choose from."""

    text: str
    why: str
    right: str  # `x` if it is, a blank if not, or `if CONDITION`


@dataclass(frozen=True)
class Choose:
    """A question with answers to choose from."""

    question: str
    options: tuple[AnswerOption, ...]


@dataclass(frozen=True)
class Order:
    """Steps to bring into their order, which is that of the file."""

    question: str
    steps: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class Explain:
    """A question to be answered in a sentence, and an answer to compare with."""

    question: str
    answer: str


@dataclass(frozen=True)
class Guess:
    """The guessing game against the model."""

    rounds: int = 5
    text: str = ""  # whose next tokens are guessed; none means the practice text


@dataclass(frozen=True)
class When:
    """What only models of one kind are shown."""

    condition: str
    blocks: "tuple[Block, ...]"


Exercise = Ask | Choose | Order | Explain
Block = Prose | Show | Try | Exercise | Guess | When
LessonScreen = tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A lesson, screen by screen."""

    number: int
    title: str
    summary: str
    minutes: int
    texts: tuple[str, ...]  # to look at: the first that the model can read is taken
    screens: tuple[LessonScreen, ...]


@dataclass(frozen=True)
class Question:
    """One question of the quiz."""

    name: str  # `4.2`: the second one about lesson 4
    lesson: int
    intro: tuple[Block, ...]  # what is shown first
    exercise: Exercise
