"""Care: a crisis is answered by the program, what only looks like one by the model."""

import json

import pytest

import minillm_repl
from minillm_repl.checkpoint.load_save import load
from minillm_repl.cli import main
from minillm_repl.repl import care
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.storage.paths import find_checkpoint
from tests.conftest import ROOT
from tests.test_lessons import lesson_runner, printed, shell_for


def lines(name):
    text = (ROOT / "tests" / "care" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_help_is_named_for_every_paraphrase_of_a_crisis():
    assert len(set(lines("crisis.txt"))) >= 400
    assert not [line for line in lines("crisis.txt") if care.find_help(line) is None]


def test_help_is_named_for_at_most_two_in_a_hundred_of_what_only_looks_like_one():
    harmless = lines("harmless.txt")
    assert len(set(harmless)) >= 400
    found = [line for line in harmless if care.find_help(line)]
    assert len(found) <= len(harmless) * 2 // 100, found


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("죽고 싶어", "109"),
        ("  죽 고   싶 어 ...", "109"),
        ("쥭고시퍼 ㅠㅠ", "109"),
        ("wnrrh tlvek", "109"),  # typed in the Latin layout
        ("I want to dieeee", "112 · 911 · 999"),
        ("i am sucidal", "112 · 911 · 999"),
    ],
)
def test_spaces_and_typing_errors_are_read_over_and_the_language_is_that_of_the_text(text, call):
    assert care.find_help(text).calls[0][0] == call


def test_korean_help_names_the_four_numbers_and_violence_is_nobodys_fault_who_is_hit():
    found = care.find_help("아빠가 매일 때려요")
    assert [number for number, _what in found.calls] == ["109", "1388", "117", "112"]
    assert found.topic == "others"
    assert "당신 잘못이 아니에요" in found.answer


def test_a_long_text_is_read_at_its_end():
    assert care.find_help("오늘은 날씨가 좋아요. " * 2_000 + "죽고 싶어요") is not None


@pytest.mark.parametrize(
    "text", ["", "ㅇㅇ", "ㅋㅋㅋ", "^^", "\ud800", "\0\x1b[31m", "..." * 3_000]
)
def test_any_text_is_read(text):
    assert care.find_help(text) is None


# -- where it is on

CRISIS = "나 죽고 싶어"


def said(capsys, *flags, text=CRISIS):
    assert main([*flags, "-p", text, "-n", "8"]) == 0
    return capsys.readouterr().out


def test_it_is_on_for_a_shipped_model_that_chats_and_can_be_turned_off(capsys):
    assert "109" in said(capsys, "--ckpt", "hangul")
    assert "109" in said(capsys, "--ckpt", "hangul", "--chat", "off")
    assert "109" not in said(capsys, "--ckpt", "hangul", "--care", "off", "--seed", "1")
    assert "109" not in said(capsys, "--ckpt", "nalssi", text="날씨가 죽고 싶다")


def test_it_is_off_for_other_models_unless_asked(capsys, tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(find_checkpoint("hangul").read_bytes())
    assert not care.is_caring(None, ModelLoader().load(path))
    assert "109" in said(capsys, "--ckpt", str(path), "--care", "on")


def test_every_seed_names_help(capsys):
    for seed in range(20):
        assert "109" in said(capsys, "--ckpt", "hangul", "--seed", str(seed))


def test_json_has_an_event_of_its_own_and_an_end(capsys):
    event, finished = map(json.loads, said(capsys, "--ckpt", "hangul", "--json").splitlines())
    assert event["event"] == "care"
    assert {"call": "109", "what": "자살예방 상담전화 (24시간)"} in event["calls"]
    assert (finished["event"], finished["reason"], finished["tokens"]) == ("finished", "care", 0)
    assert finished["text"] == event["text"]


def test_the_model_never_sees_what_was_said(capsys, monkeypatch):
    """Nothing of it is in the context of the next answer, nor can `:regen` answer it."""
    model = minillm_repl.load("hangul")
    answer = model.chat(CRISIS)
    assert (answer.reason, answer.tokens) == ("care", ())
    assert "1388" in answer.text
    assert model.chat(CRISIS, care=False, temp=0).reason == "end"


@pytest.mark.parametrize("line", [CRISIS, "아빠가 때려요", "I want to die"])
def test_a_lesson_names_help_and_waits_on(tmp_path, monkeypatch, line):
    monkeypatch.setattr("minillm_repl.lessons.run.practice_model", lambda: tmp_path / "p")
    shell = shell_for(load(find_checkpoint("nalssi")))
    runner = lesson_runner(shell, 1)
    runner.start()
    place, expected = runner.screen_index, runner.expected
    shell.execute(line)
    assert "말해 줘서 고마워요" in printed(shell) or "Thank you for saying it" in printed(shell)
    assert (runner.screen_index, runner.expected) == (place, expected)
