"""Text typed in the wrong keyboard layout: Latin letters for Hangul, and the other way."""

import re
import unicodedata

# The letters of a Korean keyboard on the keys of a Latin one.
_KEYS = dict(
    zip(
        "rRseEfaqQtTdwWczxvgkoiOjpuPhynbml",
        "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎㅏㅐㅑㅒㅓㅔㅕㅖㅗㅛㅜㅠㅡㅣ",
        strict=True,
    )
)
_LATIN = {letter: key.lower() for key, letter in _KEYS.items()}
_COMPOUND = {"ㅗㅏ": "ㅘ", "ㅗㅣ": "ㅚ", "ㅜㅓ": "ㅝ", "ㅜㅣ": "ㅟ", "ㅡㅣ": "ㅢ"}
# The parts of a syllable in the order of Unicode, as the keys that type them.
_INITIALS = tuple("rRseEfaqQtTdwWczxvg")
_VOWELS: list[str] = re.findall("[a-zA-Z]+", "k,o,i,O,j,p,u,P,h,hk,ho,hl,y,n,nj,np,nl,b,m,ml,l")
_FINALS: list[str] = [
    "",
    *re.findall("[a-zA-Z]+", "r,R,rt,s,sw,sg,e,f,fr,fa,fq,ft,fx,fv,fg,a,q,qt,t,T,d,w,c,z,x,v,g"),
]


def from_latin_keys(text: str) -> str:
    """Return what the same keys write on a Korean keyboard, as single letters."""
    letters = "".join(_KEYS.get(each, _KEYS.get(each.lower(), each)) for each in text)
    return re.sub("ㅗㅏ|ㅗㅣ|ㅜㅓ|ㅜㅣ|ㅡㅣ", lambda pair: _COMPOUND[pair[0]], letters)


def to_latin_keys(text: str) -> str:
    """Return what the same keys write on a Latin keyboard, in small letters."""
    return "".join(map(_keys_of, unicodedata.normalize("NFC", text)))


def _keys_of(character: str) -> str:
    index = ord(character) - ord("가")
    if 0 <= index < 11_172:
        initial, rest = divmod(index, 588)
        vowel, final = divmod(rest, 28)
        return (_INITIALS[initial] + _VOWELS[vowel] + _FINALS[final]).lower()
    compound = next((pair for pair, letter in _COMPOUND.items() if letter == character), character)
    return "".join(_LATIN.get(each, each) for each in compound)
