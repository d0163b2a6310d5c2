"""Reads the files of lessons and of the quiz: Markdown, with fenced blocks that become live.

See docs/lessons.md.
"""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from minillm_repl.errors import UserError
from minillm_repl.language import Language
from minillm_repl.lessons import (
    AnswerOption,
    Ask,
    Block,
    Choose,
    Claim,
    Exercise,
    Explain,
    Guess,
    Lesson,
    LessonScreen,
    Order,
    Prose,
    Question,
    Show,
    Term,
    Try,
    When,
)

_FIELD_BLOCKS = {
    "try": Try,
    "ask": Ask,
    "choose": Choose,
    "order": Order,
    "explain": Explain,
    "guess": Guess,
    "claim": Claim,
}
_FENCE_WORDS = {"lesson", "show", "when", *_FIELD_BLOCKS}
_FIELD = re.compile(r"([a-z]+):(?:\s+(.*)|$)")
_OPTION = re.compile(r"- \[(x| |if [a-z_ ]+)\] (.+)")
_STEP = re.compile(r"\d+\. (.+)")

# A line `---` always ends a screen, also right under a paragraph.
_MARKDOWN = MarkdownIt("commonmark").enable("table").disable("lheading")


def lesson_files(language: Language) -> dict[int, Path]:
    """Return the lesson files of a language by number: `04-query-key-value.md` is lesson 4."""
    found = sorted((Path(__file__).parent / language).glob("[0-9][0-9]-*.md"))
    return {int(path.name[:2]): path for path in found}


def practice_file(language: Language, name: str = "practice") -> Path:
    """Return the path of a short text on which lessons train; `skewed` has a bias on purpose."""
    return Path(__file__).parent / language / f"{name}.txt"


def read_lesson(path: Path) -> Lesson:
    """Read a lesson. Raises UserError with the file's name and what is wrong in it."""
    reader = _LessonReader(path)
    header: dict[str, str] = {}
    title, summary = "", ""
    screens: list[LessonScreen] = []
    blocks: list[Block] = []
    for word, rest, text in reader.sections():
        match word:
            case "h1":
                title = text
            case "lesson":
                header = _parse_fields(text)
            case "hr":
                screens.append(tuple(blocks))
                blocks = []
            # The first paragraph is what `:learn` says of the lesson.
            case _ if not screens and not blocks and not summary and word == "prose":
                summary = " ".join(text.split())
            case _:
                blocks.append(reader.parse_block(word, rest, text))
    if blocks:
        screens.append(tuple(blocks))
    whole = tuple(screen for screen in screens if screen)  # two rules in a row make no screen
    if not title or not summary or not whole:
        raise reader.error("a lesson needs a title, a paragraph about it, and a screen")
    missing = [name for name in ("minutes", "hour", "goals", "terms") if not header.get(name)]
    if missing:
        raise reader.error(f"the head of a lesson lacks `{missing[0]}`")
    texts = tuple(each.strip() for each in header.get("text", "").split(" | ") if each.strip())
    terms = [each.partition(": ") for each in header["terms"].splitlines()]
    return Lesson(
        number=int(path.name[:2]),
        title=title,
        summary=summary,
        minutes=int(header["minutes"]),
        hour=int(header["hour"]),
        goals=tuple(header["goals"].splitlines()),
        terms=tuple(Term(word.strip(), meaning.strip()) for word, _colon, meaning in terms),
        texts=texts,
        screens=whole,
    )


def read_quiz(language: Language) -> list[Question]:
    """Read the questions of the quiz. Raises UserError with the file's name and what is wrong."""
    reader = _LessonReader(Path(__file__).parent / language / "quiz.md")
    questions: list[Question] = []
    lesson = 0
    before: list[Block] = []
    for word, rest, text in reader.sections():
        if word == "h2":
            # `## 4`: the questions below are about lesson 4.
            lesson, before = int(re.sub(r"\D.*", "", text) or 0), []
        elif word in ("h1", "hr", "lesson"):
            # A quiz has no screens: rules only structure the file for its author.
            continue
        elif lesson:
            block = reader.parse_block(word, rest, text)
            if isinstance(block, Exercise):
                # Progress files have this name, so a new question goes to the end of its lesson.
                count = 1 + sum(each.lesson == lesson for each in questions)
                questions.append(Question(f"{lesson}.{count}", lesson, tuple(before), block))
                before = []
            else:
                before.append(block)
    return questions


