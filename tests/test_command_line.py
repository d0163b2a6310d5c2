"""The program as a shell sees it: one shot, pipes, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import unicodedata

import pytest
from rich.cells import cell_len

from minillm_repl.checkpoint.load_save import load
from minillm_repl.checkpoint.native import save_native as save
from tests.conftest import MODELS, random_checkpoint


@pytest.fixture
def program(tmp_path):
    home = {name: str(tmp_path / name) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MINILLM_")} | home
    environment["MINILLM_CKPT"] = "nalssi"  # which knows by heart what it says

    def run(*arguments, stdin="", **variables):
        return subprocess.run(
            [sys.executable, "-m", "minillm_repl", *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            env=environment | variables,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )

    return run


def test_one_shot_prints_the_completion_alone(program):
    done = program("-p", "날씨", "--temp", "0", "-n", "6", "--seed", "3")
    assert (done.returncode, done.stdout.decode()) == (0, "가 좋다. \n")
    assert done.stderr.decode().startswith("6 tokens · ")
    assert done.stderr.decode().endswith(" tokens/s · max-tokens reached · seed 3\n")
    piped = program("-p", "-", "--echo", "--temp", "0", "-n", "6", stdin="날씨\n")
    assert piped.stdout.decode() == "날씨가 좋다. \n"


def test_json_prints_events_and_nothing_else_and_the_same_text(program):
    settings = ("-p", "날씨", "--seed", "5", "--temp", "1.5", "-n", "20")
    done = program(*settings, "--json")
    *steps, finished = map(json.loads, done.stdout.decode().splitlines())
    assert [len(step["top"]) in (10, 11) for step in steps] == [True] * 20
    assert "".join(step["text"] for step in steps) == finished["text"]
    assert program(*settings).stdout.decode() == finished["text"] + "\n"
    assert (
        program(stdin=":seed 5\n:temp 1.5\n:max-tokens 20\n날씨\n")
        .stdout.decode()
        .endswith(finished["text"] + "\n")
    )
    three = program(*settings, "--json", "--verbose", "3").stdout.decode().splitlines()
    assert {len(json.loads(line)["top"]) for line in three[:-1]} <= {3, 4}


def test_korean_help_names_values_in_korean_and_keeps_its_columns(program):
    text = program("--help", "all", "--lang", "ko", COLUMNS="80").stdout.decode()
    assert "--ckpt 경로" in text
    assert not re.findall(r"--[a-z-]+ [A-Z]{2,}", text)
    flags = [re.match(r"  -\S.*? {2,}(?=\S)", line) for line in text.splitlines()]
    assert {cell_len(flag[0]) for flag in flags if flag} == {24}


def test_a_language_changes_words_and_no_number(program):
    settings = ("-p", "날씨", "--seed", "5", "--temp", "1.5", "-n", "5")
    english, korean = program(*settings, "--json"), program(*settings, "--json", "--lang", "ko")
    steps = [line for line in korean.stdout.decode().splitlines() if '"step"' in line]
    assert (
        steps == [line for line in english.stdout.decode().splitlines() if '"step"' in line] != []
    )
    assert program(*settings, LC_ALL="ko_KR.UTF-8").stdout == program(*settings).stdout
    assert "시작:\n" in program("--help", "all", LC_ALL="ko_KR.UTF-8").stdout.decode()
    assert (
        "start:\n"
        in program("--help", "start", "--lang", "en", LC_ALL="ko_KR.UTF-8").stdout.decode()
    )
    wrong = program("--lang", "klingon", LC_ALL="ko_KR.UTF-8")
    assert wrong.returncode == 2
    assert (
        wrong.stderr.decode()
        == "minillm-repl: --lang에 쓸 수 있는 값: auto, en, ko 중 하나. 입력한 값: 'klingon'\n"
    )
    assert "모르는 인자: --klingon" in program("--klingon", MINILLM_LANG="ko").stderr.decode()


def test_verbose_prints_tables_without_escapes(program):
    done = program("-p", "날씨", "-n", "2", "--verbose", "4", "--temp", "0")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "step 1  +'가' → 날씨가"
    assert sum(line.startswith("▶") for line in lines) == 2
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("color", ["always", "never"])
def test_colours_can_be_forced_and_forbidden(program, color):
    done = program(
        "-p",
        "날씨",
        "-n",
        "2",
        "--color",
        color,
        NO_COLOR="1" if color == "always" else "",
        FORCE_COLOR="1",
    )
    assert (b"\x1b[" in done.stdout) == (color == "always")


def test_a_script_runs_prompts_and_commands_alike(program):
    script = (
        ':temp 0\n:max-tokens 4\n날씨\n:continue\n"""\n하늘이\n맑고\n"""\n'
        ":undo\n:undo\n:clear\n::날씨\n\n"
    )
    done = program(stdin=script)
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert lines[:4] == ["temp 0", "max-tokens 4", "날씨가 좋다", "날씨가 좋다. 하늘"]
    assert lines[4].startswith("하늘이")
    assert lines[-1] == "날씨가 좋다"  # the colon is a character the model has never seen
    assert "not in the vocabulary: :" in done.stderr.decode()


def test_errors_of_a_script_go_to_stderr_and_make_the_exit_code_1(program):
    done = program(stdin=":temp hot\n:modle\n날씨\nXYZ\n:load nowhere.safetensors\n")
    assert done.returncode == 1
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith("error: ")]
    assert "temp needs a number" in errors[0]
    assert "did you mean :model?" in errors[1]
    assert "in the vocabulary: X, Y, Z" in errors[2]
    assert "nowhere.safetensors" in errors[3]
    assert done.stdout.decode().startswith("날씨")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--temp", "hot", "-p", "x"], 2, "--temp needs a number"),
        (["--nonsense"], 2, "--help lists the flags"),
        (["--json"], 2, "--json needs a prompt"),
        (["--steps", "3"], 2, "needs --train"),
        (["--device", "abacus"], 2, "one of auto, cpu, cuda, mps"),
        (["-p", "날씨", "--train", "x"], 2, "train first"),
        (["--ckpt", "none.safetensors", "-p", "날씨"], 1, "none.safetensors does not exist"),
        (["-p", ""], 1, "the prompt is empty"),
        (["-p", "XYZ"], 1, "in the vocabulary: X, Y, Z"),
        (["--train", "x.txt"], 1, "--train needs --out FILE, or --ckpt FILE"),
        (["--ckpt", "m.safetensors", "--train", "none.txt"], 1, "cannot open none.txt"),
        (["--ckpt", "/dev/null", "-p", "x"], 1, "is a device"),
        (["--device", "mps", "-p", "날씨"], 1, "no mps device"),
    ],
)
def test_wrong_usage_and_failures_have_their_own_exit_codes(program, arguments, code, message):
    done = program(*arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()
    assert len(done.stderr.decode().splitlines()) == 1


def test_a_pipe_that_is_not_utf_8_is_refused(program):
    for arguments in ((), ("-p", "-")):
        done = program(*arguments, stdin=b"\xff\xfe\n")
        assert (done.returncode, "not UTF-8" in done.stderr.decode()) == (1, True)


@pytest.mark.slow
def test_training_from_the_shell_makes_the_file_trains_it_further_and_makes_it_anew(
    program, tmp_path
):
    settings = (
        "--ckpt",
        "new.safetensors",
        "--train",
        str(MODELS / "nalssi.txt"),
        "--steps",
        "4",
        "--batch",
        "2",
    )
    done = program(
        *settings, "--width", "8", "--layers", "1", "--heads", "2", "--context", "5", "--lr", "0.01"
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "saved to new.safetensors" in done.stderr.decode()
    made = load(tmp_path / "new.safetensors")
    assert (
        made.config.d_model,
        made.config.context_length,
        made.training.steps,
        made.training.tokens,
    ) == (
        8,
        5,
        4,
        40,
    )
    assert program(*settings).returncode == 0
    assert load(tmp_path / "new.safetensors").training.steps == 8
    refused = program(*settings, "--width", "16")
    assert (
        refused.returncode,
        "d_model applies to a new model only" in refused.stderr.decode(),
    ) == (1, True)
    assert program(*settings, "--width", "16", "--new", "--seed", "9").returncode == 0
    anew = load(tmp_path / "new.safetensors")
    assert (anew.config.d_model, anew.training.steps, anew.training.seed) == (16, 4, 9)


@pytest.mark.slow
def test_where_a_trained_model_goes_is_made_or_refused_before_the_work(program, tmp_path):
    sizes = [
        "--train",
        str(MODELS / "nalssi.txt"),
        "--steps",
        "2",
        "--layers",
        "1",
        "--width",
        "16",
        "--context",
        "8",
    ]
    done = program("--ckpt", "new/deep/m.safetensors", *sizes)
    assert (done.returncode, (tmp_path / "new/deep/m.safetensors").exists()) == (0, True), (
        done.stderr
    )
    (tmp_path / "file").write_text("in the way")
    refused = program("--ckpt", "file/m.safetensors", *sizes)
    assert refused.returncode == 1
    assert "could not save file/m.safetensors: Not a directory" in refused.stderr.decode()
    assert "step" not in refused.stderr.decode() + refused.stdout.decode()


def test_training_in_a_script_never_overwrites_what_was_only_opened(program, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes((MODELS / "nalssi.safetensors").read_bytes())
    before = path.read_bytes()
    done = program(
        "--ckpt", "mine.safetensors", stdin=f":train '{MODELS / 'nalssi.txt'}' steps=1 batch=1\n"
    )
    assert (done.returncode, path.read_bytes()) == (0, before)
    assert "the trained weights are not saved" in done.stderr.decode()


def test_a_corpus_that_does_not_fit_touches_nothing(program, tmp_path):
    (tmp_path / "short.txt").write_text("짧다", encoding="utf-8")
    done = program("--ckpt", "new.safetensors", "--train", "short.txt")
    assert (done.returncode, "at least 33" in done.stderr.decode()) == (1, True)
    assert not (tmp_path / "new.safetensors").exists()


def test_what_a_checkpoint_says_never_steers_the_terminal(program, tmp_path):
    characters = sorted(
        ["가", "\x1b", "]", "0", ";", "\x07", "\x9b", "\u202e", "[", "/", "\r", "\x08"]
    )
    save(random_checkpoint(characters=characters), tmp_path / "hostile.safetensors")
    script = ":verbose 12\n:max-tokens 40\n가\n:verbose off\n가\n:model\n:tokens 가[/]\n:regen\n"
    done = program("--ckpt", "hostile.safetensors", "--color", "never", stdin=script)
    shown = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\x08"}
    assert "␛" in shown
    assert "<U+202E>" in shown


def test_a_reader_that_goes_away_is_no_reason_to_complain(tmp_path):
    command = f"{sys.executable} -m minillm_repl --ckpt nalssi -p 날씨 -n 5000 --json | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, timeout=60, cwd=tmp_path, check=False
    )
    assert json.loads(done.stdout)["event"] == "step"
    assert done.stderr == b""


def test_an_interrupt_ends_one_shot_with_what_was_made(tmp_path):
    started = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "minillm_repl",
            "--ckpt",
            "nalssi",
            "-p",
            "날씨",
            "-n",
            "100000000",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    started.stdout.readline()
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    finished = json.loads(out.splitlines()[-1])
    assert (started.returncode, finished["reason"], err) == (130, "interrupt", b"")


def test_settings_come_from_variables_and_a_file(program, tmp_path):
    folder = tmp_path / "XDG_CONFIG_HOME" / "minillm-repl"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("temp = 0\nmax-tokens = 3\n", encoding="utf-8")
    assert program("-p", "날씨").stdout.decode() == "가 좋\n"
    assert program("-p", "날씨", MINILLM_MAX_TOKENS="4").stdout.decode() == "가 좋다\n"
    assert program("-p", "날씨", "-n", "1", MINILLM_MAX_TOKENS="4").stdout.decode() == "가\n"
    (folder / "config.toml").write_text("heat = 0\n", encoding="utf-8")
    done = program("-p", "날씨")
    assert (done.returncode, "sets 'heat'" in done.stderr.decode()) == (2, True)


def test_an_ascii_terminal_gets_escapes_and_no_crash(program):
    done = program("-p", "날씨", "-n", "2", "--temp", "0", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stdout) == (0, b"\\uac00 \n")


def test_an_interrupt_ends_training_and_saves_what_was_learnt(tmp_path):
    started = subprocess.Popen(
        [sys.executable, "-m", "minillm_repl", "--ckpt", "m.safetensors", "--train",
         MODELS / "nalssi.txt", "--steps", "1000000", "--every", "3"],
        stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    while not re.match(rb"step +3 ", started.stderr.readline()):
        pass
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "stopped by Ctrl-C" in err.decode()
    assert load(tmp_path / "m.safetensors").training.steps < 1_000_000


def test_an_interrupt_ends_a_whole_script(tmp_path):
    started = subprocess.Popen(
        [sys.executable, "-m", "minillm_repl", "--ckpt", "nalssi"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    started.stdin.write(":max-tokens 100000000\n날씨\n:model\n".encode())
    started.stdin.close()
    started.stdin = None
    while "좋" not in started.stdout.readline().decode():
        pass
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, b"parameters" in out, "stopped by Ctrl-C" in err.decode()) == (
        130,
        False,
        True,
    )


def test_the_seed_on_the_line_of_figures_gives_that_completion_again(program):
    script = (
        ":temp 3\n:max-tokens 12\n:stop '\\n'\n날씨\n날씨\n:regen\n:seed 7\n날씨\n날씨\n:regen\n"
        ":regen\n"
    )
    visit = program(stdin=script)
    texts = [
        line.removeprefix("날씨")
        for line in visit.stdout.decode().splitlines()
        if line.startswith("날씨")
    ]
    seeds = re.findall(r"seed (\d+)", visit.stderr.decode())
    assert len(texts) == len(seeds) == 7
    assert seeds[3:] == ["7", "7", "8", "9"]
    assert len(set(seeds[:3])) == 3
    for text, seed in list(zip(texts, seeds, strict=True))[::2]:
        again = program("-p", "날씨", "--temp", "3", "-n", "12", "--stop", "\n", "--seed", seed)
        assert again.stdout.decode().removesuffix("\n") == text


def test_a_saved_model_is_not_overwritten_by_a_new_one_nor_a_text_by_a_model(program, tmp_path):
    (tmp_path / "my story.txt").write_text("옛날 옛적에 호랑이가 살았다. " * 9, encoding="utf-8")
    script = """:train my story.txt new steps=2 width=8
