"""Trained checkpoints: what they say, word for word, is what they say in `transformers`."""

import numpy as np
import pytest
import torch
import transformers

from minillm_repl.checkpoint.load_save import load
from minillm_repl.generate import GenerationConfig, Sampling, never_interrupted
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.generate import generate
from minillm_repl.model.build import build
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.tokenizer import decode
from tests.outside import outside

STORY = "Once upon a time, there was a little girl named Lily."
CONVERSATIONS = {
    "geography": ("What is the capital of France?", "And of Italy?", "Which of the two is larger?"),
    "arithmetic": (
        "What is 7 times 8?",
        "Add 10 to it.",
        "Now write a short poem about that number.",
    ),
    "code": (
        "Write a Python function that reverses a string.",
        "Explain it in one line.",
        "Make it shorter.",
    ),
    "Korean": (
        "안녕하세요? 오늘 날씨가 어때요?",
        "한국의 수도는 어디예요?",
        "고마워요. 잘 있어요!",
    ),
    "both": (
        "Translate 'thank you' into Korean.",
        "'감사합니다'는 무슨 뜻이에요?",
        "Say <b>goodbye</b> 👋 politely.",
    ),
}
TEXT = """\
The lighthouse stood at the end of a narrow spit of land, \
where the river met the sea. For more than a hundred years
its keepers had climbed the same ninety-two steps every \
evening, carrying oil, and later nothing but a key. The last of
them, a quiet woman named Ingrid, kept a notebook in which \
she wrote down the weather, the ships that passed, and now
and then a sentence about herself. When the light was finally \
made automatic, in the spring of 1974, she was asked to
hand in her logbooks. She gave them everything except the notebook.

Forty years later her grandson found it in a box of old \
radios. At first he read only the entries about storms, because
he was a meteorologist and wanted to compare them with the \
official records. The wind speeds were estimates, of course,
but they agreed with the measurements of the nearest station \
to within ten percent. Then he began to read the other
sentences too. "Today the fog was so thick that I talked to \
it," she had written in November 1961. "It did not answer,
but it stayed longer than most people do." He closed the \
book, went outside, and looked at the sea for a long time.
"""


def log_probabilities(logits, ids):
    return logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])


def perplexity(logits, ids):
    return float((-log_probabilities(logits, ids).mean()).exp())


@pytest.fixture(scope="module")
def stories():
    return outside("checkpoints/stories260K-hf")


@pytest.fixture(scope="module")
def smollm2():
    return outside("smollm2")


