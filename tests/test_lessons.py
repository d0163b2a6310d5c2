"""Lessons and quiz: each of them runs, on models of every kind, and says only what views say."""

import io
import json
import math
import re
import stat
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

from minillm_repl import commands, views
from minillm_repl.checkpoint import Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, set_language
from minillm_repl.lessons import Ask, Choose, Exercise, Explain, Guess, Order, Try, When
from minillm_repl.lessons.answers import is_correct
from minillm_repl.lessons.course import (
    find_lesson,
    learner_progress,
    make_lesson_runner,
    read_lessons,
    select_quiz,
)
from minillm_repl.lessons.draw import LessonMarkdown
from minillm_repl.lessons.parse import lesson_files, practice_file, read_lesson, read_quiz
from minillm_repl.lessons.progress import LessonProgress, Progress, QuestionProgress
from minillm_repl.lessons.run import run_unattended
from minillm_repl.lessons.values import LessonValues
from minillm_repl.model.config import CONFIGS, LlamaConfig
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.registry import discover
from minillm_repl.repl.session import Session
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer import CharacterTokenizer
from tests.conftest import MODELS, ROOT
from tests.outside import outside
from tests.small import random_checkpoint
from tests.test_terminal import models, visit  # noqa: F401 - fixtures

NUMBERS = range(1, 14)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    yield tmp_path
    set_language("en")


def lesson_runner(shell, number):
    """A lesson from its first screen."""
    return make_lesson_runner(shell, find_lesson(number), learner_progress(shell))


def shell_for(checkpoint, width=80):
    """A shell without a terminal, with a model open; what it prints is `shell.screen.out.file`."""
    out = Transcript(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False)
    shell = Shell(
        session=Session(),
        screen=Screen(out, out),
        registry=discover(commands, views),
        progress=Progress(),
    )
    opening = ModelLoader(threads=1)
    model = (
        opening.prepare(checkpoint)
        if not hasattr(checkpoint, "joinpath")
        else opening.load(checkpoint)
    )
    shell.session.adopt(model, unsaved=False)
    return shell


def printed(shell):
    return shell.screen.out.file.getvalue()


def a_model(name):
    if name in ("nalssi", "hangul"):
        return MODELS / f"{name}.safetensors"
    if name == "fresh":  # of one layer and one head, and with letters of its own
        return random_checkpoint(
            characters=[*"abcdefghijklmnopqrstuvwxyz\n"], layers=1, heads=1, width=16, context=24
        )
    if name in ("llama", "canon", "moe"):
        letters = [*"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ,.\n"]
        sizes = {
            "context_length": 64,
            "d_model": 24,
            "n_layers": 6,
            "n_heads": 4,
            "n_kv_heads": 2,
            "head_dim": 6,
            "d_mlp": 40,
        }
        if name == "moe":
            sizes |= {"n_experts": 4, "n_experts_per_tok": 2, "d_expert": 12}
        config = CONFIGS.get(name, LlamaConfig)(vocab_size=len(letters), **sizes)
        rng = np.random.default_rng(0)
        tensors = {
            name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in config.shapes()
        }
        return Checkpoint(config=config, tokenizer=CharacterTokenizer(letters), tensors=tensors)
    return outside(f"checkpoints/{name}")


MODELS_OF_ALL_KINDS = [
    *("nalssi", "hangul", "fresh", "llama", "canon", "moe", "stories260K-hf", "tiny_gpt2"),
]
QUICK = [
    ("nalssi", "ko", 4),
    ("nalssi", "en", 9),
    ("llama", "ko", 1),
    ("stories260K-hf", "en", 2),
    ("fresh", "en", 5),
    ("canon", "ko", 6),
    ("moe", "ko", 6),
    ("moe", "en", 6),
    ("canon", "en", 12),
]
ALL = [
    (model, language, number)
    for model in MODELS_OF_ALL_KINDS
    for language in LANGUAGES
    for number in NUMBERS
]


