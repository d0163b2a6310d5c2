"""From files to documents, vocabularies and token files."""

import hashlib
import itertools
import json
import math
import os
import textwrap
import unicodedata

import numpy as np
import pytest

from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE, ROLE_TOKENS, Message
from minillm_repl.errors import UserError
from minillm_repl.tokenizer import decode
from minillm_repl.training import corpus_files, token_cache
from minillm_repl.training import documents as pieces
from minillm_repl.training import tokenize as token_files
from minillm_repl.training.corpus import open_corpora, open_corpus, parse_mixture
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.splits import make_splits
from minillm_repl.training.texts import make_tokenizer
from minillm_repl.training.tokenize import tokenise
from tests.conftest import MODELS
from tests.small import flat_examples

TEXT = (MODELS / "nalssi.txt").read_text(encoding="utf-8")
MARK = "<|endoftext|>"
PROSE = "".join(
    f"The {n}th day was  fine; 날씨가 좋은 날 {n}.\n" + "\n" * (n % 3) for n in range(150)
)
CHAT = [
    [
        ("system", "Be kind."),
        ("user", "hello"),
        ("assistant", "hi there"),
        ("user", "그래"),
        ("assistant", "네"),
    ],
    [("user", "1 + 1 <|end|>"), ("assistant", "2")],
]


@pytest.fixture
def written(tmp_path):
    def write(content, name="t.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def chat_rows():
    return rows(
        *({"messages": [{"role": role, "content": said} for role, said in one]} for one in CHAT)
    )


def texts(corpus):
    """The whole documents."""
    found = [""]
    for document in corpus.documents():
        found[-1] += document.text
        if document.is_complete:
            found.append("")
    assert found.pop() == ""
    return found


def test_a_text_without_boundaries_is_one_document_and_stays_as_it_is(written):
    for text in (TEXT, "a\n\nb", "\na", "a\n\n", "  a", f"a {MARK}\nb {MARK}"):
        opened = open_corpus(written(text))
        assert (texts(opened), opened.count, opened.notes) == ([text], 1, ())
        assert opened.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("split", "text", "documents"),
    [
        ("auto", "\n\n\n".join("abcdefghijkl"), list("abcdefghijkl")),
        ("auto", "\n \n\t\n\n".join("abcdefghijkl") + "\n\n\n\n", list("abcdefghijkl")),
        ("auto", "\n\n".join("abcdefghijkl"), ["\n\n".join("abcdefghijkl")]),
        ("auto", "a\n\n\nb", ["a\n\n\nb"]),  # once in a text it is an accident
        ("auto", f"a\n{MARK}\nb\n{MARK}\n", ["a", "b"]),
        ("auto", f"{MARK}\na\nb\n{MARK}\n{MARK}\nc\n{MARK}", ["a\nb", "c"]),
        ("auto", f"a\n{MARK}x\nb", [f"a\n{MARK}x\nb"]),
        ("blank-lines", "a\n\nb\n  \n\nc\nd", ["a", "b", "c\nd"]),
        ("lines", f"a\nb c\n\n \n{MARK}\nd", ["a", "b c", "d"]),
        ("lines", "\n\na\n", ["a"]),
        ("whole", f"a\n\n\n\nb\n{MARK}\nc", [f"a\n\n\n\nb\n{MARK}\nc"]),
    ],
)
def test_documents_end_where_the_way_of_splitting_says(written, split, text, documents):
    opened = open_corpus(written(text), split)
    assert [document.removesuffix("\n") for document in texts(opened)] == documents
    assert opened.count == len(documents)


@pytest.mark.parametrize("split", ["auto", "lines", "blank-lines", "whole"])
@pytest.mark.parametrize("size", [7, 64, 1000])
def test_reading_in_small_pieces_gives_the_same_documents(written, monkeypatch, split, size):
    text = (
        PROSE + f"\n \n\t\n{MARK}\n\n\n" + unicodedata.normalize("NFD", PROSE).replace("\n", "\r\n")
    )
    path = written(text)
    whole = open_corpus(path, split)
    expected = texts(whole)
    monkeypatch.setattr(corpus_files, "CHUNK_SIZE", size)
    monkeypatch.setattr(pieces, "CHUNK_SIZE", size)
    opened = open_corpus(path, split)
    assert texts(opened) == expected
    assert (opened.sha256, opened.count, opened.notes) == (whole.sha256, whole.count, whole.notes)
    assert (opened.character_counts == whole.character_counts).all()
    if split == "whole":
        assert expected == [unicodedata.normalize("NFC", text.replace("\r\n", "\n"))]


