"""Files in prompts: `@FILE` and `:read`; aliases and the start-up file."""

import gzip
from dataclasses import replace

import pytest

from minillm_repl.errors import UserError
from minillm_repl.repl.reading import MAX_BYTES, fill_in, read_file
from minillm_repl.repl.startup import run_startup
from tests.small import random_checkpoint
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - the last is a fixture

LETTERS = [*"abcdefghijklmnopqrstuvwxyz \n'\"-.=@/", *"가나다"]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = shell_for(random_checkpoint(characters=LETTERS, context=80))
    made.screen = replace(made.screen, interactive=True)
    for line in (":max-tokens 2", ":seed 1"):
        made.run_line(line)
    return made


def prompt_of(shell):
    tokenizer = shell.require_model().checkpoint.tokenizer
    ids = shell.session.conversation.turns[-1].prompt_ids
    return b"".join(map(tokenizer.token_bytes, ids)).decode()


def test_a_file_takes_the_place_of_its_mention_and_is_counted(shell, tmp_path):
    (tmp_path / "note.txt").write_bytes("가나\n".encode("utf-16"))
    (tmp_path / "my note").write_text("다", encoding="utf-8")
    shell.run_line("read @note.txt. and @'my note'.")
    assert prompt_of(shell) == "read 가나. and 다."
    assert "read note.txt: 2 tokens, 2 characters" in printed(shell)
    assert "read as UTF-16" in printed(shell)
    shell.run_line("mail a@note.txt @gone.txt @seoul")
    assert prompt_of(shell) == "mail a@note.txt @gone.txt @seoul"
    assert "@gone.txt is no file here; it is sent as it is" in printed(shell)
    assert "@seoul is no" not in printed(shell)


def test_a_script_reads_no_file_that_a_prompt_mentions(shell, tmp_path):
    (tmp_path / "note.txt").write_text("가나", encoding="utf-8")
    shell.screen = replace(shell.screen, interactive=False)
    shell.run_line("@note.txt")
    assert prompt_of(shell) == "@note.txt"
    shell.run_line(":read note.txt")
    shell.run_line("나")
    assert prompt_of(shell) == "가나\n나"
    shell.run_line("나")
    assert prompt_of(shell) == "나"  # once


def test_files_wait_for_the_next_prompt_until_they_are_dropped(shell, tmp_path):
    (tmp_path / "a").write_text("가", encoding="utf-8")
    for line in (":read a", ":read a", ":read"):
        shell.run_line(line)
    assert "2 files stand before the next prompt" in printed(shell)
    shell.run_line(":read off")
    shell.run_line("나")
    assert prompt_of(shell) == "나"


def test_what_is_too_long_or_no_text_is_refused_with_its_size(tmp_path):
    long, packed, binary = (tmp_path / name for name in ("long", "packed.gz", "binary"))
    long.write_bytes(b"a" * (MAX_BYTES + 1))
    packed.write_bytes(gzip.compress(b"a" * 3 * MAX_BYTES))
    binary.write_bytes(b"\x7fELF" + bytes(range(256)))
    for path, said in ((long, "4.0 MiB"), (packed, "MiB or more"), (binary, "a program")):
        with pytest.raises(UserError, match=said):
            read_file(path)
        with pytest.raises(UserError, match=said):
            fill_in(f"@{path}", print, print)
    with pytest.raises(UserError):
        read_file(tmp_path)


def test_an_alias_stands_for_a_command_and_takes_what_follows(shell):
    shell.run_line(":alias X :max-tokens")
    shell.run_line(":x 7")
    shell.run_line("/x 8")
    assert shell.session.settings.max_tokens == 8
    shell.run_line(":alias")
    assert ":x  :max-tokens" in printed(shell)
    shell.run_line(":alias x off")
    with pytest.raises(UserError, match="unknown command"):
        shell.run_line(":x 9")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (":alias why :lens", ":why is a command"),
        (":alias x lens", "stands for a command"),
        (":alias x :lenz", "did you mean :lens"),
        (":alias x! :lens", "letters, digits"),
        (":alias y", "no alias :y"),
        (":alias y off", "no alias :y"),
    ],
)
def test_what_is_no_alias_says_why(shell, line, said):
    with pytest.raises(UserError, match=said):
        shell.run_line(line)


def test_the_lines_of_the_start_up_file_are_run_and_a_wrong_one_is_named(shell, tmp_path):
    file = tmp_path / "startup"
    file.write_text("# mine\n\n:alias x :top-k\n:nonsense\n:x 3\n:quit\n:x 4\n", encoding="utf-8")
    run_startup(shell, file)
    assert shell.session.settings.top_k == 3
    told = f"in the start-up file {file}: :nonsense"  # its lines break where the folder is long
    assert "".join(told.split()) in "".join(printed(shell).split())
    assert shell.screen.interactive
    run_startup(shell, tmp_path / "gone")
    run_startup(shell, None)
