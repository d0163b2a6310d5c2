"""For teachers: progress of many students at once, the table of a class, and lessons on paper."""

import csv
import html
import io
import json
import multiprocessing
import os
import re
from pathlib import Path

import pytest
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from minillm_repl.cli import main
from minillm_repl.configuration import Launch
from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, set_language
from minillm_repl.lessons import Ask, Choose, Explain, Order, find_exercises
from minillm_repl.lessons.course import make_lesson_runner, read_lessons
from minillm_repl.lessons.progress import LessonProgress, Progress, student_name
from minillm_repl.lessons.run import run_unattended
from minillm_repl.lessons.values import LessonValues
from minillm_repl.lessons.worksheet import _PAGE, worksheet_page
from minillm_repl.render.console import Transcript, make_console
from tests.conftest import ROOT
from tests.test_lessons import NUMBERS, a_model, printed, shell_for, state  # noqa: F401 - a fixture

SESSIONS = 30
RECORDS = 2  # of each kind, by each session

# -- progress


def write_much(file, name):
    """What one session records."""
    progress = Progress.load(file, "민수")
    for n in range(RECORDS):
        progress.record_lesson(f"ko {name}{n}", LessonProgress(n))
        progress.record_answer("ko 1.1", n % 2 == 0)
        progress.record_lesson_answer(f"ko 1/{name}.{n}", name, None)
        assert not progress.failure, progress.failure


def test_thirty_sessions_at_once_lose_nothing(tmp_path):
    """All write into the file of one student at the same time, each in a process of its own."""
    file = tmp_path / "class" / "민수.json"
    processes = multiprocessing.get_context("fork")
    names = [str(n) for n in range(100, 100 + SESSIONS)]
    running = [processes.Process(target=write_much, args=(file, name)) for name in names]
    for each in running:
        each.start()
    for each in running:
        each.join(60)
    assert [each.exitcode for each in running] == [0] * SESSIONS
    kept = Progress.load(file)
    answered = kept.questions["ko 1.1"]
    assert len(kept.lessons) == len(kept.answers) == SESSIONS * RECORDS
    assert answered.right == answered.wrong == SESSIONS * RECORDS // 2
    assert not [each for each in file.parent.iterdir() if each.suffix == ".tmp"]


def test_a_student_has_progress_of_their_own_whatever_becomes_of_the_history(tmp_path):
    minsu, jiu, off = (
        Launch(student=name, history="off", progress=where).load_progress()
        for name, where in (("민수", str(tmp_path)), ("지우", str(tmp_path)), ("민수", "off"))
    )
    minsu.record_lesson("ko 4", LessonProgress(3))
    off.record_lesson("ko 5", LessonProgress(3))
    assert [each.name for each in tmp_path.glob("*.json")] == ["민수.json"]
    assert not jiu.lessons
    again = Launch(student="민수", progress=str(tmp_path)).load_progress()
    assert again.lessons == {"ko 4": LessonProgress(3)}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:+-]+", again.lessons["ko 4"].started)
    assert again.practice_model != jiu.practice_model
    assert Launch().load_progress().practice_model is None


@pytest.mark.parametrize(
    "name",
    ["..", ".x", "a/b", "a\\b", "x" * 41, "CON", "nul.txt", "a:b", "a\nb", "\x1b[31m", "=1+1"],
)
def test_a_name_that_is_no_file_name_everywhere_is_refused(name):
    with pytest.raises(ValueError, match="letters"):
        student_name(name)


def test_what_is_answered_inside_a_lesson_is_kept(state):
    set_language("ko")
    shell = shell_for(a_model("nalssi"))
    shell.progress = Progress.load(state / "kim.json", "kim")
    lesson = read_lessons()[2]
    make_lesson_runner(shell, lesson, shell.progress).start()
    for line in ("", "99", "5"):  # the first screen; a wrong answer, then another
        shell.execute(line)
    shell.execute(":learn off")
    kept = Progress.load(state / "kim.json").answers
    assert {name: (each.given, each.verdict) for name, each in kept.items()} == {
        "ko 2/2.1": ("99 → 5", "right" if "✓" in printed(shell) else "wrong")
    }


def test_progress_that_cannot_be_kept_is_said_and_a_damaged_file_is_not_lost(tmp_path):
    (tmp_path / "file").write_text("")
    progress = Progress.load(tmp_path / "file" / "kim.json")
    progress.record_lesson("ko 1", LessonProgress(2))
    assert progress.failure
    progress.record_lesson("ko 2", LessonProgress(2))
    assert set(progress.lessons) == {"ko 1", "ko 2"}
    (tmp_path / "lee.json").write_text("{")
    Progress.load(tmp_path / "lee.json").record_lesson("ko 1", LessonProgress(2))
    assert (tmp_path / "lee.json.damaged").read_text() == "{"


# -- a class


