"""The program as a person meets it: keys into a real pseudo-terminal, the screen out of it."""

import os
import re
import sys
import unicodedata
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from rich.cells import cell_len

pytest.importorskip("termios")  # Windows has no pseudo-terminals of this kind

from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.model.config import GPTConfig
from minillm_repl.tokenizer import CharacterTokenizer
from tests.conftest import ROOT, random_checkpoint
from tests.terminal import PROMPT, Terminal

CORPUS = ROOT / "models" / "nalssi.txt"
# In this order, round and round, writes the model most tests talk to.
LETTERS = "가나다라마바사아자차카타파하:"
BAR = re.compile("[█▉▊▋▌▍▎▏]+")
COLOR = re.compile(rb"\x1b\[(?:[0-9]+;)*(?:[34][0-8]|9[0-7]|10[0-7])[;m]")
HOSTILE = "가[bold]\x1bc\x9d0;pwn\x07\x9b31m\u202e\b\r\x7f\u2028\ufeff\u200b\U000e0041"


def chain(cycle, extras="\n "):
    """A model that at temperature 0 writes `cycle` again and again; after an extra it begins anew.

    The stream holds which token this is, no block adds to it, and the head answers with the next.
    """
    characters = [*cycle, *extras]
    size = len(characters)
    config = GPTConfig(vocab_size=size, context_length=16, d_model=size, n_layers=1, n_heads=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes()}
    tensors["token_embedding.weight"] = np.eye(size, dtype=np.float32)
    for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_f"):
        tensors[norm + ".weight"] += 1
    for place in range(size):
        following = (place + 1) % len(cycle) if place < len(cycle) else 0
        tensors["lm_head.weight"][following, place] = 10
    return Checkpoint(config=config, tokenizer=CharacterTokenizer(characters), tensors=tensors)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of checkpoints that nobody writes to."""
    folder = tmp_path_factory.mktemp("models")
    save(chain(LETTERS), folder / "chain.safetensors")
    save(chain(HOSTILE), folder / "hostile.safetensors")
    mixed = ["가", "힣", "漢", "ﾊ", "a", " ", "\n", "é", "🙂", "다", "\t", "0"]
    save(random_checkpoint(characters=mixed, width=12, context=32), folder / "mixed.safetensors")
    return folder


@pytest.fixture
def visit(tmp_path, models):
    """Opens terminals on the program; each test has a home of its own, and no variable of ours
    but those named here.
    """
    opened = []
    home = tmp_path / "home"
    home.mkdir()

    def open_(*arguments, ckpt="chain", variables=(), **terminal):
        environment = {
            name: os.environ[name] for name in ("PATH", "MINILLM_KERNELS_DIR") if name in os.environ
        }
        environment |= {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "MINILLM_HISTORY": str(home / "history"),
        }
        environment = {
            name: value
            for name, value in (environment | dict(variables)).items()
            if value is not None
        }
        if ckpt == "chain":
            arguments = ("--temp", "0", "--max-tokens", "4", *arguments)
        name = (
            ckpt
            if ckpt in ("auto", "nalssi", "story", "pebble", "new.safetensors")
            else models / f"{ckpt}.safetensors"
        )
        arguments = ("--ckpt", str(name), *arguments)
        terminal = Terminal(arguments, environment=environment, folder=tmp_path, **terminal)
        opened.append(terminal)
        return terminal

    yield open_
    for each in opened:
        each.close()


@pytest.fixture
def prompt(visit):
    """A terminal at its first prompt line, before the chain model."""
    terminal = visit()
    terminal.wait_for_prompt()
    return terminal


def line_is(*rows):
    """Tell whether the prompt line and those below it look like this."""

    def looks(terminal):
        prompts = [y for y, row in enumerate(terminal.lines) if row.startswith(PROMPT)]
        return bool(prompts) and terminal.lines[prompts[-1] :][: len(rows)] == list(rows)

    looks.__qualname__ = f"line_is{rows}"
    return looks


def wrapped(first, rest):
    """Match a prompt line that goes on in the next row, which must not look like a line itself."""
    return re.compile(rf"^>>> {first}\n *{rest}$", re.MULTILINE)


def stop_generating(terminal, before):
    """Press Ctrl-C while the model writes, and wait for the prompt line after it."""
    terminal.interrupt()
    terminal.wait_for_prompt(before)


def long_generation(terminal, text, rows=30):
    """Send a prompt whose completion does not end by itself; wait until there is some of it.

    Return `prompts`.
    """
    before, lines = terminal.prompts, len(terminal.screen.gone)
    terminal.send(text)
    terminal.wait_for(lambda terminal: len(terminal.screen.gone) > lines + rows)
    return before


def in_order(text, cycle=LETTERS):
    """Tell whether each letter of a text is what the chain writes after the one before."""
    return all(cycle[(cycle.index(a) + 1) % len(cycle)] == b for a, b in pairwise(text))


# -- typing


def test_backspace_removes_a_whole_hangul_syllable(prompt):
    prompt.type("날씨가")
    prompt.wait_for(line_is(">>> 날씨가"))
    prompt.keys("backspace", "backspace")
    prompt.wait_for(line_is(">>> 날"))
    assert prompt.screen.cursor.x == len(PROMPT) + 2
    prompt.type("마")
    prompt.wait_for(line_is(">>> 날마"))
    prompt.keys("left", "left", "backspace")  # nothing stands before the first
    prompt.type("a")
    prompt.wait_for(line_is(">>> a날마"))
    prompt.keys("ctrl-e", "backspace", "backspace", "backspace")
    prompt.wait_for(lambda terminal: terminal.at_empty_prompt)


def test_an_input_method_may_replace_a_syllable_as_it_grows_and_split_its_bytes(prompt):
    prompt.type(
        "ㄱ\x7f가\x7f각\x7f가"
    )  # as some input methods do: each stage takes the last one back
    prompt.wait_for(line_is(">>> 가"))
    first, *rest = "나".encode()
    os.write(prompt.child.child_fd, bytes([first]))
    prompt.pump()
    os.write(prompt.child.child_fd, bytes(rest))
    prompt.wait_for(line_is(">>> 가나"))
    prompt.keys("enter")
    prompt.wait_for(">>> 가나다라마바")


def test_decomposed_hangul_is_the_same_prompt(prompt):
    shown = prompt.do(unicodedata.normalize("NFD", "가나"))
    assert ">>> 가나다라마바" in shown
    assert "in the vocabulary" not in prompt.text


def test_a_line_longer_than_the_screen_is_edited_across_its_wrap(prompt):
    long = LETTERS[:10] * 5
    prompt.type(long)
    prompt.wait_for(wrapped(long[:38], long[38:]), timeout=10)
    for _ in range(13):
        prompt.keys("backspace")
    prompt.wait_for(line_is(PROMPT + long[:37], ""))


def test_ctrl_j_and_alt_enter_break_the_line_and_enter_sends_it_whole(prompt):
    for keys in ("ctrl-j", "alt-enter"):
        before = prompt.prompts
        prompt.type("가")
        prompt.keys(keys)
        prompt.type("나")
        prompt.wait_for(line_is(">>> 가", "... 나"))
        assert prompt.prompts == before
        prompt.keys("enter")
        prompt.wait_for_prompt(before)
        assert prompt.text.count(">>> 가\n나다라마바\n4 tokens") == 1 + (keys == "alt-enter")


def test_a_paste_of_several_lines_stays_one_prompt(prompt):
    before = prompt.prompts
    prompt.paste("가\n\n:quit\n나")
    prompt.wait_for(line_is(">>> 가", "...", "... :quit", "... 나"))
    assert prompt.prompts == before, "a pasted newline sent the line"
    prompt.keys("enter")
    prompt.wait_for_prompt(before)
    assert ">>> 가\n\n:\n나다라마바\n4 tokens" in prompt.text
    assert "not in the vocabulary: q, u, i, t; skipped" in prompt.text
    prompt.paste(":temp 2\n")  # not even the newline at its end
    prompt.wait_for(line_is(">>> :temp 2", "..."))
    assert "temp 2" not in prompt.text.replace(":temp 2", "")


def test_three_quotes_open_a_block_that_three_quotes_send(prompt):
    before = prompt.prompts
    for line in ('"""', "가", ""):
        prompt.send(line)
    prompt.type('나"""')
    prompt.wait_for(line_is('>>> """', "... 가", "...", '... 나"""'))
    assert prompt.prompts == before
    prompt.keys("enter")
    prompt.wait_for_prompt(before)
    assert ">>> 가\n\n나다라마바\n4 tokens" in prompt.text


