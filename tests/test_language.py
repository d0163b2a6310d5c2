"""The interface's language: nothing that is seen is left out of the catalog, and the catalog
says the same.
"""

import ast
import re
import string
import unicodedata

import pytest
from babel.messages.mofile import read_mo
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from rich.cells import cell_len

from minillm_repl import commands, views
from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE
from minillm_repl.configuration import initial_language
from minillm_repl.generate import Candidate, Step
from minillm_repl.language import _, set_language
from minillm_repl.render.export import _FONTS
from minillm_repl.render.generation import step_table
from minillm_repl.render.plot import loss_plot
from minillm_repl.repl.completion import LineCompleter
from minillm_repl.repl.registry import GROUPS, discover
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.settings import change, specs
from tests.messages import PACKAGE, PO, extracted, read

TRANSLATED = {  # the parts whose every text goes through `_`
    "app", "cli", "configuration", "settings", "repl", "commands", "model", "tokenizer",
    "checkpoint", "generate", "chat", "storage", "lessons", "training", "render",
    "sandbox", "views", "environment", "kernels", "remote", "evaluation",
}  # fmt: skip


def forms(text):
    """Singular and plural, or the one text."""
    return (text,) if isinstance(text, str) else tuple(text)


def placeholders(text):
    """{"{share:.0%}"} of `reading  {share:.0%}`; a text with other braces takes no values."""
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError:
        return set()
    return {(name, spec, conversion) for _, name, spec, conversion in fields if name is not None}


def test_the_catalog_has_what_the_source_has():
    there, wanted = (
        {message.id for message in catalog if message.id} for catalog in (read(), extracted())
    )
    assert there == wanted, "python -m tests.messages puts it right"


def test_every_text_is_translated():
    assert not [
        message.id
        for message in read()
        if message.id and (not all(forms(message.string)) or message.fuzzy)
    ]


def test_a_translation_shows_the_values_that_the_text_shows():
    for message in read():
        if message.id and all(forms(message.string)):
            english = placeholders(forms(message.id)[-1])
            assert all(placeholders(korean) == english for korean in forms(message.string)), (
                message.id
            )


def test_the_compiled_catalog_is_the_one_that_is_written():
    with PO.with_suffix(".mo").open("rb") as file:
        compiled, written = (
            {forms(message.id): forms(message.string) for message in catalog if message.id}
            for catalog in (read_mo(file), read())
        )
    assert compiled == written, "python -m tests.messages puts it right"


# -- texts that are not marked

