"""Plain descriptions become tokenizers without a trial, and they are those of the library."""

import copy
import json
from contextlib import suppress

import pytest
import tokenizers

from minillm_repl import sandbox
from minillm_repl.errors import UserError
from minillm_repl.tokenizer.patterns import LLAMA3, QWEN2
from minillm_repl.tokenizer.plain import assemble, largest_plain_id, make_plain_tokenizer
from minillm_repl.tokenizer.subword import SubwordTokenizer
from tests.test_subword import small  # noqa: F401 - a fixture

TEXTS = ("", "Hello, world 12\n\t ", "안녕하세요 👋🏽", "<s>a</s> <extra>b", "  x  ", "날씨가 좋다")


def split_by(description, pattern):
    """A description whose words are split as Llama 3's or Qwen's are."""
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    changed = copy.deepcopy(description)
    changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return changed


def with_added(description):
    """A description with special and other added tokens by turns, some new to the vocabulary."""
    changed = copy.deepcopy(description)
    size = max(*changed["model"]["vocab"].values(), *(e["id"] for e in changed["added_tokens"]))
    for number in range(6):
        changed["added_tokens"].append(
            {
                "id": size + 1 + number,
                "content": f"<extra{'' if number == 3 else number}>",
                "single_word": number == 1,
                "lstrip": number == 2,
                "rstrip": number == 4,
                "normalized": number == 5,
                "special": number % 2 == 0,
            }
        )
    return changed


@pytest.mark.parametrize("merges", ["texts", "pairs"])
@pytest.mark.parametrize(
    ("name", "pattern"), [("SentencePiece", ""), ("byte-level", LLAMA3), ("byte-level", QWEN2)]
)
def test_a_plain_description_becomes_the_tokenizer_of_the_library(small, name, pattern, merges):
    description = with_added(small[name])
    if pattern:
        description = split_by(description, pattern)
    pairs = [
        each.split(" ") if isinstance(each, str) else each
        for each in description["model"]["merges"]
    ]
    description["model"]["merges"] = pairs if merges == "pairs" else [" ".join(p) for p in pairs]
    assert largest_plain_id(description) is not None
    ours = make_plain_tokenizer(description)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(description))
    assert json.loads(ours.to_str()) == json.loads(theirs.to_str())
    shared = assemble(description, ours.model)
    for text in TEXTS:
        expected = theirs.encode(text)
        for library in (ours, shared):
            found = library.encode(text)
            assert (found.ids, found.offsets) == (expected.ids, expected.offsets)
            assert library.decode(found.ids) == theirs.decode(expected.ids)


def test_the_library_writes_the_text_of_a_description_that_has_none(small):
    description = with_added(split_by(small["byte-level"], QWEN2))
    without, usual = (SubwordTokenizer(description, {}, 2_000, text) for text in (None, ""))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(description)).to_str()
    assert without.description == json.loads(theirs)
    assert usual.description == description
    for text in TEXTS:
        for special in (True, False):
            assert without.encode(text, parse_special=special) == usual.encode(
                text, parse_special=special
            )


NOT_PLAIN = {
    "another expression": lambda d: d.update(split_by(d, "(a+)+b")),
    "a prefix of words": lambda d: d["model"].update(continuing_subword_prefix="x"),
    "dropout": lambda d: d["model"].update(dropout=0.5),
    "an id that is no number": lambda d: d["model"]["vocab"].update(x=True),
    "a huge id": lambda d: d["model"]["vocab"].update(x=2**40),
    "an id below 0": lambda d: d["model"]["vocab"].update(x=-1),
    "another model": lambda d: d["model"].update(type="WordPiece"),
    "an unknown field": lambda d: d.update(x=1),
    "padding": lambda d: d.update(padding={"strategy": {"Fixed": 10**9}}),
    "an empty added token": lambda d: d["added_tokens"][0].update(content=""),
    "an added token without flags": lambda d: d["added_tokens"][0].pop("special"),
    "a sequence in a sequence": lambda d: d.update(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}
    ),
    "a normaliser with an expression": lambda d: d.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": " "}
    ),
    "an id of a start token that is no number": lambda d: d.update(
        post_processor={"type": "TemplateProcessing", "special_tokens": {"x": {"ids": ["1"]}}}
    ),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_any_other_description_is_tried_before(small, what, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tried, run_sandboxed = [], sandbox.run_sandboxed
    monkeypatch.setattr(
        sandbox,
        "run_sandboxed",
        lambda *job, **more: tried.append(job) or run_sandboxed(*job, **more),
    )
    plain = split_by(small["byte-level"], QWEN2)
    SubwordTokenizer(plain, {}, 2_000)
    assert not tried
    NOT_PLAIN[what](plain)
    with suppress(UserError):
        SubwordTokenizer(plain, {}, 2_000)
    assert tried
