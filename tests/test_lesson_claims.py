"""What lessons claim of models and of training holds: on the shipped models, over three seeds."""

import itertools
import math
import re

import pytest
import torch

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, set_language
from minillm_repl.lessons import Claim, Exercise, Show, Try, When, blocks
from minillm_repl.lessons.claims import claim_text, holds
from minillm_repl.lessons.course import find_lesson, make_lesson_runner
from minillm_repl.lessons.draw import PLACEHOLDER
from minillm_repl.lessons.parse import lesson_files, practice_file, read_lesson, read_quiz
from minillm_repl.lessons.progress import Progress
from minillm_repl.lessons.run import encode_readable, practice_model, run_unattended
from minillm_repl.lessons.values import LessonValues
from minillm_repl.model import gpt
from minillm_repl.repl.workspace import Writable
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.views import heads
from tests.conftest import MODELS, ROOT
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - a fixture

SEEDS = (0, 1, 2)
SHIPPED = sorted(path.stem for path in MODELS.glob("*.safetensors"))


def values_of(name):
    """A shipped model, and the values of the first text of lesson 4 that it can read."""
    shell = shell_for(load(find_checkpoint(name)))
    ids = encode_readable(shell, ("날씨가 좋", "Once upon a time, there was"))
    shell.session.conversation.start_turn(ids, shell.session.settings)
    return LessonValues(shell)


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


@pytest.mark.parametrize("name", SHIPPED)
def test_lesson_4_shows_a_head_that_finds_another_token(name):
    """Its dot product is above 0, and the division comes out with the numbers that are shown."""
    values = values_of(name)
    dot, scaled = float(values.value("dot")), float(values.value("scaled"))
    assert dot > 0
    assert values.value("met") != values.value("token.-1")
    # each is rounded as it is shown
    assert scaled == pytest.approx(dot / int(values.value("head_size")) ** 0.5, abs=0.0065)


@pytest.mark.parametrize("name", SHIPPED)
def test_lesson_5_measures_induction_as_the_atlas_of_heads_does(name):
    values = values_of(name)
    most = heads.compute(values.subject, name)
    first = most.heads[0]
    assert values.value("induction.head") == f"{first.layer}.{first.head}"
    assert values.value("induction.share") == f"{first.induction:.1%}"
    assert values.value("induction.even") == f"{most.uniform[0]:.1%}"


def test_lesson_12_does_not_cut_the_road_of_a_block_that_begins_with_nothing():
    for path in (ROOT / "minillm_repl" / "lessons").glob("*/12-*.md"):
        read_lesson(path)
        text = path.read_text(encoding="utf-8")
        assert "initialise" in text
        assert "0 * attention_out" in text


# -- the claims that stand in the lessons themselves


def blocks_of(blocks):
    for block in blocks:
        if isinstance(block, When):
            yield from blocks_of(block.blocks)
        else:
            yield block


def lines_of(block):
    return block.lines if isinstance(block, Show) else (block.do,) if isinstance(block, Try) else ()


def trains(path):
    found = itertools.chain(*map(blocks_of, read_lesson(path).screens))
    return any(line.startswith(":train") for block in found for line in lines_of(block))


LESSONS = [
    (language, number, trains(path))
    for language in LANGUAGES
    for number, path in lesson_files(language).items()
]


def judged_claims(model, language, number, seed, monkeypatch):
    """Run a lesson; return its claims, each with whether it held where it stands."""
    set_language(language)
    shell = shell_for(load(find_checkpoint(model)))
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
    return judged


@pytest.mark.parametrize(
    ("language", "number", "seed"),
    [
        pytest.param(language, number, seed, marks=pytest.mark.slow if training else ())
        for language, number, training in LESSONS
        for seed in (SEEDS if training else SEEDS[:1])
    ],
)
def test_each_claim_of_a_lesson_holds_whatever_the_seed(language, number, seed, monkeypatch):
    """On the model that lessons open; every claim is computed where it stands."""
    judged = judged_claims("nalssi", language, number, seed, monkeypatch)
    assert [claim for claim, held in judged if not held] == []


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in SHIPPED if name != "nalssi"])
@pytest.mark.parametrize(("language", "number"), [each[:2] for each in LESSONS if each[1] != 7])
def test_where_a_claim_does_not_hold_the_lesson_says_something_else(
    model, language, number, monkeypatch
):
    """On the other models that ship. Lesson 7 is about none of them."""
    judged = judged_claims(model, language, number, 0, monkeypatch)
    assert [claim for claim, held in judged if not held and not claim.otherwise] == []


