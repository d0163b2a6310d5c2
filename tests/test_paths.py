"""Paths as people write them and terminals paste them."""

import os
import shlex
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm_repl.storage.paths import user_path
from tests.test_command_line import program  # noqa: F401 - a fixture

pytest.importorskip("termios")  # on Windows a backslash is no escape

PLAIN = "/._-"
NAMES = [
    "plain.txt",
    "my story.txt",
    "it's (1) & $x.txt",
    '말 "뭉치".txt',
    "a'b\"c.txt",
    "100%20.txt",
    "tab\tand\\.txt",
]
WAYS = {
    "as it is": str,
    "backslashes": lambda path: "".join(
        f"\\{each}" if not each.isalnum() and each not in "/._-" else each for each in path
    ),
    "single quotes": lambda path: "'" + path.replace("'", "'\\''") + "'",
    "shlex": shlex.quote,
    "a URL": lambda path: "file://" + quote(path),
    "a URL of this machine": lambda path: "file://localhost" + quote(path),
    "a space after it": lambda path: path + " ",
    "quotes and a space": lambda path: f"'{path}' " if "'" not in path else path,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_found_however_it_was_pasted(tmp_path, name, way):
    (tmp_path / name).touch()
    assert user_path(WAYS[way](str(tmp_path / name))) == tmp_path / name


def test_a_file_whose_name_looks_like_that_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a\\ b.txt", "'quoted'", "space "):
        Path(name).touch()
        assert user_path(name) == Path(name)


def test_the_home_is_meant_by_its_sign_in_quotes_too(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    for written in ("~/my\\ model", "'~/my model'", '"~/my model"', "~/my model "):
        assert user_path(written) == Path("/somewhere/my model")


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from("~\0/\\'\"a")))
def test_no_path_however_odd_is_a_crash(text):
    assert isinstance(user_path(text), os.PathLike)


@pytest.mark.slow
def test_commands_take_paths_as_terminals_paste_them(program, tmp_path):
    (tmp_path / "my story.txt").write_text("날씨가 좋다. " * 30, encoding="utf-8")
    url = "file://" + quote(str(tmp_path / "my story.txt"))
    script = f""":train my\\ story.txt new steps=1 width=8 layers=1 heads=1
:train 'my story.txt' steps=1
:train {url} steps=1
:save my\\ model.safetensors
:save file://{quote(str(tmp_path))}/url%20model.safetensors
:load my\\ model.safetensors{" "}
:load '{tmp_path}/url model.safetensors'
:export my\\ view.txt session
"""
    done = program(stdin=script)
    assert done.returncode == 0, done.stderr.decode()
    there = {path.name for path in tmp_path.iterdir()}
    assert {"my model.safetensors", "url model.safetensors", "my view.txt"} <= there
    again = program(
        "--ckpt", f"file://{quote(str(tmp_path))}/my%20model.safetensors", "-p", "날씨", "-n", "1"
    )
    assert again.returncode == 0, again.stderr.decode()