def test_ctrl_c_clears_what_was_typed_and_on_an_empty_line_tells_how_to_leave(prompt):
    prompt.type("가나다")
    prompt.keys("ctrl-j")
    prompt.type("라")
    prompt.wait_for(line_is(">>> 가나다", "... 라"))
    prompt.keys("ctrl-c")
    prompt.wait_for(lambda terminal: terminal.at_empty_prompt)
    assert "가나다" not in prompt.text
    assert "Ctrl-D or :quit quits" not in prompt.text
    prompt.keys("ctrl-c")
    prompt.wait_for("Ctrl-D or :quit quits")
    prompt.wait_for_prompt()
    assert ">>> 가나다라마" in prompt.do("가")


def test_a_resize_leaves_what_is_being_typed_whole(prompt):
    typed = LETTERS[:14] * 2
    prompt.type(typed)
    prompt.wait_for(line_is(PROMPT + typed))
    prompt.resize(40, 20)
    prompt.wait_for(wrapped(typed[:18], typed[18:]), timeout=10)
    prompt.resize(120, 30)
    prompt.wait_for(line_is(PROMPT + typed))
    prompt.keys("backspace")
    prompt.type("마")
    prompt.wait_for(line_is(PROMPT + typed[:-1] + "마"))
    prompt.keys("enter")
    prompt.wait_for(PROMPT + typed[:-1] + "마바사아자")


# -- history and completion


def test_history_outlives_the_program_and_only_its_owner_may_read_it(visit, tmp_path):
    history = tmp_path / "home" / "history"
    history.touch(0o644)
    first = visit()
    first.wait_for_prompt()
    first.do("가")
    before = first.prompts
    first.type("나")
    first.keys("ctrl-j")
    first.send("다")
    first.wait_for_prompt(before)
    first.keys("ctrl-d")
    assert first.wait_for_end() == 0
    assert history.stat().st_mode & 0o777 == 0o600

    second = visit()
    second.wait_for_prompt()
    second.keys("up")
    second.wait_for(line_is(">>> 나", "... 다"))
    second.keys("up", "up")
    second.wait_for(line_is(">>> 가"))