@pytest.mark.parametrize(
    ("model", "language", "number"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow) for each in ALL],
)
def test_a_lesson_runs_to_its_end(model, language, number):
    set_language(language)
    shell = shell_for(a_model(model))
    before = (shell.session, shell.session.workspace.model, shell.session.settings)
    run_unattended(lesson_runner(shell, number))
    assert shell.line_handler is None
    assert (shell.session, shell.session.workspace.model, shell.session.settings) == before
    assert shell.progress.lessons[f"{language} {number}"].done
    source = re.compile(r"f\"[^\"\n]*\"")  # the program's own code, which lesson 12 shows
    assert not re.search(r"\{[a-z_]+(\.-?\w+)?\}", source.sub("", printed(shell))), (
        "a placeholder was left"
    )


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(each, marks=() if each == "nalssi" else pytest.mark.slow)
        for each in MODELS_OF_ALL_KINDS
    ],
)
def test_every_question_of_the_quiz_runs_and_its_expected_answer_is_right(model, language):
    set_language(language)
    shell = shell_for(a_model(model))
    for number in NUMBERS:
        run_unattended(select_quiz(shell, str(number)))
    answered = shell.progress.questions
    assert len(answered) == len(read_quiz(language)) >= 40
    assert [name for name, each in answered.items() if not each.last] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_lesson_lets_the_learner_do_something_and_each_kind_of_question_is_asked(language):
    lessons = {number: read_lesson(path) for number, path in lesson_files(language).items()}
    assert list(lessons) == list(NUMBERS)

    def exercises(blocks):
        for block in blocks:
            if isinstance(block, When):
                yield from exercises(block.blocks)
            elif isinstance(block, Exercise | Try | Guess):
                yield block

    for lesson in lessons.values():
        assert 10 <= lesson.minutes <= 25
        assert any(True for screen in lesson.screens for _ in exercises(screen)), lesson.title
    questions = read_quiz(language)
    assert {each.lesson for each in questions} == set(NUMBERS)
    assert {type(each.exercise) for each in questions} == {Ask, Choose, Order, Explain}
    for question in questions:
        if isinstance(question.exercise, Choose):
            assert all(option.why for option in question.exercise.options), question.name
            assert any(option.right for option in question.exercise.options), question.name


def test_both_languages_have_their_own_practice_text():
    texts = [practice_file(language).read_text(encoding="utf-8") for language in LANGUAGES]
    assert all(len(text.splitlines()) >= 20 for text in texts)
    assert re.search("[가-힣]", texts[LANGUAGES.index("ko")])
    assert not re.search("[가-힣]", texts[LANGUAGES.index("en")])


# -- what a lesson says is what the model says


def test_the_figures_are_those_of_the_model():
    shell = shell_for(a_model("nalssi"))
    model = shell.require_model()
    tokenizer, text = model.checkpoint.tokenizer, "오늘 날씨가"
    shell.session.conversation.start_turn(tokenizer.encode(text), shell.session.settings)
    facts = LessonValues(shell)
    with torch.no_grad():
        logits = model.language_model(torch.tensor([shell.session.conversation.ids]))[0].double()
    order = logits[-1].argsort(descending=True)
    for place in (1, 2, 9):
        token = int(order[place - 1])
        assert facts.value(f"next.{place}") == tokenizer.token_bytes(token).decode().replace(
            " ", "␣"
        )
        for name, temperature in (("prob", 1.0), ("hot", 2.0), ("cold", 0.5)):
            exact = float((logits[-1] / temperature).softmax(-1)[token])
            shown = facts.value(f"{name}.{place}")
            assert (
                shown == "<0.1%"
                if exact < 0.0005
                else float(shown.rstrip("%")) == pytest.approx(100 * exact, abs=0.051)
            )
    surprisal = torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor(shell.session.conversation.ids[1:])
    )
    assert float(facts.value("loss")) == pytest.approx(float(surprisal), abs=6e-4)
    assert float(facts.value("bits")) == pytest.approx(float(surprisal) / math.log(2), abs=6e-3)
    assert facts.value("tokens") == "6"
    assert (
        facts.value("parameters")
        == f"{sum(each.size for each in model.checkpoint.tensors.values()):,}"
    )
    entropy = -(logits[-1].softmax(-1) * logits[-1].log_softmax(-1)).sum() / math.log(2)
    assert float(facts.value("entropy")) == pytest.approx(float(entropy), abs=6e-3)
    # √16
    assert float(facts.value("scaled")) == pytest.approx(float(facts.value("dot")) / 4, abs=6e-3)
    assert facts.value("token.-1") == "가"
    with pytest.raises(UserError, match="unknown name"):
        facts.value("nonsense")


