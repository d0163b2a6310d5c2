"""Care: a crisis is answered by the program, what only looks like one by the model."""

import io
import json

import pytest
from rich.console import Console

import minillm_repl
from minillm_repl.checkpoint.load_save import load
from minillm_repl.cli import main
from minillm_repl.repl import care
from minillm_repl.repl.editing import open_history
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.storage.paths import find_checkpoint
from tests.conftest import ROOT
from tests.test_lessons import lesson_runner, printed, shell_for


def lines(name):
    text = (ROOT / "tests" / "care" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_help_is_named_for_every_paraphrase_of_a_crisis():
    assert len(set(lines("crisis.txt"))) >= 1_600
    assert not [line for line in lines("crisis.txt") if care.find_help(line) is None]


def test_help_is_named_for_at_most_two_in_a_hundred_of_what_only_looks_like_one():
    harmless = lines("harmless.txt")
    assert len(set(harmless)) >= 1_600
    found = [line for line in harmless if care.find_help(line)]
    assert len(found) <= len(harmless) * 2 // 100, found


@pytest.mark.parametrize("text", ["죽고 싶어", "아빠가 때려", "I want to die", "my dad hits me"])
def test_every_word_of_the_help_is_shown_however_narrow_the_terminal(text):
    said = care.find_help(text)
    for width in range(24, 110):
        console = Console(file=io.StringIO(), width=width)
        console.print(said.draw())
        shown = "".join(console.file.getvalue().replace("┃", "").split())
        for part in (said.answer, said.about, *(what for _number, what in said.calls)):
            assert "".join(part.split()) in shown, width


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


def test_korean_help_names_the_numbers_and_violence_is_nobodys_fault_who_is_hit():
    found = care.find_help("아빠가 매일 때려요")
    assert [number for number, _what in found.calls] == ["109", "119", "1388", "117", "112"]
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


# -- commands and the history of the prompt line


@pytest.mark.parametrize(
    "line",
    [
        f':branch 2 tokens=2 "{CRISIS}"',
        f":branch {CRISIS}",
        f":lens {CRISIS}",
        f":surprise {CRISIS}",
        f":tokens {CRISIS}",
        f":continue {CRISIS}",
        f":patch 날씨가 좋다 -> {CRISIS}",
    ],
)
def test_commands_that_take_a_text_name_help_too(line):
    shell = shell_for(load(find_checkpoint("hangul")))
    shell.session.set("care", "on")
    shell.execute(line)
    assert "109" in printed(shell)
    assert shell.last_shown is None
    assert not shell.session.conversation.ids


def test_a_command_on_a_harmless_text_runs():
    shell = shell_for(load(find_checkpoint("hangul")))
    shell.execute(":tokens 웃겨 죽겠네")
    assert "109" not in printed(shell)


def test_a_line_about_a_crisis_is_not_kept_in_the_history(tmp_path):
    path = tmp_path / "history"
    kept = open_history(path, lambda line: care.find_help(line) is not None)
    for line in ["날씨", CRISIS, f":lens {CRISIS}", "안녕"]:
        kept.append_string(line)
    assert kept.get_strings() == ["날씨", "안녕"]
    assert CRISIS not in path.read_text(encoding="utf-8")


# -- hostile input


@pytest.mark.parametrize(
    "part", ["아빠가 ", "내 제 나 ", "죽 ", "약을 칼로 팔 ", "ㅈ ㅏ ", "i want to "]
)
def test_a_line_of_a_megabyte_is_read_in_steps_that_do_not_grow_with_it(part):
    """A pattern is tried on the end of a long text only."""
    assert len(care.make_plain(part * 1_000)) > 0
    assert care.find_help((part * 300_000)[:1_000_000]) == care.find_help((part * 4_000)[-4_000:])
