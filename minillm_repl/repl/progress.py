"""How far a learner has come, in a file of the user's own."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.storage.atomic import write_atomically

_LONGEST = 1 << 20  # bytes of a file that we have written: far more than there are lessons


@dataclass(frozen=True)
class Reached:
    """A place in a lesson."""

    screen: int = 0  # the one to go on with, counted from 0
    done: bool = False
    practised: bool = False  # the lesson had trained a model by then


@dataclass(frozen=True)
class Answered:
    """What became of a question."""

    right: int = 0
    wrong: int = 0
    last: bool = False  # whether the last answer was right


@dataclass
class Progress:
    """Lessons by `ko 4`, questions by `ko 4.2`; without a file, nothing outlasts the visit."""

    file: Path | None = None
    lessons: dict[str, Reached] = field(default_factory=dict)
    questions: dict[str, Answered] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path | None) -> "Progress":
        """Read a learner's file; one that cannot be read, or that somebody else has changed,
        counts as none.
        """
        progress = cls(file)
        try:
            if file is None or not file.is_file() or file.stat().st_size > _LONGEST:
                return progress
            data = json.loads(file.read_text(encoding="utf-8"))
            progress.lessons = _entries(data["lessons"], Reached)
            progress.questions = _entries(data["questions"], Answered)
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return cls(file)
        return progress

    def reach(self, lesson: str, reached: Reached) -> None:
        """Note a place in a lesson; what was done once stays done."""
        self._catch_up()
        done = reached.done or self.lessons.get(lesson, Reached()).done
        self.lessons[lesson] = replace(reached, done=done)
        self._write()

    def answer(self, question: str, right: bool) -> None:
        """Note an answer to a question."""
        self._catch_up()
        before = self.questions.get(question, Answered())
        self.questions[question] = Answered(before.right + right, before.wrong + (not right), right)
        self._write()

    def _catch_up(self) -> None:
        """Take over what another visit has noted meanwhile."""
        other = Progress.of(self.file)
        self.lessons |= other.lessons
        self.questions |= other.questions

    def _write(self) -> None:
        """Keep it; a folder that cannot be written must not keep anyone from learning."""
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


def _entries(data: Any, kind: Any) -> dict[str, Any]:
    """Return entries of a kind, each field of the type that it has there.

    Raises TypeError and the like.
    """
    entries = {str(name): kind(**each) for name, each in data.items()}
    for each in entries.values():
        if any(
            type(value) is not type(getattr(kind(), name)) or value < 0
            for name, value in asdict(each).items()
        ):
            raise TypeError(f"{each} is no {kind.__name__}")
    return entries