def test_a_class_is_shown_and_becomes_a_table_whatever_is_in_the_folder(tmp_path, capsys):
    folder = tmp_path / "class"
    for name in ("김민수", "=cmd|'calc'!A0", "@x", "＝1", "\x1b[31mred", "a" * 200):
        progress = Progress.load(folder / f"{name}.json")
        progress.record_lesson("ko 1", LessonProgress(done=True))
        progress.record_lesson("en 1", LessonProgress(2))
        progress.record_lesson("ko 4", LessonProgress(3))
        progress.record_lesson_answer("ko 1/4.1", "=2+1", True)
        progress.record_answer("ko 1.1", False)
    (folder / "bad.json").write_text('{"lessons": {"ko 1": {"screen": 1e999}}, "questions": {}}')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "big.json").write_bytes(b" " * (2 << 20))
    (folder / "lies.json").write_text(
        json.dumps(
            {"lessons": {"ko ٣": {"touched": "=1"}, "x": {"finished": "\x1b]0;x"}}, "questions": {}}
        )
    )
    (folder / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.json")
    table = tmp_path / "class.csv"
    assert main(["--lang", "en", "--class", str(folder), "--export", str(table)]) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert re.search(r"김민수 +✓--▸-+ +1/\d+ +1/1 +0/1 +\d{4}-\d\d-\d\d", shown.out)
    assert max(map(len, shown.out.splitlines())) <= 80
    for name in ("bad", "deep", "big", "link", "pipe"):
        assert f"{name}.json cannot be read" in shown.err
    rows = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines()))
    assert len(rows) == 8
    assert {len(row) for row in rows} == {len(NUMBERS) + 6}
    assert not [cell for row in rows for cell in row if cell[:1] in "=+-@\t\r＝＋－＠" and cell]
    assert "'=cmd|'calc'!A0" in [row[0] for row in rows]
    # It replaces no file of somebody else's, and says which flags belong together.
    assert main(["--lang", "en", "--class", str(folder), "--export", str(table)]) == 1
    assert main(["--class", str(folder), "--export", str(table), "--overwrite"]) == 0
    assert main(["--class", str(tmp_path / "none")]) == 1


# -- on paper


def texts(exercise):
    """What a question says once it is answered, without its placeholders."""
    match exercise:
        case Ask():
            found = [exercise.right, exercise.wrong]
        case Choose():
            found = [each.why for each in exercise.options]
        case Order():
            found = [exercise.why]
        case Explain():
            found = [exercise.answer]
    pieces = [piece for text in found for piece in re.split(r"\{[^}]*\}|[`*\n]", text)]
    return [
        piece.strip() for piece in pieces if len(piece.strip()) > 20
    ]  # shorter ones stand anywhere


def plain(page):
    text = re.sub("<[^>]+>", "", page.partition("<body>")[2])
    return re.sub(r"\s+", " ", html.unescape(text))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=() if n in (2, 4) else pytest.mark.slow) for n in NUMBERS],
)
def test_a_worksheet_has_every_question_and_no_answer_and_the_key_has_all(number, language):
    set_language(language)
    shell = shell_for(a_model("nalssi"))
    lesson = read_lessons()[number]
    sheet, key = (
        plain(worksheet_page(shell, lesson, kind, Progress())) for kind in ("worksheet", "key")
    )
    values = LessonValues(shell_with_text(shell, lesson))
    found = [each for screen in lesson.screens for each in find_exercises(screen)]
    said = [piece for each in found for piece in texts(each)]
    assert not [piece for piece in said if piece in sheet]
    for each in found:
        if isinstance(each, Choose):
            assert sheet.count("✓") == sheet.count("✗") == 0
        if isinstance(each, Ask) and re.fullmatch(r"\{[a-z_.0-9-]+\}", each.answer):
            assert "_____" in sheet or values.value(each.answer.strip("{}")) not in sheet
    # Questions for models of another kind are on neither.
    shown = [each for each in found if all(piece in key for piece in texts(each))]
    assert len(shown) >= len(found) - 2
    for goal in lesson.goals:
        assert goal in sheet
    for term in lesson.terms:
        assert term.word in sheet
        assert term.meaning in key


def shell_with_text(shell, lesson):
    text = lesson.texts[0] if language_is_korean(lesson.texts[0]) else lesson.texts[-1]
    ids = shell.require_model().checkpoint.tokenizer.encode(text)
    shell.session.conversation.start_turn(ids or [0], shell.session.settings)
    return shell


def language_is_korean(text):
    return bool(re.search("[가-힣]", text))


def test_the_lesson_goes_on_where_it_was_after_it_was_printed(state, tmp_path):
    set_language("ko")
    shell = shell_for(a_model("nalssi"))
    runner = make_lesson_runner(shell, read_lessons()[2], shell.progress)
    runner.start()
    shell.execute("")
    shell.execute("5")
    before, place = shell.session, runner.screen_index
    shell.execute(f":export {tmp_path / '답안지.html'} 답안지")
    assert (shell.line_handler, shell.session, runner.screen_index) == (runner, before, place)
    assert re.search(r"5 \d{4}-\d\d-\d\d", plain((tmp_path / "답안지.html").read_text("utf-8")))
    shell.execute(f":export {tmp_path / '답안지.html'} worksheet")  # ours: it may be replaced
    page = (tmp_path / "답안지.html").read_text("utf-8")
    assert '<html lang="ko">' in page
    assert "script" not in page
    assert "http" not in page
    with pytest.raises(UserError, match="html"):
        shell.execute(f":export {tmp_path / 'x.svg'} key")
    shell.execute(":learn off")
    with pytest.raises(UserError):
        shell.execute(f":export {tmp_path / 'x.html'} key")


