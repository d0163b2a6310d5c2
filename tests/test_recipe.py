"""Recipes: a grammar that makes text, a corpus from several sources, and a model from it."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from minillm_repl.chat import Message, render_texts
from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.model.config import LlamaConfig
from minillm_repl.storage.encoding import read_text
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.recipe import (
    RECIPES_FOLDER,
    Grammar,
    Recipe,
    Source,
    read_recipe,
    recipes,
)
from tools.extend_vocabulary import extended

EVERYDAY = Grammar((RECIPES_FOLDER / "everyday.txt").read_text(encoding="utf-8"))


def test_a_name_before_a_rule_is_one_choice_and_a_rule_alone_is_drawn_anew():
    grammar = Grammar("document = {it:letter}{it:letter}{letter}\nletter = a | b | c")
    texts = set(grammar.texts("document", 9, 0))
    assert texts == {first * 2 + last for first in "abc" for last in "abc"}


def test_alternatives_come_as_often_as_they_weigh():
    digits = "|".join("0123456789")
    grammar = Grammar(
        f"document = {{what}}{'{digit}' * 4}\n# no rule\nwhat = rare\n  | often *9\ndigit = "
        f"{digits}"
    )
    counts = Counter(text[:-4] for text in grammar.texts("document", 2_000, 1))
    assert counts.total() == 2_000
    assert 0.85 < counts["often"] / 2_000 < 0.95


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("밥을/를 국을/를", "밥을 국을"),
        ("차를 배을/를", "차를 배를"),
        ("물과/와 나무과/와", "물과 나무와"),
        ("길으로/로 집으로/로 바다으로/로", "길로 집으로 바다로"),
        ("책이라/라고", "책이라고"),
        ("민지이야/야", "민지야"),
        ("별이야/야", "별이야"),
    ],
)
def test_particles_fit_the_letter_before(written, read):
    assert list(Grammar(f"document = {written}").texts("document", 1, 0)) == [read]


def test_a_rule_that_is_not_there_is_named():
    with pytest.raises(UserError, match="rule document refers to rule food"):
        Grammar("document = {it:food}")


def test_texts_are_different_and_the_same_for_a_seed():
    texts = list(EVERYDAY.texts("talk", 3_000, 5))
    assert len(set(texts)) == 3_000
    assert texts == list(EVERYDAY.texts("talk", 3_000, 5))
    assert texts != list(EVERYDAY.texts("talk", 3_000, 6))
    assert len(list(Grammar("document = a | b").texts("document", 9, 0))) == 2


def test_everyday_text_is_whole_sentences_and_talks_of_two_lines():
    for rule, whole in (("text", r"[^\n]+[.?!]"), ("talk", r"질문: [^\n]+\n답변: [^\n]+[.?!]")):
        for text in EVERYDAY.texts(rule, 5_000, 2):
            assert not re.search(r"[{}|*\\_]|[가-힣]/[가-힣]|  ", text), text
            assert re.fullmatch(whole, text), text


def test_everyday_weather_is_good_hot_and_cold():
    text = "\n".join(EVERYDAY.texts("text", 12_000, 0))
    after = Counter(re.findall("날씨가 정말 (.)", text))
    assert all(after[letter] > 0.1 * after.total() for letter in "좋덥춥")
    assert max(after.values()) < 0.3 * after.total()


@pytest.fixture
def recipe():
    sources = (
        Source(name="lines", file="lines.txt", copies=2, match=r".*\d"),
        Source(name="pairs", file="pairs.txt", separator=r"\n\n", block=5),
        Source(name="stories", file="stories.txt", separator=r"\n\n", drops_lines=True),
        Source(name="made", grammar="everyday.txt", rule="talk", count=100),
    )
    return Recipe(
        name="mine", sources=sources, plan=TrainPlan(), chat=None, excluded=re.compile("unwanted")
    )


@pytest.fixture
def data(tmp_path):
    lines = [f"line {number}" for number in range(200)] + ["no number", "unwanted 1", "line 3"]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    pairs = [f"질문: {number}\n답변: {number % 7}" for number in range(200)] + [
        "질문: 1\n답변: unwanted"
    ]
    (tmp_path / "pairs.txt").write_text("\n\n".join(pairs) + "\n", encoding="utf-8")
    stories = [f"story {number}\nan unwanted line\nend" for number in range(40)]
    (tmp_path / "stories.txt").write_text("\n\n".join(stories), encoding="utf-8")
    return tmp_path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_corpus_holds_documents_of_every_source_out_and_keeps_them_apart(recipe, data):
    train, held = recipe.prepare(data, data / "corpus")
    learnt, out = [each["text"] for each in read(train)], read(held)
    assert not {each["text"] for each in out} & set(learnt)
    assert Counter(each["source"] for each in out) == {
        "lines": 10,
        "pairs": 10,
        "stories": 2,
        "made": 5,
    }
    assert [each["text"][4:6] for each in out if each["source"] == "pairs"][:6] == [
        "50",
        "51",
        "52",
        "53",
        "54",
        "15",
    ]
    assert "no number" not in learnt
    assert not any("unwanted" in text for text in learnt)
    assert "story 1\nend" in learnt
    assert Counter(learnt)["line 4"] == 2
    assert Counter(learnt)["질문: 4\n답변: 4"] == 1


def test_the_same_texts_give_the_same_corpus(recipe, data):
    first = [path.read_bytes() for path in recipe.prepare(data, data / "a")]
    assert first == [path.read_bytes() for path in recipe.prepare(data, data / "b")]
    seeded = replace(recipe, plan=TrainPlan(seed=1))
    assert first != [path.read_bytes() for path in seeded.prepare(data, data / "c")]


def test_only_so_many_characters_are_taken_evenly(recipe, data):
    source = Source(name="lines", file="lines.txt", characters=700)
    corpus = replace(recipe, sources=(source,)).prepare(data, data / "corpus")
    texts = [each["text"] for path in corpus for each in read(path)]
    assert 600 < sum(map(len, texts)) <= 700
    numbers = sorted(int(text.split()[1]) for text in texts if text.startswith("line"))
    assert max(after - before for before, after in pairwise(numbers)) <= 4


def test_a_text_in_another_encoding_gives_the_same_corpus_and_is_told(recipe, data):
    first = [path.read_bytes() for path in recipe.prepare(data, data / "a")]
    for encoding, name in (("utf-16", "UTF-16"), ("cp949", "CP949")):
        told = []
        text = data / "pairs.txt"
        text.write_bytes(read_text(text).encode(encoding))
        assert first == [
            path.read_bytes() for path in recipe.prepare(data, data / "b", told.append)
        ]
        assert told == [f"{text}: read as {name}"]


def test_a_text_that_is_missing_is_named(recipe, tmp_path):
    with pytest.raises(UserError, match=r"recipe mine needs .*lines\.txt.* in "):
        recipe.prepare(tmp_path, tmp_path / "corpus")


def test_there_is_a_recipe_for_hangul_and_no_other_is_made_up():
    assert "hangul" in recipes()
    with pytest.raises(UserError, match="no recipe 'hangeul'; available: .*hangul"):
        read_recipe("hangeul")


def test_a_conversation_of_hangul_looks_like_its_corpus():
    chat = read_recipe("hangul").chat
    said = [Message("user", "안녕?"), Message("assistant", "반가워요."), Message("user", "잘 자")]
    assert render_texts(chat, [(said, True), (said[:2], False)]) == [
        "<end>질문: 안녕?\n답변: 반가워요.<end>질문: 잘 자\n답변: ",
        "<end>질문: 안녕?\n답변: 반가워요.<end>",
    ]
    system = [Message("system", "친절하게 말해 줘."), said[0]]
    assert render_texts(chat, [(system, True)]) == ["<end>친절하게 말해 줘.\n질문: 안녕?\n답변: "]


@pytest.fixture
def program(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "minillm_repl", "--ckpt", "m.safetensors", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )

    return run


def test_recipe_and_data_go_together_and_without_a_corpus_of_ones_own(program):
    for wrong in (
        ["--data", "."],
        ["--recipe", "hangul", "--data", ".", "--train", "a.txt"],
    ):
        done = program(*wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--recipe" in done.stderr
    done = program("--recipe", "hangul", "--data", ".")
    assert (done.returncode, done.stderr.split("ko")[0]) == (1, "error: recipe hangul needs ")
    assert "nsmc_clean.txt" in done.stderr, "all that is missing is named at once"
    done = program("--recipe", "hangul")
    assert "recipe hangul needs --data FOLDER with ko/weather_synthetic.txt" in done.stderr


MINE = """
[plan]
steps = 2
context = 16
width = 16
layers = 1
batch = 4
[[source]]
name = "tales"
file = "tales.txt"
"""


def test_a_recipe_of_ones_own_lies_beside_its_texts(program, tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    (tmp_path / "tales.txt").write_text("".join(f"The {n}th tale.\n" for n in range(400)))
    done = program("--recipe", "./mine.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.corpus" / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml", "is no recipe"),
        ("x = 1", r"needs \[\[source\]\]"),
        ("[[source]]\nname = 3\nfile = 'a'", "name is 3"),
        ("[[source]]\nname = 'a'\nfile = 'a'\nseparator = '('", "is no recipe"),
        ("[[source]]\nname = 'a'", "a file, a grammar or talks"),
        ("[[source]]\nname = 'a'\nfile = 'a'\nodd = 1", "odd"),
        ("chat = 3\n[[source]]\nname = 'a'\nfile = 'a'", "needs a source"),
        ("[plan]\nodd = 1\n[[source]]\nname = 'a'\nfile = 'a'", "odd"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        read_recipe(str(path))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_a_recipe_trains_a_model_that_answers(program, tmp_path):
    (tmp_path / "ko").mkdir()
    for source in read_recipe("hangul").sources:
        if source.file:
            pairs = source.name == "chatbot_qa"
            one = (
                "질문: {0}번 버스는 언제 와?\n답변: {0}분 뒤에 와요."
                if pairs
                else "나는 오늘도 {0}번 버스를 타고 갔다."
            )
            text = "\n\n".join(one.format(number) for number in range(200))
            (tmp_path / source.file).write_text(text, encoding="utf-8")
    sizes = ("--width", "32", "--layers", "1", "--context", "64", "--steps", "30", "--every", "10")
    done = program("--recipe", "hangul", "--data", ".", *sizes, "--json")
    finished = json.loads(done.stdout.splitlines()[-1])
    assert finished["event"] == "finished", done.stderr
    checkpoint = load(tmp_path / "m.safetensors")
    assert checkpoint.chat_template == read_recipe("hangul").chat
    assert [checkpoint.tokenizer.special_name(token) for token in checkpoint.eos_token_ids] == [
        "<end>"
    ]
    assert checkpoint.training.corpus == "m.corpus/train.jsonl"
    assert checkpoint.training.val_loss < finished["first_loss"] - 1
    answered = json.loads(
        program("-p", "안녕?", "--max-tokens", "5", "--json").stdout.splitlines()[-1]
    )
    assert answered["prompt_tokens"] == 1 + len("질문: 안녕?\n답변: ")  # <end> begins it


def test_a_model_with_a_larger_vocabulary_still_knows_what_it_knew():
    config = LlamaConfig(
        vocab_size=6, context_length=16, d_model=12, n_layers=2, n_heads=3, n_kv_heads=3,
        head_dim=4, d_mlp=16,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    small = Checkpoint(
        config=config,
        tokenizer=CharacterTokenizer("가나다라 ."),
        tensors={
            name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in config.shapes()
        },
    )
    large = extended(small)
    text = "가나 다."
    rows = [small.tokenizer.encode(text), large.tokenizer.encode(text)]
    before, after = (
        build(each.config, each.tensors)(torch.tensor([ids]))[0]
        for each, ids in zip((small, large), rows, strict=True)
    )
    known = [large.tokenizer.encode(each)[0] for each in small.tokenizer.characters]
    torch.testing.assert_close(after[:, known], before[:, : len(known)], rtol=0, atol=1e-5)
    assert large.tokenizer.find_unknown("뷁ㅋ🙂") == []
    assert large.config.context_length == 512
