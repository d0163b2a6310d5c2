"""What a learner types as an answer: numbers in any spelling, choices, orders, yes and no.

`2번`, `②`, `둘`, `두 번째`, `2)` and full-width `２` are the number 2. None stands for what is no
answer: an exercise asks again then.
"""

import re
import unicodedata

# Commas separate thousands; a minus sign may be `-` or U+2212.
_NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?|[-+−]?\.\d+")
# what `3 피드포워드` is not: another name with a 3 is another one
_NUMBER_ONLY = re.compile(rf"(?:{_NUMBER.pattern})\s*%?")
_MAX_UNIT = 6  # characters: room for a unit such as `tokens`; a longer rest is a sentence
_MAX_ANSWER = 200  # characters that are read
_BEFORE = re.compile(
    r"(?:(?:제\s?생각(?:에는|엔|에)|(?:정답|답)(?:은|이|:)?|아마도?|약|음+|=|about|maybe|i think"
    r"|(?:the )?answer(?: is)?:?|it'?s|option|number|no\.|#)[\s,:]*)+"
)
_AFTER = re.compile(
    r"(?:\s*(?:인 ?[것거] ?같아요?|이에요|예요|이예요|입니다|이요|이야|요|임|!|\.|~|\?))+$"
)
_NATIVE = {
    word: number
    for number, words in enumerate(
        ("하나 한 첫", "둘 두", "셋 세 석", "넷 네 넉", "다섯", "여섯", "일곱", "여덟", "아홉"), 1
    )
    for word in words.split()
}
_NATIVE_TENS = {"열": 10, "스물": 20, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50}
_SINO = {word: number for number, word in enumerate("영일이삼사오육칠팔구")} | {"공": 0}
_ENGLISH = {
    word: number
    for words in (
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
         "eleven", "twelve"),
        ("zeroth", "first", "second", "third", "fourth", "fifth"),
    )
    for number, word in enumerate(words)
}  # fmt: skip
_UNIT = (
    "번째|번|개|가지|째|과|장|칸|줄|비트|내트|글자|토큰|조각|퍼센트|프로|단계|층|걸음|헤드|블록|명"
    "|bits?|nats?|tokens?|heads?|times|percent|numbers|steps?|layers?|blocks?"
)
_YES = ("y", "예", "네", "넵", "응", "ㅇ", "ㅛ", "맞", "그래", "o", "1")  # ㅛ: y on Korean keys
_NO = ("n", "아니", "아뇨", "ㄴ", "ㅜ", "틀", "달라", "x", "2", "0")  # ㅜ: n on Korean keys


def is_correct(line: str, answer: str, tolerance: str) -> bool:
    """Return whether an answer is right: a number within `tolerance` or the shown digits."""
    given, expected = parse_number(line), parse_number(answer)
    if given is None or expected is None or not is_number(answer):
        return _normalise(line) == _normalise(answer)
    # Half of the last digit that is shown, and a little for rounding.
    shown_decimals = answer.split(maxsplit=1)[0].partition(".")[2].rstrip("%")
    max_difference = 0.501 * 10.0 ** -len(shown_decimals)
    if tolerance:
        # `within` is a percentage of the expected number.
        max_difference = max(max_difference, abs(expected) * float(tolerance.rstrip("% ")) / 100)
    return abs(given - expected) <= max_difference


def is_number(answer: str) -> bool:
    """Return whether an expected answer is a number and nothing else."""
    return _NUMBER_ONLY.fullmatch(answer.strip()) is not None


def parse_number(text: str) -> float | None:
    """Return the number of a text, with or without a unit; None if it is none."""
    plain = _plain(text)
    match = _NUMBER.match(plain)
    if match is None:
        return _parse_words(plain)
    rest = plain[match.end() :].lstrip(").:] ")
    if len(rest) > _MAX_UNIT or any(character.isdigit() for character in rest):
        return None
    return float(match[0].replace(",", "").replace("−", "-"))


def parse_choice(line: str, count: int) -> int | None:
    """Return which of `count` options is meant, from 1 on; None if none of them is."""
    number = parse_number(line)
    return int(number) if number is not None and number in range(1, count + 1) else None


def parse_order(line: str, count: int) -> list[int] | None:
    """Return the order of `count` steps, each named once; None if it is none."""
    plain = _plain(line)
    found = re.findall(r"\d+", plain)
    if len(found) == 1 and len(found[0]) == count:  # `312`
        found = list(found[0])
    numbers: list[float | None] = [int(each) for each in found]
    if not found:
        numbers = [_parse_words(each) for each in re.split(r"[\s,>→-]+", plain) if each]
    order = [int(each) for each in numbers if each is not None]
    return order if sorted(order) == list(range(1, count + 1)) else None


def parse_yes(line: str) -> bool | None:
    """Return whether a line says yes; None if it says neither yes nor no."""
    plain = _plain(line)
    if plain.startswith(_YES):
        return True
    return False if plain.startswith(_NO) else None


def _plain(text: str) -> str:
    """Return a text without what stands around an answer; `②` and `２` become 2."""
    whole = unicodedata.normalize("NFC", text[:_MAX_ANSWER])
    # Not the single letters of Hangul: NFKC would make others of them.
    plain = re.sub("[^ㄱ-ㅣ]+", lambda part: unicodedata.normalize("NFKC", part[0]), whole)
    plain = plain.casefold().strip()
    plain = _AFTER.sub("", _BEFORE.sub("", plain, count=1) if _BEFORE.match(plain) else plain)
    return plain.strip().lstrip("([").strip()


def _parse_words(plain: str) -> float | None:
    """Return the number that words say: `세 개`, `열둘`, `삼십`, `three`."""
    word = re.sub(rf"\s*(?:{_UNIT})$", "", plain.rstrip(")] ")).strip()
    if word in _ENGLISH:
        return _ENGLISH[word]
    whole, point, decimals = word.partition("점")
    if point and decimals and all(each in _SINO for each in decimals.strip()):
        digits = "".join(str(_SINO[each]) for each in decimals.strip())
        start = _parse_korean(whole.strip())
        return None if start is None else float(f"{start}.{digits}")
    return _parse_korean(word.replace(" ", ""))


def _parse_korean(word: str) -> int | None:
    """Return a Korean number below 1,000, native or of Chinese origin."""
    if word in _NATIVE:
        return _NATIVE[word]
    for tens, value in _NATIVE_TENS.items():
        rest = word.removeprefix(tens)
        if rest != word and (not rest or rest in _NATIVE):
            return value + _NATIVE.get(rest, 0)
    match = re.fullmatch(
        "(?:([일이삼사오육칠팔구]?)(백))?(?:([일이삼사오육칠팔구]?)(십))?([영공일이삼사오육칠팔구]?)",
        word,
    )
    if not match or not word:
        return None
    hundreds, has_hundreds, tens, has_tens, ones = match.groups()
    total = _SINO[hundreds or "일"] * 100 if has_hundreds else 0
    total += _SINO[tens or "일"] * 10 if has_tens else 0
    return total + (_SINO[ones] if ones else 0)


def _normalise(text: str) -> str:
    # The views show a space as ␣, and learners copy it.
    text = unicodedata.normalize("NFC", text)
    return " ".join(text.replace("␣", " ").casefold().strip(" .,!?:'\"`").split())