def test_each_line_of_a_list_is_a_document_that_the_model_learns_to_end(written):
    names = [f"name{number}" for number in range(1_000)]
    opened = open_corpus(written("\n".join(names)), "lines")
    tokenizer = make_tokenizer("char", opened)
    end = tokenizer.token_to_id("<end>")
    ids = tokenise(opened, tokenizer, separator=end).ids
    assert opened.count == 1_000
    assert (ids == end).sum() == 1_000


def test_long_documents_come_in_pieces(written):
    text = "word " * 1_000_000
    found = list(open_corpus(written(text)).documents())
    assert "".join(document.text for document in found) == text
    assert max(len(document.text) for document in found) < 2_000_000
    assert [document.is_complete for document in found] == [False] * (len(found) - 1) + [True]


def test_blank_lines_without_end_are_read_in_a_straight_line(written):
    opened = open_corpus(written("a" + "\n" * 2_000_000 + " " * 2_000_000 + "b"))
    assert opened.count == 1


def test_what_other_systems_write_is_mended_and_told(written):
    text = "첫 줄\ncafé\n"
    other = b"\xef\xbb\xbf" + unicodedata.normalize("NFD", text).replace("\n", "\r\n").encode()
    opened = open_corpus(written(other))
    assert texts(opened) == [text]
    assert len(opened.notes) == 3
    assert all(len(note.splitlines()) == 1 for note in opened.notes)
    assert opened.sha256 == hashlib.sha256(unicodedata.normalize("NFD", text).encode()).hexdigest()
    assert texts(open_corpus(written("a\rb\r"))) == ["a\nb\n"]
    said = open_corpus(written(rows({"text": unicodedata.normalize("NFD", "첫\r\n줄")}), "t.jsonl"))
    assert texts(said) == ["첫\n줄"]
    assert len(said.notes) == 2


@pytest.mark.parametrize("before", [0, 3, (1 << 20) - 1, 1 << 20])
def test_what_is_not_utf8_is_refused_with_its_place(written, before):
    content = b"a" * before + b"\xea\xb0\x41" + b"\xff"
    with pytest.raises(UserError, match=rf"byte 0xea at {before:,} of {len(content):,}"):
        open_corpus(written(content))
    with pytest.raises(UserError, match=r"byte 0xed at 3 of 5"):
        open_corpus(written(b"abc\xed\x95"))


@pytest.mark.parametrize("empty", ["", "\n \n\t", f"{MARK}\n\n\n{MARK}\n", "\ufeff"])
def test_an_empty_corpus_is_refused(written, empty):
    with pytest.raises(UserError, match="is empty: there is nothing to train on"):
        open_corpus(written(empty))
    with pytest.raises(UserError, match="is empty: there is nothing to train on"):
        open_corpus(written(rows({"text": ""}) + "\n", "t.jsonl"))


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing", "x" * 5_000, "a\0b"):
        with pytest.raises(UserError, match=r"is a FIFO|cannot open"):
            open_corpus(tmp_path / name)
    with pytest.raises(UserError, match=r"no text|no file"):
        open_corpus(tmp_path)


def test_json_lines_are_documents(written):
    opened = open_corpus(
        written(rows({"text": "a\n\n\n\nb", "id": 1}, {"text": "c"}) + "\n", "t.JSONL")
    )
    assert texts(opened) == ["a\n\n\n\nb", "c"]
    assert (opened.count, opened.is_conversational) == (2, False)
    said = open_corpus(written(chat_rows(), "chat.ndjson"))
    assert [[(m.role, m.content) for m in one.messages] for one in said.documents()] == CHAT
    assert said.is_conversational


@pytest.mark.parametrize(
    "line",
    [
        "plain text",
        '{"text": 3}',
        '{"txt": "a"}',
        "[]",
        '{"text": "\\ud800"}',
        "[" * 100_000,
        '{"messages": []}',
        '{"messages": [{"role": "robot", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": [1]}]}',
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        '{"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}]}',
        '{"chosen": "a", "rejected": "b"}',
        '{"conversations": [{"from": "robot", "value": "a"}]}',
        '{"messages": ["\x1b[31m"]}',
    ],
)
def test_a_wrong_line_is_named(written, line):
    good = rows({"text": "a"})
    with pytest.raises(UserError, match=r"line 3 of .*t\.jsonl") as wrong:
        list(open_corpus(written(good + "\n" + line + "\n" + good, "t.jsonl")).documents())
    assert str(wrong.value).isprintable()
    assert len(str(wrong.value)) < 500


