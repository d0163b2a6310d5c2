"""What a file holds is told by what is in it: JSON and tables never become prose in silence."""

import csv
import gzip
import io
import json

import pytest

from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE
from minillm_repl.errors import UserError
from minillm_repl.training import corpus_files, documents
from minillm_repl.training.corpus import open_corpus
from minillm_repl.training.texts import make_tokenizer
from minillm_repl.training.tokenize import tokenise
from tests.test_training_runs import SIZES, run

TEXTS = [f'{n}번째 날은 "좋다", 그래서\n산책을 했다; [{n}] {{a}} \\ \t.' for n in range(30)]
TALKS = [[("user", f"{n} 더하기, 1?"), ("assistant", f'"{n + 1}"\n이다.')] for n in range(30)]


def record(talk):
    return {"messages": [{"role": role, "content": said} for role, said in talk]}


def lines(records):
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records)


def sharegpt(talk):
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[role], "value": said} for role, said in talk]


def rows(names, cells, delimiter=","):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([names, *cells])
    return text.getvalue()


def pairs():
    return [(asked, answered) for (_, asked), (_, answered) in TALKS]


def as_texts(*names, **more):
    return [dict.fromkeys(names, text) | more for text in TEXTS]


TEXT_FILES = {
    "array.json": json.dumps(as_texts("text", id=1)),
    "pretty.json": json.dumps(as_texts("text"), indent=2, ensure_ascii=False),
    "strings.json": json.dumps(TEXTS),
    "lines.json": lines(as_texts("text")),
    "string-lines.json": lines(TEXTS),
    "array.jsonl": json.dumps(as_texts("text")),
    "lines.txt": lines(as_texts("text")),
    "array.md": json.dumps(as_texts("Text"), indent=1),
    "no-ending": lines(as_texts("문장")),
    "commas.csv": rows(["id", "text"], enumerate(TEXTS)),
    "semicolons.csv": rows(["text", "id"], ((text, 1) for text in TEXTS), ";"),
    "alone.csv": rows(["Text"], ([text] for text in TEXTS)),
    "tabs.csv": rows(["label", " TEXT "], ((0, text) for text in TEXTS), "\t"),
    "tabs.tsv": rows(["id", "document", "label"], ((1, text, 0) for text in TEXTS), "\t"),
    "ratings.txt": rows(["id", "document", "label"], ((1, text, 0) for text in TEXTS), "\t"),
    "blank-rows.csv": rows(["text"], [[], *([text] for text in TEXTS), [], [""]]),
}
TALK_FILES = {
    "talks.json": json.dumps([record(talk) for talk in TALKS]),
    "talks.jsonl": lines(map(record, TALKS)),
    "pairs.jsonl": lines({"prompt": asked, "completion": answered} for asked, answered in pairs()),
    "pairs.json": json.dumps(
        [{"question": asked, "answer": answered, "id": 3} for asked, answered in pairs()]
    ),
    "pairs.csv": rows(["prompt", "completion"], pairs()),
    "ChatbotData.csv": rows(["Q", "A", "label"], ((*pair, 0) for pair in pairs())),
    "alpaca.tsv": rows(["instruction", "input", "output"], ((a, "", b) for a, b in pairs()), "\t"),
    "korean.txt": rows(["질문", "답변"], pairs()),
    "messages.csv": rows(
        ["id", "messages"], ((1, json.dumps(record(talk)["messages"])) for talk in TALKS)
    ),
    "turns.csv": rows(
        ["conversation_id", "role", "content"],
        ((number, *turn) for number, talk in enumerate(TALKS) for turn in talk),
    ),
    "sharegpt.json": json.dumps([{"id": "a", "conversations": sharegpt(talk)} for talk in TALKS]),
    "sharegpt.csv": rows(["conversations"], ([json.dumps(sharegpt(talk))] for talk in TALKS)),
    "parts.jsonl": lines(
        record([(role, [{"type": "text", "text": each} for each in (said[:2], said[2:])])
                for role, said in talk]) for talk in TALKS
    ),
    "messages-of-prompts.jsonl": lines(
        {"prompt": record(talk[:1])["messages"], "completion": record(talk[1:])["messages"]}
        for talk in TALKS
    ),
    "input.jsonl": lines({"input": asked, "output": answered} for asked, answered in pairs()),
    "preferences.jsonl": lines(
        {"prompt": asked, "chosen": answered, "rejected": "no"} for asked, answered in pairs()
    ),
    "preferred-talks.jsonl": lines(
        {"prompt": talk[0][1], "chosen": record(talk)["messages"], "rejected": []}
        for talk in TALKS
    ),
    "talks.jsonl.gz": gzip.compress(lines(map(record, TALKS)).encode()),
    "pairs.csv.gz": gzip.compress(rows(["prompt", "completion"], pairs()).encode()),
}  # fmt: skip


