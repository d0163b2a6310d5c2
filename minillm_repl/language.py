"""The language of the interface: GNU gettext, whose key is the English text, and Korean particles.

`_("{name} does not exist", name=name)` is the text in the current language with the values filled
in. A translation puts the values in the order of its grammar, and a pair of particles after a
value: `{name}을/를` becomes `나무를` or `집을`. `python -m tests.messages` collects the texts in
`locale/ko/LC_MESSAGES/minillm.po` and compiles their translations.
"""

import gettext
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
_LOCALE = Path(__file__).parent / "locale"


class _State:
    """The current language of the process: gettext has one per process."""

    language: Language = "en"
    translations: gettext.NullTranslations = gettext.NullTranslations()


def set_language(language: Language) -> None:
    """Change the language of all later texts."""
    _State.language = language
    if language == "en":  # the texts of the source
        _State.translations = gettext.NullTranslations()
    else:
        _State.translations = gettext.translation("minillm", _LOCALE, [language])


def current_language() -> Language:
    """Return the current language."""
    return _State.language


def language_from_locale(environment: Mapping[str, str]) -> Language:
    """Return the language of the locale variables, read in the order of POSIX."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return "ko" if environment[name].lower().startswith("ko") else "en"
    return "en"


def _(message: str, /, **values: Any) -> str:
    """Return a text in the current language; values replace `{name}` as in `str.format`."""
    # Without values, braces in a text stay as they are.
    text = _State.translations.gettext(message)
    return _format(text, values) if values else text


def _n(singular: str, plural: str, n: int, /, **values: Any) -> str:
    """Return the singular or plural text for the number `n`, which replaces `{n}`."""
    return _format(_State.translations.ngettext(singular, plural, n), {"n": n, **values})


def _format(text: str, values: Mapping[str, Any]) -> str:
    if _State.language == "ko":
        text = fill_particles(text, values)
    return text.format(**values)


def N_(message: str) -> str:  # noqa: N802 - gettext's own name for it
    """Mark a text of a constant for translation; `_` translates it where it is shown."""
    return message


PARTICLES = (
    "은/는",
    "이/가",
    "을/를",
    "과/와",
    "으로/로",
    "이에요/예요",
    "이랑/랑",
    "이나/나",
    "이라/라",
    "이야/야",
)
"""Pairs: the first follows a consonant, the second a vowel."""

# A value, closing marks such as a quote, and a pair: `{name}'을/를`.
_AFTER_A_VALUE = re.compile(rf"(\{{[^{{}}]+\}}[^\s{{}}가-힣]*)({'|'.join(PARTICLES)})")
_SPOKEN = re.compile(r"[가-힣]|[0-9]|[A-Za-z]+")
# The final consonant of 영, 일, 이, 삼 …: ㄹ, or another one, or none.
_DIGIT_FINALS = {
    "0": "ㅇ",
    "1": "ㄹ",
    "2": "",
    "3": "ㅁ",
    "4": "",
    "5": "",
    "6": "ㄱ",
    "7": "ㄹ",
    "8": "ㄹ",
    "9": "",
}
_SILENT_E = re.compile(r"(?<=[aeiouy][klmnpt])e$|(?<=[bdgkpt]l)e$")  # name, file, type; table
_ENDS_CLOSED = re.compile(r"[lmn]$|ng$|[aeiouy][bckpt]$")  # json, model; map, format
_LETTERS_CLOSED = "LMNR"  # an abbreviation is read by letters: 엘, 엠, 엔, 알


def choose_particle(word: str, pair: str) -> str:
    """Return the particle of a pair in PARTICLES that follows a word.

    The last spoken letter or digit decides. A Latin word counts as it is usually read in Korean.
    A word without a sound gets the pair itself.
    """
    after_consonant, after_vowel = pair.split("/")
    final = _final_consonant(word)
    if final is None:
        return pair
    if after_consonant == "으로" and final == "ㄹ":  # 서울로, as after a vowel
        return after_vowel
    return after_consonant if final else after_vowel


def fill_particles(template: str, values: Mapping[str, Any]) -> str:
    """Return a format string with the particle of each value: `{name}을/를` -> `{name}을`."""

    def choose(found: re.Match[str]) -> str:
        return found[1] + choose_particle(found[1].format(**values), found[2])

    return _AFTER_A_VALUE.sub(choose, template)


def _final_consonant(word: str) -> str | None:
    """Return ㄹ or another consonant at a word's end, empty after a vowel, None without a sound."""
    spoken = _SPOKEN.findall(word)
    if not spoken:
        return None
    last = spoken[-1]
    if last in _DIGIT_FINALS:
        return _DIGIT_FINALS[last]
    if last[0].isascii():
        return _latin_final_consonant(last)
    jongseong = (ord(last) - ord("가")) % 28  # 28 syllables per initial and vowel; 0: no final
    if jongseong == 8:
        return "ㄹ"
    return "ㄴ" if jongseong else ""


def _latin_final_consonant(word: str) -> str:
    if word.isupper():
        if word[-1] not in _LETTERS_CLOSED:
            return ""
        return "ㄹ" if word[-1] in "LR" else "ㄴ"
    word = _SILENT_E.sub("", word.lower())
    if not _ENDS_CLOSED.search(word):
        return ""
    return "ㄹ" if word.endswith("l") else "ㄴ"


# What Korean help and people call the words that settings and options take, where no text is meant.
_KOREAN_WORDS = {
    **dict.fromkeys(("켜기", "켬", "켜", "예"), "on"),
    **dict.fromkeys(("끄기", "끔", "꺼", "없음", "아니요"), "off"),
    "자동": "auto",
    "무작위": "random",
    **dict.fromkeys(("숨기기", "숨김"), "hide"),
    **dict.fromkeys(("줄", "한줄"), "line"),
    **dict.fromkeys(("색", "색깔"), "colour"),
    **dict.fromkeys(("전체", "모두"), "all"),
    **dict.fromkeys(("답", "답만"), "answer"),
    "항상": "always",
    "고대비": "contrast",
    "한국어": "ko",
    "영어": "en",
    "크기": "size",
    "층": "layer",
    "층별": "layer",
    "위치": "position",
    "위치별": "position",
    "영": "zero",
    "평균": "mean",
    "손실": "loss",
    "로짓": "logits",
    "기울기": "gradient",
    "헤드": "heads",
    "어텐션": "attention",
    "피드포워드": "feed-forward",
    "잔차": "residual",
    "유도": "induction",
    "복사": "copying",
}


def in_english(word: str) -> str:
    """Return the option word that a Korean one means; another word as it is."""
    return _KOREAN_WORDS.get(unicodedata.normalize("NFC", word), word)