# What shows its arguments to the user, or raises them.
SHOWS = {
    "UserError", "ValueError", "Text", "assemble", "append", "print", "note", "warn", "fail",
    "waiting", "update", "plain_table", "add_column", "add_row", "title", "card", "exit",
    "add_argument_group", "_Parser",
}  # fmt: skip
MARKS = {"_", "_n", "N_", "setting", "command"}  # the tool finds what these are given
# no texts, though they look like some; and those that commands are made of, which the tool finds in
# them
DATA = {
    "app": {"minillm-repl"},
    "remote": {"replace", "utf-8", "The quick brown fox jumps over the"},
    "cli": {"minillm-repl: □", "minillm-repl"},
    "repl": {
        "fg:default dim",  # a style
        *GROUPS,
        specs(Settings)["verbose"].details,
        "noreverse dim",
        "minillm-repl",
        "bold",
        "□ is no □",  # a damaged file of progress, which nobody is told
        "LM Studio",  # a name
        "Once upon a time",  # what to type, to a model that is English
        "en",
        "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆ ㅈㅉㅊㅋㅌㅍㅎ",  # letters in the order of Unicode
    },
    "commands": {
        "turns it on",
        "짧게 답해.",  # an example of a system prompt
        "shows the current one",
        "Without a value, the command □. Default: □.",
        "\n:temp sweep shows the most likely next tokens at several temperatures.",
        "ablate",
        "lang □",
        "utf-8",
        "replace",
    },
    "chat": {DEFAULT_CHAT_TEMPLATE.source},
    # errors of whoever writes a lesson
    "lessons": {
        "□ is no □",
        "`□` lacks one of its fields: □",
        "`□` has no field `□`; it has □",
        "`□` has no place there",
        "a lesson needs a title, a paragraph about it, and a screen",
        "the head of a lesson lacks `□`",
        # what a worksheet is made of
        *(
            '<div class="answer">□</div>',
            '<div class="box">□□</div>',
        ),
        '<ol class="options">□</ol>',
        '<p><span class="small">□</span> □</p>',
        '<p>□ <span class="small">□</span></p>',
        "first token",
        "previous token",
        "bold",
    },
    "generate": {
        # somebody else catches these
        "this system has no □",
        "□ is not the study note's kind of GPT",
        *specs(Settings),  # the names of the stages of a draw
    },
    # the names that JSON has; render translates them
    "checkpoint": {"eos_token", "Granite MoE"},
    "views": {
        ":adapter off",
        ":circuit run",
        ":direction load □",
        ":ablate direction □",  # commands that undo or do it again
        "PATH|NAME|base [on FILE|TEXT]",  # a usage, whose words are translated
        "AUC",  # a name
        "Generation(□, □ tokens, reason=□)",  # what Python shows
        # names of parts of the model in `--json`
        *("attention", "attention bias", "feed-forward"),
        "added after layer □",
        "attention bias □",
        "position_embedding",
        "[TOKEN] [vs TOKEN]",  # usage lines, which are translated word by word
        "FILE [vs PATH|NAME]",
        "KL",
        "id",
        "−ln p",
        "not dim □",
        *("logits", "□.mlp"),  # parts of the model, as they are typed
    },
    "render": {
        "<!-- made by minillm-repl -->",
        '<span class="l□">□–□</span>',
        '<span class="t l□□" id="t□" role="button" tabindex="-1">□</span>',
        "bold red",
        "bold underline",
        "reverse underline",
        "id",
        "a generation ends with Finished",
        "training ends with Finished",
        _FONTS,
        "added after layer {n}",
        "attention bias {n}",  # the names that JSON has, beside the screen's
    },
    "training": {"utf-8", "surrogateescape", "model name"},  # the last is of /proc/cpuinfo
    # the process beside imports nothing: what it says is a detail, like a library's error
    "sandbox": {
        "Hello, world 12\n\t ",
        "its text is longer than □ characters",
        "it makes □ tokens of □ characters",
        "it used too much memory",
        "no text has this form, or it takes too many steps to find one",  # as the library's errors
    },
}
MARKUP = (  # what exported files begin with, and scripts for a shell
    *("<svg", "<!DOCTYPE", "<pre", "display: inline-block"),
    *("# Completion", "#compdef", "complete -c ", "compgen -W ", "    □) □; return"),
    *("hf download ", "curl -LO "),  # commands that a user is told
)


def said(node):
    """The literal text of a node, with a box for each value in it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(said, values))
        case ast.FormattedValue():
            return "□"
    return ""


def unmarked(node, shown=False):
    """Yield the literals with a word in them where shown, and with two in a row anywhere."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            if name in MARKS:
                return
            shown = shown or name in SHOWS
        case ast.Constant() | ast.JoinedStr():
            text = said(node)
            if re.search(r"[^\W\d_]{2}" if shown else r"[^\W\d_]{2,}[,;:]? [^\W\d_]{2}", text):
                yield text
            for value in getattr(node, "values", []):
                if isinstance(value, ast.FormattedValue):
                    yield from unmarked(value.value, shown)
            return
        case ast.keyword() | ast.Subscript():
            shown = False
        case ast.Expr(value=ast.Constant()) | ast.Compare() | ast.Assert():
            return
    types = (getattr(node, "annotation", None), getattr(node, "returns", None))
    for child in ast.iter_child_nodes(node):
        if child not in types:  # a type in quotes is no text
            yield from unmarked(child, shown)


