"""A command's declared arguments: its usage, what is completed, the values, the errors."""

import pytest

from minillm_repl import commands, views
from minillm_repl.errors import UsageError, UserError
from minillm_repl.repl.arguments import (
    Choice,
    ChoiceOption,
    Flag,
    Layer,
    Number,
    Option,
    TextArgument,
    TextPair,
    Words,
)
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.places import Place, PlaceArgument
from minillm_repl.repl.registry import discover
from minillm_repl.settings import integer, number
from tests.conftest import random_checkpoint
from tests.test_lessons import shell_for, state  # noqa: F401 - the last is a fixture

LAYERS = Layer("optional")
PATH = Words("path", "PATH")
PLACE, BARE = PlaceArgument(), PlaceArgument(bare=True)
RATE = Option("rate", number(0, 9), 0.1)


@pytest.mark.parametrize(
    ("form", "usage", "words"),
    [
        ((), "", ()),
        ((Layer("optional"), TextArgument()), "[LAYER[.HEAD]] [TEXT]", ()),
        ((Layer("required", part="neuron", required=True), PlaceArgument()),
         "LAYER.NEURON [@PLACE]", ()),
        ((Number("count", integer(1)), TextArgument(quoted=True)), '[N] ["TEXT"]', ()),
        ((Choice("zero", "mean"), RATE), "[zero|mean] [rate=0.1]", ("zero", "mean", "rate=")),
        ((TextPair("->", "A -> B", required=2), ChoiceOption("what", "a", "b")),
         "A -> B [what=a|b]", ("what=a", "what=b")),
        ((Words("path", "FILE", required=True), Flag("--overwrite")),
         "FILE [--overwrite]", ("--overwrite",)),
    ],
)  # fmt: skip
def test_a_declaration_is_its_own_usage_and_completion(form, usage, words):
    assert (Forms(form).usage, Forms(form).completions) == (usage, words)


@pytest.mark.parametrize(
    ("form", "typed", "values"),
    [
        ((LAYERS, TextArgument()), "2.1 a text", {"layer": 2, "head": 1, "text": "a text"}),
        ((LAYERS, TextArgument()), '2 "3 pigs"', {"layer": 2, "text": "3 pigs"}),
        ((LAYERS, TextArgument()), "L2H1 a text", {"layer": 2, "head": 1, "text": "a text"}),
        ((LAYERS, TextArgument()), "l2 a", {"layer": 2, "head": None, "text": "a"}),
        ((BARE, TextArgument()), "-2 a", {"place": Place(position=-2), "text": "a"}),
        ((BARE, TextArgument()), "", {"place": Place(), "text": ""}),
        ((PLACE, TextArgument()), "a @43 b", {"place": Place(position=43), "text": "a b"}),
        ((PLACE, TextArgument()), "@Seoul:2", {"place": Place(token="Seoul", number=2)}),
        ((PLACE, TextArgument()), "@:", {"place": Place(token=":")}),
        ((PLACE, TextArgument()), '"a @43"', {"place": Place(), "text": "a @43"}),
        ((RATE, TextArgument()), "a rate=2 b", {"rate": 2.0, "text": "a b"}),
        ((RATE, TextArgument()), '"a rate=2 b"', {"rate": 0.1, "text": "a rate=2 b"}),
        ((Choice("zero", "mean", name="how"), TextArgument()), "mean", {"how": "mean", "text": ""}),
        ((TextPair("vs", "A vs B"),), 'a vs "b vs c"', {"texts": ("a", "b vs c")}),
        ((TextPair("vs", "A vs B"),), "vs b", {"texts": ("", "b")}),
        ((TextPair("->", "A -> B", also="→"),), "a → b", {"texts": ("a", "b")}),
        ((PATH, TextArgument(quoted=True)), 'my file "a"', {"path": "my file", "text": "a"}),
        ((PATH, Choice("lesson")), "my file lesson", {"path": "my file", "choice": "lesson"}),
        ((PATH, Choice("lesson")), "lesson", {"path": "lesson", "choice": ""}),
        ((PATH, Flag("--all")), "--all f", {"path": "f", "all": True}),
        ((TextArgument(verbatim=True),), ' "a"  ', {"text": ' "a"  '}),
    ],
)  # fmt: skip
def test_what_is_typed_becomes_typed_values(form, typed, values):
    asked = Forms(form).parse(typed)
    assert {name: getattr(asked, name) for name in values} == values
    with pytest.raises(AttributeError):
        asked.other  # noqa: B018