def test_texts_and_conversations_mix_and_each_is_learnt_as_it_is_alone(written):
    opened = open_corpus(written(rows({"text": "once"}) + chat_rows(), "mixed.jsonl"))
    assert (opened.count, opened.is_conversational, opened.has_texts) == (3, True, True)
    tokenizer = make_tokenizer("char", opened)
    end = tokenizer.token_to_id("<|end|>")
    found = tokenise(opened, tokenizer, separator=end, template=DEFAULT_CHAT_TEMPLATE)
    talks = [[Message(*said) for said in one] for one in CHAT]
    alone = flat_examples(DEFAULT_CHAT_TEMPLATE, tokenizer, talks)
    text = tokenizer.encode("once")
    assert found.ids.tolist() == [*text, end, *alone[0][0], *alone[1][0]]
    assert found.loss_mask.tolist() == [*[True] * 5, *alone[0][1], *alone[1][1]]
    assert found.ends.tolist() == [5, 5 + len(alone[0][0]), len(found.ids)]


def test_a_mixture_has_each_corpus_as_often_as_its_weight_says(written, tmp_path):
    for name, letter in (("a.txt", "a"), ("b + c.txt", "b")):
        written("\n".join(letter * (number % 7 + 3) for number in range(600)), name)
    paths = [tmp_path / "a.txt", tmp_path / "b + c.txt"]
    name = f"{paths[0]}*0.5 + {tmp_path / 'b.txt'}*2"
    assert parse_mixture(str(paths[1])) == [(paths[1], 1.0)], "a file whose name has a plus"
    paths[1].rename(tmp_path / "b.txt")
    assert parse_mixture(name) == [(paths[0], 0.5), (tmp_path / "b.txt", 2.0)]
    opened = open_corpora(name, TrainPlan(), lambda: False).train
    assert (opened.count, len(opened.files)) == (1_200, 2)
    tokenizer = make_tokenizer("char", opened)
    end = tokenizer.token_to_id("<end>")
    parts = [
        (tokenise(part, tokenizer, separator=end, is_part=True), weight)
        for part, weight in opened.parts
    ]
    train, _val = make_splits(parts, None, TrainPlan(context_length=8, val="off"), name)
    counts = [sum(text.startswith(letter) for text in decoded(train, tokenizer)) for letter in "ab"]
    assert counts == [300, 1_200]
    with pytest.raises(UserError, match="x is no weight"):
        parse_mixture(f"{paths[0]} + b.txt*x")


def decoded(split, tokenizer):
    names = (tokenizer.special_name(token) or decode(tokenizer, [token]) for token in split.ids)
    return "".join(names).removeprefix("<end>").removesuffix("<end>").split("<end>")


def test_a_folder_is_its_files_by_name(tmp_path):
    folder, outside = tmp_path / "texts", tmp_path / "outside.txt"
    (folder / "b").mkdir(parents=True)
    outside.write_text("secret")
    for name, text in {
        "z.txt": "last",
        "b/a.md": "middle",
        "a.txt": "first",
        "b/no.py": "code\n\n\n" * 20,
        "b/a.png": b"\x89PNG\0",
    }.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (folder / "c.jsonl").write_text(rows({"text": "one"}, {"text": "two"}))
    (folder / "leaves.txt").symlink_to(outside)
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "self.txt").symlink_to(folder / "self.txt")
    os.mkfifo(folder / "pipe.txt")
    opened = open_corpus(folder)
    code = "code\n\n\n" * 20  # blank lines end no document in source code
    assert texts(opened) == ["first", "middle", code, "one", "two", "last"]
    assert opened.count == 6
    assert opened.notes == ("a.png: no text, left out",)
    (folder / "z.txt").rename(folder / "y.txt")
    renamed = open_corpus(folder)
    assert texts(renamed) == ["first", "middle", code, "one", "two", "last"]
    assert renamed.sha256 != opened.sha256


