"""The command line: help by topics, completion by shells, the manual page."""

import re
import shutil
import subprocess

import pexpect
import pytest

from minillm_repl.cli import main, make_parser
from minillm_repl.language import set_language
from minillm_repl.repl.flags import TOPICS
from tools import manual

FLAGS = {name for action in make_parser()._actions for name in action.option_strings}


@pytest.fixture
def said(capsys):
    """What the program writes for some arguments, and its exit code."""

    def run(*arguments):
        code = main([*arguments])
        written = capsys.readouterr()
        return code, written.out + written.err

    return run


def test_each_flag_is_in_one_topic_and_the_short_help_fits_a_screen_or_two(said):
    pages = [said("--help", topic)[1] for topic in TOPICS]
    short, whole = said("--help")[1], said("-h", "all")[1]
    named = [set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", page)) for page in [*pages, short]]
    assert set().union(*named) >= FLAGS
    assert all(f" {flag}" in whole for flag in FLAGS)
    assert len(short.splitlines()) < 45 < 150 < len(whole.splitlines())
    assert all(topic in short for topic in TOPICS)


def test_help_of_a_command_is_that_of_the_prompt_and_an_unknown_topic_is_wrong_usage(said):
    code, text = said("--help", ":lens")
    assert code == 0
    assert "logit lens" in text
    assert "example: `:lens" in text
    code, text = said("--help", "lenz")
    assert code == 2
    assert "did you mean :lens?" in text
    assert "start, once, lessons" in text


def bash(said, *words):
    """What bash offers for the last word of a line."""
    line = " ".join(f"'{word}'" for word in words)
    script = f"""{said("--completion", "bash")[1]}
    COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
    _minillm_repl 2>/dev/null; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_flags_values_files_and_models(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").touch()
    assert bash(said, "minillm-repl", "--dev") == ["--device"]
    assert bash(said, "minillm-repl", "--device", "cu") == ["cuda"]
    assert bash(said, "minillm-repl", "--train", "co") == ["corpus.txt"]
    assert bash(said, "minillm-repl", "na") == ["nalssi"]
    assert bash(said, "minillm-repl", "--ckpt", "st") == ["story"]
    assert bash(said, "minillm-repl", "--help", "sam") == ["sampling"]
    assert bash(said, "minillm-repl", "-p", "co") == []
    assert bash(said, "minillm-repl", "--echo", "co") == ["corpus.txt"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("language", ["en", "ko"])
def test_every_shell_knows_every_flag_and_can_read_the_script(said, shell, language):
    code, script = said("--completion", shell, "--lang", language)
    set_language("en")
    assert code == 0
    for flag in FLAGS:
        long = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
        assert (long if shell == "fish" else flag) in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, check=False)
        assert checked.returncode == 0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("--dev", ["--device"]),
        ("--device ", ["auto", "cpu", "cuda", "mps"]),
        ("--help ", ["lessons", "training"]),
        ("--ckpt st", ["story"]),
        ("na", ["nalssi"]),
        ("co", ["corpus.txt"]),
        ("--serve --ckpt na", ["nalssi"]),
    ],
)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_complete_flags_values_files_and_models(said, tmp_path, shell, typed, offered):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "corpus.txt").touch()
    (tmp_path / "_minillm-repl").write_text(said("--completion", shell)[1], encoding="utf-8")
    line = f"minillm-repl {typed}"
    if shell == "fish":
        asked = ["--no-config", "-c", f"source _minillm-repl; complete -C '{line}'"]
        shown = subprocess.run(["fish", *asked], capture_output=True, cwd=tmp_path, check=True)
        assert set(offered) <= {each.split("\t")[0] for each in shown.stdout.decode().splitlines()}
        return
    with pexpect.spawn("zsh", ["-f"], cwd=tmp_path, encoding="utf-8", timeout=60) as terminal:
        terminal.setwinsize(50, 100)
        terminal.sendline("fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -d $PWD/dump")
        terminal.sendline("PS1='READ''Y '; setopt nolistbeep")
        terminal.expect("READY ")
        terminal.send(f"{line}\t\t")
        said_so_far, missing = "", list(offered)
        while missing:  # in whatever order they lie below and beside one another
            terminal.expect_exact(missing)
            said_so_far += terminal.before + terminal.after
            missing = [each for each in missing if each not in said_so_far]
        assert "bad option" not in said_so_far


def test_the_manual_page_is_what_its_script_writes():
    page = manual.manual()
    assert manual.PAGE.read_text(encoding="utf-8") == page, "run `python -m tools.manual`"
    assert all(flag.replace("-", "\\-") in page for flag in FLAGS)
