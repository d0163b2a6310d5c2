"""The patterns of care.txt as regular expressions, compiled as far as a text needs them."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

from minillm_repl.language import Language
from minillm_repl.repl.care_text import LAUGH, sound_of

_FILE = Path(__file__).with_name("care.txt")
_GAP = ".{0,32}?"  # `…` in a pattern: letters, some eleven syllables
_FUZZY = 6  # letters of a Latin word from which on one may be wrong
_ANY = ""  # the first letter of a pattern that may begin with any


class Patterns:
    """The patterns of one section in one script.

    There are thousands of alternatives. They are told apart by the letter that they begin with,
    and only those of the letters of a text are compiled and tried.
    """

    def __init__(self, section: str, script: Language) -> None:
        self._section = section
        self._script = script
        self._compiled = dict[str, re.Pattern[str]]()

    def without(self, plain: str) -> str:
        """Return a plain text with ` / ` for each place that a pattern finds."""
        for pattern in self._for(plain):
            plain = pattern.sub(" / ", plain)
        return plain

    def found(self, plain: str) -> bool:
        """Tell whether a pattern finds anything in a plain text."""
        return any(pattern.search(plain) for pattern in self._for(plain))

    def _for(self, plain: str) -> Iterator[re.Pattern[str]]:
        letters = set(plain) | {_ANY}
        for firsts, alternatives in self._sources.items():
            if letters.intersection(firsts or {_ANY}):
                if firsts not in self._compiled:
                    self._compiled[firsts] = self._compile(firsts, alternatives)
                yield self._compiled[firsts]

    def _compile(self, firsts: str, alternatives: list[str]) -> re.Pattern[str]:
        ahead = f"(?=[{re.escape(firsts)}])" if firsts else ""
        compile_line = {"ko": _compile_korean, "en": _compile_latin}[self._script]
        source = f"{ahead}(?:{'|'.join(map(compile_line, alternatives))})"
        return re.compile(re.sub(r"\((?![?])", "(?:", source))

    @cached_property
    def _sources(self) -> dict[str, list[str]]:
        """Return the alternatives by the letters that they may begin with."""
        by_word = defaultdict[str, list[str]](list)  # what follows a word of the file's own
        sources = defaultdict[str, list[str]](list)
        for line in read_sections()[self._section]:
            for alternative in _split(line):
                if word := re.match("<?{([a-z]+)}(?![?])", alternative):
                    by_word[word[0]].append(alternative[word.end() :])
                elif _script(full := _with_words(alternative)) == self._script:
                    for first in _first_letters(full, self._script):
                        sources[first].append(_narrow(full, first, self._script))
        for name, rests in by_word.items():
            full = _with_words(f"{name}({'|'.join(rests)})")
            if _script(full) == self._script:
                sources["".join(sorted(_first_letters(full, self._script)))].append(full)
        return sources


@cache
def patterns(section: str, script: Language) -> Patterns:
    """Return the patterns of a section that are written in a script."""
    return Patterns(section, script)


@cache
def read_sections() -> dict[str, tuple[str, ...]]:
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
def _words() -> dict[str, str]:
    words = dict[str, str]()
    for line in read_sections()["words"]:
        name, _equals, value = line.partition(" = ")
        words[name] = f"({_put_in(value.strip(), words)})"
    return words


def _with_words(line: str) -> str:
    """Return a pattern with the words put in for their names."""
    return _put_in(line, _words())


def _put_in(line: str, words: dict[str, str]) -> str:
    return re.sub("{([a-z]+)}", lambda name: words[name[1]], line)


def _script(line: str) -> Language:
    return "ko" if re.search("[ㄱ-ㅣ가-힣]", line) else "en"


def _split(line: str) -> list[str]:
    """Return the alternatives of a pattern: what stands between the `|` outside of brackets."""
    parts, depth = [""], 0
    for sign in line:
        depth += (sign in "([") - (sign in ")]")
        if sign == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _first_letters(line: str, script: Language) -> set[str]:
    """Return the letters that what a pattern finds may begin with; _ANY if it may be any."""
    letters = set[str]()
    for alternative in _split(line):
        rest = alternative
        while rest:
            atom, rest = _take_atom(rest)
            letters |= _letters_of(atom, script)
            if not re.match("[?*]|{0", rest) and _is_wide(atom, script):
                break
            rest = re.sub("^([?*]|{[0-9,]+}[?]?)", "", rest)
        else:
            letters.add(_ANY)
    return {_ANY} if _ANY in letters else letters


def _narrow(line: str, first: str, script: Language) -> str:
    """Return a pattern without the alternatives at its start that cannot begin with a letter."""
    atom, rest = _take_atom(line)
    if not atom.startswith("(") or atom.startswith("(?") or re.match("[?*{]", rest):
        return line
    kept = [each for each in _split(atom[1:-1]) if _first_letters(each, script) & {first, _ANY}]
    return f"({'|'.join(kept)}){rest}"


def _take_atom(line: str) -> tuple[str, str]:
    """Return the first sign of a pattern, or its first brackets, and the rest."""
    if line[0] == "\\":
        return line[:2], line[2:]
    depth = 0
    for place, sign in enumerate(line):
        depth += (sign in "([") - (sign in ")]")
        if depth == 0:
            return line[: place + 1], line[place + 1 :]
    raise AssertionError(line)


def _is_wide(atom: str, script: Language) -> bool:
    """Tell whether one letter or more belong to what an atom finds."""
    return not (atom in "<>^$" or atom.startswith("(?") or (atom == " " and script == "ko"))


def _letters_of(atom: str, script: Language) -> set[str]:
    if not _is_wide(atom, script):
        return set()
    if atom.startswith("("):
        return _first_letters(atom[1:-1], script)
    if atom[0] in "[.…\\":
        return {_ANY}
    return {LAUGH if atom == "ㅋ" else sound_of(atom)[:1]}


def _compile_latin(line: str) -> str:
    """Return a pattern of Latin words as a regular expression on plain text."""
    line = re.sub(rf"[a-z]{{{_FUZZY},}}(?![?*])", lambda word: _with_typos(word[0]), line)
    return rf"\b(?:{line})\b".replace("<", r"\b").replace(">", r"\b")


def _compile_korean(line: str) -> str:
    """Return a pattern of syllables as a regular expression on plain text."""
    # A space may stand after each syllable; `?` after one says that the syllable may lack.
    line = re.sub("([가-힣])(?![?*])", r"\1 ?", line.replace(" ?", " ").replace(" ", " ?"))
    line = line.replace("ㅋㅋ", re.escape(LAUGH)).replace("…", _GAP)
    line = line.replace("<", "(?<![^ ])")
    line = re.sub("[가-힣](?=[?*])", lambda syllable: f"(?:{sound_of(syllable[0])})", line)
    return re.sub("[가-힣ㄱ-ㅣ]", lambda syllable: sound_of(syllable[0]), line)


def _with_typos(word: str) -> str:
    """Return the spellings of a word with a letter too few, or two letters in the wrong order."""
    places = range(1, len(word))
    fewer = {word[:place] + word[place + 1 :] for place in places}
    swapped = {
        word[:place] + word[place + 1] + word[place] + word[place + 2 :] for place in places[:-1]
    }
    return f"(?:{'|'.join(sorted({word} | fewer | swapped))})"