def test_what_systems_and_editors_put_into_a_folder_is_not_learnt(tmp_path):
    text = tmp_path / "texts" / "a.txt"
    copies = (
        ".ipynb_checkpoints/a-checkpoint.txt",
        "__MACOSX/._a.txt",
        "._a.txt",
        ".git/a.md",
        "b/.#a.txt",
        ".a.jsonl",
    )
    for file in (text, *(text.parent / copy for copy in copies)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0\5\x16\7\xff" if "._" in file.name else b"once")
    assert texts(open_corpus(text.parent)) == ["once"]
    hidden = tmp_path / ".texts"
    hidden.mkdir()
    text.rename(hidden / "a.txt")
    assert texts(open_corpus(hidden)) == ["once"], "who names a hidden folder means it"


def test_a_character_vocabulary_is_the_characters_and_no_more_than_is_needed(written):
    one = make_tokenizer("char", open_corpus(written(TEXT)))
    assert one.characters == tuple(sorted(set(TEXT)))
    assert one.special_names == []
    several = make_tokenizer("char", open_corpus(written(f"ba\n{MARK}\nc")))
    assert several.special_names == ["<end>"]
    chat = make_tokenizer("char", open_corpus(written(chat_rows(), "c.jsonl")))
    assert set(ROLE_TOKENS) <= set(chat.special_names)
    assert set(chat.characters) == {c for one in CHAT for _, said in one for c in said}


def test_the_most_frequent_characters_are_kept_and_the_rest_becomes_bytes(written):
    opened = open_corpus(written("aaaabbbc dddd 가"))
    tokenizer = make_tokenizer("char:3", opened)
    assert tokenizer.characters == ("a", "b", "d")
    found = tokenise(opened, tokenizer)
    assert found.unknown_characters == 0
    assert found.ids.tolist() == tokenizer.encode("aaaabbbc dddd 가")
    assert decode(tokenizer, found.ids.tolist()) == "aaaabbbc dddd 가"
    assert make_tokenizer("char:99", opened).special_names == []
    with pytest.raises(UserError):
        make_tokenizer("char:0", opened)


def test_byte_pairs_give_every_text_back(written):
    opened = open_corpus(written(PROSE))
    tokenizer = make_tokenizer("bpe:400", opened)
    assert tokenizer.vocab_size == 400
    assert tokenizer.special_name(tokenizer.token_to_id(MARK)) == MARK
    for text in (PROSE, "unseen ĀĠ 뷁 😀 \x00\t", MARK, "훈민정음"):
        ids = tokenizer.encode(text)
        assert decode(tokenizer, ids) == text
        assert tokenizer.token_to_id(MARK) not in ids
    assert make_tokenizer("bpe:400", opened).to_json() == tokenizer.to_json()
    with pytest.raises(UserError, match="bpe:256"):
        make_tokenizer("bpe:256", opened)


@pytest.mark.parametrize("kind", ["char", "char:20", "bpe:400"])
@pytest.mark.parametrize("size", [64, 1 << 20])
def test_token_files_hold_what_the_tokenizer_says(written, monkeypatch, kind, size):
    whole = open_corpus(written(PROSE), "whole")
    tokenizer = make_tokenizer(kind, whole)
    monkeypatch.setattr(corpus_files, "CHUNK_SIZE", size)
    monkeypatch.setattr(pieces, "CHUNK_SIZE", size)
    found = tokenise(whole, tokenizer, separator=1)
    assert found.ids.tolist() == tokenizer.encode(PROSE, add_special=False)
    assert found.ids.dtype == np.uint16
    assert found.loss_mask is None
    several = open_corpus(written(PROSE), "blank-lines")
    expected = [
        token
        for text in texts(several)
        for token in (*tokenizer.encode(text, add_special=False), 1)
    ]
    assert tokenise(several, tokenizer, separator=1).ids.tolist() == expected


def test_unknown_characters_are_skipped_where_nothing_stands_for_them(written):
    tokenizer = make_tokenizer("char", open_corpus(written("abc")))
    found = tokenise(open_corpus(written("a하b!c")), tokenizer)
    assert found.ids.tolist() == [0, 1, 2]
    assert found.unknown_characters == 2


@pytest.mark.parametrize("kind", ["char", "bpe:400"])
def test_conversations_are_learnt_where_the_assistant_speaks(written, kind):
    opened = open_corpus(written(chat_rows(), "chat.jsonl"))
    tokenizer = make_tokenizer(kind, opened)
    found = tokenise(
        opened,
        tokenizer,
        separator=tokenizer.token_to_id("<|end|>"),
        template=DEFAULT_CHAT_TEMPLATE,
    )
    learnt = [
        token for token, counts in zip(found.ids.tolist(), found.loss_mask, strict=True) if counts
    ]
    assert decode(tokenizer, learnt) == "hi there네2"
    one_by_one = [
        flat_examples(DEFAULT_CHAT_TEMPLATE, tokenizer, [[Message(*said) for said in one]])[0][0]
        for one in CHAT
    ]
    assert found.ids.tolist() == [token for one in one_by_one for token in one]


@pytest.fixture
def cached(written, tmp_path, monkeypatch):
    """Tokens of a text through a cache, and how often progress was told."""
    monkeypatch.setattr(token_files, "_MIN_CACHED_CHARACTERS", 0)
    tokenizer = make_tokenizer("char", open_corpus(written(PROSE)))

    def read(text=PROSE, separator=None, cache=tmp_path / "new" / "cache"):
        told = []
        found = tokenise(
            open_corpus(written(text), "whole"),
            tokenizer,
            separator=separator,
            cache=cache,
            progress=told.append,
        )
        assert found.ids.tolist() == tokenizer.encode(text)
        return len(told)

    return read


def files(cache):
    return {file.suffix: file for file in cache.iterdir()}


def test_a_second_start_finds_its_tokens(cached, tmp_path):
    cache = tmp_path / "new" / "cache"
    assert cached() > 0
    assert cache.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in cache.iterdir()} == {0o600}
    assert cached() == 0
    assert cached(separator=1) == 0  # one document: nothing stands between
    assert cached(PROSE + "날") > 0
    assert cached() == 0


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".ids", b""), (".ids", b"ab"), (".json", b""), (".json", b"[]"), (".json", b"{}")],
)
def test_a_damaged_token_file_is_made_again(cached, tmp_path, suffix, content):
    assert cached() > 0
    files(tmp_path / "new" / "cache")[suffix].write_bytes(content)
    assert cached() > 0
    assert cached() == 0


