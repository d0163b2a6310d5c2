"""Subword tokenizers: the `transformers` library says what the ids and the text are, on 2,000
strings for each kind.
"""

import copy
import json
import random
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minillm_repl import sandbox
from minillm_repl.checkpoint import Checkpoint, huggingface
from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import tokenizer_from_json
from minillm_repl.errors import UserError
from minillm_repl.generate.detokenizer import Detokenizer
from minillm_repl.tokenizer import CharacterTokenizer, decode, label
from minillm_repl.tokenizer.subword import SubwordTokenizer
from tests.conftest import random_checkpoint
from tests.outside import outside

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

WHO = (
    "우리 할머니는",
    "작은 고양이가",
    "the old fisherman",
    "my sister Lily",
    "날씨가 좋은 날에 아이들은",
    "a tall robot",
)
DID = (
    "시장에서 사과를 샀다.",
    "바다를 오래 바라보았다.",
    "wrote down the number 1,234.",
    "couldn't find the red box;",
)
THEN = (
    "그래서 집으로 돌아갔다!",
    "and then went home?",
    "def f(x): return x + 1",
    "“정말?” said nobody — [yes] {no} <maybe|not>",
)
CORPUS = [f"{who} {did} {then}" for who in WHO for did in DID for then in THEN] * 3

KOREAN = [
    "안녕하세요", "오늘은", "날씨가", "참", "좋네요", "뷁쀍똠", "ㅋㅋㅋ", "ㅠㅠ", "훈민정음",
    "할머니의", "김치찌개",
]  # fmt: skip
ENGLISH = [
    "the", "quick", "brown", "couldn't", "it's", "we'll", "HELLO", "naïve", "café", "straße",
    "Lily", "once upon",
]  # fmt: skip
EMOJI = [
    "👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "👍🏽", "❤\ufe0f", "🇰🇷", "😀",
    "1\ufe0f\u20e3", "👩🏿\u200d🚀", "☃", "\u200d", "\ufe0f",
]  # fmt: skip
CODE = [
    "def f(x):\n\treturn x**2\n",
    "if (a != b) { c += 1; }",
    "#include <stdio.h>",
    "x = [i for i in range(10)]",
    "</div>",
]
BLANK = [" ", "  ", "     ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u3000", "\u00a0", "\u200b"]
NUMBERS = ["0", "7", "42", "1234", "3.14159", "1,000,000", "-5e-10", "٣٤", "四百", "½", "²"]
MIXED = [
    "日本語テキスト",
    "Привет",
    "مرحبا",
    "हिन्दी",
    "ไทย",
    "Ελλάδα",
    "שלום",
    "한국語mix中文abc",
    "Ġ",
    "▁",
    "▁▁a",
    "Â",
    "<0x41>",
]
CONTROL = [
    "\x00",
    "\x07",
    "\x1b[31m",
    "\x7f",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ue000",
    "\ufffd",
    "\U000f0000",
]
PIECES = [KOREAN, ENGLISH, EMOJI, CODE, BLANK, NUMBERS, MIXED, CONTROL]


def strings(names=(), count=2_000):
    """The same strings each time: of one script, of all, decomposed, of random characters; a
    tenth with `names`.
    """
    rng = random.Random(0)

    def one(place):
        match place % 10:
            case 0:
                points = [
                    rng.choice(
                        (rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000))
                    )
                    for _ in "x" * 9
                ]
                return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
            case 1 | 2 | 3:
                kind = rng.choice(PIECES)
                return rng.choice(("", " ")).join(rng.choices(kind, k=rng.randrange(1, 9)))
            case 4:
                return unicodedata.normalize("NFD", " ".join(rng.choices(KOREAN + ENGLISH, k=4)))
            case 5:
                return "".join(
                    rng.choices(
                        [*(names or SPECIAL), " ", "a", "안녕", "<", "|>"], k=rng.randrange(1, 6)
                    )
                )
            case 6:
                return rng.choice(CORPUS)[rng.randrange(9) :]
            case _:
                return "".join(
                    rng.choice(rng.choice(PIECES)) + rng.choice(("", " ", " "))
                    for _ in range(rng.randrange(12))
                )

    found = dict.fromkeys(map(one, range(2 * count)))
    assert len(found) >= count
    return list(found)[:count]


