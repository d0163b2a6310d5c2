"""Keys of the prompt line: history, suggestions, completion, and Esc while the model writes."""

import pytest

pytest.importorskip("termios")

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from minillm_repl import commands, views
from minillm_repl.repl.completion import LineCompleter, fuzzy
from minillm_repl.repl.model_loading import ModelLoader
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
        (":attn ", ["0", "1", "2"]),
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
