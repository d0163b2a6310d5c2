"""Korean: particles, checked by how the words are read aloud, and words that are typed."""

import re

import pytest

from minillm_repl.language import _, choose_particle, current_language, fill_particles, set_language
from tests.messages import read
from tests.test_lessons import shell_for

READ = {  # word: with 은/는, with 으로/로
    "나무": "나무는 나무로",
    "집": "집은 집으로",
    "물": "물은 물로",
    "3": "3은 3으로",
    "7": "7은 7로",
    "10": "10은 10으로",
    "0.5": "0.5는 0.5로",
    "1,304": "1,304는 1,304로",
    "model.safetensors": "model.safetensors는 model.safetensors로",
    "config.json": "config.json은 config.json으로",
    "nalssi": "nalssi는 nalssi로",
    "model": "model은 model로",
    "map": "map은 map으로",
    "format": "format은 format으로",
    "text": "text는 text로",
    "file": "file은 file로",
    "name": "name은 name으로",
    "training": "training은 training으로",
    "XML": "XML은 XML로",
    "GPT": "GPT는 GPT로",
    "`lr`": "`lr`는 `lr`로",
    "'다'": "'다'는 '다'로",
    "날씨 (2)": "날씨 (2)는 날씨 (2)로",
}


@pytest.mark.parametrize("word", READ)
def test_a_particle_follows_the_sound_before_it(word):
    assert (
        f"{word}{choose_particle(word, '은/는')} {word}{choose_particle(word, '으로/로')}"
        == READ[word]
    )


def test_a_value_without_a_sound_keeps_both():
    assert choose_particle("…", "을/를") == "을/를"


def test_only_what_follows_a_value_is_chosen_and_a_value_is_left_alone():
    template = fill_particles(
        "{name}을/를 {other}에 넣어요. 은/는", {"name": "책", "other": "{name}은/는"}
    )
    assert template.format(name="책", other="{name}은/는") == "책을 {name}은/는에 넣어요. 은/는"


def test_messages_in_korean_have_no_pair_left():
    set_language("ko")
    try:
        assert _("{name} is missing", name="model.json") == "model.json이 없어요"
        assert _("{name} is missing", name="사과") == "사과가 없어요"
    finally:
        set_language("en")


def test_no_translation_writes_a_particle_in_brackets():
    written = [
        text for message in read() if message.id for text in (message.string, *message.string)
    ]
    assert not [
        text
        for text in written
        if any(pair in text for pair in ("은(는)", "이(가)", "을(를)", "(으)로"))
    ]


def test_no_translation_writes_one_particle_after_a_value_that_may_need_the_other():
    # A value in round brackets is left out: the particle belongs to the word before them.
    particle = "이에요|예요|은|는|이|가|을|를|과|와|으로|로|이랑|랑"
    alone = re.compile(rf"\{{[^{{}}]+\}}[`'’”\"]*(?:{particle})(?=[\s.,:;]|$)")
    written = [text for message in read() if message.id for text in _texts_of(message.string)]
    assert [text for text in written if alone.search(text)] == []


def _texts_of(string):
    return [string] if isinstance(string, str) else string


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (":verbose 색", "verbose", "colour"),
        (":verbose 줄", "verbose", "line"),
        (":자세히 끄기", "verbose", 0),
        (":chat 자동", "chat", None),
        (":penalise 답만", "penalise", "answer"),
        (":penalise 전체", "penalise", "all"),
        (":생각 숨기기", "think", "hide"),
        (":형식 끄기", "format", ""),
        (":seed 무작위", "seed", None),
        (":stop 끄기", "stop", ("끄기",)),  # a text is a text
        (":system 끄기", "system", "끄기"),
    ],
)
def test_a_setting_takes_the_korean_words_for_its_own(nalssi, line, name, value):
    shell = shell_for(nalssi)
    shell.run_line(line)
    assert getattr(shell.session.settings, name) == value


def test_options_and_languages_take_korean_words_too(nalssi):
    shell = shell_for(nalssi)
    try:
        shell.run_line(":lang 한국어")
        assert current_language() == "ko"
        shell.run_line("날씨")
        shell.run_line(":why by=층")
        shell.run_line(":heads sort=유도")
    finally:
        set_language("en")
