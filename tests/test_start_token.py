"""The start token that training used comes before every text at generation, wherever that is."""

import dataclasses
import json

import pytest
import transformers

import minillm_repl as mr
from minillm_repl.checkpoint.adapter import save_adapter
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.checkpoint.native import tokenizer_from_json
from minillm_repl.errors import UserError
from minillm_repl.training.history import resume_run
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import start_run
from minillm_repl.training.run import RunContext
from tests.conftest import MODELS

NAMES = [f"{first}{second}{third}" for first in "bcdf" for second in "aeiou" for third in "lmnrst"]
PLAN = TrainPlan(steps=4, context_length=16, d_model=16, n_layers=1, batch_size=4, val="off")


def trained(folder, text, start=None, **settings):
    """The checkpoint of a short run on a text."""
    path = folder / "corpus.txt"
    path.write_text(text, encoding="utf-8")
    context = RunContext(path=folder / "m.safetensors", device="cpu", threads=1)
    run = start_run(start, str(path), dataclasses.replace(PLAN, **settings), context)
    *_, finished = run.events(lambda: False)
    return run, run.checkpoint(finished)


@pytest.mark.parametrize("tokenizer", ["char", "bpe:300"])
def test_a_model_of_documents_begins_each_text_with_the_token_that_ended_the_last(
    tmp_path, tokenizer
):
    run, made = trained(tmp_path, "\n".join(NAMES * 9), tokenizer=tokenizer)
    (start,) = made.tokenizer.start_ids
    assert start == made.eos_token_ids[0]
    assert run.trainer.train.ids[0] == start, "the first document begins after it too"
    assert run.sample_prompt_ids == [start]
    save(made, tmp_path / "m.safetensors")
    save(made, tmp_path / "hf", folder=True)
    for opened in (load(tmp_path / "m.safetensors"), load(tmp_path / "hf")):
        assert opened.tokenizer.encode("bal")[0] == start
        assert start not in opened.tokenizer.encode("bal", add_special=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("bal").input_ids == made.tokenizer.encode("bal")
    assert theirs.bos_token_id == start


def test_a_model_of_one_text_has_no_start_token(tmp_path):
    _run, made = trained(tmp_path, "one text, and no other. " * 99)
    assert made.tokenizer.start_ids == ()
    assert "start" not in made.tokenizer.to_json()


def test_views_and_samples_begin_with_it(tmp_path):
    _run, made = trained(tmp_path, "\n".join(NAMES * 9))
    save(made, tmp_path / "m.safetensors")
    (start,) = made.tokenizer.start_ids
    model = mr.load(tmp_path / "m.safetensors")
    assert model.generate("ba", max_tokens=3, seed=0).ids[0] == start
    assert model.generate("", max_tokens=3, seed=0).ids[0] == start
    surprise = model.surprise("bal")
    assert len([bits for bits in surprise.bits if bits is not None]) == 3, "the first letter counts"
    assert surprise.tokens[0].text == "<end>"
    assert model.prob("bal").after.id == start


def test_a_run_that_goes_on_and_an_adapter_keep_it(tmp_path):
    (tmp_path / "base").mkdir()
    run, first = trained(tmp_path, "\n".join(NAMES * 9))
    save(first, tmp_path / "base" / "m.safetensors")
    opened = load(tmp_path / "base" / "m.safetensors")
    plain = type(opened.tokenizer)(opened.tokenizer.characters, opened.tokenizer.specials)
    without = dataclasses.replace(opened, tokenizer=plain)
    save(without, tmp_path / "base" / "m.safetensors")
    opened = load(tmp_path / "base" / "m.safetensors")
    assert opened.tokenizer.start_ids == ()
    sizes = {"d_model": 0, "n_layers": 0}  # those of the open model
    lora, tuned = trained(tmp_path, "\n".join(NAMES * 9), opened, lora_rank=2, **sizes)
    assert tuned.adapter.start == "<end>"
    save_adapter(tuned, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").tokenizer.encode("bal") == tuned.tokenizer.encode("bal")
    assert tuned.tokenizer.start_ids == opened.eos_token_ids
    lora._save()
    again = resume_run(lora.context.path, lora.context)
    assert again.start.tokenizer.start_ids == tuned.tokenizer.start_ids
    assert (again.trainer.train.ids == run.trainer.train.ids).all()


@pytest.mark.parametrize("name", ["hangul", "story"])
def test_the_models_that_learnt_documents_have_theirs(name):
    shipped = load(MODELS / f"{name}.safetensors")
    assert shipped.tokenizer.start_ids == shipped.eos_token_ids[:1]


def test_a_token_that_is_none_is_refused():
    described = {"type": "character", "normalization": "NFC", "characters": "ab"}
    with pytest.raises(UserError, match="start token"):
        tokenizer_from_json({**described, "specials": ["<end>"], "start": "<go>"})
    with pytest.raises(UserError, match="not known"):
        tokenizer_from_json(json.loads(json.dumps({**described, "start": 3})))
