"""Reads a file that models are measured on: JSON lines of questions, or a text.

The file is untrusted: a line that is no question is named, and the others are read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.evaluation import BadLine, Item, ItemError, Questions
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.storage.files import parse_json

_JSON_NAMES = {".jsonl", ".ndjson", ".json"}
_MAX_CHARACTERS = 16 << 20  # of a file; all of it is in memory
_MAX_LINE = 1 << 20  # characters of a line of JSON
MAX_CHOICES = 1_000


def read_file(path: Path, detected: DetectedEncoding) -> Questions | str:
    """Return the questions of a file of JSON lines, or a text. Raises UserError naming the file."""
    text = read_whole(path, detected)
    if path.suffix.lower() in _JSON_NAMES or _begins_with_question(text):
        return parse_questions(text)
    return text


def read_whole(path: Path, detected: DetectedEncoding | None = None) -> str:
    """Return the text of a file that is small enough. Raises UserError naming the file."""
    parts, size = list[str](), 0
    for part in read_text_chunks(path, detected or DetectedEncoding()):
        parts.append(part)
        size += len(part)
        if size > _MAX_CHARACTERS:
            name = safe_line(str(path))
            raise UserError(
                _("{name} is longer than {n:,} characters", name=name, n=_MAX_CHARACTERS)
            )
    text = "".join(parts)
    if not text.strip():
        raise UserError(_("{name} is empty", name=safe_line(str(path))))
    return text


def _begins_with_question(text: str) -> bool:
    """Tell whether the first line of a text is a question, whatever the file is called."""
    first = text.lstrip()[:_MAX_LINE].partition("\n")[0]
    try:
        return first.startswith("{") and "prompt" in json.loads(first)
    except (ValueError, RecursionError):
        return False


def parse_questions(text: str) -> Questions:
    """Return the questions of JSON lines. The first one says whether all have choices."""
    items, bad = list[Item](), list[BadLine]()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = parse_item(line, number)
            if items and bool(item.choices) != bool(items[0].choices):
                raise ItemError(_no_choices() if items[0].choices else _has_choices())
            items.append(item)
        except ItemError as error:
            bad.append(BadLine(number, str(error)))
    kind = "choices" if items and items[0].choices else "answers"
    return Questions(kind, tuple(items), tuple(bad))  # type: ignore[arg-type]


def _no_choices() -> str:
    return _("it has no choices, and the questions before it have")


def _has_choices() -> str:
    return _("it has choices, and the questions before it have none")


def parse_item(line: str, number: int) -> Item:
    """Return the question of a line. Raises ItemError that says what is wrong with it."""
    if len(line) > _MAX_LINE:
        raise ItemError(_("it is longer than {n:,} characters", n=_MAX_LINE))
    try:
        data = parse_json(line, "JSON")
    except UserError as error:
        cause = error.__context__
        if isinstance(cause, json.JSONDecodeError):  # its own words are English ones
            raise ItemError(_("it is not valid JSON from character {n} on", n=cause.pos)) from None
        why = safe_line(str(cause or error))
        raise ItemError(_("it is not valid JSON: {error:.120}", error=why)) from None
    if not isinstance(data, dict):
        raise ItemError(_("it is no JSON object: {example}", example='{"prompt": …}'))
    for key in ("prompt", "answer"):
        if key not in data:
            raise ItemError(_("{key} is missing; `:help eval` shows a line", key=key))
    prompt, answer = _text(data, "prompt"), data["answer"]
    if "choices" not in data:
        is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
        answer = _text({"answer": str(answer) if is_number else answer}, "answer")
        if not answer.strip():
            raise ItemError(_("the answer is empty"))
        return Item(line=number, prompt=prompt, answer=answer)
    choices = _parse_choices(data["choices"])
    gold = _find_answer(answer, choices)
    return Item(line=number, prompt=prompt, choices=choices, gold=gold, answer=choices[gold])


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise ItemError(_("{key} is no text", key=key))
    return value


def _parse_choices(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ItemError(_("choices are no list of texts"))
    if len(found) > MAX_CHOICES:
        raise ItemError(_("{n:,} choices are more than {most:,}", n=len(found), most=MAX_CHOICES))
    if len(found) < 2:
        raise ItemError(_("a question needs two choices or more"))
    if not all(found):
        raise ItemError(_("choice {n} is empty", n=found.index("")))
    return tuple(found)


def _find_answer(answer: Any, choices: tuple[str, ...]) -> int:
    """Return the index of the right choice, which is given as an index from 0, or as the text."""
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    shown = safe_line(json.dumps(answer, ensure_ascii=False))
    raise ItemError(_("the answer {answer:.40} is not among the choices", answer=shown))