@dataclass(frozen=True)
class Kind:
    """A tokenizer of ours, the same of theirs, and what it makes of a text it can write whole."""

    ours: SubwordTokenizer
    theirs: Any
    blank: str = " "  # what else is read as a space
    first_space: bool = True  # whether a space at the start of a text is told from none
    whole: bool = True  # whether every text can be written

    def read(self, text, special=False):
        return self.theirs(text, split_special_tokens=not special)["input_ids"]

    def text(self, ids):
        return self.theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def trained(model, **parts):
    alphabet = (
        pre_tokenizers.ByteLevel.alphabet() if "ByteLevel" in repr(parts.get("decoder")) else []
    )
    library = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(library, name, part)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if model.byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[*SPECIAL, *fallback],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    description = json.loads(library.to_str())
    description["added_tokens"] = [
        each for each in description["added_tokens"] if each["content"] in SPECIAL
    ]
    return description


def bos():
    return processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )


def sentencepiece(scheme):
    return trained(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme == "always"),
        decoder=decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
        post_processor=bos(),
    )


def byte_level():
    return trained(
        models.BPE(),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
        post_processor=bos(),
    )


def llama3():
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return trained(
        models.BPE(ignore_merges=True),
        pre_tokenizer=pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        decoder=decoders.ByteLevel(),
        post_processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), bos()]),
    )


def with_unknown():
    return trained(
        models.BPE(unk_token="<unk>"),
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never"),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
    )


TRAINED = {
    "byte-level": (byte_level, {}),
    "Llama 3": (llama3, {}),
    "SentencePiece, first": (lambda: sentencepiece("first"), {"blank": "▁", "first_space": False}),
    "SentencePiece, always": (
        lambda: sentencepiece("always"),
        {"blank": "▁", "first_space": False},
    ),
    "unknown": (with_unknown, {"blank": "▁", "whole": False}),
}


def gpt2(folder):
    source = outside("checkpoints/gpt2-tok")
    config = transformers.GPT2Config(n_embd=4, n_layer=1, n_head=1, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(source / file, folder)
    return Kind(load(folder).tokenizer, transformers.GPT2Tokenizer.from_pretrained(folder))


@pytest.fixture(scope="module", params=["GPT-2", "stories260K", *TRAINED])
def kind(request, tmp_path_factory):
    if request.param == "GPT-2":
        return gpt2(tmp_path_factory.mktemp("gpt2"))
    if request.param == "stories260K":
        folder = outside("checkpoints/stories260K-hf")
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        return Kind(load(folder).tokenizer, theirs, blank="▁")
    make, more = TRAINED[request.param]
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    path.write_text(json.dumps(make()), encoding="utf-8")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **NAMES)
    ours = SubwordTokenizer(json.loads(path.read_text(encoding="utf-8")), NAMES, 1_000)
    return Kind(ours, theirs, **more)


@pytest.fixture
def texts(kind):
    return strings(kind.ours.special_names)


def streamed(tokenizer, ids):
    text = Detokenizer()
    shown = "".join(text.push(tokenizer.token_bytes(token)) for token in ids)
    whole = text.finish()
    assert whole.startswith(shown)
    return whole


def plain(kind, text):
    """What comes back of a text that was read."""
    if not kind.whole:
        text = unicodedata.normalize("NFC", text)
    text = text.replace(kind.blank, " ")
    return text if kind.first_space or not text.startswith(" ") else text[1:]


def test_the_ids_are_those_of_transformers(kind, texts):
    for special in (False, True):
        theirs = kind.read(texts, special)
        for text, expected in zip(texts, theirs, strict=True):
            assert kind.ours.encode(text, parse_special=special) == expected, (text, special)


def test_a_rendered_chat_has_the_ids_that_transformers_gives_it(kind, texts):
    theirs = kind.theirs(texts, add_special_tokens=False)["input_ids"]
    assert [kind.ours.encode_rendered(text) for text in texts] == theirs


def test_the_text_is_that_of_transformers_whole_and_token_by_token(kind, texts):
    for text in texts:
        ids = kind.ours.encode(text, parse_special=True)
        shown = decode(kind.ours, ids)
        assert shown == kind.text(ids), text
        assert streamed(kind.ours, ids).removeprefix(kind.ours.prefix) == shown


