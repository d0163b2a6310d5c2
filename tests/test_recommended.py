"""What a model's files recommend counts where the user has set nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import httpx
import pytest
from rich.console import Console
from transformers import GenerationConfig

import minillm_repl as mr
from minillm_repl.chat.system_prompt import default_system_prompt
from minillm_repl.checkpoint import ChatTemplate
from minillm_repl.checkpoint.gguf.header import read_gguf_header
from minillm_repl.checkpoint.gguf.write import save_gguf
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from tests.conftest import ROOT, random_checkpoint
from tests.test_chat import CHATML, TEMPLATES
from tests.test_finetuning import trained
from tests.test_server import server


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder of a small model with this generation_config.json."""

    def made(name="model", **fields):
        save(random_checkpoint(vocab=40, context=32), tmp_path / name, folder=True)
        path = tmp_path / name / "generation_config.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        return tmp_path / name

    return made


def program(home, *words, typed="", **variables):
    """Run the program; return what it printed on stdout and on stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)} | variables
    return subprocess.run(
        [sys.executable, "-m", "minillm_repl", *map(str, words)],
        input=typed,
        capture_output=True,
        text=True,
        env=environment,
        cwd=home,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95}, {"temp": 0.6, "top-k": 20,
                                                            "top-p": 0.95}),
        ({"do_sample": False, "temperature": 0.6}, {"temp": 0.0}),
        ({"do_sample": True, "top_k": 64}, {"temp": 1.0, "top-k": 64}),
        ({"repetition_penalty": 1.1, "min_p": 0.05}, {"repeat-penalty": 1.1, "min-p": 0.05}),
        ({"temperature": None, "top_k": None, "do_sample": None}, {}),
    ],
)  # fmt: skip
def test_a_generation_config_sets_the_samplers(folder, fields, expected):
    model = ModelLoader().load(folder(**fields))
    assert (model.checkpoint.recommended, model.checkpoint.notes) == (expected, ())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("temperature", True),
        ("temperature", [1]),
        ("top_p", 7),
        ("top_k", 2.5),
        ("top_k", -1),
        ("repetition_penalty", 0),
        ("repetition_penalty", {"\x1b[31m": 1}),
        ("min_p", 10**400),
        ("do_sample", "no"),
        ("eos_token_id", [2, 99_999]),
        ("eos_token_id", "end"),
    ],
)
def test_a_value_that_cannot_be_is_ignored_with_one_line(folder, field, value):
    model = ModelLoader().load(folder(top_k=3, **{field: value} if field != "top_k" else {}))
    if field == "top_k":
        model = ModelLoader().load(folder("other", min_p=0.1, top_k=value))
    checkpoint = model.checkpoint
    assert checkpoint.recommended == ({"min-p": 0.1} if field == "top_k" else {"top-k": 3})
    (note,) = checkpoint.notes
    assert note.endswith("ignored")
    assert "\n" not in note
    assert "\x1b" not in note


def test_what_the_user_sets_goes_before_and_another_model_brings_its_own(folder):
    first = ModelLoader().load(folder("first", temperature=0.6, top_k=20))
    second = ModelLoader().load(folder("second", temperature=0.3, top_p=0.5))
    session = Session(Settings(top_k=7), sources={"top-k": "flag"})
    assert (session.settings.temp, session.settings.top_k) == (0.8, 7)
    session.adopt(first, unsaved=False)
    assert (session.settings.temp, session.settings.top_k) == (0.6, 7)
    assert [session.source(name) for name in ("temp", "top-k", "top-p")] == [
        "model", "flag", "program",
    ]  # fmt: skip
    session.adopt(second, unsaved=False)
    assert (session.settings.temp, session.settings.top_p) == (0.3, 0.5)
    session.set("temp", "0.8")  # the program's own value, and still the user's
    assert (session.settings.temp, session.source("temp")) == (0.8, "session")
    session.adopt(first, unsaved=False)
    assert session.settings.temp == 0.8
    session.set("temp", "default")
    assert (session.settings.temp, session.source("temp")) == (0.6, "model")


def test_set_shows_where_each_value_comes_from(folder, tmp_path):
    path = folder(temperature=0.6, top_k=20, top_p=0.5, min_p=0.1, repetition_penalty=1.5)
    config = tmp_path / ".config" / "minillm-repl" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("top_p = 0.25\nmin_p = 0.2\n", encoding="utf-8")
    done = program(
        tmp_path, "--ckpt", path, "--top-k", "9", typed=":seed 4\n:set\n", MINILLM_MIN_P="0.3"
    )
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line[:1].strip()}
    expected = {
        "temp": "0.6 model", "top-k": "9 tokens flag", "top-p": "0.25 file",
        "min-p": "0.3 variable", "repeat-penalty": "1.5 model", "stop": "off program",
    }  # fmt: skip
    for name, value in expected.items():
        assert " ".join(rows[name].split()).startswith(f"{name} {value} "), rows[name]
    assert any("4" in line and "session" in line for line in done.stdout.splitlines())


def test_a_prompt_json_the_server_and_python_follow_the_same_rule(folder, tmp_path):
    path = folder(do_sample=False)
    prompt = "가"
    words = ("--ckpt", path, "-p", prompt, "-n", "6")
    greedy = [program(tmp_path, *words, "--seed", n).stdout for n in (1, 2)]
    assert greedy[0] == greedy[1]
    assert program(tmp_path, *words, "--seed", 1, "--temp", 0).stdout == greedy[0]
    assert len({program(tmp_path, *words, "--seed", n, "--temp", 9).stdout for n in (1, 2)}) == 2
    lines = program(tmp_path, *words, "--seed", 1, "--json").stdout.splitlines()
    finished = json.loads(lines[-1])
    assert finished["text"] == greedy[0].rstrip("\n")
    model = mr.load(path)
    assert model.generate(prompt, max_tokens=6, seed=5).text == finished["text"]
    sampled = {model.generate(prompt, max_tokens=6, seed=n, temp=9).text for n in range(3)}
    assert len(sampled) == 3
    with server(tmp_path, "--ckpt", str(path)) as (_process, url):
        body = {"prompt": prompt, "max_tokens": 6}
        answers = [
            httpx.post(f"{url}/v1/completions", json=body | more, timeout=60).json()
            for more in ({"seed": 1}, {"seed": 2}, {"seed": 1, "temperature": 9})
        ]
    texts = [answer["choices"][0]["text"] for answer in answers]
    assert texts[0] == texts[1] == finished["text"]
    assert texts[2] != texts[0]


def test_what_is_recommended_is_saved_with_the_model(folder, tmp_path):
    wanted = {"temp": 0.6, "top-k": 20, "min-p": 0.0625, "repeat-penalty": 1.5}
    checkpoint = replace(random_checkpoint(vocab=40, context=32), recommended=wanted)
    save(checkpoint, tmp_path / "file.safetensors")
    save(checkpoint, tmp_path / "folder", folder=True)
    for place in ("file.safetensors", "folder"):
        assert load(tmp_path / place).recommended == wanted
    theirs = GenerationConfig.from_pretrained(tmp_path / "folder")
    assert (theirs.do_sample, theirs.temperature, theirs.top_k) == (True, 0.6, 20)
    assert (theirs.min_p, theirs.repetition_penalty) == (0.0625, 1.5)
    save(replace(checkpoint, recommended={"temp": 0.0}), tmp_path / "greedy", folder=True)
    assert GenerationConfig.from_pretrained(tmp_path / "greedy").do_sample is False
    assert load(tmp_path / "greedy").recommended == {"temp": 0.0}


def test_training_further_keeps_what_is_recommended(tmp_path):
    (tmp_path / "text.txt").write_text("하나 둘 셋 " * 40)
    start = replace(random_checkpoint(characters=list("하나둘셋 ")), recommended={"temp": 0.3})
    _, _, after = trained(start, tmp_path / "text.txt", tmp_path / "m", steps=2)
    assert after.recommended == {"temp": 0.3}


def test_the_keys_of_a_gguf_file_set_the_samplers(nalssi, tmp_path):
    wanted = {"temp": 0.625, "top-k": 20, "top-p": 0.5, "min-p": 0.0625, "repeat-penalty": 1.5}
    save_gguf(replace(nalssi, recommended=wanted), tmp_path / "x.gguf")
    metadata = read_gguf_header(tmp_path / "x.gguf").metadata
    assert metadata["general.sampling.temp"] == 0.625
    assert metadata["general.sampling.penalty_repeat"] == 1.5
    assert ModelLoader().load(tmp_path / "x.gguf").checkpoint.recommended == wanted
    # llama.cpp reads no type but its own; neither is a text a number here.
    save_gguf(replace(nalssi, recommended={**wanted, "temp": "hot"}), tmp_path / "y.gguf")
    model = ModelLoader().load(tmp_path / "y.gguf")
    assert "temp" not in model.checkpoint.recommended
    assert model.checkpoint.notes[-1] == "the model's files set temp 'hot': ignored"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, "You are kind."),
        (TEMPLATES["Llama 2"], ""),
        (TEMPLATES["Llama 3"], ""),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}"
            "{% endif %}{{ m.content }}{% endfor %}",
            "",
        ),
        (  # Gemma's: the system prompt becomes the start of the question
            "{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
            "<turn>user\n{{ s }}{{ messages[-1].content }}<end>\n<turn>model\n",
            "",
        ),
    ],
)
def test_the_system_prompt_of_a_template_is_found(source, expected):
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    assert default_system_prompt(template) == expected


def test_the_system_prompt_of_a_template_is_shown(nalssi, tmp_path):
    template = ChatTemplate(CHATML.replace("kind", "\x1b]0;kind"))
    save(replace(nalssi, chat_template=template), tmp_path / "m.safetensors")
    done = program(
        tmp_path, "--ckpt", tmp_path / "m.safetensors", typed=":set\n:system Hm.\n:set\n"
    )
    first, second = done.stdout.split("system Hm.")
    assert "You are" in first
    assert "You are" not in second
    assert "\x1b" not in done.stdout
    shown = " ".join(Console(width=80).render_str(first).plain.split())
    assert "model" in shown[shown.index(" system ") :]