def test_a_cache_that_cannot_be_written_is_done_without(cached, written, tmp_path):
    in_the_way = written("a file", "file")
    assert cached(cache=in_the_way) > 0
    assert cached(cache=in_the_way / "below") > 0
    assert in_the_way.read_text() == "a file"


def test_no_room_for_tokens_is_told(cached, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    text = "a 날" * 240_000  # 1.4 MB of tokens
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_300_000, hard))  # of one file
        with pytest.raises(UserError, match="could not write the tokens"):
            cached(text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "new" / "cache").iterdir()) == []
    assert cached(text) > 0


def test_a_small_corpus_leaves_nothing_in_the_cache(written, tmp_path):
    opened = open_corpus(written(TEXT))
    tokenise(opened, make_tokenizer("char", opened), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_token_files_used_longest_ago_go_when_there_are_too_many(cached, tmp_path, monkeypatch):
    cache = tmp_path / "new" / "cache"
    for text in ("날씨", "좋은 날"):
        assert cached(text) > 0
    for age, file in enumerate(
        sorted(cache.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    ):
        os.utime(file, (1_000 + age, 1_000 + age))
    assert cached("날씨") == 0  # used: now the other is the oldest
    monkeypatch.setattr(
        token_cache, "_MAX_CACHE_BYTES", sum(file.stat().st_size for file in cache.iterdir()) + 40
    )
    assert cached("fine day") > 0
    assert cached("날씨") == 0
    assert cached("좋은 날") > 0


def test_unfinished_files_of_a_killed_run_go_after_a_day(cached, tmp_path):
    cache = tmp_path / "new" / "cache"
    cached()
    old, new = cache / ".old", cache / ".new"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1_000, 1_000))
    cached("날씨")
    assert (old.exists(), new.exists()) == (False, True)


def test_reading_stops_when_interrupted(written, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "_MIN_CACHED_CHARACTERS", 0)
    opened, asked = open_corpus(written(PROSE), "blank-lines"), iter((False, True))
    tokenizer = make_tokenizer("char", opened)
    with pytest.raises(UserError, match="stopped while reading"):
        tokenise(opened, tokenizer, cache=tmp_path / "cache", interrupted=lambda: next(asked))
    assert list((tmp_path / "cache").iterdir()) == []


def test_progress_ends_at_one(written):
    opened, told = open_corpus(written(PROSE)), []
    tokenise(opened, make_tokenizer("char", opened), progress=told.append)
    assert math.isclose(told[-1], 1)


NAMES = [f"{first}{second}{third}" for first in "bcdf" for second in "aeiou" for third in "lmnrst"]


def as_corpus(folder, lines, split="auto"):
    path = folder / "names.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return open_corpus(path, split)