@pytest.mark.parametrize("part", sorted(TRANSLATED))
def test_every_text_that_is_seen_is_marked(part):
    files = (
        [PACKAGE / f"{part}.py"]
        if (PACKAGE / f"{part}.py").exists()
        else sorted((PACKAGE / part).rglob("*.py"))
    )
    found = {
        text for file in files for text in unmarked(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert not {text for text in found - DATA.get(part, set()) if not text.startswith(MARKUP)}


@pytest.mark.parametrize(
    "code",
    [
        'raise UserError(f"{name} is not there")',
        'screen.note("loading" if loading else name)',
        'Text(f"{count} tokens", FIGURES)',
        'hint = "type the beginning"',
        'facts = {"parameters": f"about {n} of them"}',
    ],
)
def test_a_text_that_is_not_marked_is_found(code):
    assert list(unmarked(ast.parse(code)))


def test_no_text_is_marked_inside_an_f_string():  # the tool does not look there
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                inside = (each for each in ast.walk(node) if isinstance(each, ast.Call))
                marked = [
                    each for each in inside if getattr(each.func, "id", "") in ("_", "_n", "N_")
                ]
                assert not [each for each in marked if isinstance(each.args[0], ast.Constant)], (
                    file,
                    node.lineno,
                )


# -- which language


@pytest.mark.parametrize(
    ("environment", "spoken"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "ko"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": ""}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "MINILLM_LANG": "en"}, "en"),
        ({"LANG": "ko_KR.UTF-8", "MINILLM_LANG": "auto"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "MINILLM_LANG": "klingon"}, "ko"),
    ],
)
def test_the_locale_chooses_unless_something_else_does(tmp_path, environment, spoken):
    file = tmp_path / "config.toml"
    assert initial_language(None, environment, file) == spoken
    assert initial_language("ko", environment, file) == "ko"
    assert initial_language("en", environment, file) == "en"
    file.write_text('lang = "ko"')
    assert initial_language(None, environment, file) == (
        "en" if environment.get("MINILLM_LANG") == "en" else "ko"
    )
    file.write_text("lang = [")
    assert initial_language(None, environment, file) == spoken


# -- Korean names of commands


def completions(text):
    completer = LineCompleter(discover(commands, views), Session())
    return [each.text for each in completer.get_completions(Document(text), CompleteEvent())]


def test_no_two_commands_have_a_name_in_common():
    names = [name for each in discover(commands, views) for name in (each.name, *each.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_korean_name_works_however_its_syllables_are_encoded(form):
    typed = unicodedata.normalize(form, "온도")
    assert discover(commands, views).get(typed).name == "temp"
    assert change(Settings(), typed, "0.5").temp == 0.5
    assert completions(f":{typed}") == ["온도"]
    assert completions(":모") == ["모델", "모델목록"]
    assert completions(":도움말 온") == ["온도"]


def test_korean_names_are_completed_only_where_hangul_is_typed():
    assert all(
        each.isascii() for each in completions(":") + completions(":t") + completions(":help ")
    )


# -- Hangul is two cells wide


@pytest.fixture
def korean():
    set_language("ko")
    yield
    set_language("en")


def test_the_lists_of_commands_fit_into_80_columns_in_korean(korean):
    for each in discover(commands, views):
        names = ", ".join(f":{name}" for name in (each.name, *each.korean_names))
        assert cell_len(names) <= 18
        assert cell_len(_(each.summary)) <= 60
        assert _(each.summary).endswith(".")


def test_the_columns_of_a_step_stay_below_their_headings_in_korean(korean):
    tokens = [(each, tuple(each.encode())) for each in ("날씨", "a", "하늘이 맑다")]
    top = tuple(
        Candidate(
            id=place,
            text=text,
            bytes=data,
            model_prob=0.25,
            prob=0.5,
            kept=place < 2,
            chosen=place == 0,
        )
        for place, (text, data) in enumerate(tokens)
    )
    step = Step(
        index=0,
        id=0,
        text="날씨",
        bytes=top[0].bytes,
        prob=0.5,
        logprob=-0.7,
        model_prob=0.25,
        rank=1,
        entropy=2.0,
        top=top,
    )
    heading, _rule, *rows = step_table(step, "뽑을 확률", 80, 44).plain.splitlines()
    start = cell_len(heading[: heading.index("모델")])
    assert {cell_len(row[: row.index("%") + 1]) for row in rows} == {start + 6}
    assert cell_len(rows[2][: rows[2].index("제외") + 2]) == cell_len(
        rows[0][: rows[0].rindex("%") + 1]
    )


def test_the_frame_of_a_curve_stays_straight_in_korean(korean):
    curve = [(step, 1 / step) for step in range(1, 50)]
    lines = loss_plot(curve, curve[::10], 80, 10, colours=False).plain.splitlines()
    assert {cell_len(line) for line in lines} == {80}
    assert "검증" in lines[0]


# -- what keeps a text that is marked from being translated

SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
)


def bound(scope):
    """The names that a scope binds itself."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        if not isinstance(node, (*SCOPES, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)


def shadowed(tree):
    """The lines on which a text is to be translated by something else that is called `_` there."""
    for scope in ast.walk(tree):
        if isinstance(scope, SCOPES):
            for name in {"_", "_n", "N_"} & set(bound(scope)):
                calls = (each for each in ast.walk(scope) if isinstance(each, ast.Call))
                yield from (
                    each.lineno
                    for each in calls
                    if isinstance(each.func, ast.Name) and each.func.id == name
                )


def shown_as_they_are(tree, marked):
    """The lines on which a text that was only marked is shown, and not translated."""
    for call in ast.walk(tree):
        if (
            isinstance(call, ast.Call)
            and getattr(call.func, "id", getattr(call.func, "attr", "")) in SHOWS
        ):
            for given in (*call.args, *(keyword.value for keyword in call.keywords)):
                if isinstance(given, ast.Name) and given.id in marked:
                    yield call.lineno


def only_marked():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = getattr(node, "value", None) if isinstance(node, ast.Assign) else None
            if isinstance(called, ast.Call) and getattr(called.func, "id", "") == "N_":
                yield from (target.id for target in node.targets)


def test_no_throwaway_takes_the_name_of_what_translates():
    for file in PACKAGE.rglob("*.py"):
        assert not list(shadowed(ast.parse(file.read_text(encoding="utf-8")))), file


def test_a_text_that_is_made_before_the_language_is_known_is_translated_where_it_is_shown():
    marked = set(only_marked())
    assert "STOPPED_EARLY" in marked
    for file in PACKAGE.rglob("*.py"):
        assert not list(shown_as_they_are(ast.parse(file.read_text(encoding="utf-8")), marked)), (
            file
        )


@pytest.mark.parametrize(
    "code",
    [
        "def f(rows):\n    for _ in rows:\n        pass\n    return _('text')",
        "def f(text):\n    head, _, tail = text.partition(':')\n    raise "
        "UserError(_('{head}', head=head))",
        "keys.add(lambda _: show(_('text')))",
        "texts = [_('text') for _ in range(3)]",
        "def f(_):\n    def g():\n        return _('text')\n    return g",
        "def f(counts):\n    with counts as _n:\n        return _n('one', 'many', 2)",
    ],
)
def test_a_throwaway_in_the_way_is_found(code):
    assert list(shadowed(ast.parse(code)))


def test_a_text_shown_as_it_is_marked_is_found():
    assert list(shown_as_they_are(ast.parse("raise UserError(EARLY) from None"), {"EARLY"}))
    assert not list(shown_as_they_are(ast.parse("raise UserError(_(EARLY))"), {"EARLY"}))


def test_stopping_before_the_first_measurement_is_told_in_the_language_of_the_user(
    tmp_path, monkeypatch
):
    from minillm_repl.errors import UserError
    from minillm_repl.training.plan import TrainPlan
    from minillm_repl.training.prepare import start_run
    from minillm_repl.training.run import RunContext

    path = tmp_path / "t.txt"
    path.write_text("가나다라 " * 4_000, encoding="utf-8")
    # so that the measurement asks on its way
    monkeypatch.setattr("minillm_repl.training.evaluation._EVAL_BATCH_TOKENS", 64)
    plan = TrainPlan(
        steps=2, d_model=16, n_layers=1, context_length=16, preset="note", precision="float32"
    )
    trainee = start_run(
        None, str(path), plan, RunContext(path=tmp_path / "m", device="cpu", threads=1)
    )
    set_language("ko")
    try:
        with pytest.raises(UserError, match="[가-힣]"):
            list(trainee.events(lambda: True))
    finally:
        set_language("en")
