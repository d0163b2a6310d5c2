"""The talks that the models that chat learn from, and what is made of them."""

import random
import re
from collections import Counter, defaultdict

import pytest

from minillm_repl.errors import UserError
from minillm_repl.language import PARTICLES
from minillm_repl.repl import care
from minillm_repl.training.talk import (
    TALK_FOLDERS,
    Deck,
    Expander,
    list_of,
    parse_talks,
    read_slots,
    read_talks,
)
from minillm_repl.training.talk_dialects import DIALECTS, fitting

TALKS, SLOTS = read_talks(), read_slots()
ENGLISH = read_talks(TALK_FOLDERS["en"]), read_slots(TALK_FOLDERS["en"])
BOTH = pytest.mark.parametrize(
    ("language", "talks", "slots"), [("ko", TALKS, SLOTS), ("en", *ENGLISH)], ids=["ko", "en"]
)
SLOT = re.compile(r"\{([^{}]+)\}")
COUNTS = re.compile(r"([a-d]([+*-][a-d1])?|max|min)(:고유어|:word)?")
ENDINGS = {*PARTICLES, "이라고/라고", "이요/요", "이라도/라도", "이네/네", "이지/지", "이고/고"}


def wordings(side, talks=TALKS):
    """(place, wording) of all that users (0) or the model (1) say."""
    for talk in talks:
        for turn in talk.turns[side::2]:
            for wording in turn:
                yield talk.place, wording


def expanded(text, seed=0, rounds=1, language="ko"):
    slots = SLOTS if language == "ko" else ENGLISH[1]
    return Expander(list(parse_talks(text, "t")), slots, seed, language).conversations(rounds)


@BOTH
def test_every_slot_has_a_list_and_no_list_a_value_twice(language, talks, slots):
    known = {*slots, "성이름"}
    assert not [
        (place, name)
        for side in (0, 1)
        for place, wording in wordings(side, talks)
        for name in SLOT.findall(wording)
        if list_of(name) not in known and not COUNTS.fullmatch(name)
    ]
    assert not {name for name, values in slots.items() if len(set(values)) < len(values)}


def test_what_follows_a_slot_fits_all_of_its_values():
    """`{이름}이` is wrong for half of the names: it is written `{이름}이/가`."""
    alone = {ending: pair for pair in ENDINGS for ending in pair.split("/")}
    bare = re.compile(
        rf"\{{([^{{}}]+)\}}({'|'.join(sorted(alone, key=len, reverse=True))})(?![가-힣/])"
    )
    for side in (0, 1):
        for place, wording in wordings(side):
            for name, ending in bare.findall(wording):
                values = SLOTS.get(name.rstrip("23"), ["일", "이"])
                fits = {fitting(value, *alone[ending].split("/")) for value in values}
                assert fits == {ending}, (place, wording)


def test_no_utterance_has_two_different_answers_in_two_places():
    places = defaultdict(set)
    for talk in TALKS:
        if len(talk.turns) == 2:
            for wording in talk.turns[0]:
                places[re.sub(r"[ .!~]", "", wording)].add(talk.place)
    assert not {wording: each for wording, each in places.items() if len(each) > 1}


def test_answers_are_polite_and_short():
    polite = re.compile(r"(요|죠|다|까|님)[.!?]*[\"”]?[.!?]*$")
    answers = list(wordings(1))
    assert not [each for each in answers if len(each[1]) > 70]
    rude = [each for each in answers if not polite.search(each[1])]
    assert len(rude) < len(answers) / 50, rude  # `과자!`


@BOTH
def test_no_talk_is_about_a_crisis(language, talks, slots):
    """The program answers these, so the model learns no answer. Each slot has its first value."""
    dialect = DIALECTS[language]
    said = {
        dialect.slot.sub(
            lambda slot: dialect.fit(slot, slots.get(list_of(slot["name"]), ["7"])[0]), wording
        )
        for _place, wording in wordings(0, talks)
    }
    assert not [each for each in said if care.find_topic(each) is not None]


@BOTH
def test_the_same_seed_gives_the_same_conversations_and_none_twice(language, talks, slots):
    some = talks[::9]
    first, second, other = (
        Expander(some, slots, seed, language).conversations(1) for seed in (0, 0, 1)
    )
    assert first == second != other
    assert len({tuple(each) for each in first}) == len(first)
    assert all(turns[0].role == "user" and turns[-1].role == "assistant" for turns in first)
    # What is left of a slot or of a pair of endings would be seen.
    assert not [turn for turns in first for turn in turns if re.search("[{}|]|./.", turn.content)]