def test_what_a_lesson_says_is_what_the_view_beside_it_shows():
    shell = shell_for(a_model("nalssi"), width=120)
    shell.session.conversation.start_turn(
        shell.require_model().checkpoint.tokenizer.encode("날씨가 좋"), shell.session.settings
    )
    facts = LessonValues(shell)
    shell.run_line(":sampler")
    assert re.search(
        rf"{facts.value('next.1')}\s+{facts.value('logit.1')}\s.*{facts.value('prob.1')}",
        printed(shell),
    )
    shell.run_line(f":qkv {facts.value('head')}")
    assert re.search(
        rf"{facts.value('dot')}\s+{facts.value('scaled')}\s+{facts.value('weight')}", printed(shell)
    )
    shell.run_line(":residual")
    assert facts.value("road.stream") in printed(shell)
    shell.run_line(":surprise")
    assert facts.value("perplexity") in printed(shell)


def test_a_token_that_looks_like_markup_is_shown_as_it_is():
    hostile = {"text": "**b** [x](http://y.z) `c` \x1b[31m <b>", "next": "|"}
    out = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    from minillm_repl.safetext import safe_line

    out.print(LessonMarkdown("So: {text} and **{next}**", lambda name: safe_line(hostile[name])))
    assert "**b** [x](http://y.z) `c` ␛[31m <b> and" in out.file.getvalue()
    assert "\x1b]8" not in out.file.getvalue()


@pytest.mark.parametrize(
    ("line", "answer", "within", "right"),
    [
        ("16", "16", "", True),
        ("17", "16", "", False),
        ("1,024", "1,024", "", True),
        ("1024", "1,024", "", True),
        ("3.46", "3.46", "", True),
        ("3.464", "3.46", "", True),
        ("3.47", "3.46", "", False),
        ("41", "41.1%", "", False),
        ("nan", "3", "", False),
        ("3 4", "3", "", False),
        ("41.1", "41.1%", "", True),
        ("44 %", "41.1%", "10%", True),
        ("−2", "-2", "", True),
        ("3 bits", "3", "", True),
        ("0.3", "0.3", "", True),
        ("Y", "y", "", True),
        (" residual stream. ", "Residual stream", "", True),
        ("", "3", "", False),
        ("2.1", "2.1", "", True),
        ("좋", "좋", "", True),
        ("3 피드포워드", "3 피드포워드", "", True),
        ("3 어텐션", "3 피드포워드", "", False),
        ("3", "3 피드포워드", "", False),
    ],
)
def test_an_answer_counts_as_far_as_it_is_shown(line, answer, within, right):
    assert is_correct(line, answer, within) is right


# -- the learner's own things


@pytest.mark.slow
def test_training_in_a_lesson_leaves_the_learners_model_as_it_was(state):
    shell = shell_for(a_model("nalssi"))
    shell.session.chosen = shell.session.settings
    shell.session.conversation.start_turn(
        shell.require_model().checkpoint.tokenizer.encode("날씨"), shell.session.settings
    )
    weights = {name: each.copy() for name, each in shell.require_model().checkpoint.tensors.items()}
    ids = list(shell.session.conversation.ids)
    run_unattended(lesson_runner(shell, 7))
    assert shell.session.conversation.ids == ids
    assert not shell.session.workspace.unsaved
    assert all(
        (shell.require_model().checkpoint.tensors[name] == each).all()
        for name, each in weights.items()
    )
    assert (state / "minillm-repl" / "practice.safetensors").exists()


