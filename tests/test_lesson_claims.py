"""What lessons claim of models and of training holds: on the shipped models, over three seeds."""

import re

import pytest

from minillm_repl.checkpoint.load_save import load
from minillm_repl.language import set_language
from minillm_repl.lessons.parse import practice_file, read_lesson
from minillm_repl.lessons.run import practice_model
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


def test_lesson_1_asks_hangul_for_the_words_of_the_study_note():
    shell = shell_for(load(find_checkpoint("hangul")))
    shell.execute(":temp 1")
    shell.execute(':sampler "오늘 날씨가 정말 "')
    rows = re.findall(r"^(\S)\s+\d+\.\d+\s+(\d+\.\d)%", printed(shell), re.MULTILINE)
    assert rows[0][0] == "좋"
    assert {token for token, _share in rows[1:3]} == {"춥", "덥"}
    assert 20 < float(rows[0][1]) < 40


def test_lesson_12_does_not_cut_the_road_of_a_block_that_begins_with_nothing():
    for path in (ROOT / "minillm_repl" / "lessons").glob("*/12-*.md"):
        read_lesson(path)
        text = path.read_text(encoding="utf-8")
        assert "initialise" in text
        assert "0 * attention_out" in text


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
