"""What a run is told before it begins: numbers that are none, texts that have moved or changed,
models that chat.
"""

import dataclasses
import shutil
from pathlib import Path

import pytest

from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE, ROLE_TOKENS
from minillm_repl.checkpoint.native import save_native as save
from minillm_repl.cli import main
from minillm_repl.commands.train import train
from minillm_repl.errors import UserError
from minillm_repl.repl.train_request import make_request
from minillm_repl.storage.paths import resume_path
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.training.history import resume_run
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import start_run
from minillm_repl.training.run import RunContext
from tests.conftest import MODELS, random_checkpoint
from tests.test_training_runs import SIZES, run

TEXT = (MODELS / "nalssi.txt").read_text(encoding="utf-8") * 3
SMALL = TrainPlan(
    steps=9,
    context_length=8,
    batch_size=4,
    lr=0.006,
    arch="gpt",
    d_model=16,
    n_layers=1,
    n_heads=2,
    precision="float32",
    eval_interval=3,
)


def parse_request(line):
    """What is asked for by a line after `:train`."""
    return make_request(train.parse(line))


# -- numbers that are none

NONE = [
    *(
        "steps=0",
        "batch=0",
        "context=0",
        "lr=0",
        "lr=0.0",
        "lr=1e-999",
        "layers=0",
        "width=0",
        "heads=0",
        "kv-heads=0",
    ),
    *(
        "every=0",
        "accumulate=0",
        "steps=-1",
        "batch=-2",
        "lr=-0.1",
        "warm-up=-1",
        "weight-decay=-1",
        "patience=-1",
    ),
    *(
        "steps=99999999999",
        "lr=11",
        "lr=nan",
        "lr=inf",
        "batch=1e9",
        "layers=1001",
        "dropout=1",
        "steps=1.5",
        "steps=",
    ),
]


@pytest.mark.parametrize("word", NONE)
def test_a_number_that_is_none_is_refused_by_its_name(word):
    name, _, value = word.partition("=")
    with pytest.raises(UserError) as refused:
        parse_request(f"t.txt new {word}")
    said = str(refused.value)
    assert said.startswith(f":train {name} needs a ")
    assert said.endswith(f"not '{value}'")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("--steps 0", "--steps"),
        ("--lr 0", "--lr"),
        ("--batch-size 0", "--batch-size"),
        ("--batch 0", "--batch-size"),  # an older spelling, told by the name of today
        ("--context 0", "--context-length"),
        ("--layers 0", "--n-layers"),
        ("--every 0", "--eval-interval"),
    ],
)
def test_a_flag_that_is_no_number_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, capsys, word, name
):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(TEXT, encoding="utf-8")
    assert main(["--ckpt", "m.safetensors", "--train", "t.txt", *word.split()]) == 2
    said = capsys.readouterr().err
    assert f"{name} needs a " in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_what_is_left_open_and_what_is_off_still_has_its_word():
    plan = parse_request(
        "t.txt steps=auto lr=auto every=AUTO warm-up=0 patience=0 clip=0 dropout=0 weight-decay=0"
    ).plan
    assert plan == TrainPlan(warmup_steps=0, grad_clip=0.0, weight_decay=0.0)
    assert parse_request("t.txt save-steps=off lora=off").plan == TrainPlan()


@pytest.mark.parametrize(
    "absurd",
    [
        {"d_model": 65_536, "n_layers": 1_000},
        {"batch_size": 65_536, "context_length": 300},
        {"n_heads": 16, "d_model": 16_384},
    ],
)
def test_sizes_beyond_the_memory_are_refused_in_one_line(tmp_path, absurd, monkeypatch):
    monkeypatch.setattr("minillm_repl.storage.files.available_bytes", lambda: 1 << 31)
    path = tmp_path / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    with pytest.raises(
        UserError,
        match=r"training at these sizes needs [\d,.]+ GiB of memory, but 2.0 GiB is free",
    ):
        begin(path, dataclasses.replace(SMALL, **absurd))


@pytest.mark.parametrize("word", ["val=", "val=''", 'val=" "'])
def test_an_empty_name_is_no_file_to_hold_out(word):
    with pytest.raises(UserError, match="val needs a file, or off, auto, not "):
        parse_request(f"t.txt {word}")


def test_a_setting_that_is_given_twice_is_refused():
    for line in ("t.txt steps=1 lr=0.1 steps=2", "steps=1 t.txt steps=1"):
        with pytest.raises(UserError, match="steps is set twice"):
            parse_request(line)


