import json
import unicodedata

import pytest

from minillm_repl.checkpoint.native import tokenizer_from_json
from minillm_repl.errors import UserError
from minillm_repl.tokenizer import CharacterTokenizer, decode
from minillm_repl.tokenizer.ids import IdTokenizer
from minillm_repl.tokenizer.library import character_level, make_tokenizer
from tests.conftest import MODELS


def test_the_vocabulary_is_the_notes(reference):
    text = (MODELS / "nalssi.txt").read_text(encoding="utf-8")
    assert CharacterTokenizer.from_corpus(text).characters == tuple(reference.chars)
    assert CharacterTokenizer.from_corpus(text).encode("날씨가 좋다.") == reference.encode(
        "날씨가 좋다."
    )


def test_decomposed_hangul_is_the_same_text():
    tokenizer = CharacterTokenizer.from_corpus("한글 세상")
    assert tokenizer.encode(unicodedata.normalize("NFD", "한글")) == tokenizer.encode("한글")
    assert decode(tokenizer, tokenizer.encode("세상 한글")) == "세상 한글"


def test_unknown_characters_are_named_once_and_skipped():
    tokenizer = CharacterTokenizer.from_corpus("ab")
    assert tokenizer.encode("xaxby") == [0, 1]
    assert tokenizer.find_unknown("xaxby") == ["x", "y"]


BYTES = CharacterTokenizer("\n 가나", ["<end>"], "<end>", has_bytes=True)


def test_a_character_that_is_not_in_the_vocabulary_becomes_its_bytes():
    text = "가뷁 나🙂"
    ids = BYTES.encode(text)
    assert ids[:2] == [BYTES.token_to_id("<end>"), 2]
    assert ids[2:5] == [5 + byte for byte in "뷁".encode()]
    assert decode(BYTES, ids) == text
    assert BYTES.find_unknown(text + "\ud800") == ["\ud800"]
    assert BYTES.encode("\ud800", add_special=False) == []
    assert [BYTES.special_name(token) for token in (3, 4, 5, 260)] == ["", "<end>", "", ""]
    assert BYTES.vocab_size == 261


def test_other_programs_make_the_same_bytes():
    """The library's tokenizer of a character model that was saved as a folder."""
    library = make_tokenizer(
        json.dumps(character_level(BYTES.characters, BYTES.specials, has_bytes=True))
    )
    for text in ("가뷁 나🙂", "a\tb", "가" * 9, "\x00é\u200d"):
        ids = BYTES.encode(text, add_special=False)
        assert library.encode(text).ids == ids
        assert library.decode(ids) == text


def test_a_special_token_cannot_have_the_name_of_a_byte():
    assert CharacterTokenizer("a", ["<0x41>"]).vocab_size == 2
    with pytest.raises(UserError):
        CharacterTokenizer("a", ["<0x41>"], has_bytes=True)


def test_ids_are_written_as_numbers():
    tokenizer = IdTokenizer(44)
    assert tokenizer.encode("3 43 44 -1 x ٣ 0003") == [3, 43, 3]
    assert tokenizer.find_unknown("3 44 x") == ["44", "x"]
    assert decode(tokenizer, [3, 43]) == "3 43 "


@pytest.mark.parametrize("tokenizer", [CharacterTokenizer("a\n\u200d좋"), BYTES, IdTokenizer(7)])
def test_a_tokenizer_survives_json(tokenizer):
    again = tokenizer_from_json(tokenizer.to_json())
    assert [again.token_bytes(token) for token in range(again.vocab_size)] == [
        tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)
    ]
    assert again.encode("3 a좋힣") == tokenizer.encode("3 a좋힣")


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"type": "bpe"}, {"type": "character", "normalization": "NFC", "characters": ""},
     {"type": "character", "normalization": "NFC", "characters": "aa"},
     {"type": "character", "normalization": "NFC", "characters": "\ud800"},
     {"type": "character", "normalization": "NFC", "characters": 3}, {"type": "ids", "size": 0},
     {"type": "character", "normalization": "NFC", "characters": "a", "bytes": 1},
     {"type": "ids", "size": 10**12}],
)  # fmt: skip
def test_a_tokenizer_that_makes_no_sense_is_refused(data):
    with pytest.raises(UserError):
        tokenizer_from_json(data)
