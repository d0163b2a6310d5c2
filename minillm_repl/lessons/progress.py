"""The progress of a learner, in a file: their own, or that of a student in a folder of a class."""

import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from platformdirs import user_state_path

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.paths import user_path

_MAX_BYTES = 1 << 20  # bytes of a file that we have written: far more than there are lessons
_MAX_COUNT = 1_000_000  # of screens and answers: a larger number was not written here
_MAX_ANSWER = 500  # characters of an answer that are kept
_MAX_NAME = 40  # characters: with three bytes each, a file name has room for them
_MAX_WAIT = 30.0  # seconds for others that write; a record is tried again with the next one
_KINDS = ("lessons", "questions", "answers")  # parts of the file
# Names that no file can have on Windows, whatever follows the dot.
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{n}{i}" for n in ("com", "lpt") for i in range(10)}


@dataclass(frozen=True)
class LessonProgress:
    """The place that was reached in a lesson; the times are local ones, in ISO 8601."""

    screen: int = 0  # the one to go on with, counted from 0
    done: bool = False
    practised: bool = False  # the lesson had trained a model by then
    # When it was first opened, last touched, and first ended. Two places are the same at any time.
    started: str = field(default="", compare=False)
    touched: str = field(default="", compare=False)
    finished: str = field(default="", compare=False)


@dataclass(frozen=True)
class QuestionProgress:
    """The answers that were given to a question."""

    right: int = 0
    wrong: int = 0
    last: bool = False  # whether the last answer was right
    touched: str = field(default="", compare=False)


@dataclass(frozen=True)
class LessonAnswer:
    """What was last answered to a question inside a lesson."""

    given: str = ""  # with a second try: `17 → 16`
    verdict: str = ""  # `right`, `wrong`, or empty where there is neither
    touched: str = field(default="", compare=False)


@dataclass
class Progress:
    """Lessons by `ko 4`, questions of the quiz by `ko 4.2`, those in lessons by `ko 4/3.1`: the
    first one of screen 3. Without a file, nothing outlasts the session.
    """

    file: Path | None = None
    student: str = ""  # whose file it is, if it is not just the user's
    lessons: dict[str, LessonProgress] = field(default_factory=dict)
    questions: dict[str, QuestionProgress] = field(default_factory=dict)
    answers: dict[str, LessonAnswer] = field(default_factory=dict)
    is_damaged: bool = False  # there was a file that could not be read
    failure: str = ""  # why the last record was not kept

    @classmethod
    def load(cls, file: Path | None, student: str = "") -> "Progress":
        """Read the file. One that cannot be read, or that was changed by hand, counts as empty."""
        progress = cls(file, student)
        try:
            if file is None or not file.exists():
                return progress
            if not file.is_file() or file.stat().st_size > _MAX_BYTES:
                return cls(file, student, is_damaged=True)
            data = json.loads(file.read_text(encoding="utf-8"))
            progress.lessons = _parse_entries(data["lessons"], LessonProgress)
            progress.questions = _parse_entries(data["questions"], QuestionProgress)
            # Files of earlier versions have none.
            progress.answers = _parse_entries(data.get("answers", {}), LessonAnswer)
        # json raises RecursionError for deeply nested brackets.
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return cls(file, student, is_damaged=True)
        return progress

    @property
    def practice_model(self) -> Path | None:
        """The file of the model that a student's lessons train; None for the user's own."""
        return self.file.with_suffix(".safetensors") if self.file and self.student else None

    def record_lesson(self, lesson: str, lesson_progress: LessonProgress) -> None:
        """Record a place in a lesson; a lesson that was done stays done."""
        with self._updating():
            before, now = self.lessons.get(lesson, LessonProgress()), _now()
            self.lessons[lesson] = replace(
                lesson_progress,
                done=lesson_progress.done or before.done,
                started=before.started or now,
                touched=now,
                finished=before.finished or (now if lesson_progress.done else ""),
            )

    def record_answer(self, question: str, right: bool) -> None:
        """Record an answer to a question of the quiz."""
        with self._updating():
            before = self.questions.get(question, QuestionProgress())
            self.questions[question] = QuestionProgress(
                before.right + right, before.wrong + (not right), right, _now()
            )

    def record_lesson_answer(self, name: str, given: str, right: bool | None) -> None:
        """Record an answer to a question inside a lesson."""
        verdict = "" if right is None else "right" if right else "wrong"
        # A lone surrogate has no UTF-8.
        kept = given[:_MAX_ANSWER].encode("utf-8", "replace").decode()
        with self._updating():
            self.answers[name] = LessonAnswer(kept, verdict, _now())

    @contextmanager
    def _updating(self) -> Iterator[None]:
        """Take over what other sessions have recorded, change it, and write it, as one step."""
        if self.file is None:
            yield
            return
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.file.with_suffix(".lock")) as is_ours:
            other = Progress.load(self.file)
            for kind in _KINDS:
                ours, theirs = getattr(self, kind), getattr(other, kind)
                # The file wins: each record goes there at once, so that it lacks none of ours,
                # unless the last one could not be written.
                setattr(self, kind, theirs | ours if self.failure else ours | theirs)
            yield
            if is_ours:
                self._write(keep_old=other.is_damaged)
            else:
                self.failure = _("another session keeps {name} locked", name=self.file.name)

    def _write(self, *, keep_old: bool) -> None:
        """Write the file; a folder that cannot be written must not keep anyone from learning."""
        assert self.file is not None
        data = {
            kind: {name: asdict(each) for name, each in getattr(self, kind).items()}
            for kind in _KINDS
        }
        text = json.dumps(data, indent=1, ensure_ascii=False)
        self.failure = ""
        try:
            if keep_old and self.file.is_file():
                self.file.replace(self.file.with_name(self.file.name + ".damaged"))
            write_atomically(self.file, text.encode("utf-8", "replace"), private=True)
        except UserError as error:
            self.failure = str(error)
        except OSError as error:
            self.failure = str(error.strerror)


