"""What is told is so: seconds, seeds, marks, notes."""

import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

import minillm_repl.generate.generate as generation
from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE, ROLE_TOKENS
from minillm_repl.errors import UserError
from minillm_repl.generate import Finished, GenerationConfig, Prefill, never_interrupted
from minillm_repl.generate.generate import generate
from minillm_repl.generate.sampling import make_rng
from minillm_repl.language import set_language
from minillm_repl.repl.answering import respond
from minillm_repl.repl.workspace import Workspace, Writable
from minillm_repl.tokenizer import CharacterTokenizer, Token
from minillm_repl.views.ablate_view import PartEffect, ScanView
from minillm_repl.views.branch import Branch, BranchesView
from minillm_repl.views.neurons import Neuron, NeuronsView
from tests.small import random_checkpoint
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - the last is a fixture

LETTERS = [*"abcdefghijklmnopqrstuvwxyz "]


class Clock:
    """A second goes by for each token that is read, and for nothing else that is not asked for."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(generation, "perf_counter", lambda: self.now)

    def watches(self, decoder):
        prefill, decode = decoder.prefill, decoder.decode

        def slow_prefill(ids):
            self.now += len(ids)
            return prefill(ids)

        def slow_decode(token):
            self.now += 1
            return decode(token)

        decoder.prefill, decoder.decode = slow_prefill, slow_decode


@pytest.fixture
def shell():
    made = shell_for(random_checkpoint(characters=LETTERS, context=200))
    made.session.set("max-tokens", "3")
    made.session.set("seed", "5")
    return made


@pytest.fixture
def decoder(shell, monkeypatch):
    decoder = shell.require_model().decoder
    decoder.prefill_chunk = 4
    decoder.clock = Clock(monkeypatch)
    decoder.clock.watches(decoder)
    return decoder


def last(decoder, ids, max_tokens=3, interrupted=never_interrupted, told=None, **more):
    config = GenerationConfig(max_tokens=max_tokens, **more)
    tokenizer = CharacterTokenizer(LETTERS)
    for event in generate(decoder, tokenizer, ids, config, make_rng(1), interrupted):
        decoder.clock.now += 50  # whoever draws it takes its time
        if told is not None and isinstance(event, Prefill):
            told.append((event.done, event.total))
            decoder.clock.now += 1000
    return event


def test_prompt_seconds_are_those_of_reading_what_the_cache_has_not(decoder):
    ids = list(range(10))
    assert last(decoder, ids).prompt_seconds == 10
    # what was written before may be the same token
    assert last(decoder, [*ids, 3, 4]).prompt_seconds in (2, 3)
    decoder.trim(0)
    told = []
    assert last(decoder, ids, told=told).prompt_seconds == 10
    assert told == [(4, 10), (8, 10)]


def test_prompt_seconds_of_what_was_not_read_are_none(decoder):
    finished = last(decoder, [1, 2, 3], max_tokens=0)
    assert (finished.prompt_seconds, finished.tokens, finished.seconds) == (0, 0, 0)
    assert last(decoder, [1, 2, 3], interrupted=lambda: True).prompt_seconds == 0
    assert last(decoder, [1] * 201, context_shift=False).reason == "context"
    assert last(decoder, [1] * 201, context_shift=False).prompt_seconds == 0


def test_prompt_seconds_of_a_prompt_that_was_stopped_are_those_until_then(decoder):
    presses = iter([False, False, True])
    finished = last(decoder, list(range(20)), interrupted=lambda: next(presses, True))
    assert (finished.reason, finished.prompt_seconds, finished.seconds) == ("interrupt", 8, 0)


@pytest.mark.parametrize("text", ["abc", "a prompt of several pieces that is told as it is read"])
def test_the_repl_measures_the_prompt_as_json_does(shell, decoder, text):
    model, session = shell.require_model(), shell.session
    session.conversation.start_turn(shell.encode(model, text), session.settings)
    assert respond(shell, model).prompt_seconds == len(text)
    decoder.trim(0)
    session.conversation.undo()
    session.conversation.start_turn(shell.encode(model, text), session.settings)
    *_steps, finished = session.conversation.generate(model, session.settings, lambda: False, 0)
    assert isinstance(finished, Finished)
    assert finished.prompt_seconds == len(text)


# -- another try


def texts(shell, *lines):
    """The text after each of these lines."""
    found = []
    for line in lines:
        shell.run_line(line)
        found.append(tuple(shell.session.conversation.ids))
    return found


def test_another_try_is_never_the_one_that_it_replaces(shell):
    shell.session.set("max-tokens", "12")
    first, second, _other, back, third = texts(shell, "abc", ":regen", "xyz", ":undo", ":regen")
    assert back == second
    assert len({first, second, third}) == 3
    assert first[:3] == second[:3] == third[:3]


def test_a_try_of_a_seed_is_the_completion_of_that_seed(shell):
    shell.session.set("max-tokens", "12")
    shell.run_line("abc")
    for line, seed in (
        (":regen", 6),
        (":regen", 7),
        (":seed 40", 7),
        (":regen", 40),
        (":regen", 41),
    ):
        shell.run_line(line)
        fresh = shell_for(random_checkpoint(characters=LETTERS, context=200))
        fresh.session.set("max-tokens", "12")
        fresh.session.set("seed", str(seed))
        assert texts(fresh, "abc") == [tuple(shell.session.conversation.ids)]
        assert shell.session.conversation.seed == seed


def test_after_a_continuation_another_try_is_another_continuation(shell):
    shell.session.set("max-tokens", "12")
    text, more, again, undone = texts(shell, "abc", ":continue", ":regen", ":undo")
    assert more[: len(text)] == again[: len(text)] == undone == text
    assert more != again
    given, other = texts(shell, ":continue xyz", ":regen")
    assert given[: len(text) + 3] == other[: len(text) + 3]
    assert given != other


@pytest.mark.parametrize("given", [(), ("hello",)], ids=["text so far", "text in quotes"])
def test_after_a_way_was_taken_another_try_is_none_of_those_shown(shell, given):
    shell.run_line("abc")
    shell.run_line(":branch 3 tokens=3" + "".join(f' "{each}"' for each in given))
    branches = shell.session.conversation.branches
    ways = set(branches.texts)
    assert len(ways) == 3
    taken, again = texts(shell, ":branch take 2", ":regen")
    assert taken in ways
    assert again not in ways
    assert again[: branches.prompt_length] == taken[: branches.prompt_length]


def test_after_ctrl_c_another_try_is_whole(shell):
    shell.session.set("max-tokens", "12")
    presses = iter([False, False, False])
    shell.interrupted = lambda: next(presses, True)
    shell.run_line("abc")
    stopped = tuple(shell.session.conversation.ids)
    shell.interrupted = lambda: False
    again, undone = texts(shell, ":regen", ":undo")
    assert len(stopped) < len(again) == 15
    assert again[:3] == stopped[:3]
    assert undone == ()


def test_what_cannot_be_done_again_is_told(shell):
    with pytest.raises(UserError, match="nothing to regenerate: type a prompt first"):
        shell.run_line(":regen")
    texts(shell, "abc", ":undo")
    with pytest.raises(UserError, match="nothing to undo"):
        shell.run_line(":undo")
    texts(shell, ":temp 0", "abc", ":regen")
    assert "at temp 0 every try gives the same text" in printed(shell)


# -- notes


def test_a_step_that_goes_too_far_says_so_and_one_that_does_not_does_not(shell):
    shell.run_line(':descent rate=0.01 "a text of words"')
    assert "the loss increased" not in printed(shell)
    shell.run_line(':descent rate=900 "a text of words"')
    assert printed(shell).count("! the loss increased") == 1


def test_a_model_whose_context_is_limited_is_announced_with_what_it_sees(tmp_path):
    from minillm_repl.checkpoint.native import save_native as save
    from minillm_repl.repl.model_loading import ModelLoader

    save(random_checkpoint(characters=LETTERS, context=40), tmp_path / "m.safetensors")
    for limit, context in ((16, 16), (0, 40), (400, 40)):
        made = shell_for(random_checkpoint(characters=LETTERS, context=12))
        made.session.workspace.loader = ModelLoader(threads=1, context_length=limit)
        made.run_line(f":load {tmp_path / 'm.safetensors'}")
        assert f"context {context} " in printed(made)


def test_several_ways_are_the_same_at_temp_0_and_one_is_not_told_so(shell):
    texts(shell, ":temp 0", "abc", ":branch 1 tokens=2")
    assert "all continuations are the same" not in printed(shell)
    texts(shell, ":branch 2 tokens=2")
    assert "at temp 0 all continuations are the same" in printed(shell)


def test_a_file_that_could_not_be_opened_is_not_said_to_be_missing(tmp_path):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"no model")
    made = shell_for(random_checkpoint(characters=LETTERS))
    made.session.workspace = Workspace(destination=Writable(file))
    with pytest.raises(UserError, match="no model yet"):
        made.run_line("abc")
    file.unlink()
    with pytest.raises(UserError, match="broken.safetensors does not exist"):
        made.run_line("abc")


# -- chat


@pytest.fixture
def talker():
    letters = [*LETTERS, "\n"]
    checkpoint = random_checkpoint(characters=[*letters, *"ABCD"], context=120)
    tokenizer = CharacterTokenizer(letters, ROLE_TOKENS)
    made = shell_for(replace(checkpoint, tokenizer=tokenizer, chat_template=DEFAULT_CHAT_TEMPLATE))
    made.session.set("max-tokens", "5")
    made.session.set("seed", "5")
    return made


def test_another_try_of_an_answer_is_another_answer_to_the_same_question(talker):
    first, second, third = texts(talker, "hello", ":regen", ":regen")
    given = talker.session.conversation.turns[-1].prompt_ids
    assert len({first, second, third}) == 3
    assert {each[: len(given)] for each in (first, second, third)} == {given}
    assert [message.role for message in talker.session.conversation.messages] == [
        "user",
        "assistant",
    ]
    (more, again) = texts(talker, ":continue", ":regen")
    assert more != again
    assert len(talker.session.conversation.messages) == 2
    talker.run_line(":undo")
    assert tuple(talker.session.conversation.ids) == third


def test_the_chat_switch_says_what_becomes_of_the_text(talker):
    texts(talker, ":chat off", "half a text")
    half = tuple(talker.session.conversation.ids)
    talker.run_line(":chat on")
    assert "the next prompt starts a conversation without the text so far" in " ".join(
        printed(talker).split()
    )
    talker.run_line(":continue")
    assert tuple(talker.session.conversation.ids)[: len(half)] == half  # as was said
    talker.run_line(":undo")
    talker.run_line("hello")
    assert talker.session.conversation.messages[0].content == "hello"
    conversation = (
        tuple(talker.session.conversation.ids),
        list(talker.session.conversation.messages),
    )
    talker.run_line(":chat off")
    assert "the next prompt starts a new text" in " ".join(printed(talker).split())
    talker.run_line("a text")
    assert not talker.session.conversation.messages
    talker.run_line(":undo")
    assert (
        tuple(talker.session.conversation.ids),
        list(talker.session.conversation.messages),
    ) == conversation
    talker.run_line(":undo")
    assert tuple(talker.session.conversation.ids) == half
    shown = len(printed(talker))
    texts(talker, ":clear", ":chat on")
    assert "starts a conversation" not in printed(talker)[shown:]  # nothing is there to be lost


def test_a_model_that_cannot_chat_says_so_at_once(shell):
    with pytest.raises(UserError, match="has no chat template"):
        shell.run_line(":chat on")
    assert shell.session.settings.chat is None
    with pytest.raises(UserError, match="has no chat template"):
        shell.run_line(":set chat on")
    shell.run_line(":chat off")


def test_turns_that_leave_are_told_with_the_room_that_they_left_for(talker):
    talker.session.set("max-tokens", "auto")
    talker.interrupted = lambda: True  # the answers do not matter here
    for _turn in range(4):
        talker.run_line("a turn of some words here")
    shown = " ".join(printed(talker).split())
    # A turn is 29 tokens, a question 28: the fourth makes 115 of 96, and a quarter of the room is
    # made free as well.
    assert (
        "the model no longer sees the oldest 2 turns: "
        "24 of its 120 tokens are reserved for the answer"
    ) in shown
    assert "exceeds the context" not in shown


def test_a_text_that_outgrows_the_context_is_told_once_and_each_such_text_is():
    made = shell_for(random_checkpoint(characters=LETTERS, context=20))
    made.session.set("max-tokens", "12")
    told = "the text exceeds the context: the model sees the last {seen} of its {tokens} tokens"
    for line, tokens, seen in (
        ("abcdefghij", 22, 20),
        (":continue", 0, 0),
        (":undo", 0, 0),
        (":regen", 22, 20),
        ("xyz", 0, 0),
        ("a text that is longer than the context at once", 58, 20),
    ):
        before = len(printed(made))
        made.run_line(line)
        shown = " ".join(printed(made)[before:].split())
        assert ("exceeds the context" in shown) == bool(tokens)
        assert not tokens or told.format(tokens=tokens, seen=seen) in shown


# -- marks and bars


def drawn(picture, width=80):
    console = Console(width=width, file=None, record=True, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return captured.get()


def way(*probs, text="abcdef"):
    tokens = tuple(Token(ord(letter), letter, (ord(letter),)) for letter in text)
    return Branch(
        tokens=tokens, probs=probs, prob=float(np.prod(probs)), reason="length", said=len(tokens)
    )


def test_a_way_that_is_one_piece_has_no_second_probability_whatever_rounding_does():
    probs = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    rounded = tuple(each * (1 + 1e-9) for each in probs)
    picture = drawn(BranchesView(Token(1, "x", (120,)), 3, (way(*probs), way(*rounded))).draw(80))
    assert "[1]  [2]" in picture
    assert "=" not in picture.split("percent:")[0].replace("=:", "")


def test_a_way_with_a_stem_has_the_probability_of_all_of_it():
    ways = (way(0.5, 0.5, text="ab"), way(0.5, 0.25, text="ac"))
    picture = drawn(BranchesView(Token(1, "x", (120,)), 3, ways).draw(80))
    assert "[1]=25.0%" in picture
    assert "[2]=12.5%" in picture


@pytest.mark.parametrize("width", [40, 80, 200])
def test_bars_of_a_scan_stand_in_one_column_and_on_one_scale(width):
    heads = tuple(
        PartEffect(f"head {layer}.{head}", "head", layer, head, (layer - 6) / 10)
        for layer in range(12)
        for head in range(11)
    )
    nothing = {"unseen": 0, "kept": 0, "answer": None, "other": None, "source": "", "texts": 0}
    view = ScanView(
        tokens=(), what="heads", how="zero", by="loss", before=1.0, effects=heads, parts=132,
        **nothing,
    )  # fmt: skip
    lines = drawn(view.draw(width), width).splitlines()
    rows = [line for line in lines if "│" in line]
    assert len({line.index("│") for line in rows}) == 1
    bars = {float(line.split()[-1]): line.count("█") for line in rows}
    most = max(bars.values())
    assert all(abs(count - most * abs(value) / 0.6) <= 1 for value, count in bars.items())


def test_bars_along_a_text_of_ten_thousand_tokens_stand_in_one_column():
    tokens = tuple(Token(1, "a", (97,)) for _ in range(12_000))
    active = tuple(1.0 if place in (5, 11_000) else 0.0 for place in range(12_000))
    neuron = Neuron(3, active, promotes=(), suppresses=())
    lines = drawn(NeuronsView(0, 9, tokens, (neuron,)).draw(80)).splitlines()
    rows = [line for line in lines if "│" in line]
    assert len({line.index("│") for line in rows}) == 1


@pytest.mark.parametrize("language", ["ko", "en"])
def test_a_narrow_terminal_cuts_no_number_of_a_table(state, language):
    set_language(language)
    checkpoint = random_checkpoint(characters=LETTERS)
    for command in (":lens", ":prob abc"):
        told = []
        for width in (120, 60, 42):
            made = shell_for(checkpoint, width=width)
            made.session.set("seed", "5")
            made.run_line("the cat")
            before = len(printed(made))
            made.run_line(command)
            told.append(re.findall(r"(?<!\S)\d+\.\d+(?:%|(?=\s))", printed(made)[before:]))
        assert told[0] == told[1] == told[2], command
        assert len(told[0]) > 3, command


def test_temperatures_that_do_not_fit_are_left_out_and_the_one_that_is_set_stays(state):
    rows = []
    for width in (80, 42):
        made = shell_for(random_checkpoint(characters=LETTERS), width=width)
        made.session.set("temp", "0.7")
        made.session.set("seed", "5")
        made.run_line("the cat")
        before = len(printed(made))
        made.run_line(":temp sweep")
        head, *lines = [
            line.split()
            for line in printed(made)[before:].splitlines()
            if re.search("%|▶$|▶ +[0-9]", line)
        ]
        rows.append(
            [
                {"token": line[0], **dict(zip(head[1:], line[1:], strict=True))}
                for line in [head, *lines]
            ]
        )
    wide, narrow = rows
    assert len(wide) == len(narrow) == 11
    assert [*narrow[0]] == ["token", "0.6", "0.7▶", "1"]
    assert all(few.items() <= all_.items() for few, all_ in zip(narrow, wide, strict=True))
