"""What a learner types as an answer, and as a command: many spellings mean the same."""

import pytest

from minillm_repl.lessons.answers import is_correct, parse_choice, parse_order, parse_yes
from minillm_repl.lessons.run import LessonRunner
from minillm_repl.repl.layouts import from_latin_keys, to_latin_keys
from tests.test_lessons import a_model, printed, shell_for, state  # noqa: F401 - a fixture

RIGHT = [
    *((line, "2") for line in (
        "2", "2번", "②", "둘", "두 개", "두개", "2)", "(2)", "2.", "２", "２번", "⑵", "두 번째",
        "두번째", "이", "이번", "답은 2", "정답은 2번", "정답: 2", "2번이에요", "2번이요", "2번!",
        "2번 같아요", "둘이에요", "두 가지", "둘째", "제 생각에는 2", "two", "Two.", "second", "#2",
        "option 2", "the answer is 2", "it's 2", "maybe 2", "2비트", "2 bits", "+2", "음 2",
    )),
    *((line, "3") for line in ("세 개", "셋", "삼", "③", "３개", "3개예요", "세 비트", "셋입니다")),
    *((line, "16") for line in ("16개", "십육", "열여섯", "열여섯 개", "약 16", "１６")),
    *((line, "1,024") for line in ("1024", "1,024", "1024개")),
    *((line, "0.3") for line in ("0.3", ".3", "영점삼", "０.３")),
    *((line, "-2") for line in ("-2", "−2", "－2")),
    *((line, "100%") for line in ("100%", "100", "백", "백 퍼센트", "100프로")),
    ("양이는", "양이는"),
    (" 양이는. ", "양이는"),
]  # fmt: skip

WRONG = [
    *((line, "2") for line in (
        "3", "3번", "③", "셋", "세 개", "22", "12", "2.6", "-2", "이십", "열둘", "스물", "둘 다",
        "두 개나 세 개", "1, 2", "2 3", "모르겠어요", "글쎄", "?", "이상해", "하나", "영",
        "two or three", "20", "0",
    )),
    *((line, "16") for line in ("6", "십", "육십", "열여섯이나 열일곱", "17")),
    *((line, "0.3") for line in ("3", "0.4", "영점사", "영")),
    ("양이", "양이는"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "answer"), RIGHT)
def test_a_right_answer_counts_however_it_is_spelt(line, answer):
    assert is_correct(line, answer, "")


@pytest.mark.parametrize(("line", "answer"), WRONG)
def test_a_wrong_answer_does_not_count(line, answer):
    assert not is_correct(line, answer, "")


def test_there_are_sixty_right_spellings_and_thirty_wrong_ones():
    assert len(set(RIGHT)) >= 60
    assert len(set(WRONG)) >= 30


def test_a_choice_is_one_of_the_options_or_no_answer():
    assert [parse_choice(line, 3) for line in ("②", "3번", "하나")] == [2, 3, 1]
    assert [parse_choice(line, 3) for line in ("4", "0", "모름", "1.5", "")] == [None] * 5


@pytest.mark.parametrize(
    "line", ["3 1 2", "312", "3, 1, 2", "③①②", "３ １ ２", "3번 1번 2번", "셋 하나 둘", "3-1-2"]
)
def test_an_order_may_be_spelt_in_many_ways(line):
    assert parse_order(line, 3) == [3, 1, 2]


@pytest.mark.parametrize("line", ["3 1", "1 1 2", "1 2 3 4", "모름", "4 1 2"])
def test_what_does_not_name_each_step_once_is_no_order(line):
    assert parse_order(line, 3) is None


def test_yes_and_no_in_both_layouts():
    assert [parse_yes(line) for line in ("y", "ㅛ", "네", "응!", "맞아요")] == [True] * 5
    assert [parse_yes(line) for line in ("n", "ㅜ", "아니요", "ㄴㄴ")] == [False] * 4
    assert parse_yes("잘 모르겠어요") is None


# -- in a lesson

LESSON = """# Test

A lesson.

```lesson
minutes: 5
hour: 1
text: 날씨
goals:
  You can answer.
terms:
  answer: what is typed
```

---

```choose
question: which?
- [ ] one: no
- [x] two: yes
```

```ask
question: how many?
answer: 3
```
"""


@pytest.fixture
def course(tmp_path):
    from minillm_repl.lessons.course import make_lesson_runner
    from minillm_repl.lessons.parse import read_lesson

    path = tmp_path / "01-test.md"
    path.write_text(LESSON, encoding="utf-8")
    shell = shell_for(a_model("nalssi"))
    runner = make_lesson_runner(shell, read_lesson(path), shell.progress)
    runner.start()
    return runner


def test_what_is_no_answer_is_asked_again_and_costs_nothing(course):
    waiting = course.expected
    for line in ("모르겠어", "5", "둘 다"):
        course.shell.execute(line)
        assert course.expected == waiting
    course.shell.execute("②")
    assert "✓ correct" in printed(course.shell)
    assert "✗ not" not in printed(course.shell)


def test_a_wrong_answer_may_be_tried_once_more(course):
    course.shell.execute("1번")
    assert "once more" in printed(course.shell)
    course.shell.execute("2번")
    assert "✓ correct" in printed(course.shell)
    course.shell.execute("4")
    course.shell.execute("다섯")
    assert "✗ not quite" in printed(course.shell)
    assert course.shell.line_handler is None or course.expected == ""


def test_enter_after_a_wrong_answer_shows_the_right_one(course):
    course.shell.execute("1")
    course.shell.execute("")
    assert "✗ not quite" in printed(course.shell)


# -- commands


def test_commands_in_korean_and_in_the_wrong_layout():
    shell = shell_for(a_model("nalssi"))
    shell.execute(":수업 2번")
    assert shell.line_handler.name.endswith(" 2")
    shell.execute(":수업 다음")
    assert shell.line_handler.name.endswith(" 3")
    shell.execute(":나가기")
    assert shell.line_handler is None
    shell.execute(":ㅣㄷㅁ구 ㅜㄷㅌㅅ")  # :learn next
    assert isinstance(shell.line_handler, LessonRunner)
    shell.execute(":tndjq 그만")  # :수업
    assert shell.line_handler is None
    shell.execute(":ㅗ디ㅔ")
    assert ":learn" in printed(shell)


def test_a_layout_and_back():
    assert to_latin_keys("ㅗ디ㅔ") == "help"
    assert to_latin_keys("수업") == "tndjq"
    assert from_latin_keys("tndjq") == "ㅅㅜㅇㅓㅂ"