class _LessonReader:
    """One file, in parts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")

    def error(self, what: str) -> UserError:
        return UserError(f"{self.path.name}: {what}")

    def sections(self, text: str | None = None) -> Iterator[tuple[str, str, str]]:
        """Yield a word, what stands behind it, and a text: of headings, rules, live fences, and
        all prose between.
        """
        text = self.text if text is None else text
        lines, prose = text.splitlines(), list[str]()
        for token in _MARKDOWN.parse(text):
            if token.level or token.map is None:  # inside another block, or its end
                continue
            word, _space, rest = token.info.strip().partition(" ")
            live = token.type == "fence" and word in _FENCE_WORDS
            heading = token.type == "heading_open" and token.tag in ("h1", "h2")
            # `map` is [first line, line after the last): the source is kept as it was typed.
            section = "\n".join(lines[token.map[0] : token.map[1]])
            if not (live or heading or token.type == "hr"):
                prose.append(section)
                continue
            if prose:
                yield "prose", "", "\n\n".join(prose)
                prose = []
            yield (
                (word, rest, token.content)
                if live
                else (token.tag, "", section.lstrip("# ").strip())
            )
        if prose:
            yield "prose", "", "\n\n".join(prose)

    def parse_block(self, word: str, rest: str, text: str) -> Block:
        """Return one part as a block. Raises UserError."""
        match word:
            case "prose":
                return Prose(text)
            case "h2":
                return Prose(f"## {text}")
            case "show":
                return Show(tuple(line for line in text.splitlines() if line.strip()))
            case "when":
                return When(rest.strip(), self._parse_blocks(text))
            case _ if word in _FIELD_BLOCKS:
                return self._parse_field_block(word, text)
        raise self.error(f"`{word}` has no place there")

    def _parse_blocks(self, text: str) -> LessonScreen:
        return tuple(self.parse_block(*part) for part in self.sections(text))

    def _parse_field_block(self, word: str, text: str) -> Block:
        kind, field_names, values = (
            _FIELD_BLOCKS[word],
            {each.name for each in fields(_FIELD_BLOCKS[word])},
            dict[str, Any](_parse_fields(text)),
        )
        if options := _parse_options(text):
            values["options"] = options
        if word == "order":
            values["steps"] = tuple(
                step[1] for line in text.splitlines() if (step := _STEP.fullmatch(line))
            )
        if "rounds" in values:
            values["rounds"] = int(values["rounds"])
        unknown = sorted(set(values) - field_names)
        if unknown:
            raise self.error(
                f"`{word}` has no field `{unknown[0]}`; it has {', '.join(sorted(field_names))}"
            )
        try:
            # A field that has no default and no value makes this a TypeError.
            return kind(**values)  # type: ignore[no-any-return]
        except TypeError:
            raise self.error(
                f"`{word}` lacks one of its fields: {', '.join(sorted(field_names))}"
            ) from None


def _parse_fields(text: str) -> dict[str, str]:
    """Return the fields of a block: `name: text`, with the indented lines after it."""
    values: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        field = _FIELD.fullmatch(line)
        if field:
            name = field[1]
            values[name] = [field[2] or ""]
        elif name and (line.startswith("  ") or not line.strip()):
            values[name].append(line[2:])  # an empty line parts paragraphs
        elif line.strip():
            name = ""  # an option, or a step
    return {name: "\n".join(lines).strip("\n") for name, lines in values.items()}


def _parse_options(text: str) -> tuple[AnswerOption, ...]:
    """Return the answers of a task list: `- [x] an answer: why`; what is indented goes on with
    the line before.
    """
    lines: list[str] = []
    for line in text.splitlines():
        if lines and line.startswith("  "):
            lines[-1] += " " + line.strip()
        elif _OPTION.fullmatch(line):
            lines.append(line)
    found = [match for line in lines if (match := _OPTION.fullmatch(line))]
    # The first colon with a space ends the answer.
    parts = [(match[1], *match[2].partition(": ")) for match in found]
    return tuple(AnswerOption(answer, why, right.strip()) for right, answer, _mark, why in parts)
