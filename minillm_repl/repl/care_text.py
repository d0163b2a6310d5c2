"""The text that the patterns of care.txt are read on: a row of sounds, whatever was typed."""

import re
import unicodedata

LAUGH = "^"  # what ㅋㅋ and ㅎㅎ become
_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆ ㅈㅉㅊㅋㅌㅍㅎ"  # in the order of Unicode; ㅇ is silent there
_VOWELS = "ㅏㅔㅏㅔㅓㅔㅓㅔㅗㅘㅚㅚㅗㅜㅝㅚㅟㅜㅡㅢㅣ"  # those that are easily mistyped are one
# After the silent ㅇ, ㅠ is not ㅜ: 유서 (a farewell letter) is not 웃어 (laughs).
_VOWELS_AFTER_SILENT = "ㅏㅔㅑㅖㅓㅔㅕㅖㅗㅘㅚㅚㅛㅜㅝㅚㅟㅠㅡㅢㅣ"
_FINALS = (
    "", "ㄱ", "ㄲ", "ㄱㅅ", "ㄴ", "ㄴㅈ", "ㄴㅎ", "ㄷ", "ㄹ", "ㄹㄱ", "ㄹㅁ", "ㄹㅂ", "ㄹㅅ",
    "ㄹㅌ", "ㄹㅍ", "ㄹㅎ", "ㅁ", "ㅂ", "ㅂㅅ", "ㅅ", "ㅆ", "ㅇ", "ㅈ", "ㅊ", "ㅋ", "ㅌ", "ㅍ",
    "ㅎ",
)  # fmt: skip


def make_plain(text: str) -> str:
    """Return a text as a row of sounds: letters of Hangul without silent ㅇ, similar ones made one.

    One space stands for all that is neither a letter nor a digit.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("'", "").replace("’", "")
    text = re.sub("[ㅋㅎ]{2,}|ㅋ", f" {LAUGH} ", text)
    text = re.sub("(?<=[가-힣])[0-9](?=[가-힣])", "", text)  # between syllables: `죽1고2싶다`
    text = re.sub("(?<![^ ])([ㄱ-ㅣ]) (?=[ㄱ-ㅣ](?![^ ]))", r"\1", text)  # `ㅈ ㅏ ㅅ ㅏ ㄹ`
    text = re.sub("([ㅠㅜㅡ])\\1+|(?<=\\s)[ㅠㅜㅡ]", " ", text)
    sounds = "".join(map(sound_of, text))
    sounds = re.sub(rf"[^\w{re.escape(LAUGH)}]+|_", " ", sounds).strip()
    # Keys held down: `dieeee`, `죽ㄱㄱ고`.
    return re.sub(r"([a-z])\1{2,}|([ㄱ-ㅣ])\2{2,}", r"\1\2\2", sounds)


def sound_of(character: str) -> str:
    """Return a syllable as its letters; of a single letter, the one that stands for it."""
    index = ord(character) - ord("가")
    if 0 <= index < 11_172:
        initial, rest = divmod(index, 588)
        vowel, final = divmod(rest, 28)
        consonant = _INITIALS[initial].strip()
        vowels = _VOWELS if consonant else _VOWELS_AFTER_SILENT
        return consonant + vowels[vowel] + _FINALS[final]
    vowel = ord(character) - ord("ㅏ")
    if 0 <= vowel < len(_VOWELS):
        return _VOWELS[vowel]
    return "" if character == "ㅇ" else character


def may_be_korean(letters: str) -> bool:
    """Tell whether half of the words, typed in the wrong layout, or more are rows of syllables."""
    words = letters.split()
    syllables = [word for word in words if re.match("(?:[ㄱ-ㅎ][ㅏ-ㅣ]{1,2}[ㄱ-ㅎ]{0,2})+", word)]
    return len(syllables) * 2 >= len(words)