def test_every_text_comes_back(kind, texts):
    for text in texts:
        if not kind.ours.find_unknown(text):
            assert decode(kind.ours, kind.ours.encode(text)) == plain(kind, text)


def test_names_of_special_tokens_that_are_typed_are_text(kind, texts):
    special = {token for token in range(kind.ours.vocab_size) if kind.ours.special_name(token)}
    for name in kind.ours.special_names:
        named = kind.ours.token_to_id(name)
        assert named in special
        assert kind.ours.encode(name, add_special=False, parse_special=True) == [named]
    for text in [*kind.ours.special_names, *texts]:
        if not kind.ours.find_unknown(text):
            assert not special.intersection(kind.ours.encode(text, add_special=False)), text


def test_what_goes_on_from_a_text_adds_nothing_of_its_own(kind, texts):
    for text, more in pairwise(texts):
        if text and not kind.ours.find_unknown(text + more):
            before = kind.ours.encode(text)
            ids = before + kind.ours.encode(more, add_special=False)
            expected = (
                plain(kind, text) + unicodedata.normalize("NFC", more)
                if not kind.whole
                else plain(kind, text) + more
            )
            assert decode(kind.ours, ids) == expected.replace(kind.blank, " "), (text, more)


def test_special_tokens_have_names_and_no_bytes(kind):
    for name in kind.ours.special_names:
        token = kind.ours.token_to_id(name)
        assert kind.ours.special_name(token) == label(kind.ours, token) == name
        assert kind.ours.token_bytes(token) == b""
    text = kind.ours.encode("a", add_special=False)[0]
    assert kind.ours.special_name(text) == ""
    beyond = len(kind.theirs)
    assert kind.ours.special_name(beyond) == label(kind.ours, beyond) == f"<unused {beyond}>"
    assert kind.ours.token_bytes(beyond) == b""


def test_it_survives_json(kind, texts):
    again = tokenizer_from_json(json.loads(json.dumps(kind.ours.to_json())))
    every = range(kind.ours.vocab_size)
    assert [again.token_bytes(token) for token in every] == [
        kind.ours.token_bytes(token) for token in every
    ]
    assert [again.special_name(token) for token in every] == [
        kind.ours.special_name(token) for token in every
    ]
    assert (again.vocab_size, again.prefix, again.unk_token) == (
        kind.ours.vocab_size, kind.ours.prefix, kind.ours.unk_token
    )  # fmt: skip
    for text in texts[:300]:
        assert again.encode(text) == kind.ours.encode(text)


def test_a_model_with_fewer_ids_than_tokens_opens_and_what_it_has_no_row_for_cannot_be_used(
    kind, texts
):
    size = len(kind.theirs)
    last = kind.ours.special_names[-1]
    rows = max(token for token in range(size) if kind.ours.special_name(token) == last)
    fewer = SubwordTokenizer(kind.ours.description, kind.ours.special_tokens_map, rows)
    used = refused = 0
    for text in texts[:300]:
        ids = kind.ours.encode(text)
        if max(ids, default=0) < rows:
            assert fewer.encode(text) == ids
            used += 1
        else:
            with pytest.raises(UserError, match=f"has only {rows:,} tokens and no embedding"):
                fewer.encode(text)
            refused += 1
    assert used
    assert fewer.token_to_id(last) is None
    for use in (
        lambda: fewer.encode(last, parse_special=True),
        lambda: fewer.encode_rendered(last),
    ):
        with pytest.raises(UserError, match=rf"#{rows}\) is in the vocabulary"):
            use()


def test_what_becomes_the_unknown_token_is_named_once():
    tokenizer = SubwordTokenizer(with_unknown(), NAMES, 1_000)
    assert tokenizer.unk_token == "<unk>"
    assert tokenizer.find_unknown("the ☃ old ♞ robot ☃") == ["☃", "♞"]
    assert tokenizer.find_unknown("the old robot <s>") == []
    unknown = tokenizer.token_to_id("<unk>")
    assert tokenizer.encode("☃").count(unknown) == 1
    assert decode(tokenizer, tokenizer.encode("the ☃ robot")) == "the  robot"