:save mine
:train my story.txt new steps=1 width=16
:save my story.txt
:load mine
:load mine
:model
"""
    done = program(stdin=script)
    errors = done.stderr.decode()
    assert load(tmp_path / "mine.safetensors").config.d_model == 8
    assert errors.count("saved to mine.safetensors") == 1
    assert "my story.txt exists and is not a checkpoint" in errors
    assert "unsaved trained weights: `:save FILE` keeps them" in errors
    assert "d_model 8" in done.stdout.decode()
    over = program("--ckpt", "my story.txt", "--train", "my story.txt", "--new", "--steps", "1")
    assert (over.returncode, "is not a checkpoint" in over.stderr.decode()) == (1, True)
    assert (tmp_path / "my story.txt").read_text(encoding="utf-8").startswith("옛날")


def test_spaces_belong_to_the_text_of_continue_and_tokens(program):
    done = program(stdin=":temp 0\n:max-tokens 1\n날씨가 좋다.\n:continue  하\n:tokens  하\n")
    lines = done.stdout.decode().splitlines()
    # the completion's one token, then the space as typed
    assert re.fullmatch(r"날씨가 좋다\.. 하늘", lines[3])
    assert "2 tokens · 2 characters" in lines[-2]


def test_settings_can_be_asked_for_and_set_in_every_spelling(program):
    done = program(
        stdin=":set stop a=b\n:set top_k=3\n:set top-k\n:set temperature 2\n:verbose\n:verbose\n"
        ":verbose off\n"
    )
    shown = ["stop a=b", "top-k 3", "top-k 3", "temp 2", "verbose on", "verbose on", "verbose off"]
    assert done.stdout.decode().splitlines() == shown


@pytest.mark.slow
def test_forced_colours_bring_no_moving_parts_into_a_log(program, tmp_path):
    done = program("-p", "날씨", "-n", "1", "--color", "always")
    trained = program(
        "--ckpt",
        "m.safetensors",
        "--train",
        str(MODELS / "nalssi.txt"),
        "--steps",
        "2",
        FORCE_COLOR="1",
    )
    for output in (done.stderr, trained.stderr):
        assert re.findall(rb"\x1b\[[^m]*[A-Za-ln-z]", output) == []


def test_names_are_found_as_people_write_them(program, tmp_path):
    (tmp_path / "nalssi").mkdir()
    assert program("-p", "날씨", "-n", "1", MINILLM_CKPT="").returncode == 0
    (tmp_path / "mine.safetensors").write_bytes((MODELS / "nalssi.safetensors").read_bytes())
    assert program("-p", "날씨", "-n", "1", "--ckpt", "mine").returncode == 0


@pytest.mark.parametrize("typed", ["NFC", pytest.param("NFD", marks=pytest.mark.slow)])
def test_a_name_in_letters_or_in_syllables_is_the_same_name(program, tmp_path, typed):
    other = {"NFC": "NFD", "NFD": "NFC"}[typed]
    folder = tmp_path / unicodedata.normalize(typed, "모델들")
    folder.mkdir()
    name, stem = (
        unicodedata.normalize(other, "날씨é.safetensors"),
        unicodedata.normalize(typed, "모델들/날씨é"),
    )
    (folder / name).write_bytes((MODELS / "nalssi.safetensors").read_bytes())
    (folder / unicodedata.normalize(other, "글.txt")).write_text(
        "날씨가 좋다. " * 20, encoding="utf-8"
    )
    assert program("-p", "날씨", "-n", "1", "--ckpt", stem).returncode == 0
    text = unicodedata.normalize(typed, "모델들/글.txt")
    script = (
        f":load {stem}.safetensors\n:train {text} new steps=1 width=16 layers=1 context=8\n"
        f":save {stem}\n"
    )
    done = program(stdin=script)
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(folder)) == 2, "no second file whose name looks the same"


def test_a_name_that_is_not_utf_8_opens_and_is_remembered(program, tmp_path):
    name = "날씨".encode("cp949") + b".safetensors"  # as a ZIP file from Korean Windows unpacks
    (tmp_path / os.fsdecode(name)).write_bytes((MODELS / "nalssi.safetensors").read_bytes())
    script = "날씨\n:model\n:models\n:save\n:quit\n"
    done = program("--ckpt", os.fsdecode(name), "-n", "4", "--temp", "0", stdin=script)
    assert (done.returncode, b"bug" in done.stderr) == (0, False), done.stderr
    assert "가 좋다" in done.stdout.decode()
    kept = (tmp_path / "XDG_STATE_HOME" / "minillm-repl" / "recent").read_bytes()
    assert kept == os.fsencode(tmp_path) + b"/" + name + b"\n"


def test_tabs_come_through_a_pipe_as_they_are(program):
    text = "all:\n\tcc a.c\t# once\n"
    done = program(
        "--ckpt", "story", "-p", "-", "--echo", "-n", "1", "--temp", "0", stdin=text + "\n"
    )
    assert done.stdout.decode().startswith(text)
    assert "│␉│" in program("--ckpt", "story", stdin=":tokens a\tb\n").stdout.decode()


def test_a_block_may_follow_a_command(program):
    block = (
        ':system """You are\n\n  a "pirate"\n"""\n:set system\n/set system """one"""\n'
        ':tokens """가\n날"""\n""""""\n'
    )
    done = program(stdin=block)
    assert done.stdout.decode().startswith(
        'system You are\n\n  a "pirate"\n' * 2 + "system one\n│가│⏎│날│\n"
    )


def test_who_types_a_colon_for_its_own_sake_is_told_how(program):
    done = program(stdin=":)\n::가\n")
    assert (
        "unknown command :); :help lists all commands, and `::` at the start sends a literal colon"
        in done.stderr.decode()
    )
    assert "not in the vocabulary: :" in done.stderr.decode()


@pytest.mark.parametrize("columns", [1, 8, 12, 16, 20, 40])
def test_verbose_ends_on_the_narrowest_terminal(program, columns):
    done = program("-p", "날씨가 좋다. 하늘이", "-n", "2", "--verbose", "3", COLUMNS=str(columns))
    assert done.returncode == 0
    assert done.stdout.decode().count("\n▶") == 2


def test_a_compared_models_name_and_endless_numbers_reach_the_terminal_harmless(program, tmp_path):
    # more digits than Python turns into a number
    name, endless = "ev\x1b[31mil.safetensors", "9" * 5_000
    (tmp_path / name).write_bytes((MODELS / "nalssi.safetensors").read_bytes())
    lines = [
        ":max-tokens 4",
        "날씨",
        f":compare {name}",
        *(f":{each} {endless}" for each in ("attn", "lens", "branch")),
    ]
    done = program(stdin="\n".join([*lines, f":why #{endless}"]) + "\n")
    assert b"\x1b" not in done.stdout + done.stderr
    assert "ev␛[31mil" in done.stdout.decode()
    errors = done.stderr.decode()
    assert errors.count("error: ") == 4
    assert "bug" not in errors