def student_folder() -> Path:
    """Return the folder of students' progress, if no other is named."""
    return user_state_path("minillm-repl") / "students"


def progress_file(where: str, student: str) -> Path | None:
    """Return the file of a student, or of the user; `where` is a folder, `on` or `off`."""
    if where in ("", "off"):
        return None
    folder = student_folder() if student else user_state_path("minillm-repl")
    return (folder if where == "on" else user_path(where)) / f"{student or 'progress'}.json"


def student_name(text: str) -> str:
    """Return a name that a file can have on every system. Raises ValueError."""
    name = unicodedata.normalize("NFC", text).strip()
    if name and (
        len(name) > _MAX_NAME
        or any(not (each.isalnum() or each in " -_.") for each in name)
        or name[0] == "."
        or name[-1] == "."
        or name.partition(".")[0].strip().casefold() in _RESERVED
    ):
        raise ValueError(_("at most {n} letters, digits, spaces, or any of - _ .", n=_MAX_NAME))
    return name


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@contextmanager
def _locked(lock: Path) -> Iterator[bool]:
    """Hold a lock file. Yield False if another session keeps it; True also where the system has no
    such locks: Windows, some network folders, a folder that cannot be written.
    """
    try:
        import fcntl

        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except (ImportError, OSError):
        yield True
        return
    # The system serves those that wait in turn, and cannot be told how long to wait: so a thread
    # waits. What it gets after it was given up, it gives back.
    given_up = Event()

    def wait() -> None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if given_up.is_set():
            os.close(descriptor)

    waiting = Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(_MAX_WAIT)
    if waiting.is_alive():
        given_up.set()
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def _parse_entries(data: Any, kind: Any) -> dict[str, Any]:
    """Return entries of a kind; fields of later versions are left out.

    Raises TypeError and the like if a field has not the type that it has there.
    """
    names = {each.name for each in fields(kind)}
    entries = {
        str(name): kind(**{key: value for key, value in each.items() if key in names})
        for name, each in data.items()
    }
    for each in entries.values():
        for name, value in asdict(each).items():
            # Not isinstance: a bool is an int too, but no number of a screen.
            if type(value) is not type(getattr(kind(), name)):
                raise TypeError(f"{each} is no {kind.__name__}")
            if isinstance(value, str):
                value.encode()  # a lone surrogate, as \ud800 in JSON, is an error
            elif not 0 <= value <= _MAX_COUNT:
                raise TypeError(f"{each} is no {kind.__name__}")
    return entries