def test_ctrl_r_finds_an_earlier_line_that_enter_then_takes(prompt):
    prompt.do("가나")
    prompt.do("라")
    prompt.keys("ctrl-r")
    prompt.type("나")
    prompt.wait_for(re.compile(r"^>>> 가나(?!다)", re.MULTILINE))
    assert "가나type" not in prompt.text, "the placeholder is drawn beside the line that was found"
    prompt.keys("enter")
    prompt.wait_for(lambda terminal: terminal.line == ">>> 가나", timeout=10)


def test_ctrl_c_leaves_the_search_of_the_history(prompt):
    prompt.do("가나")
    prompt.keys("ctrl-r")
    prompt.wait_for("I-search")
    prompt.keys("ctrl-c")
    prompt.wait_for(
        lambda terminal: terminal.at_empty_prompt and "I-search" not in terminal.text, timeout=10
    )


def test_history_lies_in_the_state_folder_and_no_history_writes_none(visit, tmp_path):
    none = visit("--no-history", variables={"MINILLM_HISTORY": None})
    none.wait_for_prompt()
    none.do("가")
    none.keys("up")
    none.wait_for(line_is(">>> 가"))  # within the visit it is there
    none.keys("ctrl-c", "ctrl-d")
    assert none.wait_for_end() == 0
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]

    usual = visit(variables={"MINILLM_HISTORY": None})
    usual.wait_for_prompt()
    usual.do(":temp")
    path = tmp_path / "home" / "state" / "minillm-repl" / "history"
    assert ":temp" in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600


def test_tab_completes_commands_names_settings_and_files(prompt, tmp_path):
    (tmp_path / "말뭉치.txt").write_text("가나다", encoding="utf-8")
    (tmp_path / "notes.md").touch()
    (tmp_path / "nine.safetensors").touch()
    for typed, menu, taken in (
        (":te", "0 is greedy", ":temp"),
        (":load na", "nalssi", ":load nalssi"),
        (":load ni", "nine.safetensors", ":load nine.safetensors"),
        (":train 말", "말뭉치.txt", ":train 말뭉치.txt"),
        (":help rep", "repeat-penalty", ":help repeat-penalty"),
        (":set ca", "care", ":set care"),
        (":set top", "top-p", ":set top-k"),
    ):
        prompt.type(typed)
        prompt.wait_for(lambda terminal, menu=menu: menu in "\n".join(terminal.lines))
        prompt.keys("tab")
        prompt.wait_for(lambda terminal, taken=taken: terminal.line == PROMPT + taken)
        before = prompt.prompts
        prompt.keys("enter")  # takes the word; only the next one sends
        prompt.keys("ctrl-c")
        prompt.wait_for(lambda terminal: terminal.at_empty_prompt)
        assert prompt.prompts == before, "Enter sent a completion that was only being looked at"
    prompt.type(":load no")  # no checkpoint begins so
    prompt.wait_for(line_is(">>> :load no"))
    prompt.keys("tab")
    prompt.type("x")
    prompt.wait_for(line_is(">>> :load nox"))
    prompt.keys("ctrl-c")
    prompt.type("te")  # a prompt is not completed
    prompt.keys("tab")
    prompt.type("x")
    prompt.wait_for(line_is(">>> tex"))


# -- commands


def test_every_setting_is_shown_and_changed_by_its_command(prompt):
    for line, answer in (
        (":temp", "temp 0"),
        (":temp 2", "temp 2"),
        (":temp", "temp 2"),
        (":temperature 0.5", "temp 0.5"),
        (":set temp 0.7", "temp 0.7"),
        (":set temp=0", "temp 0"),
        (":top-k 5", "top-k 5"),
        (":set top-k", "top-k 5"),
        (":top-k off", "top-k off"),
        (":top-p 0.9", "top-p 0.9"),
        (":top-p off", "top-p off"),
        (":min-p 0.05", "min-p 0.05"),
        (":min-p off", "min-p off"),
        (":repeat-penalty 1.2", "repeat-penalty 1.2"),
        (":repeat-penalty off", "repeat-penalty off"),
        (":seed 7", "seed 7"),
        (":max-tokens 4", "max-tokens 4"),
        (':stop "가 나"', "stop '가 나'"),
        (":stop off", "stop off"),
        (":verbose on", "verbose on"),
        (":verbose 3", "verbose 3"),
        (":verbose off", "verbose off"),
    ):
        assert prompt.do(line).splitlines() == [f">>> {line}", answer], str(prompt)
    for line, complaint in (
        (":temp hot", "'hot'"),
        (":temp -1", "'-1'"),
        (":top-p 2", "'2'"),
        (":set nonsense 3", "'nonsense'"),
    ):
        answer = prompt.do(line)
        assert "error:" in answer, answer
        assert complaint in answer, answer
    table = prompt.do(":set")
    names = (
        "temp",
        "top-k",
        "top-p",
        "min-p",
        "repeat-penalty",
        "seed",
        "max-tokens",
        "stop",
        "verbose",
    )
    rows = [row.split()[0] for row in table.splitlines() if row.split()]
    assert [row for row in rows if row in names] == list(names)
    assert "seed random" in prompt.do(":seed random")
    prompt.wait_for_toolbar("temp 0")