def test_the_form_is_told_by_its_keyword_and_the_usual_one_takes_what_fits_no_other():
    forms = Forms(
        (TextArgument("PROMPT"),), ("step", Number("n", integer(0), required=True)), ("off",)
    )
    assert forms.usage == "[PROMPT] | step N | off"
    assert forms.completions == ("step", "off")
    for typed, keyword, text, n in (
        ("off", "off", "", None),
        ("OFF", "off", "", None),
        ("off the road", "", "off the road", None),
        ("step 3", "step", "", 3),
        ("", "", "", None),
    ):
        asked = forms.parse(typed)
        assert (asked.keyword, asked.text, asked.n) == (keyword, text, n)


@pytest.mark.parametrize(
    ("form", "typed", "error"),
    [
        ((), "x", "unexpected argument 'x'"),
        ((Layer("required", required=True),), "", r"LAYER\.HEAD is missing"),
        ((Layer("required", required=True),), "2 a", r"2 is not LAYER\.HEAD"),
        ((PLACE, TextArgument()), "3 a", "unexpected 3; put a text that starts like that in"),
        ((PLACE, TextArgument()), "@3 @4", "unexpected @4; put a text that starts like that in"),
        ((TextArgument(),), "2.1 a", r"unexpected 2\.1; put a text that starts like that in qu"),
        ((TextArgument(quoted=True),), "a", "unexpected a; put a text in quotes"),
        ((TextArgument(),), '""', "the quotes contain no text"),
        ((RATE, TextArgument()), "rat=1", "unknown option rat=1; available: rate="),
        ((RATE, TextArgument()), "a rate 2", "write rate with =, as in rate=2"),
        ((RATE, TextArgument()), "rate=10", "rate needs a number from 0 to 9, not '10'"),
        ((ChoiceOption("what", "a", "b"),), "what=c", "what needs one of a, b, not 'c'"),
        ((Number("count", integer(1, 9)),), "10", "N needs a whole number from 1 to 9, not '10'"),
        ((TextPair("vs", "A [vs B]", required=1),), "a vs", "a text is missing beside vs"),
        ((TextPair("vs", "A vs B", required=2),), "a", "a text is missing beside vs"),
        ((TextPair("vs", "A vs B"),), "a vs b vs c", "vs occurs twice"),
    ],
)  # fmt: skip
def test_an_error_names_the_value_and_what_fits(form, typed, error):
    with pytest.raises(UsageError, match=error):
        Forms(form).parse(typed)


def test_a_flag_behind_a_file_is_no_part_of_its_name():
    file = Words("path", "FILE", completion="file")
    assert file.take("'my --file'")[0] == {"path": "'my --file'"}
    with pytest.raises(UsageError, match="--overwrite is no option here"):
        file.take("my.safetensors --overwrite")


def test_the_shell_adds_the_usage_to_the_error():
    shell = shell_for(random_checkpoint())
    with pytest.raises(UserError, match=r"unexpected argument 'x' · usage: :clear$"):
        shell.run_line(":clear x")
    with pytest.raises(UserError, match=r"2 is not LAYER\.HEAD · usage: :qkv LAYER\.HEAD "):
        shell.run_line(":qkv 2")


def test_every_command_declares_what_it_takes():
    for each in discover(commands, views):
        assert each.usage == f":{each.name} {each.forms.usage}".rstrip()
        assert ("--json" in each.words) == each.json


def test_train_says_all_that_it_takes_in_its_usage_and_completion():
    train = discover(commands, views).get("train")
    assert train.usage == (
        ":train [CORPUS] [new] [check] [NAME=VALUE ...] | resume [CORPUS] | remake [CORPUS] "
        "| sweep [CORPUS NAME=VALUE,VALUE ...] | settings"
    )
    assert {"new", "resume", "settings", "lr=", "context-length="} <= set(train.words)
    assert train.forms.completion == "file"


@pytest.mark.parametrize(
    ("typed", "keyword", "corpus", "steps", "new"),
    [
        ("", "", "", 0, False),
        ("a text.txt steps=3 new", "", "a text.txt", 3, True),
        ("steps=3 'a  text.txt'", "", "a  text.txt", 3, False),
        ("a/b=c.txt", "", "a/b=c.txt", 0, False),
        ("resume", "resume", "", 0, False),
        ("resume a text.txt", "resume", "a text.txt", 0, False),
        ("settings", "settings", "", 0, False),
        ("settings.txt", "", "settings.txt", 0, False),
    ],
)
def test_settings_stand_at_both_ends_of_a_corpus(typed, keyword, corpus, steps, new):
    asked = discover(commands, views).get("train").parse(typed)
    assert (asked.keyword, asked.corpus) == (keyword, corpus)
    assert (asked.plan.steps, asked.new) == (steps, new)


def test_a_long_usage_line_stands_above_its_summary():
    shell = shell_for(random_checkpoint())
    shell.run_line(":help ablate")
    usage, _summary, _rest = shell.screen.out.file.getvalue().partition("\nAblate a ")
    assert usage.split() == discover(commands, views).get("ablate").usage.split()