def test_a_setting_within_the_name_of_a_text_is_told_unless_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in ("t.txt new steps= 5 width=8", "t.txt width=8 steps", "t.txt new nwe steps=1"):
        with pytest.raises(
            UserError,
            match="does not exist; put settings such as .* before or after the text",
        ):
            parse_request(line)
    Path("a new day.txt").touch()
    assert parse_request("a new day.txt new").corpus == "a new day.txt"


def test_a_text_that_is_learnt_and_held_out_too_is_told(tmp_path):
    for name in ("t.txt", "copy.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    (tmp_path / "other.txt").write_text(TEXT + "하늘", encoding="utf-8")
    told = [
        any(
            "the validation text is the training text" in note
            for note in begin(tmp_path / "t.txt", plan).notes
        )
        for name in ("t.txt", "copy.txt", "other.txt")
        for plan in [dataclasses.replace(SMALL, val=str(tmp_path / name))]
    ]
    assert told == [True, True, False]


# -- texts that have moved or changed


def begin(corpus, plan=SMALL, start=None):
    return start_run(
        start,
        str(corpus),
        plan,
        RunContext(path=Path(corpus).parent / "m.safetensors", device="cpu", threads=1),
    )


def cut(trainee, steps=4):
    for _event in trainee.events(lambda: trainee.trainer.state.step >= steps):
        pass


def again(path, corpus=""):
    trainee = resume_run(path, RunContext(path=path, device="cpu", threads=1), corpus)
    *_, finished = trainee.events(lambda: False)
    return trainee, trainee.checkpoint(finished)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped, on texts named from folder `here`; its weights had it gone on."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("t.txt", "held.txt"):
        Path(name).write_text(TEXT, encoding="utf-8")
    plan = dataclasses.replace(SMALL, val="held.txt")
    whole = start_run(
        None, "t.txt", plan, RunContext(path=here / "whole.safetensors", device="cpu", threads=1)
    )
    *_, finished = whole.events(lambda: False)
    path = here / "deep" / "m.safetensors"
    path.parent.mkdir()
    cut(start_run(None, "t.txt", plan, RunContext(path=path, device="cpu", threads=1)))
    return path, whole.checkpoint(finished)


def same(one, other):
    assert all(one.tensors[name].tobytes() == other.tensors[name].tobytes() for name in one.tensors)


def test_a_run_goes_on_from_any_folder(stopped, tmp_path, monkeypatch):
    path, expected = stopped
    monkeypatch.chdir(tmp_path)
    trainee, found = again(path)
    same(expected, found)
    assert (trainee.corpora.name, found.training.corpus) == ("t.txt", "t.txt")
    assert not any("moved" in note for note in trainee.notes)


def test_from_another_folder_it_can_be_stopped_again_and_go_on_from_a_third(
    stopped, tmp_path, monkeypatch
):
    path, expected = stopped
    monkeypatch.chdir(tmp_path)
    cut(resume_run(path, RunContext(path=path, device="cpu", threads=1)), 6)
    monkeypatch.chdir("/")
    same(expected, again(path)[1])


@pytest.mark.parametrize("where", ["beside the checkpoint", "named", "here"])
def test_a_text_that_has_moved_is_taken_if_it_is_the_same(stopped, tmp_path, monkeypatch, where):
    path, expected = stopped
    there = {
        "beside the checkpoint": path.parent,
        "named": tmp_path / "new",
        "here": tmp_path / "now",
    }[where]
    there.mkdir(exist_ok=True)
    for name in ("t.txt", "held.txt"):
        shutil.move(tmp_path / "here" / name, there / name)
    if where == "here":
        monkeypatch.chdir(there)
    trainee, found = again(path, str(there / "t.txt") if where == "named" else "")
    same(expected, found)
    now = "t.txt" if where == "here" else there / "t.txt"
    assert trainee.notes[0] == f"the text file has moved: it is read from {now}"


def test_a_text_that_is_named_anew_need_not_have_its_old_name(stopped, tmp_path):
    path, expected = stopped
    (tmp_path / "here" / "t.txt").rename(tmp_path / "other.md")
    same(expected, again(path, str(tmp_path / "other.md"))[1])


def test_another_text_is_refused_wherever_it_lies(stopped, tmp_path):
    path, expected = stopped
    before, moved = path.read_bytes(), tmp_path / "moved.txt"
    moved.write_text(TEXT + "!", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"moved\.txt has changed: the run cannot be resumed exactly"
    ):
        again(path, str(moved))
    Path("held.txt").write_text(TEXT + "!", encoding="utf-8")
    with pytest.raises(UserError, match=r"held\.txt has changed"):
        again(path)
    Path("t.txt").unlink()
    with pytest.raises(
        UserError, match=r"the text t\.txt of this run is missing; .*`:train resume FILE`"
    ):
        again(path)
    assert path.read_bytes() == before
    for name in ("t.txt", "held.txt"):
        Path(name).write_text(TEXT, encoding="utf-8")
    same(expected, again(path)[1])


def test_a_changed_text_is_passed_over_for_the_same_one_beside_the_checkpoint(stopped):
    path, expected = stopped
    shutil.copy("t.txt", path.parent / "t.txt")
    Path("t.txt").write_text("another", encoding="utf-8")
    same(expected, again(path)[1])


def test_a_resume_file_that_is_older_goes_on_too(stopped, monkeypatch):
    path, expected = stopped
    import json

    from safetensors.numpy import load_file, save_file

    from minillm_repl.checkpoint.header import read_header

    file = resume_path(path)
    metadata = dict(read_header(file).metadata)
    facts = json.loads(metadata["run"])
    del facts["working_folder"], facts["val_sha256"]
    save_file(load_file(file), file, {**metadata, "run": json.dumps(facts)})
    same(expected, again(path)[1])


def test_what_follows_resume_is_the_text_and_no_setting():
    assert parse_request("resume") == parse_request("resume ")
    request = parse_request("resume 'my text.txt'")
    assert (request.is_resume, request.corpus) == (True, "my text.txt")
    with pytest.raises(UserError, match="uses the settings of the run before"):
        parse_request("resume steps=5")


@pytest.mark.slow
def test_the_program_goes_on_from_another_folder_with_a_text_that_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "t.txt").write_text(TEXT * 5, encoding="utf-8")
    words = ["--ckpt", "m.safetensors", "--train", "t.txt", "--json", "--steps", 6, *SIZES]
    run(tmp_path / "a", *words)
    trainee = begin(tmp_path / "a" / "t.txt", SMALL)
    cut(trainee)
    (tmp_path / "a" / "t.txt").rename(tmp_path / "b.txt")
    _, said = run(tmp_path, "--ckpt", "a/m.safetensors", "--resume", code=1)
    assert "is missing" in said
    _, said = run(tmp_path, "--ckpt", "a/m.safetensors", "--resume", "--train", "b.txt", "--json")
    assert "the text file has moved: it is read from b.txt" in said


