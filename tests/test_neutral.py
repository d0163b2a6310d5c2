"""Whatever a model, a file or a name holds, the terminal is never told anything by it: looked at
in its raw bytes.
"""

import re
import unicodedata

import numpy as np
import pytest

pytest.importorskip("termios")

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.model.config import GPTConfig
from minillm_repl.safetext import safe
from minillm_repl.tokenizer.description import _decode_byte_level
from minillm_repl.tokenizer.library import byte_level_bpe
from minillm_repl.tokenizer.subword import SubwordTokenizer
from tests.test_terminal import chain, models, visit  # noqa: F401 - fixtures

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\n"]
BIDIRECTIONAL = [*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]
INVISIBLE = [
    *"\u00ad\u180e\u200b\u2060\u2061\u2062\u2063\u2064\ufeff\ufff9\U000e0001\U000e0041\U000e007f\U000e0100"
]
SEPARATORS = [*"\u2028\u2029"]
# What terminals obey, each with a number in it that nothing of ours has: 7777.
# OSC, DCS, APC, PM, SOS
INTRODUCERS = {"]": "\x9d", "P": "\x90", "_": "\x9f", "^": "\x9e", "X": "\x98"}
ENDS = ("\x07", "\x1b\\", "\x9c", "")  # BEL, ST in both forms, and none at all
BODY = "7777"
STRINGS = [
    start + BODY + end
    for each, c1 in INTRODUCERS.items()
    for start in ("\x1b" + each, c1)
    for end in ENDS
]
SEQUENCES = [start + "31;7777" + end for start in ("\x1b[", "\x9b") for end in ("m", "H", "J", "")]
ATTACKS = [*STRINGS, *SEQUENCES, "\x1bc7777", "\x1b(07777", "\x1b]52;c;Nzc3Nw==\x07"]
JOINED = "\u200d"  # what joins the parts of an emoji, or of a word in some scripts
HARMLESS = [
    *("날씨가", unicodedata.normalize("NFD", "한글"), "e\u0301\u0323", "漢字", "ﾊﾝ", "नी" + JOINED),
    *(f"👩{JOINED}👩{JOINED}👧{JOINED}👦", f"🏳\ufe0f{JOINED}🌈", "❤\ufe0f", "👋🏽", "🇰🇷"),
]
OURS = re.compile(rb"\x1b\[(?:\?(?:2004|[0-9]{1,3})|[0-9]{0,3}(?:;[0-9]{1,3}){0,9})[A-HJKhlmn]")
PLAIN = re.compile(rb"\x1b\[[0-9;]*m")


def told(raw):
    """What in raw bytes may steer a terminal, but for our own sequences, and what moves the
    cursor as text does.
    """
    # strictly: a byte that is no UTF-8 may be an 8-bit control
    text = OURS.sub(b"", raw).decode("utf-8")
    return {
        c for c in text if c in {*CONTROLS, *BIDIRECTIONAL, *INVISIBLE, *SEPARATORS} - {"\r", "\b"}
    }


def writer(texts):
    """A model that at temperature 0 writes texts one after the other, each of them split between
    two tokens at a byte.

    It begins after `S`; each text comes once for every place where it can be split, in braces.
    """
    letters = _letters()
    pieces = [b"S"]
    for number, text in enumerate(texts):
        data = text.encode() if isinstance(text, str) else text
        for place in range(1, len(data)):
            mark = f"{number}.{place}".encode()
            pieces += [b"{" + mark + b":" + data[:place], data[place:] + b":" + mark + b"}"]
    vocabulary = {
        "".join(letters[bytes([byte])] for byte in piece): token
        for token, piece in enumerate(pieces)
    }
    assert len(vocabulary) == len(pieces)
    tokenizer = SubwordTokenizer(byte_level_bpe(vocabulary, ""), {}, len(pieces))
    size = len(pieces)
    config = GPTConfig(
        vocab_size=size, context_length=size + 8, d_model=size, n_layers=1, n_heads=1, d_mlp=1
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes()}
    tensors["token_embedding.weight"] = np.eye(size, dtype=np.float32)
    for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_f"):
        tensors[norm + ".weight"] += 1
    tensors["lm_head.weight"] = 10 * np.roll(np.eye(size, dtype=np.float32), 1, axis=0)
    return Checkpoint(config=config, tokenizer=tokenizer, tensors=tensors)


def _letters():
    """The letter that stands for each byte in a byte-level vocabulary; for those not printable,
    one from U+0100 on.
    """
    letters = [chr(letter) for letter in range(0x144)]
    return {
        _decode_byte_level(letter): letter
        for letter in letters
        if len(_decode_byte_level(letter)) == 1
    }


