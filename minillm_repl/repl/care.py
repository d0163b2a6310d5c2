"""Care: where somebody speaks of suicide, self-harm or violence, the program answers, not a model.

A tiny model must not answer then: it would say anything. The program says a fixed kind sentence,
that this is a tiny model, and whom to call. care.txt has the sentences and the patterns. The model
never sees what was said, and the conversation does not keep it.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.box import Box
from rich.table import Table
from rich.text import Text

from minillm_repl.language import Language, _
from minillm_repl.render.console import FIGURES, GOOD, TITLE
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.storage.paths import is_shipped

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

Topic = Literal["self", "others"]  # harm to oneself; violence by others

_FILE = Path(__file__).with_name("care.txt")
_MAX_READ = 4_000  # characters: a crisis is said in fewer, and patterns with gaps are slow
_GAP = ".{0,24}?"  # `…` in a pattern: letters, some eight syllables
_LAUGH = "^"  # what ㅋㅋ and ㅎㅎ become
_FUZZY = 6  # letters of a Latin word from which on one may be wrong
_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆ ㅈㅉㅊㅋㅌㅍㅎ"  # in the order of Unicode; ㅇ is silent there
_VOWELS = "ㅏㅔㅏㅔㅓㅔㅓㅔㅗㅘㅚㅚㅗㅜㅝㅚㅟㅜㅡㅢㅣ"  # those that are easily mistyped are one
# After the silent ㅇ, ㅠ is not ㅜ: 유서 (a farewell letter) is not 웃어 (laughs).
_VOWELS_AFTER_SILENT = "ㅏㅔㅑㅖㅓㅔㅕㅖㅗㅘㅚㅚㅛㅜㅝㅚㅟㅠㅡㅢㅣ"
_FINALS = (
    "", "ㄱ", "ㄲ", "ㄱㅅ", "ㄴ", "ㄴㅈ", "ㄴㅎ", "ㄷ", "ㄹ", "ㄹㄱ", "ㄹㅁ", "ㄹㅂ", "ㄹㅅ",
    "ㄹㅌ", "ㄹㅍ", "ㄹㅎ", "ㅁ", "ㅂ", "ㅂㅅ", "ㅅ", "ㅆ", "ㅇ", "ㅈ", "ㅊ", "ㅋ", "ㅌ", "ㅍ",
    "ㅎ",
)  # fmt: skip
# The letters of a Korean keyboard on the keys of a Latin one, to read text typed on the wrong one.
_KEYS = dict(
    zip(
        "rRseEfaqQtTdwWczxvgkoiOjpuPhynbml",
        "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎㅏㅐㅑㅒㅓㅔㅕㅖㅗㅛㅜㅠㅡㅣ",
        strict=True,
    )
)
_COMPOUND = {"ㅗㅏ": "ㅘ", "ㅗㅣ": "ㅚ", "ㅜㅓ": "ㅝ", "ㅜㅣ": "ㅟ", "ㅡㅣ": "ㅢ"}


_BAR = Box("┃   \n" * 8)  # only a left edge


@dataclass(frozen=True)
class Help:
    """What is said in place of a model's answer."""

    topic: Topic
    answer: str
    about: str  # that this is a tiny model
    calls: tuple[tuple[str, str], ...]  # a number or a place, and what it is

    def as_json(self) -> dict[str, object]:
        """Return the event of `--json`."""
        calls = [{"call": number, "what": what} for number, what in self.calls]
        return {"event": "care", "text": self.answer, "about": self.about, "calls": calls}

    def __str__(self) -> str:
        calls = (f"{number}: {what}" for number, what in self.calls)
        return "\n".join([self.answer, self.about, *calls])

    def draw(self) -> Table:
        """Return the help, set apart by a bar from what a model says."""
        calls = Table.grid(padding=(0, 2))
        for number, what in self.calls:
            calls.add_row(Text(number, f"{TITLE} {GOOD}"), what)
        framed = Table(box=_BAR, show_header=False)
        framed.add_row(Text(self.answer, TITLE))
        framed.add_row(Text(self.about))
        framed.add_row(calls)
        framed.add_row(Text(_("The program says this, not the model · :help care"), FIGURES))
        return framed


def find_help(text: str) -> Help | None:
    """Return what to say to a text that speaks of a crisis; None for any other."""
    text = unicodedata.normalize("NFC", text[-_MAX_READ:])
    readings: dict[Language, str] = {"ko": text}
    if not re.search("[ㄱ-ㅣ가-힣]", text):
        # Latin letters may be Korean typed in the wrong layout: both readings are tried.
        readings = {"en": text, "ko": from_latin_keys(text)}
    for language, reading in readings.items():
        topic = find_topic(reading)
        if topic is not None:
            return _make_help(topic, language)
    return None


def find_topic(text: str) -> Topic | None:
    """Tell whether a text speaks of harm to oneself or of violence by others, or of neither."""
    plain = make_plain(text)
    scripts: list[Language] = ["ko"] if re.search("[ㄱ-ㅣ]", plain) else []
    if re.search("[a-z]{3}", plain):
        scripts.append("en")
    for script in scripts:
        harmless, own, others = _patterns(script)
        left = harmless.sub(" / ", plain)
        if own.search(left):
            return "self"
        if others.search(left):
            return "others"
    return None


def _make_help(topic: Topic, language: Language) -> Help:
    sections = _sections()
    calls = [line.partition("=") for line in sections[f"call {language}"]]
    return Help(
        topic=topic,
        answer="\n".join(sections[f"answer {topic} {language}"]),
        about="\n".join(sections[f"about {language}"]),
        calls=tuple((number.strip(), what.strip()) for number, _equals, what in calls),
    )


