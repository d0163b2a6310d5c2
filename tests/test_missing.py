"""A model that is not on this disk: how one gets it. Nothing is downloaded."""

import subprocess
import sys

import pytest

from minillm_repl.errors import UserError
from minillm_repl.storage.missing import is_elsewhere, missing_model, refuse_download
from tests.small import random_checkpoint
from tests.test_lessons import shell_for


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("Qwen/Qwen3-0.6B", "`hf download Qwen/Qwen3-0.6B`"),
        (
            "unsloth/Qwen3-0.6B-GGUF",
            "`hf download unsloth/Qwen3-0.6B-GGUF --include '*Q8_0.gguf'`",
        ),
        ("a/b-GGUF/b-Q4_0.gguf", "`hf download a/b-GGUF b-Q4_0.gguf`"),
        ("ollama:qwen3:0.6b", "`ollama pull qwen3:0.6b`"),
        ("gone", "`:models` lists"),
        ("gone.safetensors", "`:models` lists"),
    ],
)
def test_a_name_that_is_not_here_says_how_to_get_it(name, command):
    assert command in missing_model(name)
    assert is_elsewhere(name) == ("download " + name[:1] in command or "pull" in command)
    with pytest.raises(UserError, match=name):
        shell_for(random_checkpoint()).run_line(f":load {name}")


def test_a_file_in_a_folder_of_ones_own_is_not_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert not is_elsewhere("mine/model")
    assert not is_elsewhere("yours/model.safetensors")


@pytest.mark.parametrize(
    ("address", "command", "name"),
    [
        (
            "https://huggingface.co/Qwen/Qwen3-0.6B",
            "hf download Qwen/Qwen3-0.6B`",
            "Qwen/Qwen3-0.6B",
        ),
        ("hf.co/a/b/tree/main?x=1", "hf download a/b`", "a/b"),
        (
            "https://huggingface.co/a/b-GGUF/resolve/main/b-Q8_0.gguf?download=true",
            "hf download a/b-GGUF b-Q8_0.gguf`",
            "a/b-GGUF/b-Q8_0.gguf",
        ),
        ("https://x.org/m/a%20b.gguf", "curl -LO 'https://x.org/m/a%20b.gguf'`", "a b.gguf"),
    ],
)
def test_the_address_of_a_file_says_why_nothing_is_downloaded_and_how_one_does(
    address, command, name
):
    with pytest.raises(UserError) as refused:
        shell_for(random_checkpoint()).run_line(f":load {address}")
    assert command in str(refused.value)
    assert f"`:load {name}`" in str(refused.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8080", "https://x.org/v1", "nalssi"])
def test_an_address_of_a_server_is_none_of_a_file(address):
    refuse_download(address)


def test_a_name_on_the_command_line_opens_a_model_or_says_how_to_get_it(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "minillm_repl", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    assert run("nalssi", "-p", "날씨", "-n", "2", "--json")[0] == 0
    code, said = run("no/such-model")
    assert code == 1
    assert "hf download no/such-model" in said
    assert run("nalssi", "--ckpt", "story") == (
        2,
        "minillm-repl: name the model once: NAME or --ckpt NAME\n",
    )