def test_paper_is_light_and_its_contrast_is_at_least_seven_to_one():
    style = _PAGE.partition("<style>")[2].partition("</style>")[0]

    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    front = set(re.findall(r"[^-]color: (#\w{6})", style)) | set(
        re.findall(r"solid (#\w{6})", style)
    )
    back = set(re.findall(r"background: (#\w{6})", style))
    assert len(front) >= 3
    assert len(back) == 2
    ratios = [
        (max(luminance(a), luminance(b)) + 0.05) / (min(luminance(a), luminance(b)) + 0.05)
        for a in front
        for b in back
    ]
    # Lines need 3:1 and have 7:1 on white; text has 7:1 on both.
    assert min(ratios) >= 6.6
    texts_on = [
        (luminance(b) + 0.05) / (luminance(a) + 0.05) for a in ("#111111", "#444444") for b in back
    ]
    assert min(texts_on) >= 7
    assert "letter-spacing" not in style
    assert "size: A4" in style


def test_high_contrast_has_no_colour_and_nothing_dim():
    options = {"force_terminal": True, "color_system": "standard", "width": 40}
    picture = Text.assemble(("dim", "dim"), (" cyan", "cyan"), (" both", "dim yellow"), " plain")
    drawn = []
    for high_contrast in (False, True):
        out = Transcript(file=io.StringIO(), high_contrast=high_contrast, **options)
        out.print(Group(picture, Panel(picture, style="dim")))
        drawn.append(
            {
                code
                for found in re.findall("\x1b\\[([0-9;]*)m", out.file.getvalue())
                for code in found.split(";")
            }
        )
    assert {"2", "36", "33"} <= drawn[0]
    assert drawn[1] <= {"0", "1"}
    assert make_console(io.StringIO(), {}, "contrast").high_contrast


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_lesson_says_what_it_is_for_how_long_it_takes_and_what_its_words_mean(language):
    set_language(language)
    other = next(each for each in LANGUAGES if each != language)
    lessons = read_lessons()
    set_language(other)
    for number, lesson in read_lessons().items():
        assert len(lesson.goals) == len(lessons[number].goals) >= 2
        assert len(lesson.terms) == len(lessons[number].terms) >= 3
        assert all(term.word and term.meaning for term in lesson.terms)
        assert (lesson.hour, lesson.minutes) == (lessons[number].hour, lessons[number].minutes)
    by_hour = {}
    for lesson in lessons.values():
        by_hour[lesson.hour] = by_hour.get(lesson.hour, 0) + lesson.minutes
    assert set(by_hour) == {*range(7)}  # 0: beyond the six hours
    assert all(minutes <= 45 for minutes in by_hour.values())


def test_a_lesson_ends_with_its_terms_and_begins_with_its_goals():
    set_language("en")
    shell = shell_for(a_model("nalssi"))
    lesson = read_lessons()[4]
    run_unattended(make_lesson_runner(shell, lesson, Progress()))
    shown = " ".join(printed(shell).split())
    assert lesson.goals[0] in shown
    assert " ".join(lesson.terms[-1].word.split()) in shown.partition("end of lesson")[0]


def test_the_teachers_page_names_what_there_is():
    for name in ("teaching.md", "teaching.ko.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        for word in ("--student", "--progress", "--class", ":export", "Windows", ".csv"):
            assert word in text, (name, word)
        hours = {lesson.hour for lesson in read_lessons().values() if lesson.hour}
        assert len(re.findall(r"^\| [1-6] \|", text, re.MULTILINE)) == len(hours)
        assert Path(ROOT / "docs" / name).stat().st_size > 3000


# -- small things that a class stumbled over


def test_a_number_before_the_question_is_no_prompt_for_the_model(state):
    set_language("ko")
    shell = shell_for(a_model("nalssi"))
    make_lesson_runner(shell, read_lessons()[2], shell.progress).start()
    shell.execute("2번")
    assert "토큰/초" not in printed(shell)
    assert shell.line_handler.screen_index == 0


def test_a_setting_is_named_in_korean_and_no_share_is_cut():
    set_language("ko")
    shell = shell_for(a_model("nalssi"))
    shell.execute(":대화")
    assert "대화(chat) auto" in printed(shell)
    shell.execute(":shapes 날씨가 좋")
    row = next(line for line in printed(shell).splitlines() if line.startswith("뽑힐"))
    assert len(re.findall(r"\d%", row)) == len(re.findall(r"\d\.\d", row)) >= 2
    shell.execute(":experts 99 날씨가")
    assert "이 모델에는 없어요" in printed(shell)