def test_the_story_is_the_one_that_transformers_tells(stories):
    checkpoint = load(stories)
    tokenizer = checkpoint.tokenizer
    start = tokenizer.encode("")
    assert start == [tokenizer.token_to_id("<s>")]
    events = list(
        generate(
            make_decoder(checkpoint),
            tokenizer,
            start,
            GenerationConfig(max_tokens=128, sampling=Sampling(temp=0)),
            np.random.default_rng(0),
        )
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    given = torch.tensor([start])
    expected = theirs.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_length=129,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    ids = [event.id for event in events[:-1]]
    assert ids == expected[0, 1:].tolist()
    assert decode(tokenizer, start + ids).startswith(STORY)
    assert events[-1].text.lstrip(" ").startswith(STORY)
    known = transformers.PreTrainedTokenizerFast.from_pretrained(stories)
    assert decode(tokenizer, start + ids) == known.decode(expected[0], skip_special_tokens=True)


@pytest.fixture(scope="module")
def opened(smollm2):
    return ModelLoader(dtype="float32").load(smollm2)


@pytest.fixture(scope="module")
def theirs(smollm2):
    return transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def their_tokenizer(smollm2):
    return transformers.AutoTokenizer.from_pretrained(smollm2)


def answer(model, session, text, monkeypatch):
    """Ask; return the ids of the answer, and how many tokens had to be read before its first."""
    session.conversation.start_chat_turn(model, text, session.settings)
    read = []
    with monkeypatch.context() as patch:
        original = model.decoder.prefill
        patch.setattr(
            model.decoder, "prefill", lambda ids: (read.append(len(ids)), original(ids))[1]
        )
        events = session.conversation.generate(model, session.settings, never_interrupted, 0)
        first = next(events)
        before = sum(read)
        steps = [first, *events][:-1]
    return [step.id for step in steps], before


@pytest.mark.slow
@pytest.mark.parametrize("topic", CONVERSATIONS)
def test_a_chat_is_word_for_word_that_of_transformers(
    opened, theirs, their_tokenizer, topic, monkeypatch
):
    session, said = Session(Settings(temp=0, max_tokens=40)), []
    for turn, question in enumerate(CONVERSATIONS[topic]):
        ids, read = answer(opened, session, question, monkeypatch)
        said.append({"role": "user", "content": question})
        prompt = their_tokenizer.apply_chat_template(
            said, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        given = list(session.conversation.turns[-1].prompt_ids)
        assert given == prompt["input_ids"][0].tolist()
        expected = theirs.generate(**prompt, max_new_tokens=40, do_sample=False)[
            0, len(given) :
        ].tolist()
        assert ids == expected
        text = their_tokenizer.decode(
            expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert session.conversation.messages[-1].content == text
        said.append({"role": "assistant", "content": text})
        print(f"turn {turn + 1}: {len(given)} tokens given, {read} read; {text!r}")
        if turn:
            assert read < len(given) * 3 // 4, "the start of the conversation was read again"


@pytest.mark.slow
def test_logits_and_perplexity_are_those_of_transformers_in_float32(
    smollm2, theirs, their_tokenizer, record_property
):
    """Of the bfloat16 weights as they are stored; what transformers makes of them in bfloat16 is
    told beside it.
    """
    ids = torch.tensor([load(smollm2).tokenizer.encode(TEXT)])
    assert ids.tolist() == [their_tokenizer(TEXT)["input_ids"]]
    assert 200 <= ids.shape[1] <= 400
    checkpoint = load(smollm2)
    assert checkpoint.dtype == "bfloat16"
    half_model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2, dtype=torch.bfloat16
    ).eval()
    with torch.no_grad():
        expected, half_expected = theirs(ids).logits, half_model(ids).logits
        ours = build(checkpoint.config, checkpoint.tensors)(ids)
    numbers = {
        "tokens": ids.shape[1],
        "ours": perplexity(ours, ids),
        "transformers, float32": perplexity(expected, ids),
        "transformers, bfloat16": perplexity(half_expected, ids),
        "largest logit difference": float((ours - expected).abs().max()),
        "transformers' bfloat16 to its float32": float(
            (half_expected.float() - expected).abs().max()
        ),
    }
    for name, number in numbers.items():
        record_property(name, number)
        print(f"{name}: {number:.6g}")
    assert numbers["largest logit difference"] < 1e-4
    assert numbers["ours"] == pytest.approx(numbers["transformers, float32"], rel=1e-5)


@pytest.mark.slow
def test_the_compiled_decoder_is_as_good_as_its_weights(smollm2, theirs, record_property):
    """Float32 has the logits and text of transformers, bfloat16 too; int8, int4 its perplexity
    within 1, 20 %.
    """
    exact = load(smollm2, dtype="float32")
    ids = exact.tokenizer.encode(TEXT)

    def logits(decoder):
        return torch.tensor(np.stack([decoder.prefill([token]).copy() for token in ids]))[None]

    given = torch.tensor([ids])
    with torch.no_grad():
        expected = theirs(given).logits
    decoder = make_decoder(exact)
    ours = logits(decoder)
    assert float((ours - expected).abs().max()) < 1e-3
    text = theirs.generate(
        given[:, :40], max_new_tokens=256, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    steps = generate(
        decoder,
        exact.tokenizer,
        ids[:40],
        GenerationConfig(max_tokens=256, sampling=Sampling(temp=0)),
        np.random.default_rng(0),
    )
    assert [step.id for step in list(steps)[:-1]] == text[0, 40:].tolist()
    numbers = {
        "float32": perplexity(ours, given),
        "bfloat16": perplexity(logits(make_decoder(load(smollm2))), given),
        "int8": perplexity(logits(make_decoder(load(smollm2), quant="int8")), given),
        "int4": perplexity(logits(make_decoder(load(smollm2), quant="int4")), given),
    }
    for name, number in numbers.items():
        record_property(name, number)
        print(f"{name}: {number:.6g}")
    assert numbers["bfloat16"] == pytest.approx(numbers["float32"], rel=1e-5)
    assert numbers["int8"] == pytest.approx(numbers["float32"], rel=1e-2)
    assert numbers["int4"] == pytest.approx(numbers["float32"], rel=0.2)
