"""`import minillm_repl as mr`: docs/python.md runs, and the interface is the program's own code."""

import doctest
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import minillm_repl as mr
from minillm_repl.model.build import build
from minillm_repl.views.headless import view_commands
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def nalssi():
    return mr.load("nalssi")


@pytest.fixture(scope="module")
def hangul():
    return mr.load("hangul")


def test_every_example_of_the_page_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_doctest(page, {}, "python.md", "docs/python.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    told = []
    assert runner.run(examples, out=told.append).failed == 0, "".join(told)
    assert len(examples.examples) > 20


def test_the_import_does_nothing_and_every_name_is_there():
    code = (
        "import sys, minillm_repl as mr\n"
        "heavy = {'numpy', 'torch', 'rich', 'minillm_repl.api'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert all(getattr(mr, name) for name in mr.__all__)\n"
        "assert 'torch' not in sys.modules and 'prompt_toolkit' not in sys.modules\n"
        "assert set(mr.__all__) <= set(dir(mr))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_text_is_that_of_the_command_line(nalssi):
    line = ["-m", "minillm_repl", "--ckpt", "nalssi", "-p", "오늘은 ", "-n", "20", "--seed", "3"]
    done = subprocess.run([sys.executable, *line], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == nalssi.generate("오늘은 ", max_tokens=20, seed=3).text


def test_logprobs_are_those_of_the_torch_model(nalssi):
    import torch

    result = nalssi.generate("오늘은 ", max_tokens=12, temp=2.0, top_k=4, seed=5)
    checkpoint = nalssi.checkpoint
    with torch.no_grad():
        logits = build(checkpoint.config, checkpoint.tensors)(torch.tensor([result.ids]))[0]
    expected = logits.double().log_softmax(-1)
    first = len(result.prompt_ids) - 1
    for place, token in enumerate(result.tokens):
        want = float(expected[first + place, token.id])
        assert result.logprobs[place] == pytest.approx(want, abs=1e-4)
    assert result.logprobs.dtype == np.float32


def test_a_stop_string_is_part_of_neither_text_nor_tokens(nalssi):
    result = nalssi.generate("오늘은 ", temp=0, stop=["좋", "never"])
    assert result.reason == "stop"
    assert result.text == "".join(token.text for token in result.tokens) == "날씨가 "
    assert len(result.logprobs) == len(result.tokens) < len(result.steps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temp": "hot"}, "temp needs a number"),
        ({"tempp": 1}, "no setting 'tempp'"),
        ({"max_tokens": 0}, "max-tokens needs a whole number, at least 1"),
    ],
)
def test_what_is_wrong_is_a_user_error(nalssi, settings, message):
    with pytest.raises(mr.UserError, match=message):
        nalssi.generate("오늘은 ", **settings)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [{"x": 1}],
        [3],
        [{"role": "user", "content": 3}],
    ],
)
def test_messages_that_are_none_are_refused(hangul, messages):
    with pytest.raises(mr.UserError, match="each message has a role"):
        hangul.chat(messages)


def test_a_model_without_a_template_cannot_chat(nalssi):
    with pytest.raises(mr.UserError, match="nalssi has no chat template"):
        nalssi.chat("안녕")


def test_an_empty_prompt_and_letters_the_model_does_not_know(nalssi):
    with pytest.raises(mr.UserError, match="the prompt is empty"):
        nalssi.generate("")
    with pytest.raises(mr.UserError, match="no character of this is in the vocabulary"):
        nalssi.generate("xyz")
    with pytest.warns(UserWarning, match="not in the vocabulary: x; skipped"):
        nalssi.generate("오늘은x", max_tokens=1)


def test_a_missing_file_and_a_setting_of_loading():
    with pytest.raises(mr.UserError, match="nowhere"):
        mr.load("nowhere")
    with pytest.raises(mr.UserError, match="quant needs one of"):
        mr.load("nalssi", quant="int3")
    assert mr.load("nalssi", dtype="bfloat16").checkpoint.dtype == "bfloat16"


def test_a_view_is_that_of_the_command(nalssi, tmp_path):
    line = f':lens 1 "오늘은 날씨가" --json {tmp_path}/lens.json\n'
    start = ["-m", "minillm_repl", "--ckpt", "nalssi"]
    subprocess.run([sys.executable, *start], input=line, capture_output=True, text=True, check=True)
    written = json.loads((tmp_path / "lens.json").read_text(encoding="utf-8"))
    assert nalssi.lens("오늘은 날씨가", at="오늘").to_dict() == written


# `:watch` shows what a training of the session has measured; a library trains by `train`. So with
# `:features`, which are trained first.
VIEWS = [each for each in view_commands() if each.name not in ("watch", "features")]


@pytest.mark.parametrize("each", VIEWS, ids=lambda each: each.name)
def test_every_view_is_there(hangul, each, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the example of `:eval` names a file
    question = {"prompt": "하늘이", "choices": ["맑다", "춥다"], "answer": 0}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question), encoding="utf-8")
    assert each.name in dir(hangul)
    result = hangul.generate("날씨가 ", max_tokens=6, temp=0)
    view = hangul.view(each.name, result, each.example.partition(" ")[2])
    assert isinstance(view, mr.View)
    assert view.to_dict() == json.loads(view.to_json())
    assert view._repr_mimebundle_()["text/html"]