def test_help_lists_every_command_and_explains_one(prompt):
    everything = prompt.do(":help")
    names = (
        "help quit temp top-k top-p min-p repeat-penalty seed max-tokens stop set verbose "
        "train load save model"
    )
    for name in f"{names} tokens continue regen undo clear".split():
        assert re.search(rf"^:{name}\b", everything, re.MULTILINE), f"no :{name} in\n{everything}"
    assert prompt.do(":h").splitlines()[1:] == everything.splitlines()[1:]
    assert prompt.do(":?").splitlines()[1:] == everything.splitlines()[1:]
    one = prompt.do(":help temp")
    assert ":temp" in one
    assert ":temperature" in one
    assert ":train" not in one
    assert "did you mean :temp?" in prompt.do(":help tmp")


def test_an_unknown_command_names_the_nearest_and_never_reaches_the_model(prompt):
    assert "unknown command :tmep; did you mean :temp?" in prompt.do(":tmep 2")
    assert "unknown command :가; :help lists all commands, and `::`" in prompt.do(":가")
    assert "error:" in prompt.do(":")
    assert "error:" in prompt.do(":/")
    assert "nothing to undo" in prompt.do(":undo"), "the model was given an unknown command"
    prompt.wait_for_toolbar("0/16 tokens")
    assert ">>> :가나다라마" in prompt.do("::가")  # two colons are one colon for the model
    assert "temp 0" in prompt.do("/temp")
    assert "in the vocabulary: /" in prompt.do("/가")  # a slash alone makes no command


def test_the_text_so_far_is_continued_retried_taken_back_and_forgotten(prompt):
    for line in (":continue", ":regen", ":undo"):
        assert "error:" in prompt.do(line)
    assert ">>> 가나다라마\n4 tokens" in prompt.do("가")
    assert "\n가나다라마바사아자\n4 tokens" in prompt.do(":continue")
    assert "\n가나다라마바사아자가나다라마\n4 tokens" in prompt.do(":continue 가")
    assert "\n가나다라마바사아자가나다라마\n4 tokens" in prompt.do(":regen")
    assert prompt.do(":undo").endswith("\n가나다라마바사아자")
    assert prompt.do(":undo").endswith("\n가나다라마")
    prompt.wait_for_toolbar("5/16 tokens")
    prompt.do(":clear")
    prompt.wait_for_toolbar("0/16 tokens")
    assert "error:" in prompt.do(":continue")
    prompt.do(":stop 다")
    assert ">>> 가나\n" in prompt.do("가")


def test_tokens_and_model_show_what_the_model_is_made_of(prompt):
    tokens = prompt.do(":tokens 나 가")
    assert re.search(r"0 +나 +1 +EB 82 98", tokens), tokens
    assert re.search(r"1 +␣ +16 +20", tokens), tokens
    assert "3 tokens · 3 characters · 7 bytes" in tokens
    assert "error:" in prompt.do(":tokens")
    card = prompt.do(":model")
    for fact in ("chain", "1 layers", "d_model 17", "context 16", "17 tokens", "chain.safetensors"):
        assert fact in card, card


def test_a_saved_model_is_opened_again_and_a_bad_file_leaves_the_open_one(prompt, tmp_path):
    assert "saved to mine.safetensors" in prompt.do(":save mine")
    assert (tmp_path / "mine.safetensors").is_file()
    (tmp_path / "bad.safetensors").write_bytes(b"no checkpoint at all")
    for bad in ("bad.safetensors", "missing.safetensors", "."):
        answer = prompt.do(f":load {bad}")
        assert "error:" in answer, answer
        assert ">>> 가나다라마" in prompt.do("가")
    assert "error:" in prompt.do(":load")
    prompt.do(":load mine.safetensors")
    prompt.wait_for_toolbar("mine ·")
    prompt.do(":load nalssi")
    prompt.wait_for_toolbar("nalssi ·")
    prompt.do(":max-tokens 12")
    assert any(
        line in prompt.do("날씨")
        for line in CORPUS.read_text(encoding="utf-8").replace("\n", " ").split(". ")
    )


@pytest.mark.parametrize("leave", [":q", ":exit", ":bye", ":quit"])
def test_a_word_leaves_at_once_even_while_the_model_is_loading(visit, leave):
    terminal = visit(ckpt="nalssi")
    terminal.wait_for_prompt()
    terminal.send(leave)
    assert terminal.wait_for_end() == 0
    assert "Traceback" not in terminal.text


def test_characters_that_the_model_never_saw_are_named(prompt):
    answer = prompt.do("가z나🙂")
    assert "not in the vocabulary: z, 🙂; skipped" in answer
    assert ">>> 가나다라마바" in answer
    family = prompt.do("가👩‍👩‍👧나")
    # the joiners take no cells
    assert "not in the vocabulary: 👩👩👧; skipped" in family, "parts of a character are named"
    only = prompt.do("xyz")
    assert ">>> xyz" in only
    assert "in the vocabulary: x, y, z" in only
    assert "가나다" in only, "it does not say what the model knows"
    assert ">>> 가나다라마" in prompt.do("가")


# -- what a completion looks like