def put(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("size", [5, 1 << 20])
@pytest.mark.parametrize("name", TEXT_FILES)
def test_every_shape_gives_the_documents_of_its_json_lines(tmp_path, monkeypatch, name, size):
    for module in (corpus_files, documents):
        monkeypatch.setattr(module, "CHUNK_SIZE", size)
    opened = open_corpus(put(tmp_path, name, TEXT_FILES[name]))
    assert [document.text for document in opened.documents()] == TEXTS
    assert (opened.count, opened.is_conversational) == (30, False)
    told = [note for note in opened.notes if "read as such" in note]
    assert bool(told) == (not name.endswith((".json", ".jsonl", ".csv", ".tsv")))


@pytest.mark.parametrize("name", TALK_FILES)
def test_every_shape_gives_the_conversations_of_its_messages(tmp_path, name):
    opened = open_corpus(put(tmp_path, name, TALK_FILES[name]))
    found = [
        [(each.role, each.content) for each in document.messages] for document in opened.documents()
    ]
    assert found == TALKS
    assert opened.is_conversational
    assert any("preference pairs" in note for note in opened.notes) == ("prefer" in name)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The ids and the mask of the conversations as `messages`, and what made them."""
    opened = open_corpus(put(tmp_path_factory.mktemp("twin"), "t.jsonl", TALK_FILES["talks.jsonl"]))
    tokenizer = make_tokenizer("char", opened)
    return tokenizer, tokenise(opened, tokenizer, template=DEFAULT_CHAT_TEMPLATE)


@pytest.mark.parametrize("name", TALK_FILES)
def test_every_shape_gives_the_ids_and_the_mask_of_its_messages(tmp_path, twin, name):
    tokenizer, expected = twin
    opened = open_corpus(put(tmp_path, name, TALK_FILES[name]))
    assert make_tokenizer("char", opened).to_json() == tokenizer.to_json()
    found = tokenise(opened, tokenizer, template=DEFAULT_CHAT_TEMPLATE)
    assert (found.ids == expected.ids).all()
    assert (found.loss_mask == expected.loss_mask).all()
    assert (found.ends == expected.ends).all()


def test_parquet_and_zstandard_are_read_as_what_they_hold(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="reads .parquet")
    arrow = pytest.importorskip("pyarrow")
    zstandard = pytest.importorskip("zstandard", reason="reads .zst")
    tables = {
        "talks": [record(talk) for talk in TALKS],
        "sharegpt": [{"conversations": sharegpt(talk), "source": None} for talk in TALKS],
        "turns": [
            {"conversation_id": str(number), "role": role, "content": said}
            for number, talk in enumerate(TALKS)
            for role, said in talk
        ],
    }
    for name, table in tables.items():
        parquet.write_table(arrow.Table.from_pylist(table), tmp_path / f"{name}.parquet")
        assert said_in(open_corpus(tmp_path / f"{name}.parquet")) == TALKS
    packed = zstandard.compress(TALK_FILES["talks.jsonl"].encode())
    half = len(packed) // 2
    assert said_in(open_corpus(put(tmp_path, "t.jsonl.zst", packed))) == TALKS
    assert said_in(open_corpus(put(tmp_path, "two.jsonl.zst", packed * 2))) == TALKS * 2
    for name, content in (
        ("a.jsonl.zst", packed[:half]),
        ("b.jsonl.gz", TALK_FILES["talks.jsonl.gz"][:half]),
        ("c.parquet", (tmp_path / "talks.parquet").read_bytes()[:half]),
    ):
        with pytest.raises(UserError, match="is damaged"):
            open_corpus(put(tmp_path, name, content))


def said_in(opened):
    return [
        [(each.role, each.content) for each in document.messages] for document in opened.documents()
    ]


def test_roles_of_other_programs_are_those_they_stand_for(tmp_path):
    said = [("developer", "짧게"), ("human", "1+1"), ("model", "?"), ("tool", "2"), ("gpt", "2")]
    twin = [("system", "짧게"), ("user", "1+1"), ("assistant", "?"), ("tool", "2")]
    record_ = {**record(said), "tools": [{"name": "add"}]}
    opened = open_corpus(put(tmp_path, "t.jsonl", lines([record_])))
    assert said_in(opened) == [[*twin, ("assistant", "2")]]
    assert opened.has_tools
    assert opened.notes == ("descriptions of tools are left out",)
    assert "<|tool|>" in make_tokenizer("char", opened).special_names


def test_a_folder_of_fifty_odd_files_is_read_or_each_is_named(tmp_path):
    for name, content in {**TEXT_FILES, **TALK_FILES}.items():
        put(tmp_path, name, content)
    odd = {name: given for name, (given, _message) in REFUSED.items() if not name.endswith("l")}
    for name, content in odd.items():
        put(tmp_path, f"odd-{name}", content)
    put(tmp_path, "picture.png", b"\x89PNG\r\n\x1a\n\0\0")
    put(tmp_path, "program.py", "def f():\n\n\n    return 1\n")
    assert len(list(tmp_path.iterdir())) >= 50
    refused = set()
    while True:  # a file that its head does not betray is named; without it the rest is read
        try:
            opened = open_corpus(tmp_path)
            break
        except UserError as error:
            name = next(name for name in odd if f"odd-{name}" in str(error))
            assert len(str(error).splitlines()) == 1
            refused.add(name)
            (tmp_path / f"odd-{name}").unlink()
    read = {file.name for file, _shape in opened.files}
    assert read >= {*TEXT_FILES, *TALK_FILES, "program.py"}
    told = "\n".join(opened.notes)
    assert "picture.png: no text, left out" in told
    left_out = {name for name in odd if f"odd-{name}" not in read} - refused
    assert sum("not read: " in note for note in opened.notes) == min(5, len(left_out))
    texts, talks = len(TEXT_FILES) * 30, len(TALK_FILES) * 30
    assert opened.count >= texts + talks + 1


def test_what_stands_beside_a_question_is_part_of_the_conversation(tmp_path):
    given = [{"system": "짧게.", "instruction": "더해", "input": "1 2", "output": "3"}]
    (document,) = open_corpus(put(tmp_path, "a.json", json.dumps(given))).documents()
    said = [(each.role, each.content) for each in document.messages]
    assert said == [("system", "짧게."), ("user", "더해\n\n1 2"), ("assistant", "3")]


def test_one_record_alone_is_a_document(tmp_path):
    for name in ("one.json", "one.txt"):
        opened = open_corpus(put(tmp_path, name, json.dumps(record(TALKS[0]), indent=2)))
        assert [
            [(each.role, each.content) for each in one.messages] for one in opened.documents()
        ] == TALKS[:1]


REFUSED = {
    "prose.json": (
        "Once upon a time",
        "is not JSON: it starts with Once upon a time. documents=whole",
    ),
    "cut.json": (json.dumps(TEXTS)[:-9], "is incomplete"),
    "two.json": (json.dumps(TEXTS) * 2, "continues after its JSON array"),
    "nested.json": (json.dumps({"data": TEXTS}), 'must be a string, or an object with "text"'),
    "numbers.json": ("[1, 2]", "record 1 of .* must be a string"),
    "second.json": ('["a", {"txt": "b"}]', 'record 2 of .* not {"txt": "b"}'),
    "comma.json": ('["a",,"b"]', "record 2 of .* is empty"),
    "deep.json": (
        '[{"text": ' + "[" * 9_999 + "]" * 9_999 + "}]",
        "record 1 of .* is not valid JSON",
    ),
    "third.json": (lines(as_texts("text")[:2]) + "oops\n", "line 3 of .* is not valid JSON"),
    "numbers.csv": (
        rows(["x", "y"], [(1, 2)]),
        r"is a table with the columns x, y\. .*documents=whole",
    ),
    "headless.csv": (
        rows(TEXTS[:2], [TEXTS[2:4]]),
        "is a table with the columns .*documents=whole",
    ),
    "prose.csv": (
        "Once upon a time, there was\n",
        "is a table with the columns once upon a time, there was",
    ),
    "turns.csv": (
        rows(["role", "content"], [("user", "a")]),
        "is a table with the columns role, content",
    ),
    "ragged.csv": (
        rows(["id", "text"], [(1, "a"), (2, "b", "c")]),
        "line 3 of .* has 3 columns, but the first line has 2",
    ),
    "quote.csv": ('text\n"a\nb\n', "line 3 of .* has a quote that is not closed"),
    "stray.tsv": ('id\ttext\n1\t"a" b\n', "line 2 of .* has a quote"),
    "messages.csv": (rows(["messages"], [["[1"]]), "line 2 of .* is not valid JSON"),
    "fields.txt": (lines({"id": number} for number in range(9)), 'line 1 of .* not {"id": 0}'),
    "null.jsonl": ('{"prompt": "a", "completion": null}\n', "line 1 of .* must be a string, or"),
    "input.jsonl": (
        '{"instruction": "a", "input": [1], "output": "b"}\n',
        "line 1 of .* must be a string, or",
    ),
    "robot.csv": (
        rows(["id", "role", "content"], [(1, "robot", "a")]),
        "line 2 of .* a message needs .role.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused_in_one_line_that_helps(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as refused:
        open_corpus(put(tmp_path, name, content))
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["array.json", "lines.txt", "commas.csv", "ratings.txt"])
def test_documents_whole_learns_a_file_as_the_text_that_it_is(tmp_path, name):
    opened = open_corpus(put(tmp_path, name, TEXT_FILES[name].replace("\r\n", "\n")), "whole")
    assert [document.text for document in opened.documents()] == [
        TEXT_FILES[name].replace("\r\n", "\n")
    ]
    assert opened.notes == (("holds text and is read as such",) if not name.endswith("txt") else ())


@pytest.mark.parametrize(
    "text",
    [
        "[Verse 1]\nLa la\n",
        "{a} and {b}\n{c}\n",
        '"Yes," she said.\n"No."\n',
        "text\nmore\n",
        "a, b, c\nd, e, f\n",
    ],
)
def test_prose_stays_prose(tmp_path, text):
    opened = open_corpus(put(tmp_path, "t.txt", text))
    assert [document.text for document in opened.documents()] == [text]
    assert opened.notes == ()


@pytest.mark.parametrize("name", ["e.json", "e.csv", "e.tsv", "h.csv"])
def test_an_empty_one_is_empty(tmp_path, name):
    with pytest.raises(UserError, match="is empty: there is nothing to train on"):
        open_corpus(put(tmp_path, name, "\n" if name[0] == "e" else "id,text\n"))


def test_a_folder_takes_what_is_clear_and_tells_what_it_leaves_out(tmp_path):
    for name in ("array.json", "commas.csv", "lines.txt"):
        put(tmp_path, name, TEXT_FILES[name])
    put(tmp_path, "prose.md", "하늘이 맑다.")
    put(tmp_path, "prices.csv", "day,price\n1,2\n")
    put(tmp_path, "settings.json", '{"width": 64}')
    put(tmp_path, "talks.json", '[{"day": 1}]')
    opened = open_corpus(tmp_path)
    assert [document.text for document in opened.documents()] == [
        *TEXTS,
        *TEXTS,
        *TEXTS,
        "하늘이 맑다.",
    ]
    assert len(opened.notes) == 4
    assert all("not read" in note for note in opened.notes[:3])
    assert "settings.json" in opened.notes[1]
    assert "record 1 of " in opened.notes[2]
    assert "prices.csv is a table with the columns day, price" in opened.notes[0]
    assert opened.notes[3] == "lines.txt: holds JSON lines and is read as such"


def test_a_record_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    from minillm_repl.training import record_files

    monkeypatch.setattr(record_files, "MAX_RECORD", 1_000)
    monkeypatch.setattr(corpus_files, "CHUNK_SIZE", 100)
    for name, content in {
        "a.json": '["' + "a" * 5_000 + '"]',
        "o.json": '{"text":\n"' + "a" * 5_000 + '"}',
        "l.jsonl": '{"text": "' + "a" * 5_000 + '"}',
        "t.csv": "text\n" + "a" * 5_000,
        "q.csv": 'text\n"' + "a\n" * 5_000,
    }.items():
        with pytest.raises(UserError, match=r"longer than|larger than"):
            open_corpus(put(tmp_path, name, content))


def test_tokens_of_one_shape_are_not_taken_for_those_of_another(tmp_path):
    one = open_corpus(put(tmp_path, "a.csv", "text\n가\n나\n"))
    other = open_corpus(put(tmp_path, "a.txt", "text\n가\n나\n"))
    assert one.sha256 == other.sha256
    assert one.format_key != other.format_key


@pytest.mark.slow
def test_the_program_trains_on_a_table_and_refuses_one_that_is_not_clear(tmp_path):
    put(tmp_path, "talk.csv", TALK_FILES["ChatbotData.csv"].encode("cp949"))
    put(tmp_path, "talk.jsonl", TALK_FILES["talks.jsonl"])
    put(tmp_path, "odd.csv", "x,y\n1,2\n")
    found = []
    for name in ("talk.csv", "talk.jsonl"):
        words = ["--train", name, "--json", "--steps", 5, *SIZES]
        events, said = run(tmp_path, "--ckpt", f"{name}.safetensors", *words)
        found.append([event["loss"] for event in events if event["event"] == "train_step"])
    assert found[0] == found[1]
    _, said = run(tmp_path, "--ckpt", "n.safetensors", "--train", "odd.csv", code=1)
    assert said.startswith("error: odd.csv is a table with the columns x, y")
