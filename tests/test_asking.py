"""What stands after a command: options, quotes, places; and files that a view must not replace."""

import json

import pytest

from minillm_repl.errors import UserError
from minillm_repl.repl.arguments import TextArgument, Words
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.quoting import mask_quoted, split_outside_quotes
from tests.small import random_checkpoint
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - the last is a fixture


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = shell_for(
        random_checkpoint(characters=[*"abcdefghijklmnopqrstuvwxyz \"'-.="], context=80)
    )
    made.session.set("max-tokens", "3")
    made.session.set("seed", "1")
    made.run_line("some text")
    return made


@pytest.mark.parametrize(
    ("typed", "words", "text", "file"),
    [
        ('2.1 "a text" --json f.json', "2.1", "a text", "f.json"),
        ('--json "my file.json" 2.1 "a text"', "2.1", "a text", '"my file.json"'),
        (
            '"we used --json data.csv as input here"',
            "",
            "we used --json data.csv as input here",
            "",
        ),
        ('"a --json b" --json c', "", "a --json b", "c"),
        ('"he said "hi" aloud" --json c', "", 'he said "hi" aloud', "c"),
        ("'x --json f'", "'x --json f'", "", ""),
        ("“x --json f”", "“x --json f”", "", ""),
        ('"never closed --json f', '"never closed --json f', "", ""),
        ("don't look --json f", "don't look", "", "f"),
        ('"5 --json" tall', '"5 --json" tall', "", ""),
        ("a -- b", "a -- b", "", ""),
    ],
)
def test_options_count_only_outside_quotes(typed, words, text, file):
    asked = Forms((Words("words", "WORDS"), TextArgument(quoted=True))).parse(typed, json=True)
    assert (asked.words, asked.text, asked.output.file) == (words, text, file)
    assert len(mask_quoted(typed)) == len(typed)


@pytest.mark.parametrize(
    ("typed", "mark", "before", "after"),
    [
        ('"a vs b" vs "c"', " vs ", '"a vs b"', '"c"'),
        ('"a -> b" -> "c -> d"', "->", '"a -> b" ', ' "c -> d"'),
        ("a vs b", " vs ", "a", "b"),
        ("a", " vs ", "a", ""),
    ],
)
def test_what_parts_two_texts_counts_only_outside_quotes(typed, mark, before, after):
    assert split_outside_quotes(typed, mark) == (before, mark in mask_quoted(typed), after)
    with pytest.raises(UserError, match="occurs twice"):
        split_outside_quotes(f"{mark}{typed}{mark}", mark)


@pytest.mark.parametrize(
    "line", [':surprise ""', ':lens -1 ""', ':attn 0.0 "" --json f.json', ':compare nalssi ""']
)
def test_quotes_with_nothing_in_them_are_not_the_text_so_far(shell, tmp_path, line):
    with pytest.raises(UserError, match="the quotes contain no text"):
        shell.run_line(line)
    assert shell.last_view is None
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("line", [
    ':surprise "we used --json data.csv as input here"', ":prob we used --json data.csv",
    ":tokens a --json data.csv", ':lens "x --json data.csv y"', ':shapes "x --json data.csv"',
    ':sampler "x --json data.csv"', ':patch "a --json data.csv" -> "b --json data.csv"',
    ':steer "a layer=9 --json d.csv" vs "b strength=2" layer=0',
    ':descent "rate=5 --json data.csv x"', ':compare nalssi "x --json data.csv"',
    ':branch 2 "tokens=4 --json d.csv"',
])  # fmt: skip
def test_a_quoted_text_is_looked_at_whole_and_writes_no_file(shell, tmp_path, line):
    (tmp_path / "data.csv").write_text("mine")
    shell.run_line(line)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["data.csv"]
    assert (tmp_path / "data.csv").read_text() == "mine"


def test_a_text_that_is_only_partly_in_quotes_is_looked_at_whole(shell):
    for line in (
        ':surprise the "cat" --json -',
        ':residual the "cat" --json -',
        ':lens the "cat" --json -',
    ):
        shell.run_line(line)
        view = json.loads(printed(shell).splitlines()[-1])
        assert "".join(token["text"] for token in view["tokens"]) == 'the "cat"'