def test_a_view_that_is_not_there(nalssi):
    with pytest.raises(AttributeError, match="a model has no 'lenses'; its views: .*lens"):
        nalssi.lenses  # noqa: B018
    with pytest.raises(mr.UserError, match="no text to inspect"):
        nalssi.lens()
    with pytest.raises(mr.UserError, match="9.9 is not|no layer 9"):
        nalssi.attn("오늘은", "9.9")


def test_a_command_that_needs_an_argument_takes_the_first(nalssi):
    assert [piece.token.text for piece in nalssi.tokens("오늘").pieces] == ["오", "늘"]
    assert nalssi.near("오").to_dict() == nalssi.view("near", "", "오").to_dict()


def test_settings_are_those_of_the_view(nalssi):
    stages = nalssi.sampler("오늘은 ", temp=0.5, top_k=3).stages
    assert [stage.name for stage in stages] == ["model", "temp 0.5", "top-k 3"]


@pytest.mark.parametrize(
    ("at", "message"),
    [("부산", "'부산' is not in the text"), ("", "'' is not"), (99, "no position 99")],
)
def test_a_place_that_is_not_there_is_an_error(nalssi, at, message):
    with pytest.raises(mr.UserError, match=message):
        nalssi.lens("오늘은", at=at)


def test_a_text_is_found_where_it_ends_last(hangul):
    result = hangul.generate("서울은 서울이다", max_tokens=1, seed=1)
    position = hangul.lens(result, at="서울").position
    ids = result.ids[: position + 1]
    written = b"".join(map(hangul.checkpoint.tokenizer.token_bytes, ids)).decode()
    assert written.strip() == "서울은 서울"


def test_interventions_add_up_and_end_with_their_block(nalssi):
    def last(text="오늘은 날씨가"):
        return nalssi.lens(text).rows[-1].prob

    plain = last()
    with nalssi.ablate("2.1"):
        one = last()
        with nalssi.ablate(0, how="mean", of="오늘은 날씨가"):
            two = last()
        assert last() == one
    assert len({plain, one, two}) == 3
    with pytest.raises(ZeroDivisionError), nalssi.ablate("2.1"):
        1 / 0  # noqa: B018
    assert last() == plain
    for where, message in {"9": "no layer 9", "x": "x is not LAYER", "1.9": "no head"}.items():
        with pytest.raises(mr.UserError, match=message), nalssi.ablate(where):
            pass
    for options, message in {"mean": "no text to inspect", "max": "how='mean' and a text"}.items():
        with pytest.raises(mr.UserError, match=message), nalssi.ablate(1, how=options):
            pass


def test_steering_is_that_of_the_command(nalssi):
    texts = "날씨가 좋다", "산에 가고 싶다"
    effect = nalssi.view("steer", "오늘은", f'"{texts[0]}" vs "{texts[1]}" strength=9 layer=1')
    with nalssi.steer(*texts, layer=1, strength=9):
        assert nalssi.lens("오늘은").rows[-1].prob == pytest.approx(
            max(each.prob for each in effect.after)
        )
    with pytest.raises(mr.UserError, match="two texts"), nalssi.steer("좋다"):
        pass


def press_ctrl_c_after(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_ctrl_c_ends_a_text_and_the_model_goes_on(nalssi):
    before = nalssi.generate("오늘은 ", max_tokens=30, temp=0).text
    press_ctrl_c_after(0.3)
    with pytest.raises(KeyboardInterrupt):
        nalssi.generate("오늘은 ", max_tokens=10**9, temp=0)
    assert nalssi.generate("오늘은 ", max_tokens=30, temp=0).text == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_returns_what_was_learnt(capfd):
    def follow(event):
        if type(event).__name__ == "TrainStep" and event.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    text = str(ROOT / "models" / "nalssi.txt")
    trained = mr.train(text, steps=10**6, threads=1, progress=follow)
    assert 5 <= trained.training.steps < 100
    assert trained.generate("오늘은 ", max_tokens=3, temp=0).text
    assert capfd.readouterr() == ("", "")


def test_training_further_leaves_the_model_as_it_was(nalssi, tmp_path):
    before = {name: array.copy() for name, array in nalssi.checkpoint.tensors.items()}
    text = str(ROOT / "models" / "nalssi.txt")
    further = mr.train(text, model=nalssi, steps=3, threads=1)
    assert further.training.steps == nalssi.training.steps + 3
    for name, array in nalssi.checkpoint.tensors.items():
        assert (array == before[name]).all()
    with pytest.raises(mr.UserError, match="d_model applies to a new model only"):
        mr.train(text, model=nalssi, d_model=32)
    with pytest.raises(mr.UserError, match="lora needs an open model"):
        mr.train(text, lora_rank=2)


def test_a_folder_is_saved_and_opened(tmp_path, nalssi):
    path = mr.load("nalssi").save(f"{tmp_path}/folder/")
    assert (path / "config.json").exists()
    again = mr.load(path)
    assert again.generate("오늘은 ", temp=0).text == nalssi.generate("오늘은 ", temp=0).text
