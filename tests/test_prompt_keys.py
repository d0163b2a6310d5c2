"""Keys of the prompt line: history, suggestions, completion, and Esc while the model writes."""

import pytest

pytest.importorskip("termios")

from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import fragment_list_to_text
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console
from rich.text import Text

from minillm_repl import commands, views
from minillm_repl.repl.completion import LineCompleter, fuzzy
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.pager import Pager
from minillm_repl.repl.registry import discover
from minillm_repl.repl.session import Session
from minillm_repl.repl.workspace import Workspace
from tests.small import random_checkpoint

# For their fixtures.
from tests.test_terminal import line_is, long_generation, models, prompt, visit  # noqa: F401


def test_up_goes_to_lines_that_begin_as_typed_and_right_takes_the_grey_rest(prompt):
    for line in (":temp 0.1", "가나", ":top-k 3"):
        prompt.do(line)
    prompt.type(":te")
    prompt.wait_for(line_is(">>> :temp 0.1"))  # the rest is suggested
    prompt.keys("up")
    prompt.wait_for(lambda terminal: terminal.screen.cursor.x == len(">>> :temp 0.1"))
    prompt.keys("ctrl-c")
    prompt.type("가")
    prompt.wait_for(line_is(">>> 가나"))
    prompt.type("\x1b[C")  # →
    prompt.wait_for(lambda terminal: terminal.screen.cursor.x == len(">>> ") + 4)
    prompt.keys("ctrl-a")
    prompt.type("\x1b[C")  # not at the end: only a step
    prompt.wait_for(lambda terminal: terminal.screen.cursor.x == len(">>> ") + 2)


def test_a_backslash_before_enter_breaks_the_line_and_two_are_text(prompt):
    prompt.type("가\\\r나")
    prompt.wait_for(line_is(">>> 가", "... 나"))
    prompt.keys("ctrl-c")
    prompt.type("\\\\\r")
    prompt.wait_for("no character of this is in the vocabulary: \\; the")


def test_a_slash_opens_the_menu_of_commands(prompt):
    prompt.type("/te")
    prompt.wait_for("0 is greedy")
    prompt.keys("ctrl-c")
    prompt.wait_for(lambda terminal: terminal.at_empty_prompt)
    prompt.type("/home/te")
    prompt.keys("tab")
    prompt.type("x")
    prompt.wait_for(line_is(">>> /home/tex"))


@pytest.mark.parametrize("word", ["exit", "quit"])
def test_a_bare_word_leaves(prompt, word):
    prompt.send(word)
    assert prompt.wait_for_end() == 0


def test_escape_stops_an_answer_and_other_keys_wait(visit):
    terminal = visit("--max-tokens", "20000")
    terminal.wait_for_prompt()
    before = long_generation(terminal, "가")
    terminal.type("나\x1b[A\x1b[B다")
    terminal.type("\x1b")
    terminal.wait_for("stopped by Esc")
    terminal.wait_for(lambda each: each.prompts > before)
    terminal.wait_for(line_is(">>> 나다"))


def test_letters_of_a_name_in_their_order_find_it_the_nearest_first():
    words = ["top-k", "stop", "tokens", "temp"]
    assert fuzzy("to", words) == ["tokens", "top-k", "stop"]
    assert fuzzy("tp", words) == ["stop", "top-k", "temp"]
    assert fuzzy("t", words) == ["temp", "tokens", "top-k"]
    assert fuzzy("", words) == sorted(words)


@pytest.fixture(scope="module")
def completions():
    """What Tab offers after a text, before a tiny model that was told `가나 다`."""
    characters = ["가", "나", "다", " ", "각"]
    model = ModelLoader().prepare(random_checkpoint(characters=characters, layers=3, heads=2))
    session = Session(workspace=Workspace(model=model))
    session.conversation.ids = model.checkpoint.tokenizer.encode("가나 다")
    completer = LineCompleter(discover(commands, views), session)
    event = CompleteEvent(completion_requested=True)
    return lambda text: [each.text for each in completer.get_completions(Document(text), event)]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (":atn", ["attn"]),
        (":attn ", ["rollout", "0", "1"]),
        (":attn 1.", ["1.0", "1.1"]),
        (":why by=l", ["by=layer"]),
        (":why @", ["@0", "@1", "@2", "@3"]),
        (":why @2", ["@2"]),
        (":lens @다", ["@다"]),
        (":qkv 0.0 key=", ["key=0", "key=1", "key=2", "key=3"]),
        (":why 가", ["가"]),
        (":near 다", ["다"]),
        (":steer 가 layer=", ["layer=0", "layer=1", "layer=2"]),
        ("가나", []),
    ],
)
def test_tab_knows_names_layers_heads_places_and_tokens(completions, typed, offered):
    found = [each for each in completions(typed) if not each.startswith("--")]
    assert found[: len(offered)] == offered
    assert bool(found) == bool(offered)


def test_an_answer_breaks_between_words_on_the_screen_and_is_whole_in_a_file(visit, tmp_path):
    terminal = visit("--ckpt", "story", "--temp", "0", "--max-tokens", "200", columns=50)
    terminal.wait_for_prompt()
    shown = terminal.do("Once upon a time").partition("tokens")[0].splitlines()[:-1]
    terminal.do(":export all.txt session")
    saved = (tmp_path / "all.txt").read_text(encoding="utf-8")
    assert len(shown) > 5
    assert max(map(len, shown)) < 50
    assert "".join("".join(shown).split()) in "".join(saved.split())


def test_the_pager_searches_and_goes_to_both_ends():
    rows = [
        f"row {number} of 날씨" if number % 30 == 7 else f"row {number}" for number in range(100)
    ]

    def shown(keys):
        """The first row, the rows that stand out, and what is said below, after some keys."""
        with create_pipe_input() as keyboard, create_app_session(keyboard, DummyOutput()):
            pager = Pager(Text("\n".join(rows)), 40, Console())
            keyboard.send_text(keys + "q")
            pager.run()
            part = pager._visible_part()
            found = "".join(text for style, text in part if "reverse" in style)
            return part_text(part).split("\n", 1)[0].strip(), found, part_text(pager._status())

    part_text = fragment_list_to_text
    assert shown("")[:2] == ("row 0", "")
    assert "rows 1-39 of 100" in shown("")[2]
    assert shown("G")[0] == "row 61"
    assert shown("Gg")[0] == "row 0"
    assert shown("/날씨\r")[:2] == ("row 7 of 날씨", "날씨날씨")
    assert shown("/날씨\rn")[0] == "row 37 of 날씨"
    assert shown("/날씨\rnN")[0] == "row 7 of 날씨"
    assert shown("/날씨\rnnnn")[0] == "row 7 of 날씨"  # after the last, the first
    assert "없다 is not here" in shown("/없다\r")[2]
    assert shown("/g\x7fRoW 50\r")[0] == "row 50"
