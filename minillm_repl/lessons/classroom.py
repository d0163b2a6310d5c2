"""What a class has done: a table of the progress files in a folder, and the same for a spreadsheet.

The files may have been changed by anyone: each is read as untrusted, and what cannot be read is
named and left out.
"""

import argparse
import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path

from rich.table import Table
from rich.text import Text

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import LANGUAGES, _
from minillm_repl.lessons import Lesson
from minillm_repl.lessons.course import read_lessons
from minillm_repl.lessons.progress import LessonProgress, Progress, student_folder
from minillm_repl.render.console import FIGURES, TITLE, Screen
from minillm_repl.render.csv_table import plain_cell
from minillm_repl.render.export import check_overwritable, write_view
from minillm_repl.render.tables import plain_table
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path

_MAX_STUDENTS = 1_000  # files that are read; a larger folder is no class
_MAX_SHOWN = 24  # characters of a name in the table; the spreadsheet has all of it


@dataclass(frozen=True)
class Student:
    """What one student has done."""

    name: str  # that of the file; not safe to show
    lessons: dict[int, LessonProgress]  # what was opened, in any language
    lesson_answers: tuple[int, int]  # right, given: the last ones to questions inside lessons
    quiz_answers: tuple[int, int]  # right, given: the last ones in the quiz
    touched: str  # the last day of work, as 2026-11-30; empty if there was none


def show_class(screen: Screen, options: argparse.Namespace) -> None:
    """Print the table of a class; with `--export FILE.csv`, write it too. Raises UserError."""
    folder = user_path(options.classroom) if options.classroom else student_folder()
    csv_path = user_path(options.export) if options.export else None
    if csv_path is not None:
        if csv_path.suffix.lower() != ".csv":
            raise UserError(_("--class writes a .csv file: --export NAME.csv"))
        check_overwritable(csv_path, overwrite=options.overwrite)
    lessons = read_lessons()
    students, unreadable = read_class(folder)
    if not students and not unreadable:
        raise UserError(
            _(
                "{folder} has no progress of students; they begin with --student NAME "
                "--progress FOLDER",
                folder=safe_line(str(folder)),
            )
        )
    screen.out.print(class_table(students, lessons))
    legend = _(
        "✓ finished · ▸ begun · - not opened · lesson answers, quiz: right/answered, last answers"
    )
    screen.note(legend)
    for name in unreadable:
        screen.warn(_("{name} cannot be read as progress; left out", name=safe_line(name)))
    if csv_path is not None:
        # The mark at the start tells Excel that it is UTF-8.
        data = class_csv(students, lessons).encode("utf-8-sig", "replace")
        write_view(csv_path, data, overwrite=options.overwrite)
        screen.note(_("table saved to {path}", path=safe_line(str(csv_path))))


def read_class(folder: Path) -> tuple[list[Student], list[str]]:
    """Return the students of a folder by name, and the files that could not be read.

    Raises UserError if the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            names = sorted(each.name for each in islice(found, 3 * _MAX_STUDENTS))
    except (OSError, ValueError) as error:
        why = os_error_text(error) if isinstance(error, OSError) else _("invalid file name")
        raise UserError(
            _("cannot open {name}: {error}", name=safe_line(str(folder)), error=why)
        ) from None
    students, unreadable = list[Student](), list[str]()
    for name in [each for each in names if each.endswith(".json")][:_MAX_STUDENTS]:
        path = folder / name
        # A link could lead to a file of the teacher.
        progress = Progress.load(path) if not path.is_symlink() else Progress(is_damaged=True)
        if progress.is_damaged:
            unreadable.append(name)
        else:
            students.append(_student(path.stem, progress))
    return students, unreadable


def class_table(students: Iterable[Student], lessons: dict[int, Lesson]) -> Table:
    """Return a row for each student; the lessons are signs side by side."""
    digits = "".join(str(number % 10) for number in lessons)
    table = plain_table(
        _("student"), digits, _("done"), _("lesson answers"), _("quiz"), _("last day"), wrap=(0,)
    )
    for each in students:
        marks = "".join(_mark(each.lessons.get(number)) for number in lessons)
        done = sum(each.lessons[number].done for number in lessons if number in each.lessons)
        table.add_row(
            Text(safe_line(each.name)[:_MAX_SHOWN], TITLE),
            marks,
            f"{done}/{len(lessons)}",
            "{}/{}".format(*each.lesson_answers),
            "{}/{}".format(*each.quiz_answers),
            Text(each.touched, FIGURES),
        )
    return table


def class_csv(students: Iterable[Student], lessons: dict[int, Lesson]) -> str:
    """Return the table for a spreadsheet, with days; no cell of it can be a formula."""
    numbers = [_("lesson {n}", n=number) for number in lessons]
    more = (_("lesson answers right"), _("given"), _("quiz answers right"), _("given"))
    rows: list[Sequence[str]] = [[_("student"), *numbers, *more, _("last day")]]
    for each in students:
        cells = [_lesson_cell(each.lessons.get(number)) for number in lessons]
        figures = map(str, (*each.lesson_answers, *each.quiz_answers))
        rows.append([each.name, *cells, *figures, each.touched])
    out = StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerows([plain_cell(safe_line(cell)) for cell in row] for row in rows)
    return out.getvalue()


def _student(name: str, progress: Progress) -> Student:
    lessons: dict[int, LessonProgress] = {}
    for key, each in progress.lessons.items():
        language, _space, number = key.partition(" ")
        if language in LANGUAGES and number.isascii() and number.isdecimal() and len(number) < 4:
            # A lesson that was done in one language is done.
            before = lessons.get(int(number))
            lessons[int(number)] = before if before and before.done else each
    answers = [each.verdict for each in progress.answers.values() if each.verdict]
    quiz = [each.last for each in progress.questions.values()]
    records = (progress.lessons, progress.questions, progress.answers)
    days = [_day(each.touched) for kept in records for each in kept.values()]
    return Student(
        name,
        lessons,
        (answers.count("right"), len(answers)),
        (sum(quiz), len(quiz)),
        max(days, default=""),
    )


def _day(moment: str) -> str:
    """Return the day of a moment in ISO 8601; empty for what is none."""
    day = moment[:10]
    return (
        day
        if [part.isdecimal() and part.isascii() for part in day.split("-")] == 3 * [True]
        else ""
    )


def _mark(lesson: LessonProgress | None) -> str:
    return "-" if lesson is None else "✓" if lesson.done else "▸"


def _lesson_cell(lesson: LessonProgress | None) -> str:
    if lesson is None:
        return ""
    if lesson.done:
        return _("finished {day}", day=_day(lesson.finished)).strip()
    return _("screen {n}, {day}", n=lesson.screen + 1, day=_day(lesson.touched)).strip(" ,")
