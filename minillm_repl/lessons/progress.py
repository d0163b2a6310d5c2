"""The progress of a learner, in a file in their state folder."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.storage.atomic import write_atomically

_MAX_BYTES = 1 << 20  # bytes of a file that we have written: far more than there are lessons


@dataclass(frozen=True)
class LessonProgress:
    """The place that was reached in a lesson."""

    screen: int = 0  # the one to go on with, counted from 0
    done: bool = False
    practised: bool = False  # the lesson had trained a model by then


@dataclass(frozen=True)
class QuestionProgress:
    """The answers that were given to a question."""

    right: int = 0
    wrong: int = 0
    last: bool = False  # whether the last answer was right


@dataclass
class Progress:
    """Lessons by `ko 4`, questions by `ko 4.2`. Without a file, nothing outlasts the session."""

    file: Path | None = None
    lessons: dict[str, LessonProgress] = field(default_factory=dict)
    questions: dict[str, QuestionProgress] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path | None) -> "Progress":
        """Read the file. One that cannot be read, or that was changed by hand, counts as empty."""
        progress = cls(file)
        try:
            if file is None or not file.is_file() or file.stat().st_size > _MAX_BYTES:
                return progress
            data = json.loads(file.read_text(encoding="utf-8"))
            progress.lessons = _parse_entries(data["lessons"], LessonProgress)
            progress.questions = _parse_entries(data["questions"], QuestionProgress)
        # json raises RecursionError for deeply nested brackets.
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return cls(file)
        return progress

    def record_lesson(self, lesson: str, lesson_progress: LessonProgress) -> None:
        """Record a place in a lesson; a lesson that was done stays done."""
        self._merge_file()
        done = lesson_progress.done or self.lessons.get(lesson, LessonProgress()).done
        self.lessons[lesson] = replace(lesson_progress, done=done)
        self._write()

    def record_answer(self, question: str, right: bool) -> None:
        """Record an answer to a question."""
        self._merge_file()
        before = self.questions.get(question, QuestionProgress())
        self.questions[question] = QuestionProgress(
            before.right + right, before.wrong + (not right), right
        )
        self._write()

    def _merge_file(self) -> None:
        """Take over what another session has recorded meanwhile."""
        other = Progress.load(self.file)
        # The file wins: each record goes there at once, so a writable file lacks none of ours.
        self.lessons |= other.lessons
        self.questions |= other.questions

    def _write(self) -> None:
        """Write the file; a folder that cannot be written must not keep anyone from learning."""
        if self.file is None:
            return
        data = {
            "lessons": {name: asdict(each) for name, each in self.lessons.items()},
            "questions": {name: asdict(each) for name, each in self.questions.items()},
        }
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(data, indent=1).encode(), private=True)
        except (OSError, UserError):
            return


def _parse_entries(data: Any, kind: Any) -> dict[str, Any]:
    """Return entries of a kind. Each field has the type that it has there.

    Raises TypeError and the like.
    """
    entries = {str(name): kind(**each) for name, each in data.items()}
    for each in entries.values():
        if any(
            # Not isinstance: a bool is an int too, but no number of a screen.
            type(value) is not type(getattr(kind(), name)) or value < 0
            for name, value in asdict(each).items()
        ):
            raise TypeError(f"{each} is no {kind.__name__}")
    return entries