def test_an_innocent_visit_sends_nothing_but_what_counts_as_ours(visit):
    terminal = visit(ckpt="nalssi")
    terminal.wait_for_prompt()
    for typed in (":verbose 3", "날씨", ":model", ":help", ":nothing", ":tokens 가", ":set"):
        terminal.do(typed)
    assert told(terminal.raw) == set()


def test_every_control_character_is_neutral_wherever_it_comes_from(visit, tmp_path):
    every = [*CONTROLS, *BIDIRECTIONAL, *INVISIBLE, *SEPARATORS]
    assert len(CONTROLS) == 64
    name = "".join(c for c in every if c != "\0")
    named = tmp_path / f"{name[:40]}.safetensors"  # a name has 255 bytes at most
    save(chain("가" + "".join(every)), named)
    (tmp_path / "home" / "history").write_text(
        "".join(f"\n# now\n+up {c} down\n" for c in every if c not in "\r"), "utf-8"
    )
    terminal = visit(
        "--temp",
        "0",
        "--max-tokens",
        str(len(every) + 3),
        ckpt=named.with_suffix(""),
        columns=200,
        rows=50,
    )
    terminal.wait_for_prompt()
    shown = terminal.do("가").replace("\n", "")  # the stream
    assert all(safe(c) in shown for c in every if c != "\t")  # which is drawn as spaces
    terminal.do(":verbose 2")
    terminal.do("가")  # tables and their titles
    terminal.do(":verbose off")
    # cards, toolbar, errors
    for typed in (":model", ":models", ":prompt", "zz", ":regen", ":undo"):
        terminal.do(typed)
    for character in every:
        if character not in "\x03\x04\r\x1a\x1c":  # keys, not text
            terminal.paste(f":load {character}x")  # prompts, errors, completions of files
            before = terminal.prompts
            terminal.keys("enter")
            terminal.wait_for(lambda terminal, before=before: terminal.prompts > before)
    for _ in range(2 * len(every)):  # all of the history, what was kept before included
        terminal.keys("up")
        terminal.pump(0.01)
    terminal.wait_for(lambda terminal: "up" in terminal.line)
    assert told(terminal.raw) == set()
    assert not terminal.screen.title
    kept = (tmp_path / "home" / "history").read_text("utf-8").split(":load", 1)[1]
    assert not {c for c in kept if c not in "\n\t"} & set(every)


@pytest.mark.parametrize(
    ("verbose", "every"),
    [
        ("off", 4),
        pytest.param("off", 1, marks=pytest.mark.slow),
        pytest.param("3", 8, marks=pytest.mark.slow),
    ],
)
def test_sequences_that_terminals_obey_are_text_wherever_they_are_split(
    verbose, every, visit, tmp_path
):
    # 8-bit ones as bytes too
    attacks = [*ATTACKS, *(each.encode("latin-1") for each in ATTACKS if not each.isascii())]
    terminal = visit("--verbose", verbose, "--temp", "0", columns=160, variables={"NO_COLOR": "1"})
    terminal.wait_for_prompt()
    for first in range(0, len(attacks), 5 * every):
        some = attacks[first : first + 5 * every : every]
        model = writer(some)
        save(model, tmp_path / "attacks.safetensors")
        terminal.do(f":load {tmp_path / 'attacks'}")
        terminal.do(f":max-tokens {model.config.vocab_size - 1}")
        shown, seen = terminal.do("S", timeout=120), terminal.raw.count(b"7777")
        assert f"{model.config.vocab_size - 1} tokens" in shown
        assert seen > len(some)
    assert told(terminal.raw) == set()
    assert not terminal.screen.title


def test_what_is_harmless_stays_as_it_is_wherever_it_is_split(visit, tmp_path):
    model = writer(HARMLESS)
    save(model, tmp_path / "harmless.safetensors")
    count = str(model.config.vocab_size - 1)
    terminal = visit("--max-tokens", count, ckpt=tmp_path / "harmless", columns=160)
    terminal.wait_for_prompt()
    terminal.do("S", timeout=60)
    text = _without_spaces(PLAIN.sub(b"", terminal.raw).decode())  # a break stands for a space
    for number, harmless in enumerate(HARMLESS):
        for place in range(1, len(harmless.encode())):
            wanted = f"{{{number}.{place}:{harmless}:{number}.{place}}}"
            assert _without_spaces(wanted) in text


def _without_spaces(text):
    return "".join(text.split())