@pytest.mark.parametrize("make", [byte_level, llama3, lambda: sentencepiece("first")])
def test_nothing_is_unknown_where_bytes_can_be_written(make):
    tokenizer = SubwordTokenizer(make(), NAMES, 1_000)
    assert tokenizer.unk_token == ""
    assert tokenizer.find_unknown("☃ \x00 𒀀 <unk>") == []


@pytest.mark.parametrize(
    "normalizer", [normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Lowercase(), None]
)
def test_what_is_skipped_for_want_of_an_unknown_token_is_named_and_nothing_else(normalizer):
    library = tokenizers.Tokenizer(
        models.BPE({"a": 0, "b": 1, "é": 2, "▁": 3, "ab": 4}, [("a", "b")])
    )
    library.normalizer = normalizer
    library.decoder = decoders.Fuse()
    tokenizer = SubwordTokenizer(json.loads(library.to_str()), {}, 5)
    assert tokenizer.find_unknown("ab☃ a☃é 뷁\n") == ["☃", "뷁"]
    assert tokenizer.find_unknown("abé") == []
    assert (
        tokenizer.encode("ab☃a", add_special=False)
        == tokenizer.encode("aba", add_special=False)
        == [4, 0]
    )


def test_nothing_is_named_of_a_text_that_is_read_whole(kind, texts):
    for text in texts[:500]:
        if not kind.ours.unk_token:
            assert kind.ours.find_unknown(text) == [], text


def test_added_tokens_that_are_not_special_are_text():
    description = byte_level()
    library = tokenizers.Tokenizer.from_str(json.dumps(description))
    library.add_tokens(["<think>", "두 단어"])
    tokenizer = SubwordTokenizer(json.loads(library.to_str()), NAMES, 1_000)
    ids = tokenizer.encode("a<think>두 단어b", add_special=False)
    assert ids == library.encode("a<think>두 단어b", add_special_tokens=False).ids
    assert len(ids) == 4
    assert decode(tokenizer, ids) == library.decode(ids) == "a<think>두 단어b"


@pytest.fixture(scope="module")
def small():
    """Small descriptions of each kind, to be broken."""
    text = ["hello world 안녕하세요 12"] * 5

    def one(model, trainer=True, **parts):
        library = tokenizers.Tokenizer(model)
        for name, part in parts.items():
            setattr(library, name, part)
        if trainer:
            more = trainers.BpeTrainer(
                vocab_size=60, show_progress=False, special_tokens=["<unk>", "<s>"]
            )
            library.train_from_iterator(text, more)
        return json.loads(library.to_str())

    split = pre_tokenizers.Split(Regex(r"\d|\s+"), "isolated")
    return {
        "byte-level": one(
            models.BPE(),
            pre_tokenizer=pre_tokenizers.Sequence(
                [split, pre_tokenizers.ByteLevel(add_prefix_space=True)]
            ),
            decoder=decoders.ByteLevel(),
            post_processor=bos(),
        ),
        "SentencePiece": one(
            models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
            normalizer=normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            ),
            decoder=decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            ),
        ),
        "Unigram": one(
            models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)], unk_id=0),
            trainer=False,
            pre_tokenizer=pre_tokenizers.Metaspace(),
            decoder=decoders.Metaspace(),
        ),
    }


EXTRA = {"normalizers": 5, "decoders": {"a": 1}, "pretokenizers": "xy"}
WRONG = [
    None,
    0,
    -1,
    5_000,
    2**70,
    1.5,
    True,
    "",
    "x",
    [],
    [None],
    [[]],
    {},
    {"type": "ByteLevel"},
    ["a", "b"],
    {"a": 0},
    EXTRA,
]


def places(data, path=()):
    if path:
        yield path
    inner = (
        list(data.items())
        if isinstance(data, dict)
        else list(enumerate(data))
        if isinstance(data, list)
        else []
    )
    for key, value in inner[:4] if path[-1:] == ("vocab",) else inner:
        if not isinstance(key, int) or key < 3:
            yield from places(value, (*path, key))


def broken(description):
    """Yield the description with each of its parts once replaced by each wrong value, taken out,
    or added to.
    """
    for path in places(description):
        for wrong in [*WRONG, "taken out"]:
            copied = copy.deepcopy(description)
            part = copied
            for key in path[:-1]:
                part = part[key]
            if wrong is EXTRA and isinstance(part[path[-1]], dict):
                part[path[-1]].update(EXTRA)
            elif wrong == "taken out":
                del part[path[-1]]
            else:
                part[path[-1]] = wrong
            yield (path, wrong), copied