def test_the_quiz_is_left_by_its_own_name_too(state):
    shell = shell_for(a_model("nalssi"))
    with pytest.raises(UserError, match="no lesson is open"):
        shell.execute(":quiz off")
    shell.execute(":quiz")
    assert shell.line_handler is not None
    shell.execute(":quiz off")
    assert shell.line_handler is None


def test_a_lesson_goes_on_where_it_was_left_with_the_model_it_had_trained(state):
    set_language("ko")
    shell = shell_for(a_model("nalssi"))
    lesson = read_lessons()[7]
    course = make_lesson_runner(shell, lesson, shell.progress)
    course.start()
    shell.execute(f':train "{practice_file("ko")}" new steps=2 width=16')
    shell.execute("")
    trained = shell.session.workspace.model.checkpoint.tensors
    place = course.screen_index
    shell.execute(":learn off")
    assert shell.line_handler is None
    assert shell.progress.lessons["ko 7"] == LessonProgress(place, practised=True)
    shell.execute(":learn 7")
    assert shell.line_handler.screen_index == place
    again = shell.session.workspace.model.checkpoint.tensors
    assert all((again[name] == each).all() for name, each in trained.items())
    shell.execute(":learn back")
    assert shell.line_handler.screen_index == max(0, place - 1)


def test_what_fails_in_a_lesson_is_told_and_the_lesson_goes_on():
    shell = shell_for(a_model("nalssi"))
    course = lesson_runner(shell, 4)
    course.start()
    with pytest.raises(UserError, match="no layer"):
        shell.execute(":attn 99")
    assert shell.line_handler is course
    shell.execute("")
    assert course.screen_index == 1


def test_what_a_model_says_is_never_run_as_a_command(tmp_path):
    words = [":", "/", "q", "u", "i", "t", " ", "\n"]
    shell = shell_for(random_checkpoint(characters=words, context=16))
    lesson = tmp_path / "01-hostile.md"
    lesson.write_text(
        "# Hostile\n\nA lesson.\n\n```lesson\nminutes: 10\nhour: 1\ngoals:\n  g\nterms:\n  t: m\n"
        "text: :quit | :q\n```\n\n---\n\n```show\n"
        "{text}\n```\n\n"
        "```try\ntask: do\ndo: {text}\n```\n\n```ask\nquestion: which?\nanswer: {text}\n```\n"
    )
    run_unattended(make_lesson_runner(shell, read_lesson(lesson), shell.progress))
    assert printed(shell).count("tokens/s") == 2  # it was completed both times, and nobody has left