def test_prompt_and_completion_run_together_and_differ_in_colour(prompt):
    answer = prompt.do("가나")
    text, figures = answer.splitlines()[:2]
    assert text == ">>> 가나다라마바"
    assert re.fullmatch(r"4 tokens · [\d,]+ tokens/s · max-tokens reached · seed \d+", figures)
    row = next(y for y in range(prompt.screen.lines) if prompt.screen.row(y) == text)
    colors = [prompt.screen.buffer[row][x].fg for x in range(4, 16, 2)]
    assert colors[:2] == ["default"] * 2
    assert colors[2:] == [colors[2]] * 4
    assert colors[2] != "default"
    # more than fits in a row: the terminal wraps it, and nothing is lost
    prompt.do(":max-tokens 70")
    lines = prompt.do("가").splitlines()
    assert in_order((lines[0] + lines[1]).removeprefix(PROMPT))
    assert len((lines[0] + lines[1]).removeprefix(PROMPT)) == 71
    assert "exceeds the context" in prompt.text


def tables(terminal, top, answer):
    """Return each table of candidates in an answer as its rows' cells, checked not to wrap."""
    lines = answer.splitlines()
    titles = [place for place, line in enumerate(lines) if re.match(r"step \d+  \+'", line)]
    assert titles, answer
    start = len(terminal.lines[: len(terminal.screen.gone) + terminal.screen.cursor.y]) - len(lines)
    found = []
    for title in titles:
        entropy, head, rule, *rows = lines[title + 1 : title + 4 + top]
        assert re.match(
            r"entropy \d+\.\d\d bits · sampled rank \d+ · surprisal \d+\.\d\d bits$", entropy
        ), answer
        assert re.match(r"\s+#  token\s+id\s+model\s", head), answer
        assert re.fullmatch("─+", rule), answer
        assert [row[0] for row in rows].count("▶") <= 1
        places = [start + title + 4 + place - len(terminal.screen.gone) for place in range(top)]
        assert min(places) >= 0, "the screen is too small for this test"
        found.append([[cell or "\0" for cell in terminal.screen.cells(place)] for place in places])
    return found


@pytest.mark.parametrize("columns", [80, 200])
def test_the_columns_of_the_verbose_table_are_aligned_whatever_the_tokens(visit, columns):
    terminal = visit(
        "--verbose", "8", "--max-tokens", "4", "--seed", "1", ckpt="mixed", columns=columns, rows=70
    )
    terminal.wait_for_prompt()
    answer = terminal.do("가힣")
    found = tables(terminal, 8, answer)
    assert len(found) == 4
    for rows in found:
        joined = ["".join(row) for row in rows]
        assert sum(row.startswith("▶") for row in joined) == 1, answer
        bars = [[match.start() for match in BAR.finditer(row)] for row in joined]
        both = [starts for starts in bars if len(starts) == 2]
        assert len(both) >= 3, answer
        assert len({tuple(starts) for starts in both}) == 1, answer
        assert all(set(starts) <= set(both[0]) for starts in bars), answer
        percents = {match.end() for row in joined for match in re.finditer(r"%|cut", row)}
        assert len(percents) == 2, answer
        assert {len(re.findall(r"%|cut", row)) for row in joined} == {2}, answer
    assert re.search(r"^가힣", answer, re.MULTILINE) or ">>> 가힣" in answer


@pytest.mark.parametrize("columns", [80, 200])
def test_the_walk_of_a_verbose_completion_can_be_read_off_and_no_row_wraps(visit, columns):
    terminal = visit(
        "--verbose",
        "3",
        "--max-tokens",
        "60",
        "--temp",
        "0",
        ckpt="nalssi",
        columns=columns,
        rows=12,
    )
    terminal.wait_for_prompt()
    answer = terminal.do("날씨")
    titles = re.findall(r"^step (\d+)  \+'(.+?)' → (.*)$", answer, re.MULTILINE)
    assert [int(step) for step, _, _ in titles] == list(range(1, 61))
    written = "날씨"
    for _, token, shown in titles:
        written += token.replace("␣", " ")
        assert written.rstrip().endswith(shown.removeprefix("…")), answer
        assert shown == written.rstrip() or shown.startswith("…")
    assert titles[-1][2].startswith("…") == (columns == 80)
    lines = answer.splitlines()
    steps = [place for place, line in enumerate(lines) if line.startswith("step ")]
    assert {b - a for a, b in pairwise(steps)} <= {7, 8}, "a row of a table wrapped"
    assert len({b - a for a, b in pairwise(steps)}) == 1


def test_without_colours_the_chosen_row_is_still_marked_and_no_colour_is_sent(visit):
    terminal = visit(
        "--verbose", "3", "--max-tokens", "2", ckpt="nalssi", variables={"NO_COLOR": "1"}
    )
    terminal.wait_for_prompt()
    assert "▶" in terminal.do("날씨")
    terminal.do(":verbose off")
    terminal.do("하늘")
    assert "error" in terminal.do(":nothing")
    terminal.do(":help")
    terminal.do(":set")
    terminal.type(":te")
    terminal.wait_for("0 is greedy")
    assert not COLOR.search(terminal.raw), COLOR.search(terminal.raw)


