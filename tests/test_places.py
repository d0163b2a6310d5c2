"""Places: every view looks where its user points, and explains what stands there."""

import io

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from minillm_repl.errors import UserError
from minillm_repl.tokenizer import decode
from minillm_repl.views.headless import run_view
from tests.conftest import MODELS
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - the last is a fixture

TEXT = "날씨가 좋다. 하늘이 맑고 바람이 시원하다."


@pytest.fixture
def shell(state):
    shell = shell_for(MODELS / "nalssi.safetensors")
    shell.session.conversation.ids = shell.encode(shell.require_model(), TEXT)
    return shell


def seen(view):
    """The text up to the place, and the token that the view explains."""
    asked = getattr(view, "answer", None) or view.token
    return "".join(token.text for token in view.tokens), asked.text


@pytest.mark.parametrize("name", ["why", "grad", "lens", "attn"])
@pytest.mark.parametrize(
    ("place", "until", "token"),
    [
        ("@3", "날씨가 ", "좋"),
        ("@-2", TEXT[:-1], "."),
        ("@좋", "날씨가 ", "좋"),
        ("@다", TEXT[:-2], "다"),  # the last of two
        ("@다:1", "날씨가 좋", "다"),
        ("@바람", TEXT[: TEXT.index("바람")], "바"),  # several tokens: where they begin
    ],
)
def test_a_view_explains_the_token_that_follows_its_place(shell, name, place, until, token):
    view = run_view(shell, name, place)
    assert seen(view) == (until, token)


def test_the_numbers_at_a_place_are_those_of_the_text_up_to_it(shell):
    model = shell.require_model()
    ids = torch.tensor([model.checkpoint.tokenizer.encode("날씨가 좋")])
    with torch.no_grad():
        probabilities = model.language_model(ids)[0, -1].double().softmax(-1)
    wanted = float(probabilities[model.checkpoint.tokenizer.encode("다")[0]])
    assert run_view(shell, "lens", "@다:1").rows[-1].prob == pytest.approx(wanted, rel=1e-5)
    assert run_view(shell, "why", "@다:1").prob == pytest.approx(wanted, rel=1e-5)


def test_a_token_without_a_place_is_explained_where_it_was_said(shell):
    assert seen(run_view(shell, "why", "맑")) == ("날씨가 좋다. 하늘이 ", "맑")
    assert seen(run_view(shell, "why", "다 vs 고")) == (TEXT[:-2], "다")
    # It is nowhere in the text: then it is asked whether it comes next.
    assert seen(run_view(shell, "why", "같")) == (TEXT, "같")
    # A text in quotes is looked at where it ends.
    assert seen(run_view(shell, "why", '다 "날씨가 좋다"')) == ("날씨가 좋다", "다")


def test_a_word_of_several_tokens_without_a_place_is_meant_at_its_first(shell):
    assert seen(run_view(shell, "why", "하늘")) == seen(run_view(shell, "why", "@하늘"))
    assert seen(run_view(shell, "why", "하늘")) == ("날씨가 좋다. ", "하")
    with pytest.raises(UserError, match="not a single token"):
        run_view(shell, "why", "정말로")  # in no text that was said


def test_without_a_place_the_end_of_the_text_is_meant(shell):
    assert seen(run_view(shell, "lens", ""))[0] == TEXT
    assert run_view(shell, "residual", "@좋").position == run_view(shell, "residual", "3").position


@pytest.mark.parametrize("name", ["why", "grad", "lens", "attn", "residual", "qkv 0.0", "canon"])
@pytest.mark.parametrize("place", ["@99", "@-99", "@없다", "@다:3", "@날", "@", "@\x1b[2J"])
def test_what_is_meant_as_a_place_and_is_none_is_an_error(shell, name, place):
    name, _space, arguments = name.partition(" ")
    with pytest.raises(UserError) as error:
        run_view(shell, name, f"{arguments} {place}")
    assert "\x1b" not in str(error.value)


def test_what_an_intermediate_layer_thinks_of_a_token_that_the_model_did_not_expect(shell):
    shell.session.conversation.ids = shell.encode(shell.require_model(), "날씨가 씨")
    view = run_view(shell, "lens", "@씨:2")
    assert view.rows[-1].rank > 1
    assert view.first == ""


def test_a_text_is_set_without_generating_and_shown_with_its_positions(shell):
    shell.run_line(":text 날씨가 좋다")
    assert decode(shell.require_model().checkpoint.tokenizer, shell.session.conversation.ids) == (
        "날씨가 좋다"
    )
    assert "@0 날  @1 씨  @2 가  @3 ␣  @4 좋  @5 다" in printed(shell)
    assert seen(run_view(shell, "why", "다")) == ("날씨가 좋", "다")
    shell.run_line(":undo")
    assert seen(run_view(shell, "lens", ""))[0] == TEXT
    before = len(printed(shell))
    shell.run_line(":text")
    assert printed(shell)[before:].startswith("@0 날  @1 씨")
    with pytest.raises(UserError, match="no chat template"):
        shell.run_line(":text chat 안녕")


def test_a_text_in_a_chat_begins_a_conversation(state):
    shell = shell_for(MODELS / "hangul.safetensors")
    for _turn in range(2):
        shell.run_line(":text chat 안녕")
    shown = printed(shell)
    assert [each.content for each in shell.session.conversation.messages] == ["안녕"]
    assert shown.count("안") == 2
    assert seen(run_view(shell, "lens", ""))[0].endswith("답변: ")


def test_the_grid_of_the_lens_has_the_tokens_of_the_lens_at_each_position(shell):
    grid = run_view(shell, "lens", "grid @바람")
    assert "".join(token.text for token in grid.tokens) == TEXT[: TEXT.index("바람")]
    for column in range(len(grid.tokens)):
        rows = {row.place: row.top[0] for row in run_view(shell, "lens", f"@{column}").rows}
        for row in grid.rows:
            assert row.top[column].token == rows[row.place].token
            assert row.top[column].prob == pytest.approx(rows[row.place].prob, rel=1e-5)


@pytest.mark.parametrize(("width", "columns"), [(30, 2), (80, 10), (200, 16)])
def test_the_grid_has_as_many_positions_as_fit(shell, width, columns):
    grid = run_view(shell, "lens", 'grid "날씨가 좋다. 하늘이 맑고 "')
    console = Console(width=width, file=io.StringIO())
    console.print(grid.picture(width))
    shown = console.file.getvalue()
    assert max(map(cell_len, shown.splitlines())) <= width
    assert shown.count("@") >= columns - 1
    assert len(shown.splitlines()) <= 22
