import unicodedata

import pytest

from minillm_repl.checkpoint.native import tokenizer_from_json
from minillm_repl.errors import UserError
from minillm_repl.tokenizer import CharacterTokenizer, IdTokenizer, decode
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


def test_ids_are_written_as_numbers():
    tokenizer = IdTokenizer(44)
    assert tokenizer.encode("3 43 44 -1 x ٣ 0003") == [3, 43, 3]
    assert tokenizer.find_unknown("3 44 x") == ["44", "x"]
    assert decode(tokenizer, [3, 43]) == "3 43 "


@pytest.mark.parametrize("tokenizer", [CharacterTokenizer("a\n\u200d좋"), IdTokenizer(7)])
def test_a_tokenizer_survives_json(tokenizer):
    again = tokenizer_from_json(tokenizer.to_json())
    assert [again.token_bytes(token) for token in range(again.vocab_size)] == [
        tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)
    ]


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"type": "bpe"}, {"type": "character", "normalization": "NFC", "characters": ""},
     {"type": "character", "normalization": "NFC", "characters": "aa"},
     {"type": "character", "normalization": "NFC", "characters": "\ud800"},
     {"type": "character", "normalization": "NFC", "characters": 3}, {"type": "ids", "size": 0},
     {"type": "ids", "size": 10**12}],
)  # fmt: skip
def test_a_tokenizer_that_makes_no_sense_is_refused(data):
    with pytest.raises(UserError):
        tokenizer_from_json(data)