def test_the_chosen_row_is_shown_when_it_lies_below_the_top(visit):
    terminal = visit(
        "--verbose",
        "1",
        "--max-tokens",
        "12",
        "--temp",
        "50",
        "--seed",
        "3",
        ckpt="mixed",
        rows=100,
    )
    terminal.wait_for_prompt()
    answer = terminal.do("가")
    below = re.findall(r"sampled rank (\d+).*\n.*#.*\n─+\n +1 .*\n▶ *(\d+) ", answer)
    assert below, answer
    assert all(said == row and int(row) > 1 for said, row in below)


# -- Ctrl-C, Ctrl-D, and keys that come early


def test_keys_work_while_the_model_loads_and_ctrl_c_ends_only_the_waiting(visit, tmp_path):
    large = random_checkpoint(characters="날씨가 좋다", width=1024, layers=12, heads=16, zeros=True)
    save(large, tmp_path / "large.safetensors")  # 600 MB take a while
    terminal = visit("--max-tokens", "3", ckpt=str(tmp_path / "large"))
    terminal.wait_for_prompt()
    terminal.type("날씨가\x7f")
    terminal.wait_for(
        lambda terminal: terminal.line == ">>> 날씨" and "loading large" in terminal.toolbar
    )
    before = terminal.prompts
    terminal.keys("enter")
    terminal.wait_for(re.compile("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] loading large"))
    terminal.interrupt()
    terminal.wait_for("stopped waiting")
    terminal.wait_for_prompt(before)
    assert "3 tokens" in terminal.do("날씨")
    terminal.wait_for_toolbar("large ·")


def test_ctrl_c_stops_the_model_and_keeps_its_text(visit):
    terminal = visit("--max-tokens", "1000000")
    terminal.wait_for_prompt()
    before = long_generation(terminal, "가")
    stop_generating(terminal, before)
    said = re.search(r"([\d,]+) tokens · [\d,]+ tokens/s · stopped by Ctrl-C", terminal.text)
    assert said, str(terminal)
    terminal.wait_for_toolbar("16/16 tokens")
    terminal.do(":max-tokens 5")
    lines = terminal.do(":continue").splitlines()[1:]
    end = next(place for place, line in enumerate(lines) if line.startswith("5 tokens"))
    text = "".join(lines[:end])
    assert len(text) == 1 + int(said[1].replace(",", "")) + 5
    assert in_order(text)
    before = terminal.prompts
    terminal.do(":max-tokens 1000000")
    before = long_generation(terminal, ":continue", rows=len(lines) + 30)
    stop_generating(terminal, before)
    assert terminal.text.count("stopped by Ctrl-C") == 2
    assert "temp 0" in terminal.do(":temp")


def test_keys_typed_while_the_model_writes_wait_for_the_next_prompt_line(visit):
    terminal = visit("--max-tokens", "20000")
    terminal.wait_for_prompt()
    before = long_generation(terminal, "가", rows=5)
    terminal.type(":max-tokens 3\r하가나\x7f")  # Enter among them sends
    terminal.wait_for(">>> :max-tokens 3\nmax-tokens 3", timeout=60)
    terminal.wait_for(lambda terminal: terminal.line == ">>> 하가")
    assert terminal.prompts == before + 2
    assert "max-tokens 3" not in re.split("20000 tokens|20,000 tokens", terminal.text)[0], (
        "keys were echoed"
    )
    terminal.keys("enter")
    terminal.wait_for(">>> 하가나다라\n3 tokens")


def test_ctrl_c_while_training_keeps_the_model_and_leaving_asks_once(visit):
    terminal = visit(ckpt="nalssi")
    terminal.wait_for_prompt()
    before = terminal.prompts
    terminal.send(f":train {CORPUS} steps=1000000")
    terminal.wait_for(re.compile(r"[1-9][\d,]* of 1,000,000"), timeout=60)
    terminal.interrupt()
    terminal.wait_for_prompt(before)
    assert re.search(
        r"stopped by Ctrl-C · [\d,]+ steps · .* loss [\d.]+ → [\d.]+", terminal.text
    ), str(terminal)
    assert "the trained weights are not saved: `:save PATH`" in terminal.text
    terminal.wait_for_toolbar("(not saved)")
    assert "of 1,000,000" not in "\n".join(terminal.lines[-10:]), "the progress bar stayed"
    terminal.do(":max-tokens 5")
    assert "5 tokens" in terminal.do("날씨")
    before = terminal.prompts
    terminal.keys("ctrl-d")
    terminal.wait_for_prompt(before)
    assert "the trained weights are not saved" in terminal.text
    terminal.keys("ctrl-d")
    assert terminal.wait_for_end() == 0


def test_a_checkpoint_that_does_not_exist_explains_train_and_train_makes_it(visit, tmp_path):
    terminal = visit("--max-tokens", "4", ckpt="new.safetensors")
    terminal.wait_for_prompt()
    assert "new.safetensors does not exist yet" in terminal.text
    assert ":train CORPUS" in terminal.text
    answer = terminal.do("날씨")
    assert "error:" in answer
    assert ":train CORPUS" in answer
    terminal.wait_for_toolbar("no model")
    assert "error:" in terminal.do(":train")
    assert "error:" in terminal.do(":train missing.txt steps=3", timeout=60)
    assert not (tmp_path / "new.safetensors").exists()
    answer = terminal.do(f":train {CORPUS} steps=3", timeout=60)
    assert "saved to new.safetensors" in answer
    assert re.search(r"\b3 steps · .* · loss [\d.]+ → [\d.]+", answer), answer
    assert (tmp_path / "new.safetensors").is_file()
    terminal.wait_for_toolbar("new ·")
    assert "4 tokens" in terminal.do("날씨")
    terminal.keys("ctrl-d")  # saved, so nothing is asked
    assert terminal.wait_for_end() == 0