@pytest.mark.parametrize(
    "line",
    [
        ":surprise abc --json {file}",
        ":prob --json {file} abc",
        ":map --json {file}",
        ":ablate 0.1 --json {file}",
        ":export {file}",
        ":export {file} session",
        ":why --json '{file}'",
    ],
)
@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "minillm-repl notes of mine", '{"viewer": 1}', "<svg></svg>"]
)
def test_no_view_replaces_what_no_view_has_made_unless_told(shell, tmp_path, line, content):
    file = tmp_path / "my.txt"
    file.write_text(content)
    with pytest.raises(UserError, match="exists and was not made by a view"):
        shell.run_line(line.format(file=file.name))
    assert file.read_text() == content
    assert not shell.session.workspace.model.interventions  # nothing was done
    told = line.format(file=file.name)
    shell.run_line(
        told.replace(" abc", " --overwrite abc") if ":prob" in told else told + " --overwrite"
    )
    assert file.read_text() != content
    shell.run_line(line.format(file=file.name))  # now a view has made it


@pytest.mark.parametrize("ending", ["svg", "html", "txt", "json"])
def test_what_a_view_has_made_it_replaces_in_a_later_session_too(shell, tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    line = f":lens --json {file.name}" if ending == "json" else f":export {file.name}"
    shell.run_line(":lens")
    shell.run_line(line)
    later = shell_for(random_checkpoint(characters=[*"abcdefghij "], context=80))
    later.run_line("abc")
    later.run_line(line)
    assert file.read_text()


MEANT = [  # as a place or an option, and none
    ":lens @", ":lens 4x", ":lens 3 4", ":lens pos=3", ":lens last", ":why vs", ":why a vs",
    ":grad a vs", ":attn L9H", ":attn l0.h1", ":attn 0.1.2", ":attn 0,1", ":attn layer=1",
    ":attn 헤드 1", ":attn 2층", ":qkv 1.2.3", ":qkv 0", ":qkv 0.0 key=x", ":qkv 0.0 kye=1",
    ":qkv 0.0 1 2", ":neurons x", ":neurons 0.x", ":residual 3x", ":descent 0.5", ":descent reat=1",
    ":ablate 0.x", ":ablate scna", ":ablate scan mena", ":ablate off 1", ":steer a vs",
    ":steer vs a", ":steer a vs b vs c", ":patch a -> b -> c", ":steer a vs b stregth=4",
    ":steer a vs b strength 4", ":patch a ->", ":patch a -> b wat=residual", ":branch x",
    ":branch 2 toknes=3", ":branch take", ":branch take x", ":undo 2", ":regen 3", ":clear all",
    ":surprise abc --jsn f", ":lens --json", ":watch stp=3",
    ":lens --overwrite", ":export a.svg sesion", ":export a.png",
]  # fmt: skip


@pytest.mark.parametrize("line", MEANT)
def test_what_is_meant_as_a_place_or_an_option_is_never_a_text(shell, line):
    before, shown = (
        (list(shell.session.conversation.ids), len(shell.session.conversation.turns)),
        len(printed(shell)),
    )
    name = shell.registry.get(line[1:].split()[0])
    with pytest.raises(UserError) as error:
        shell.run_line(line)
    assert name.usage in str(error.value)
    assert (list(shell.session.conversation.ids), len(shell.session.conversation.turns)) == before
    assert len(printed(shell)) == shown


def test_a_position_is_also_written_as_views_show_it(shell):
    for line in (":lens @2 --json -", ":lens 2 --json -"):
        shell.run_line(line)
        assert json.loads(printed(shell).splitlines()[-1])["position"] == 2


def test_ways_that_are_not_there_are_told(shell):
    with pytest.raises(UserError, match=r"no continuation 1: run `:branch 3` first"):
        shell.run_line(":branch take 1")
    shell.run_line(":branch 2 tokens=2")
    for number in (0, 3, 999_999_999):
        with pytest.raises(
            UserError, match=f"no continuation {number}: they are numbered from 1 to 2"
        ):
            shell.run_line(f":branch take {number}")
    with pytest.raises(UserError, match="N needs a whole number from 1 to 100, not '101'"):
        shell.run_line(":branch 101")
