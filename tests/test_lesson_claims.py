"""What lessons claim of models and of training holds: on the shipped models, over three seeds."""

import itertools
import re

import pytest
import torch

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, set_language
from minillm_repl.lessons import Claim, When, blocks
from minillm_repl.lessons.claims import claim_text, holds
from minillm_repl.lessons.course import find_lesson, make_lesson_runner
from minillm_repl.lessons.draw import PLACEHOLDER
from minillm_repl.lessons.parse import lesson_files, practice_file, read_lesson
from minillm_repl.lessons.progress import Progress
from minillm_repl.lessons.run import practice_model, run_unattended
from minillm_repl.lessons.values import LessonValues
from minillm_repl.model import gpt
from minillm_repl.repl.workspace import Writable
from minillm_repl.storage.paths import find_checkpoint
from tests.conftest import ROOT
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - a fixture

SEEDS = (0, 1, 2)


def trained(plan):
    """The training losses that a training on the practice text prints, the last one at the end."""
    set_language("en")
    shell = shell_for(load(find_checkpoint("nalssi")))
    shell.session.workspace.destination = Writable(practice_model(), is_practice=True)
    practice_model().parent.mkdir(parents=True, exist_ok=True)
    shell.execute(f':train "{practice_file("ko")}" new {plan}')
    steps = re.findall(r"step +\d+  train (\d+\.\d+)", printed(shell))
    last = re.findall(r"loss \d+\.\d+ → (\d+\.\d+)", printed(shell))
    return [float(each) for each in (*steps, *last)]


@pytest.mark.parametrize("name", ["nalssi", "hangul", "story"])
def test_lesson_4_shows_a_head_that_finds_another_token(name):
    """Its dot product is above 0, and the division comes out with the numbers that are shown."""
    shell = shell_for(load(find_checkpoint(name)))
    text = "Once upon a time, there was" if name == "story" else "날씨가 좋"
    ids = shell.require_model().checkpoint.tokenizer.encode(text)
    shell.session.conversation.start_turn(ids, shell.session.settings)
    values = LessonValues(shell, text)
    dot, scaled = float(values.value("dot")), float(values.value("scaled"))
    assert dot > 0
    assert values.value("met") != values.value("token.-1")
    assert scaled == pytest.approx(dot / int(values.value("head_size")) ** 0.5, abs=0.005001)


def test_lesson_12_does_not_cut_the_road_of_a_block_that_begins_with_nothing():
    for path in (ROOT / "minillm_repl" / "lessons").glob("*/12-*.md"):
        read_lesson(path)
        text = path.read_text(encoding="utf-8")
        assert "initialise" in text
        assert "0 * attention_out" in text


# -- the claims that stand in the lessons themselves

LESSONS = [
    (language, number)
    for language in LANGUAGES
    for number, path in lesson_files(language).items()
    if "```claim" in path.read_text(encoding="utf-8")
]


def claims_of(blocks):
    for block in blocks:
        if isinstance(block, When):
            yield from claims_of(block.blocks)
        elif isinstance(block, Claim):
            yield block


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("language", "number"), LESSONS)
def test_each_claim_of_a_lesson_holds_whatever_the_seed(language, number, seed, monkeypatch):
    """The lesson runs; every claim in it is computed where it stands, and is not turned round."""
    set_language(language)
    shell = shell_for(load(find_checkpoint("nalssi")))
    run_line, judged = shell.run_line, []

    def seeded(line):
        run_line(f"{line} seed={seed}" if line.startswith(":train") else line)

    def judge(claim, values):
        text, about = claim_text(claim, values)
        judged.append((claim, text == claim.text))
        return text, about

    shell.run_line = seeded
    monkeypatch.setattr(blocks, "claim_text", judge)
    lesson = find_lesson(number)
    run_unattended(make_lesson_runner(shell, lesson, Progress()))
    assert [claim for claim, held in judged if not held] == []
    assert len(judged) == sum(1 for screen in lesson.screens for _ in claims_of(screen))


