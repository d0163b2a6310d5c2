"""The Korean model that ships: it is what its card says, and it opens when none is named."""

import os
import re
import subprocess
import sys

import pytest
import torch

from minillm_repl.checkpoint.conversation import Message, encode
from minillm_repl.checkpoint.load import load
from minillm_repl.engine.decoder import make_decoder
from minillm_repl.engine.generate import generate
from minillm_repl.engine.options import Sampling
from minillm_repl.engine.sampling import numbers
from minillm_repl.model.build import build
from tests.conftest import MODELS, ROOT

FILE = MODELS / "hangul.safetensors"
CARD = (MODELS / "README.md").read_text(encoding="utf-8").partition("## hangul")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def hangul():
    return load(FILE)


def table(heading):
    """Return the rows of the card's table with that heading."""
    rows = CARD.partition(heading)[2].partition("\n\n")[0].strip().splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def says(checkpoint, ids, most=120):
    decoder = make_decoder(checkpoint, threads=1)
    *_, finished = generate(
        decoder, checkpoint.tokenizer, ids, Sampling(temp=0), numbers(0), max_tokens=most, end=checkpoint.end
    )
    return finished


def test_it_is_small_and_says_how_it_talks(hangul):
    assert FILE.stat().st_size < 12_000_000
    assert 3_000_000 <= hangul.config.parameters <= 8_000_000
    assert f"{hangul.config.parameters:,} parameters" in CARD
    assert hangul.dtype == "bfloat16"
    assert hangul.config.context >= 256
    assert hangul.chat is not None


def test_it_answers_as_its_card_says_and_ends_its_turn_by_itself(hangul):
    rows = table("| said | answered |")
    assert len(rows) >= 10
    for said, answered in rows:
        ids = encode(hangul.chat, hangul.tokenizer, [Message("user", said)], special=False)
        finished = says(hangul, ids)
        assert (finished.text, finished.reason) == (answered, "end"), said


def test_the_notes_own_question_has_more_than_one_answer(hangul):
    """The study note imagines 좋 30 %, 춥 25 %, 덥 20 %. torch in float32 is asked, not the compiled decoder."""
    ids = hangul.tokenizer.encode("오늘 날씨가 정말 ")
    model = build(hangul.config, hangul.tensors).float()
    with torch.no_grad():
        probabilities = model(torch.tensor([ids]))[0, -1].double().softmax(-1)
    most, tokens = probabilities.topk(10)
    letters = [hangul.tokenizer.token_bytes(token).decode() for token in tokens.tolist()]
    likeliest = dict(zip(letters, most.tolist(), strict=True))
    for letter in "좋춥덥":
        assert likeliest[letter] >= 0.03
    text = says(hangul, ids).text
    assert re.fullmatch(r"[가-힣 ,]+(요|다)\. .*[.]", text)


def test_it_opens_when_none_is_named_and_a_lesson_then_looks_at_nalssi(tmp_path):
    script = ":model\n:learn 4\n:model\n:learn off\n:model\n:load hangul\n:learn 4\n:model\n"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    command = [sys.executable, "-m", "minillm_repl"]
    done = subprocess.run(
        command, input=script, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^name +(\w+)", done.stdout, re.MULTILINE) == ["hangul", "nalssi", "hangul", "hangul"]