def test_a_condition_has_numbers_and_nothing_else_of_python():
    set_language("en")
    shell = shell_for(load(find_checkpoint("nalssi")))
    ids = shell.require_model().checkpoint.tokenizer.encode("날씨가 ")
    shell.session.conversation.start_turn(ids, shell.session.settings)
    values = LessonValues(shell)
    exact = shell.require_model().language_model(torch.tensor([ids]))[0][-1].softmax(-1)
    text = shell.require_model().checkpoint.tokenizer.encode("날씨가 좋다")
    logits = shell.require_model().language_model(torch.tensor([text[:-1]]))[0].double()
    bits = float(torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]))) / math.log(2)
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
        "0.5 - 0.1 * 2 == 0.3": True,  # but for the rounding of floats
        f'abs(bits("날씨가 좋다") - {bits}) < 0.00001': True,
        'bits("없는 글자") > 0': False,  # the model cannot read it: nothing is claimed
        "{trained.earlier} > 0": False,
        'writes(3, 1) == writes(3, 1) and tokens("날씨") == 2 and bytes("날씨") == 6': True,
        'practice("\\n") > 40 and known("a the cat b") == 1 and known("a qqq b") == 0': True,
        'near("좋", 3)': True,
        "kl(0) > kl(0, 1) > 0": True,
        "stepped(0.01) < stepped(0)": True,
    }.items():
        assert holds(Claim(holds=condition), values) is expected, condition
    for condition in (
        "__import__('os')", "().__class__", "open('/etc/passwd')", "a", "[1]", "f'{1}'", "1/0",
        "9**9**9", "p", "(lambda: 1)()", "1 if 1 else 2", "p('없는 글자')(1)", "{nonsense} > 1",
        "sqrt(-1)", "(" * 500,
    ):  # fmt: skip
        with pytest.raises(UserError):
            holds(Claim(holds=condition), values)


def test_what_does_not_hold_is_not_asked_and_a_claim_has_paragraphs(tmp_path):
    shell = shell_for(load(find_checkpoint("nalssi")))
    lesson = tmp_path / "01-conditions.md"
    lesson.write_text(
        "# Conditions\n\nA lesson.\n\n```lesson\nminutes: 1\nhour: 1\ngoals:\n  g\nterms:\n  t: m\n"
        "text: 날씨\n```\n\n---\n\n```ask\nquestion: never\nanswer: 1\nholds: 1 == 2\n```\n\n"
        "```ask\nquestion: always\nanswer: 1\nholds: {tokens} == 2\n```\n\n"
        "```claim\nholds: {trained.last} > 0\ntext: wrong\notherwise:\n  one\n\n  two\n```\n",
        encoding="utf-8",
    )
    run_unattended(make_lesson_runner(shell, read_lesson(lesson), Progress()))
    lines = [line.strip() for line in printed(shell).splitlines()]
    assert "always" in lines
    assert "one" in lines and "two" in lines
    assert "never" not in lines and "wrong" not in lines


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
def test_every_line_of_arithmetic_stands_in_a_block_that_computes_it(language):
    set_language(language)
    values = values_of("nalssi")
    screens = [
        screen for path in lesson_files(language).values() for screen in read_lesson(path).screens
    ]
    quiz = [(*each.intro, each.exercise) for each in read_quiz(language)]
    found = 0
    for block in blocks_of(itertools.chain(*screens, *quiz)):
        if isinstance(block, Show):
            continue
        text = PLACEHOLDER.sub(lambda one: values.value(one[1]), str(block))
        sums = [match[0] for match in SUM.finditer(text.replace(block_condition(block), ""))]
        assert not sums or block_condition(block), sums
        found += bool(sums)
    assert found >= 8


def block_condition(block):
    return block.holds if isinstance(block, Claim | Exercise) and hasattr(block, "holds") else ""


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_line_of_arithmetic_comes_out(name, language):
    """In all texts of all lessons and of the quiz, with the figures of each model."""
    set_language(language)
    values, found = values_of(name), 0
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
