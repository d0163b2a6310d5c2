"""Models on servers: our own, started for real, and servers that replay, lie and break off."""

import subprocess
import sys

import pytest

import minillm_repl as mr
from minillm_repl.cli import main
from minillm_repl.errors import UserError
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.storage.paths import find_checkpoint
from tests.test_server import server


@pytest.fixture(scope="module")
def hangul(tmp_path_factory):
    with server(tmp_path_factory.mktemp("home"), "--ckpt", "hangul") as (_process, url):
        yield url


def printed(capsys, *flags):
    assert main([*flags]) == 0
    return capsys.readouterr().out


# -- our own server


def test_tokens_probabilities_and_text_are_those_of_the_same_model_here(hangul):
    settings = {"temp": 0.9, "top_k": 40, "seed": 5, "candidates": 5, "max_tokens": 30}
    for ask in ("chat", "generate"):
        here = getattr(mr.load("hangul"), ask)("오늘 날씨 어때?", **settings)
        there = getattr(mr.load(hangul), ask)("오늘 날씨 어때?", **settings)
        assert (there.text, there.ids, there.reason) == (here.text, here.ids, here.reason)
        for mine, theirs in zip(here.steps, there.steps, strict=True):
            assert [each.id for each in theirs.top] == [each.id for each in mine.top]
            assert (theirs.rank, theirs.bytes, theirs.listing) == (mine.rank, mine.bytes, None)
            expected = [mine.model_prob, mine.prob, mine.entropy]
            found = [theirs.model_prob, theirs.prob, theirs.entropy]
            assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "argument"), [("prob", "좋아요"), ("choose", "좋아요 | 나빠요"), ("sampler", "")]
)
def test_views_of_predictions_are_those_of_the_same_model_here(hangul, name, argument):
    here = mr.load("hangul").view(name, "오늘 날씨가", *filter(None, [argument])).to_dict()
    there = mr.load(hangul).view(name, "오늘 날씨가", *filter(None, [argument])).to_dict()

    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [rounded(each) for each in value]
        return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value

    assert there == rounded(here)


@pytest.mark.parametrize("name", ["attn", "lens", "why", "residual", "near", "shapes", "grad"])
def test_a_view_that_needs_weights_says_so_in_one_line(hangul, name):
    with pytest.raises(UserError, match="stay on the server") as error:
        mr.load(hangul).view(name, "하")
    assert "\n" not in str(error.value)


def test_training_and_saving_say_so_too(hangul, tmp_path):
    (tmp_path / "text.txt").write_text("하늘이 맑다. " * 200)
    with pytest.raises(UserError, match="stay on the server"):
        mr.load(hangul).save(tmp_path / "copy.safetensors")
    with pytest.raises(UserError, match="stay on the server"):
        mr.train(tmp_path / "text.txt", model=mr.load(hangul), steps=1)


def test_care_answers_here_as_the_server_would(hangul, capsys):
    assert "109" in printed(capsys, "--ckpt", hangul, "-p", "나 죽고 싶어")
    assert mr.load(hangul).chat("나 죽고 싶어").reason == "care"


def test_only_a_model_of_the_server_can_be_chosen(hangul):
    assert ModelLoader(server_model="hangul").load(find_checkpoint(hangul)).name == "hangul"
    with pytest.raises(UserError, match="no model other: it has hangul"):
        ModelLoader(server_model="other").load(find_checkpoint(hangul))


def test_the_key_is_sent_and_never_shown(tmp_path, monkeypatch, capsys):
    variables = {"MINILLM_API_KEY": "secret-key-1"}
    with server(tmp_path, "--ckpt", "nalssi", **variables) as (_process, url):
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        assert main(["--ckpt", url, "-p", "날씨", "-n", "3"]) == 1
        monkeypatch.setenv("MINILLM_API_KEY", "secret-key-1")
        assert main(["--ckpt", url, "-p", "날씨", "-n", "3"]) == 0
        loader = ModelLoader(server_key="secret-key-1")
        model = loader.load(find_checkpoint(url))
    said = capsys.readouterr()
    assert "refuses (401)" in said.err
    for shown in (said.out, said.err, repr(loader), repr(model), repr(model.decoder.__dict__)):
        assert "secret" not in shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://", "no address of a server"),
        ("http://127.0.0.1:99999", "no address of a server"),
        ("http://user:pass@127.0.0.1:1", "MINILLM_API_KEY"),
        ("http://127.0.0.1:1", "cannot reach 127.0.0.1:1"),
    ],
)
def test_an_address_that_is_none_is_one_clear_line(url, said):
    with pytest.raises(UserError, match=said) as error:
        mr.load(url)
    assert "\n" not in str(error.value)
    assert "pass" not in str(error.value).replace("MINILLM_API_KEY", "")


def test_nothing_of_it_is_imported_at_the_start(capsys):
    code = (
        "import sys, minillm_repl.cli as c; c.main(['-p', '날씨', '-n', '1', '--ckpt', 'nalssi'])\n"
        "assert not {'httpx', 'asyncio', 'minillm_repl.remote'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