# -- models that chat


def chatting(tmp_path, chat=DEFAULT_CHAT_TEMPLATE):
    tokenizer = CharacterTokenizer(sorted(set(TEXT)), ROLE_TOKENS)
    model = random_checkpoint(
        characters=[chr(0x4E00 + place) for place in range(tokenizer.vocab_size)]
    )
    return save(
        dataclasses.replace(model, tokenizer=tokenizer, chat_template=chat),
        tmp_path / "chat.safetensors",
    )


TALK = (
    '{"messages": [{"role": "user", "content": "날씨"}, '
    '{"role": "assistant", "content": "좋다"}]}\n'
)


@pytest.mark.parametrize(
    ("chat", "name", "content", "warned"),
    [
        (DEFAULT_CHAT_TEMPLATE, "t.txt", TEXT, True),
        (DEFAULT_CHAT_TEMPLATE, "t.jsonl", '{"text": "날씨가 좋다. 산책을 하자."}\n', True),
        (DEFAULT_CHAT_TEMPLATE, "t.csv", "text\n날씨가 좋다. 산책을 하자.\n", True),
        (DEFAULT_CHAT_TEMPLATE, "t.jsonl", TALK, False),
        (DEFAULT_CHAT_TEMPLATE, "t.csv", "q,a\n날씨,좋다. 하늘이 맑다\n", False),
        (None, "t.txt", TEXT, False),
    ],
)
def test_a_model_that_chats_warns_before_plain_text_and_goes_on(
    tmp_path, chat, name, content, warned
):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    trainee = begin(
        path,
        dataclasses.replace(TrainPlan(steps=2, batch_size=1), context_length=2),
        chatting(tmp_path, chat),
    )
    assert len(trainee.warnings) == warned
    assert all(
        f"{path} is plain text" in line and "`messages`" in line for line in trainee.warnings
    )
    *_, finished = trainee.events(lambda: False)
    assert finished.steps == 2


def test_the_warning_is_on_stderr_and_blocks_no_script(tmp_path):
    chatting(tmp_path)
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    words = [
        "--ckpt",
        "chat.safetensors",
        "--train",
        "t.txt",
        "--json",
        "--steps",
        2,
        "--batch",
        2,
        "--context",
        8,
    ]
    events, said = run(tmp_path, *words)
    assert "t.txt is plain text" in said
    assert events[-1]["reason"] == "done"