def use(description):
    tokenizer = tokenizer_from_json(
        {"type": "subword", "size": 100, "names": {}, "description": description}
    )
    for text in ("", "hello <s>", " 안녕 ☃\n"):
        for start in (True, False):
            for special in (True, False):
                ids = tokenizer.encode(text, add_special=start, parse_special=special)
                assert max(ids, default=0) < 100, "an id that the model does not have"
                decode(tokenizer, ids)
        tokenizer.find_unknown(text)
        tokenizer.encode_rendered(text)
    for token in range(101):
        label(tokenizer, token)


@pytest.mark.parametrize("one_of", [29, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["byte-level", "SentencePiece", "Unigram"])
def test_a_broken_description_is_refused_or_works(small, name, one_of):
    use(small[name])
    escaped = []
    for change, description in islice(broken(small[name]), 0, None, one_of):
        try:
            use(description)
        except UserError:
            pass
        except BaseException as error:  # a panic of the library is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            escaped.append(f"{change}: {type(error).__name__}: {error}")
    assert not escaped, "\n".join(escaped)


def test_no_description_ends_the_process(small):
    description = copy.deepcopy(small["SentencePiece"])
    description["model"]["continuing_subword_prefix"] = "x"
    code = (
        "import json, sys\nfrom minillm_repl.errors import UserError\n"
        "from minillm_repl.tokenizer.subword import SubwordTokenizer\n"
        "try: SubwordTokenizer(json.load(sys.stdin), {}, 100).encode('hello')\nexcept "
        "UserError: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(description),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr[-300:]


def test_a_description_is_tried_once_on_a_machine_and_what_is_refused_each_time(
    small, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    run_sandboxed = sandbox.run_sandboxed
    monkeypatch.setattr(
        sandbox,
        "run_sandboxed",
        lambda *what, **more: asked.append(what) or run_sandboxed(*what, **more),
    )
    first, second = small["byte-level"], copy.deepcopy(small["byte-level"])
    second["added_tokens"][0]["content"] += "!"
    for description in (first, first, second, first, second):
        SubwordTokenizer(description, {}, 1_000)
    assert len(asked) == 2
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    kept.write_text("not a list")
    SubwordTokenizer(first, {}, 1_000)
    assert len(asked) == 3
    for _ in range(2):
        with pytest.raises(UserError):
            SubwordTokenizer({"model": 1}, {}, 1_000)
    assert len(asked) == 5


@pytest.mark.parametrize("wrong", [5_000, 2**31])
def test_a_start_token_that_the_model_does_not_have_is_refused(small, wrong):
    description = copy.deepcopy(small["byte-level"])
    description["post_processor"]["special_tokens"]["<s>"]["ids"] = [wrong]
    with pytest.raises(UserError):
        SubwordTokenizer(description, {}, 100)


def test_special_tokens_alone_are_held_to_the_size_of_the_model_too(small):
    description = copy.deepcopy(small["byte-level"])
    description["model"] |= {"vocab": {}, "merges": []}
    description["added_tokens"][0]["id"] = 500
    description["post_processor"] = None
    tokenizer = SubwordTokenizer(description, {}, 1)
    name = description["added_tokens"][1]["content"]
    with pytest.raises(UserError, match="no embedding for this one"):
        tokenizer.encode(name, parse_special=True)


def test_a_character_vocabulary_reads_the_same_in_transformers(tmp_path):
    ours = CharacterTokenizer.from_corpus("\n".join([*CORPUS, "👍\u200d\t<>|"]))
    model = random_checkpoint(characters=ours.characters)
    huggingface.save_folder(
        Checkpoint(config=model.config, tokenizer=ours, tensors=model.tensors), tmp_path / "saved"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    reopened = load(tmp_path / "saved").tokenizer
    texts = strings()
    assert sum(bool(ours.find_unknown(text)) for text in texts) > 500
    for text, expected in zip(texts, theirs(texts)["input_ids"], strict=True):
        ids = ours.encode(text)
        assert ids == expected == reopened.encode(text), text
        assert (
            decode(ours, ids)
            == decode(reopened, ids)
            == theirs.decode(ids, clean_up_tokenization_spaces=False)
        )