def held_out(corpus, seed=0, context=8):
    """The texts of both splits, whose tokens are their letters."""
    tokenizer = make_tokenizer("char", corpus)
    end = tokenizer.token_to_id("<end>")
    tokenizer = tokenizer.with_start("<end>")
    tokens = tokenise(corpus, tokenizer, separator=end)
    plan = TrainPlan(context_length=context, seed=seed)
    found = make_splits([(tokens, 1.0)], None, plan, "names")
    assert all(part.ids[0] == end == part.ids[-1] for part in found)
    return [decoded(part, tokenizer) for part in found]


def test_documents_are_held_out_by_chance_and_not_by_their_place(tmp_path):
    ordered = sorted(NAMES * 25 + [f"{name}a" for name in NAMES] * 4)
    train, val = held_out(as_corpus(tmp_path, ordered))
    assert sorted(train + val) == ordered
    assert not set(train) & set(val), "equal documents fall into the same split"
    assert 0.05 < len(val) / len(ordered) < 0.15
    assert len({name[0] for name in val}) == 4, "the last tenth has one first letter"
    assert sum(a == b for a, b in itertools.pairwise(train)) < len(train) / 20
    # Another order of the lines is the same corpus, another seed holds out other documents.
    assert held_out(as_corpus(tmp_path, ordered[::-1])) == [train, val]
    other = held_out(as_corpus(tmp_path, ordered), seed=1)
    assert sorted(itertools.chain(*other)) == ordered
    assert set(other[1]) != set(val)


def test_a_few_long_documents_are_cut_and_one_is_left_as_it_is(tmp_path):
    texts_ = [letter * 5_000 for letter in "abc"]
    train, val = held_out_ids(open_corpus(put_all(tmp_path, texts_)))
    assert len(val) == pytest.approx((len(train) + len(val)) / 10, abs=2)
    path = tmp_path / "one.txt"
    path.write_text("".join(texts_))
    train, val = held_out_ids(open_corpus(path))
    assert "".join(train + val) == "".join(texts_), "the last tenth of one text"


def put_all(folder, contents):
    (folder / "several").mkdir()
    for number, content in enumerate(contents):
        (folder / "several" / f"{number}.txt").write_text(content)
    return folder / "several"


def held_out_ids(corpus):
    tokenizer = make_tokenizer("char", corpus)
    separator = tokenizer.token_to_id("<end>")
    tokens = tokenise(corpus, tokenizer, separator=separator)
    found = make_splits([(tokens, 1.0)], None, TrainPlan(context_length=8), "texts")
    return [[decode(tokenizer, [token]) for token in part.ids] for part in found]


POEM = "".join(f"A line of verse, the {number}th of many,\n" for number in range(400))
WRAPPED = textwrap.fill(" ".join(f"word{number * 7919 % 1000}" for number in range(9_000)), 72)
CODE = "".join(f"def f{number}(x):\n    return x + {number}\n" for number in range(400))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("\n".join(NAMES * 9), len(NAMES) * 9),
        ("\n".join(f"{name} {name[::-1]}?" * (len(name) % 3 + 1) for name in NAMES * 4), 480),
        ("\n".join(NAMES), 1),  # so few lines may be a poem
        (POEM, 1),
        (WRAPPED, 1),
        (CODE, 1),
        ("\n\n".join(NAMES * 9), 1),  # stanzas or paragraphs
        ("\n".join(NAMES * 150) + "\n" + ("word " * 150 + "\n") * 4_000, 1),  # after its contents
        ("\n".join(NAMES * 9) + f"\n{MARK}\n" + "\n".join(NAMES * 9), 2),
    ],
)
def test_a_list_of_short_lines_is_told_from_a_text(written, text, count):
    opened = open_corpus(written(text))
    assert opened.count == count
    assert any("each line is a document" in note for note in opened.notes) == (count > 2)


def test_files_and_the_whole_are_documents_when_asked(tmp_path):
    folder = put_all(tmp_path, ["a\n\n\nb\n", '{"text": "c"}\n', "x,text\n1,d\n"])
    assert texts(open_corpus(folder, "files")) == [
        "a\n\n\nb\n", '{"text": "c"}\n', "x,text\n1,d\n"
    ]  # fmt: skip
    whole = open_corpus(folder, "whole")
    assert whole.count == 1
    assert texts(whole) == ['a\n\n\nb\n{"text": "c"}\nx,text\n1,d\n']