def test_a_condition_has_numbers_and_nothing_else_of_python():
    shell = shell_for(load(find_checkpoint("nalssi")))
    ids = shell.require_model().checkpoint.tokenizer.encode("날씨가 ")
    shell.session.conversation.start_turn(ids, shell.session.settings)
    values = LessonValues(shell)
    exact = shell.require_model().language_model(torch.tensor([ids]))[0][-1].softmax(-1)
    good = float(exact[shell.require_model().checkpoint.tokenizer.encode("좋")[0]])
    for condition, expected in {
        "2*3 + 1*-1 == 5": True,
        "1 < 2 < 2": False,
        "not 1 > 2 and 50% == 0.5": True,
        "{heads} * {head_size} == {width}": True,
        f'abs(p("좋") - {good}) < 0.00001': True,
        '{next.1} == "좋"': True,
        'continues("좋")': True,
        "1 == 1\n1 == 2": False,
    }.items():
        assert holds(Claim(holds=condition), values) is expected, condition
    for condition in (
        "__import__('os')", "().__class__", "open('/etc/passwd')", "a", "[1]", "f'{1}'", "1/0",
        "9**9**9", "p", "(lambda: 1)()", "1 if 1 else 2", "p('없는 글자')(1)", "{nonsense} > 1",
        "sqrt(-1)", "(" * 500,
    ):  # fmt: skip
        with pytest.raises(UserError):
            holds(Claim(holds=condition), values)


# -- each printed line of arithmetic

TERM = r"[-−]?\(?[-−]?\d[\d,]*(?:\.\d+)?\)?%?"
SUM = re.compile(
    rf"(?<![\d.\w]){TERM}(?: ?[-+−×÷*/] ?{TERM})+(?: ?[=≈] ?{TERM}(?: ?[-+−×÷] ?{TERM})*)+"
)


def number_of(expression):
    """The value of `2×3 + 1×(-1)`."""
    plain = expression.replace("×", "*").replace("÷", "/").replace("−", "-").replace(",", "")
    plain = re.sub(r"\\?[%]", "", plain).replace(" ", "")
    assert re.fullmatch(r"[-+*/().\d]+", plain), expression
    return float(eval(plain))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["nalssi", "hangul", "story"])
def test_every_line_of_arithmetic_comes_out(name, language):
    """In all texts of all lessons and of the quiz, with the figures of each model."""
    set_language(language)
    shell = shell_for(load(find_checkpoint(name)))
    ids = shell.require_model().checkpoint.tokenizer.encode(
        "Once upon a time, there was" if name == "story" else "날씨가 좋"
    )
    shell.session.conversation.start_turn(ids, shell.session.settings)
    values, found = LessonValues(shell), 0
    paths = [*lesson_files(language).values(), practice_file(language).parent / "quiz.md"]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            if "=" not in line and "≈" not in line:
                continue
            shown = PLACEHOLDER.sub(lambda one: values.value(one[1]), line)
            for match in SUM.finditer(shown):
                sides = re.split(r" ?[=≈] ?", match[0])
                if any(side.count("(") != side.count(")") for side in sides):
                    continue  # it is about a vector: `(2 − 3, 4 − 3) = (-1, 1)`
                for left, right in itertools.pairwise(sides):
                    last = re.findall(r"\d[\d,]*(?:\.\d+)?", right)[-1]
                    off = 0.501 * 10.0 ** -len(last.partition(".")[2])
                    # `8 ÷ 12` is a share, of which 67% is a hundred times as much.
                    sizes = (1, 100) if "%" in right else (1,)
                    differences = [abs(n * number_of(left) - number_of(right)) for n in sizes]
                    assert min(differences) <= off, (path.name, match[0])
                    found += 1
    assert found >= 12


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_lesson_7_shows_what_lies_between_random_letters_and_sentences(seed):
    found = trained(f"steps=60 eval-interval=10 seed={seed}")
    assert len(found) >= 7
    assert found == sorted(found, reverse=True)
    assert [each for each in found if 0.2 * found[0] < each < 0.8 * found[0]]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_lesson_10_one_layer_learns_the_practice_text_as_well_as_four(seed):
    one, four = (trained(f"layers={n} steps=100 seed={seed}")[-1] for n in (1, 4))
    assert abs(one - four) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_lesson_12_attention_is_missed_and_the_mlp_hardly(seed, monkeypatch):
    plan = f"steps=60 seed={seed}"
    whole = trained(plan)[-1]
    monkeypatch.setattr(
        gpt.Block, "forward", lambda self, x, _cos, _cache, hook: x + self.mlp(self.ln2(x), hook)
    )
    without_attention = trained(plan)[-1]
    monkeypatch.setattr(
        gpt.Block,
        "forward",
        lambda self, x, cos, cache, hook: x + self.attention(self.ln1(x), cos, cache, hook),
    )
    without_mlp = trained(plan)[-1]
    assert without_attention - whole > 0.3
    assert abs(without_mlp - whole) < 0.1
