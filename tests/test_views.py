"""What every view has: a picture, numbers, a notebook's page, an example in its help."""

import dataclasses
import json

import pytest
from rich.console import Console

from minillm_repl import commands, views
from minillm_repl.errors import UserError
from minillm_repl.repl.registry import discover
from minillm_repl.repl.shell import ExitRequested
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.views import lens
from minillm_repl.views.base import View
from tests.conftest import random_checkpoint
from tests.test_architecture import loaded_by
from tests.test_insight import of_text
from tests.test_lessons import shell_for, state  # noqa: F401 - the last is a fixture

EVERY = list(discover(commands, views))


@pytest.fixture
def view():
    return lens.compute(of_text(random_checkpoint(), "가각"))


def shown(view, width=80):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_a_view_is_computed_without_a_prompt_line_and_declared_without_torch():
    declared = loaded_by("import minillm_repl.views.lens, minillm_repl.views.why")
    assert not declared & {"torch", "numpy", "prompt_toolkit"}
    computed = loaded_by(
        "from minillm_repl.views import lens\n"
        "from tests.conftest import random_checkpoint\n"
        "from tests.test_insight import of_text\n"
        "print(lens.compute(of_text(random_checkpoint(), '가각')).rows[0].prob)"
    )
    assert "prompt_toolkit" not in computed


def test_a_view_is_its_picture_wherever_rich_prints_it(view):
    assert "logit lens" in shown(view)
    assert max(map(len, shown(view, 60).splitlines())) <= 60


def test_a_view_warns_of_what_the_model_does_not_see(view):
    assert "exceeds the context" not in shown(view)
    assert "at positions 1 to 4" in shown(dataclasses.replace(view, unseen=4, kept=1), 100)


def test_the_numbers_of_a_view_are_its_name_and_its_fields(view):
    data = view.to_dict()
    assert data["view"] == "lens"
    assert set(data) == {"view", *(field.name for field in dataclasses.fields(view))}
    assert json.loads(view.to_json()) == json.loads(json.dumps(data))


def test_a_notebook_shows_the_picture_and_runs_nothing_from_it(view):
    token = dataclasses.replace(view.answer, text="<script>", bytes=tuple(b"<script>"))
    bundle = dataclasses.replace(view, answer=token)._repr_mimebundle_()
    assert "<script" not in bundle["text/html"]
    assert "&lt;script&gt;" in bundle["text/html"]
    assert bundle["text/html"].startswith("<pre")
    assert "logit lens" in bundle["text/plain"]


def test_every_view_can_be_drawn():
    for each in View.__subclasses__():
        assert each.draw is not View.draw, each


@pytest.fixture
def shell():
    made = shell_for(find_checkpoint("nalssi"))
    made.session.set("max-tokens", "3")
    return made


def test_every_command_ends_its_help_with_an_example(shell):
    assert not [each.name for each in EVERY if not each.example]
    for each in EVERY:
        shell.run_line(f":help {each.name}")
        assert shell.screen.out.file.getvalue().endswith(f"example: `{each.example}`\n")


@pytest.mark.parametrize("each", EVERY, ids=lambda each: each.name)
def test_the_example_at_the_end_of_a_commands_help_runs(shell, each, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("날씨가 좋다. 비가 온다. " * 200, encoding="utf-8")
    question = '{"prompt": "날씨가 좋", "choices": ["다", "을"], "answer": 0}'
    (tmp_path / "questions.jsonl").write_text(question, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("날씨가", encoding="utf-8")
    shell.run_line("날씨가 좋")
    shell.run_line(":lens")  # for what needs a view
    end = {
        "quit": ExitRequested,
        "leave": ExitRequested,
        "step": "needs a terminal",
        "adapter": "has no adapter",
        "copy": "needs a terminal",
    }.get(each.name)
    if isinstance(end, str):
        with pytest.raises(UserError, match=end):
            shell.run_line(each.example)
    elif end:
        with pytest.raises(end):
            shell.run_line(each.example)
    else:
        shell.run_line(each.example)
    # Of the forms of these, one is a view.
    if each.json and each.name not in ("temp", "watch", "features"):
        name = f":{each.name}"
        shell.run_line(f"{name} --json -{each.example.removeprefix(name)}")
        assert '{"view": "' in shell.screen.out.file.getvalue()


def test_help_names_the_option_of_every_command_that_writes_numbers(shell):
    for each in EVERY:
        shell.run_line(f":help {each.name}")
    named = shell.screen.out.file.getvalue().count("`--json FILE`")
    assert named >= sum(each.json for each in EVERY)