def test_progress_is_the_learners_alone_and_survives_what_is_not(tmp_path):
    file = tmp_path / "folder" / "progress.json"
    progress = Progress.load(file)
    progress.record_lesson("ko 4", LessonProgress(3))
    progress.record_answer("ko 4.2", False)
    progress.record_answer("ko 4.2", True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = Progress.load(file)
    assert again.lessons == {"ko 4": LessonProgress(3)}
    assert again.questions == {"ko 4.2": QuestionProgress(1, 1, True)}
    again.record_lesson("ko 4", LessonProgress(done=True))
    again.record_lesson("ko 4", LessonProgress(1))
    assert Progress.load(file).lessons["ko 4"] == LessonProgress(1, done=True)
    good = json.loads(file.read_text())
    for hostile in (
        "", "[]", "{", "null", "[" * 100_000,
        '{"lessons": 3, "questions": {}}',
        '{"lessons": {"ko 4": {"screen": "x"}}, "questions": {}}',
        '{"lessons": {"ko 4": {"screen": -1}}, "questions": {}}',
        json.dumps(good | {"lessons": {"a": {"started": 1}}}), "\udcff",
    ):  # fmt: skip
        file.write_bytes(hostile.encode("utf-8", "surrogateescape"))
        assert Progress.load(file).lessons == {}
    # A later version may write fields of which this one knows nothing.
    file.write_text(json.dumps(good | {"lessons": {"ko 1": {"screen": 2, "later": 1}}}))
    assert Progress.load(file).lessons == {"ko 1": LessonProgress(2)}


def test_two_visits_at_once_both_keep_what_was_learnt(tmp_path):
    one, other = (Progress.load(tmp_path / "progress.json") for _ in range(2))
    one.record_lesson("ko 1", LessonProgress(done=True))
    other.record_lesson("ko 2", LessonProgress(4))
    one.record_answer("ko 1.1", True)
    other.record_answer("ko 1.1", False)
    assert Progress.load(tmp_path / "progress.json").lessons == {
        "ko 1": LessonProgress(done=True),
        "ko 2": LessonProgress(4),
    }
    assert (
        other.questions
        == Progress.load(tmp_path / "progress.json").questions
        == {"ko 1.1": QuestionProgress(1, 1)}
    )


def test_a_lesson_becomes_one_html_file(tmp_path):
    set_language("ko")
    shell = shell_for(a_model("nalssi"))
    shell.run_line(":tokens 하늘이")
    run_unattended(lesson_runner(shell, 4))
    shell.run_line(f":export {tmp_path / 'lesson.html'} lesson")
    page = (tmp_path / "lesson.html").read_text(encoding="utf-8")
    assert "<script" not in page
    page = re.sub("<[^>]+>", "", page)
    assert read_lessons()[4].title in page
    assert "q·k" in page
    assert "하늘이" not in page  # that was before


# -- at a terminal


def test_a_learner_reads_answers_leaves_and_comes_back(visit):
    with visit("--lang", "ko") as terminal:
        terminal.wait_for_prompt()
        terminal.send(":learn 4")
        terminal.wait_for(read_lesson(lesson_files("ko")[4]).title)
        terminal.wait_for_toolbar("1/")
        terminal.send("")
        terminal.wait_for_toolbar("2/")
        terminal.send(":learn off")
        terminal.wait_for_prompt()
        terminal.send(":수업 4")
        terminal.wait_for_toolbar("2/")
        terminal.interrupt()
        terminal.send(":learn off")
        terminal.wait_for_prompt()
        assert "날씨" in terminal.do("날씨")


@pytest.mark.slow
def test_ctrl_c_while_a_lesson_trains_keeps_what_was_learnt_and_stays_in_the_lesson(
    visit, tmp_path
):
    progress = Progress.load(tmp_path / "home/state/minillm-repl/progress.json")
    thousand = next(
        place
        for place, screen in enumerate(read_lesson(lesson_files("en")[7]).screens)
        if "steps=1000" in str(screen)
    )
    progress.record_lesson("en 7", LessonProgress(thousand))
    with visit(ckpt="nalssi", rows=40) as terminal:
        terminal.wait_for_prompt()
        terminal.send(":learn 7")
        terminal.wait_for("And now a thousand")
        terminal.wait_for_toolbar(f"{thousand + 1}/")
        terminal.send("")
        terminal.wait_for(re.compile(r"step +[1-9]"), 60)
        terminal.interrupt()
        terminal.wait_for("stopped by Ctrl-C")
        terminal.wait_for("Look at how the samples change")
        terminal.wait_for_toolbar(f"{thousand + 1}/")
        terminal.send("")
        terminal.wait_for("What happened inside")
        assert (tmp_path / "home/state/minillm-repl/practice.safetensors").exists()
        terminal.send(":learn off")
        terminal.wait_for_prompt()
        assert re.search(r"name +nalssi", terminal.do(":model"))


@pytest.mark.slow
def test_a_lesson_can_be_opened_from_the_command_line_and_runs_by_itself(tmp_path):
    import os
    import subprocess

    page = tmp_path / "lesson.txt"
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "minillm_repl",
        "--lesson",
        "4",
        "--lang",
        "en",
        "--auto",
        "--export",
        str(page),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert read_lesson(lesson_files("en")[4]).title in page.read_text(encoding="utf-8")
    assert not (tmp_path / "minillm-repl" / "progress.json").exists()
    wrong = subprocess.run(
        [*command[:4], "99", "--auto"], capture_output=True, text=True, env=environment, check=False
    )
    assert wrong.returncode == 1
    assert "from 1 to 13" in wrong.stderr