def test_english_answers_are_short_and_in_ascii():
    answers = list(wordings(1, ENGLISH[0]))
    assert not [each for each in answers if len(each[1]) > 130]
    assert not [
        each for side in (0, 1) for each in wordings(side, ENGLISH[0]) if not each[1].isascii()
    ]
    # An article that does not fit every value of a list is left to `a {slot}`.
    assert not [
        each
        for side in (0, 1)
        for each in wordings(side, ENGLISH[0])
        if re.search(r"\b[Aa]n \{", each[1])
    ]


def test_english_values_have_their_articles_and_capitals():
    text = "> I saw a {wild} | A {wild} came\n< {Wild}! An {wild}? {wild2}.\n"
    said = [turn.content for turns in expanded(text, rounds=60, language="en") for turn in turns]
    assert any(re.fullmatch("(?i)(i saw an owl|an owl came).?", each) for each in said)
    assert not [
        each for each in said if re.search(r"(?i)\ba [aeio]|an [^aeio]", each.replace("An ", ""))
    ]
    assert {each[0].isupper() for each in said[1::2]} == {True}


def test_a_value_is_carried_through_the_conversation():
    text = (
        "> 나는 {이름}이야/야\n< {이름} 님!\n> {음식}이랑/랑 {음식2}\n< {음식2}, {음식}, {이름}\n"
    )
    for turns in expanded(text, rounds=50):
        name = turns[1].content.removesuffix(" 님!")
        assert turns[0].content.startswith(
            f"나는{'' if '나는 ' not in turns[0].content else ' '}{name}"
        )
        second, first, again = turns[3].content.split(", ")
        assert again == name
        assert first != second
        assert first.replace(" ", "") in turns[2].content.replace(" ", "")


def test_each_way_through_the_branches_is_a_talk():
    text = "> 1\n< a\n  > 2\n  < b\n    > 3\n    < c\n  > 4\n  < d\n> 5\n< e\n"
    said = ["".join(turn[0] for turn in talk.turns) for talk in parse_talks(text, "t")]
    assert said == ["1a2b3c5e", "1a4d5e"]
    assert len({talk.place for talk in parse_talks(text, "t")}) == 2


def test_in_a_pause_come_exchanges_without_the_values_of_the_talk():
    small = list(parse_talks("> 점심은 {음식}\n< {음식}!\n\n> 비 와\n< 우산!\n", "weather2.txt"))
    talk = list(parse_talks("> 나는 {음식}\n< 네\n…\n> 내가?\n< {음식}!\n", "t"))
    for turns in Expander(talk + small, SLOTS, 0).conversations(20):
        if turns[1].content == "네":
            assert [turn.content for turn in turns[3:-2]] == ["우산!"]
            told, again = turns[0].content, f"나는{turns[-1].content[:-1]}"
            assert told.replace(" ", "").startswith(again.replace(" ", ""))


def test_every_value_and_every_wording_is_used_as_often():
    deck = Deck(SLOTS["음식"], random.Random(0))
    assert set(Counter(deck.deal() for _card in SLOTS["음식"] * 3).values()) == {3}
    made = expanded("> 가 | 나 | 다\n< {음식} | {음식}!\n", rounds=100)
    assert {turns[1].content.rstrip("!") for turns in made} == set(SLOTS["음식"])
    says = Counter(turns[0].content[0] for turns in made)
    assert set(says) == {"가", "나", "다"}
    assert max(says.values()) < 1.2 * min(says.values())  # those that came twice are left out


def test_sums_are_right_and_small():
    made = expanded("> {a} {b} {c}\n< {a+b} {a-b} {b*c} {a+b:고유어} {max} {min}\n", rounds=200)
    words = {"셋": 3, "넷": 4, "다섯": 5, "열하나": 11, "스물": 20}
    for turns in made:
        numbers = re.findall(r"\d+", turns[0].content)
        if len(numbers) < 3:  # typed without spaces
            continue
        a, b, c = map(int, numbers)
        plus, minus, times, word, largest, smallest = turns[1].content.split()
        assert [int(plus), int(minus), int(times)] == [a + b, a - b, b * c]
        assert (int(largest), int(smallest)) == (max(a, b), min(a, b))
        assert max(a + b, b * c) <= 20
        assert words.get(word, a + b) == a + b


@pytest.mark.parametrize(
    "text",
    ["< 답\n", "> 말\n> 말\n", "> 말\n", "> 말 |  | 말\n< 답\n", "말\n", "…\n", "  > 말\n  < 답\n"],
)
def test_a_talk_that_is_written_wrong_is_refused_by_its_place(text):
    with pytest.raises(UserError, match="t:"):
        list(parse_talks(text, "t"))