def test_ctrl_d_leaves_with_0_and_the_terminal_as_it_was(visit):
    shell = 'stty -g; "$@"; echo "left with $?"; stty -g'
    terminal = visit(
        columns=200, command=("/bin/sh", "-c", shell, "sh", sys.executable, "-m", "minillm_repl")
    )
    terminal.wait_for_prompt()
    terminal.do("가")
    terminal.type("나")
    terminal.wait_for(line_is(">>> 나"))
    terminal.keys("ctrl-c", "ctrl-d")
    terminal.wait_for("left with 0")
    assert terminal.wait_for_end() == 0
    first, *_, last = terminal.text.splitlines()
    assert re.fullmatch("[0-9a-f:]+", first)
    assert last == first
    assert terminal.raw.rfind(b"\x1b[?25h") > terminal.raw.rfind(b"\x1b[?25l"), (
        "the cursor stays hidden"
    )
    assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h"), (
        "bracketed paste stays on"
    )


# -- a terminal that changes, or goes away


def test_a_resize_while_the_model_writes_changes_the_tables_and_nothing_else(visit):
    terminal = visit("--verbose", "3", "--max-tokens", "1000000", columns=100, rows=30)
    terminal.wait_for_prompt()
    before = long_generation(terminal, "가")
    terminal.resize(60, 20)
    terminal.wait_for(  # a table from before
        lambda terminal: any(len(line) > 60 for line in terminal.lines if set(line) == {"─"})
    )
    terminal.wait_for(
        lambda terminal: any(
            set(line) == {"─"} and len(line) <= 60 for line in terminal.lines[-20:]
        )
    )
    stop_generating(terminal, before)
    assert len(terminal.toolbar) < 60
    terminal.resize(80, 24)
    terminal.do(":verbose off")
    terminal.do(":max-tokens 4")
    assert ">>> 가나다라마" in terminal.do("가")
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("doing", ["typing", "generating", "generating tables"])
@pytest.mark.parametrize("hangup", ["felt", "ignored"])  # under nohup and the like nobody is told
def test_the_program_ends_when_its_terminal_goes_away(visit, doing, hangup):
    program = (sys.executable, "-m", "minillm_repl")
    command = (
        program if hangup == "felt" else ("/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *program)
    )
    terminal = visit(
        "--max-tokens", "1000000", "--verbose", "3" if "tables" in doing else "off", command=command
    )
    terminal.wait_for_prompt()
    if doing == "typing":
        terminal.type("가나")
        terminal.wait_for(line_is(">>> 가나"))
    else:
        long_generation(terminal, "가")
    terminal.vanish()
    code = terminal.exit_code()
    # A write can fail a moment before the signal arrives: then the program ends by itself.
    assert code >= 0 if hangup == "ignored" else code == -1 or doing != "typing"


# -- untrusted text


def dangerous(terminal):
    """Return which hostile characters, or sequences of them, reached the terminal as they are."""
    pieces = [
        "\x1bc",
        "\x1b]",
        *(each for each in HOSTILE if not each.isprintable() and each not in "\x1b\b\r"),
    ]
    return [each for each in pieces if each.encode() in terminal.raw]


def test_nothing_that_a_model_writes_or_holds_steers_the_terminal(visit):
    terminal = visit("--temp", "0", "--max-tokens", "30", ckpt="hostile")
    terminal.wait_for_prompt()
    visible = "가[bold]␛c<U+009D>0;pwn␇<U+009B>31m<U+202E>␈␍␡<U+2028><U+FEFF><U+200B><U+E0041>"
    assert visible in terminal.do("가").replace("\n", "")
    terminal.do(":verbose 3")
    assert "+'␛'" in terminal.do("가")
    terminal.do(":verbose off")
    assert "␛" in terminal.do(":model")
    assert "␇" in terminal.do("zz")  # what the model knows
    terminal.do(":tokens 가[bold]")
    terminal.do(":continue")
    terminal.do(":regen")
    terminal.do(":undo")
    assert not dangerous(terminal)
    assert not terminal.screen.title


def test_a_file_name_cannot_steer_the_terminal(visit, models, tmp_path):
    name = "evil\x1b]0;pwned\x07\x9b31m\u202e.safetensors"
    (tmp_path / name).write_bytes((models / "chain.safetensors").read_bytes())
    terminal = visit()
    terminal.wait_for_prompt()
    terminal.type(":load evil")
    terminal.wait_for("evil␛]0;pwned␇<U+009B>31m<U+202E>.safetensors")
    terminal.keys("tab")
    terminal.wait_for(lambda terminal: ".safetensors" in terminal.line)
    before = terminal.prompts
    terminal.keys("enter", "enter")
    terminal.wait_for_prompt(before)
    terminal.wait_for_toolbar("evil␛]0;pwned␇")
    terminal.do(":model")
    terminal.keys("up", "up")
    terminal.wait_for(lambda terminal: terminal.line.startswith(">>> :load evil"))
    assert not dangerous(terminal)
    assert not terminal.screen.title


def test_a_model_with_a_chat_template_talks_in_turns(visit, tmp_path):
    template = ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}")
    talker = replace(chain(LETTERS), chat_template=template, eos_token_ids=(LETTERS.index(":"),))
    save(talker, tmp_path / "talker.safetensors")
    terminal = visit("--temp", "0", ckpt=tmp_path / "talker")
    terminal.wait_for("type a message")
    terminal.wait_for_toolbar("talker (chat) ·")
    answered = terminal.do("타")
    # on its own line, its end token not shown
    assert answered.startswith(">>> 타\n파하\n3 tokens"), answered
    assert "end token reached" in answered
    terminal.do("차")
    shown = terminal.do(":prompt")
    assert re.search(r"타 \d+  파 \d+  하 \d+  차 \d+", shown), shown
    terminal.do(":undo")
    assert re.search(r"차 \d+", terminal.do(":prompt")) is None
    terminal.do(":system 가")
    terminal.do("파")
    assert re.search(r"가 \d+  타 \d+  파 \d+  하 \d+  파 \d+", terminal.do(":prompt"))
    assert "the context is full" in terminal.do("가")
    assert "the model no longer sees the oldest 3 turns" in " ".join(terminal.do("하").split())
    assert re.search(r"\n가 \d+  하 \d+\n", terminal.do(":prompt")), (
        "the system prompt has left with the oldest turns"
    )
    terminal.do(":chat off")
    terminal.wait_for("type the start")
    assert ">>> 타파하" in terminal.do("타")