def help_for(shell: "Shell", text: str, model: LoadedModel | None) -> Help | None:
    """Return what the program says to a text in the place of `model`; None if the model answers.

    `model` is None where a lesson listens.
    """
    in_lesson = shell.line_handler is not None
    caring = is_caring(shell.session.settings.care, None if in_lesson else model)
    return find_help(text) if caring else None


def offer_help(shell: "Shell", text: str, model: LoadedModel | None = None) -> bool:
    """Answer a text that speaks of a crisis, and tell whether it was one."""
    crisis_help = help_for(shell, text, model)
    if crisis_help is not None:
        shell.echo(text, "\n")
        tell_help(shell, crisis_help, json=False)
    return crisis_help is not None


def tell_help(shell: "Shell", crisis_help: Help, *, json: bool) -> None:
    """Show the help, or print its event."""
    if json:
        from minillm_repl.render.json_lines import print_help_json

        print_help_json(crisis_help.as_json(), shell.screen.out.file)
    else:
        shell.screen.out.print(crisis_help.draw())


def is_caring(setting: bool | None, model: LoadedModel | None) -> bool:
    """Tell whether the program answers a crisis in place of `model`; None is a lesson.

    `setting` is that of `:care`. By itself it is on in lessons and for the shipped models that
    chat: who works with another model has a reason to see what that model says.
    """
    if setting is not None or model is None:
        return setting is not False
    if model.server is not None:
        return model.server.cares
    return model.checkpoint.chat_template is not None and is_shipped(model.checkpoint.path)


# -- plain text


def make_plain(text: str) -> str:
    """Return a text as a row of sounds: letters of Hangul without silent ㅇ, similar ones made one.

    One space stands for all that is neither a letter nor a digit.
    """
    text = unicodedata.normalize("NFC", text).lower().replace("'", "").replace("’", "")
    text = re.sub("[ㅋㅎ]{2,}|ㅋ", f" {_LAUGH} ", text)
    text = re.sub("([ㅠㅜㅡ])\\1+|(?<=\\s)[ㅠㅜㅡ]", " ", text)
    sounds = "".join(map(_sound, text))
    sounds = re.sub(rf"[^\w{re.escape(_LAUGH)}]+|_", " ", sounds).strip()
    # Keys held down: `dieeee`, `죽ㄱㄱ고`.
    return re.sub(r"([a-z])\1{2,}|([ㄱ-ㅣ])\2{2,}", r"\1\2\2", sounds)


def _sound(character: str) -> str:
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


def from_latin_keys(text: str) -> str:
    """Return what the same keys write on a Korean keyboard, as single letters."""
    letters = "".join(_KEYS.get(each, _KEYS.get(each.lower(), each)) for each in text)
    return re.sub("ㅗㅏ|ㅗㅣ|ㅜㅓ|ㅜㅣ|ㅡㅣ", lambda pair: _COMPOUND[pair[0]], letters)


# -- the file


@cache
def _sections() -> dict[str, tuple[str, ...]]:
    """Return the lines of care.txt by the section that they stand in."""
    sections = dict[str, list[str]]()
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        heading = re.fullmatch(r"\[([a-z ]+)\]", line)
        if heading:
            sections[heading[1]] = []
        elif line.strip() and not line.startswith("#"):
            sections[list(sections)[-1]].append(line)
    return {name: tuple(lines) for name, lines in sections.items()}


@cache
def _patterns(script: Language) -> tuple[re.Pattern[str], ...]:
    """Return what is harmless, what speaks of harm to oneself, and what of violence by others.

    They are compiled for one script at a time: for both it takes a quarter of a second.
    """
    words = dict[str, str]()
    for line in _sections()["words"]:
        name, _equals, value = line.partition(" = ")
        words[name] = re.sub(r"\{(\w+)\}", lambda word: words[word[1]], value.strip())
    compile_line = {"ko": _compile_korean, "en": _compile_latin}[script]
    return tuple(
        re.compile(
            "|".join(
                f"(?:{compile_line(re.sub(r'{([a-z]+)}', lambda word: words[word[1]], line))})"
                for line in _sections()[name]
                if _script(line) == script
            )
        )
        for name in ("harmless", "self", "others")
    )


def _script(line: str) -> Language:
    return "ko" if re.search(r"[ㄱ-ㅣ가-힣]|\{[a-z]", line) else "en"


def _compile_latin(line: str) -> str:
    """Return a pattern of Latin words as a regular expression on plain text."""
    line = re.sub(rf"[a-z]{{{_FUZZY},}}(?![?*])", lambda word: _with_typos(word[0]), line)
    return rf"\b(?:{line})\b".replace("<", r"\b").replace(">", r"\b")


def _compile_korean(line: str) -> str:
    """Return a pattern of syllables as a regular expression on plain text."""
    # A space may stand after each syllable; `?` after one says that the syllable may lack.
    line = re.sub("([가-힣])(?![?*])", r"\1 ?", line.replace(" ?", " ").replace(" ", " ?"))
    line = line.replace("ㅋㅋ", re.escape(_LAUGH)).replace("…", _GAP)
    line = line.replace("<", "(?<![^ ])")
    return re.sub("[가-힣ㄱ-ㅣ]", lambda syllable: _group(_sound(syllable[0])), line)


def _group(sounds: str) -> str:
    return sounds if len(sounds) == 1 else f"(?:{sounds})"


def _with_typos(word: str) -> str:
    """Return the spellings of a word with a letter too few, or two letters in the wrong order."""
    places = range(1, len(word))
    fewer = {word[:place] + word[place + 1 :] for place in places}
    swapped = {
        word[:place] + word[place + 1] + word[place] + word[place + 2 :] for place in places[:-1]
    }
    return f"(?:{'|'.join(sorted({word} | fewer | swapped))})"