# -- Korean


def test_a_visit_in_korean_and_back_to_english(visit):
    terminal = visit(variables={"LANG": "ko_KR.UTF-8"})
    terminal.wait_for("글의 첫머리를 쓰거나 :도움말")
    terminal.wait_for(":도움말 명령 목록 · :자세히 모델의 다음 토큰 후보 · Ctrl-D 나가기")
    terminal.wait_for_toolbar("토큰 0/16 · ")
    assert "없는 명령이에요: :없는명령. 명령은 :도움말에서 볼 수 있고" in terminal.do(":없는명령")
    assert ":temp에 쓸 수 있는 값: 0에서 100,000,000 사이의 수. 입력한 값: '뜨겁게'" in terminal.do(
        ":온도 뜨겁게"
    )
    assert terminal.do(":온도 0.5").endswith("온도(temp) 0.5")
    assert terminal.do("/온도 0").endswith("온도(temp) 0")
    terminal.type(":도")
    terminal.wait_for(re.compile("^ +:도움말 +명령을 모두 보여 주거나", re.MULTILINE))
    terminal.keys("ctrl-c")
    terminal.wait_for(lambda screen: screen.at_empty_prompt)
    assert "가나다라마" in terminal.do("가")
    assert "English from now on" in terminal.do(":lang en")
    assert terminal.do(":temp").endswith("temp 0")
    assert "unknown command :zzzz; :help lists all commands, and `::`" in terminal.do(":zzzz")
    terminal.wait_for("type the start of a text, or :help")
    assert "지금부터 한국어로 말할게요" in terminal.do(":언어 ko")
    terminal.keys("ctrl-d")
    assert terminal.wait_for_end() == 0


def test_tables_are_aligned_in_korean(visit):
    terminal = visit("--lang", "ko", rows=60)
    terminal.wait_for_prompt()
    shown = terminal.do(":도움말")
    rows = re.findall("^(:[a-z-]+(?:, :[가-힣]+)? +)([^ ].*)$", shown, re.MULTILINE)
    assert len(rows) > 40
    assert {cell_len(names) for names, _summary in rows} == {20}
    assert all(cell_len(names + summary) <= 80 for names, summary in rows)
    settings = terminal.do(":설정").splitlines()
    assert all(cell_len(row) <= 80 for row in settings)
    values = {
        cell_len(row[: re.match(r"\S+ +", row).end()])
        for row in settings[1:]
        if re.match("[a-z]", row)
    }
    assert len(values) == 1, settings


@pytest.mark.parametrize(
    "name, example", [("nalssi", "such as 날씨, or"), ("story", "such as Once upon a time, or")]
)
def test_what_is_proposed_to_type_is_something_that_the_model_knows(visit, name, example):
    visit(ckpt=name).wait_for(f"type the start of a text, {example} :help")


def test_who_names_no_model_gets_one_of_their_language_and_is_told_what_to_say_to_it(visit):
    english, korean = visit(ckpt="auto"), visit("--lang", "ko", ckpt="auto")
    hangul, story = visit("--ckpt", "hangul", ckpt="auto"), visit(ckpt="story")
    for terminal, model, hint, other in (
        (english, "pebble", "This model talks in English only. Try: I'm bored", "`:load hangul`"),
        (korean, "hangul", "예: 심심해", "`:load nalssi`"),
        (hangul, "hangul", "This model talks in Korean only. Try: 심심해", "`:load pebble`"),
        (story, "story", "This model continues English tales: Once upon a time", "`:load pebble`"),
    ):
        terminal.wait_for_prompt()
        assert terminal.lines[0].startswith(f"minillm-repl  {model} · ")
        assert hint in terminal.text
        assert other in terminal.text
        assert all(cell_len(line) <= 80 for line in terminal.lines)
    assert "nalssi" not in hangul.text  # who has named a model needs no other
