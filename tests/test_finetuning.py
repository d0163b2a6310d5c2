"""Training further: on conversations, by LoRA, and a real model on a text; `transformers` says
what is right.
"""

import dataclasses
import itertools
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from minillm_repl.chat import DEFAULT_CHAT_TEMPLATE, ROLE_TOKENS, Message, apply_chat_template
from minillm_repl.checkpoint import ChatTemplate, adapter
from minillm_repl.checkpoint.header import read_header
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.commands.training_screen import describe_method
from minillm_repl.errors import UserError
from minillm_repl.model.bfloat16 import BFLOAT16
from minillm_repl.model.build import build
from minillm_repl.model.config import is_convolution
from minillm_repl.model.layers import add_adapters, merge_adapters
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.storage.paths import resume_path
from minillm_repl.tokenizer import UNK_TOKEN, CharacterTokenizer, decode
from minillm_repl.tokenizer.subword import SubwordTokenizer
from minillm_repl.training.corpus import open_corpus
from minillm_repl.training.defaults import estimate_memory
from minillm_repl.training.evaluation import evenly_spaced_starts
from minillm_repl.training.history import resume_run
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.prepare import start_run
from minillm_repl.training.run import RunContext, save_trained
from minillm_repl.training.splits import IGNORE_INDEX
from minillm_repl.training.texts import make_tokenizer
from minillm_repl.training.tokenize import tokenise
from tests.conftest import random_checkpoint
from tests.outside import outside
from tests.small import flat_examples
from tests.test_huggingface import FAMILIES, logits_of, random_model


def begin(start, corpus, path, **settings):
    plan = TrainPlan(**{"precision": "float32", "val": "off", **settings})
    return start_run(start, str(corpus), plan, RunContext(path=Path(path), device="cpu", threads=1))


def trained(start, corpus, path, **settings):
    run = begin(start, corpus, path, **settings)
    *_, finished = run.events(lambda: False, save=False)
    return run, finished, run.checkpoint(finished)


# -- conversations

TEMPLATES = {  # each marks what is learnt for transformers; here that is found without the marks
    "ChatML": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ "
        "m.content + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|im_start|>assistant\n' }}{% endif %}"
    ),
    "trimmed": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content | trim + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content | trim + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
    ),
    "Llama 2": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ ' ' + m.content + ' <|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ '[INST] ' + m.role + ': ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "the model announces itself": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ 'assistant: ' + m.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    ),
}
SAID = [
    "hello", "Hello there!", "a", "s", "i", "is it?\n", "one  two ", " leads", "안녕하세요?", "네",
    "날씨가 좋다. 하늘이 맑다.", "서울 is 좋은 city 🙂👍🏽", "def f(x):\n    return x\n\nf(1)",
    "1 + 1 = 2", "{{ m }} {% if %} <b>", "tab\there", "im_end", "<|im_end", "assistant",
    "café naïve", "",
]  # fmt: skip


def talks(count, seed=0):
    """Conversations in English and Korean: of one turn or many, with a system prompt or not."""
    rng = np.random.default_rng(seed)
    said = lambda: str(rng.choice(SAID))  # noqa: E731
    for number in range(count):
        conversation = [Message("system", said())] if rng.random() < 0.4 else []
        for _ in range(int(rng.integers(1, 5))):
            conversation += [Message("user", said()), Message("assistant", said())]
        yield conversation + [Message("user", said())] * (number % 5 == 0)


CONVERSATIONS = list(talks(120))


def byte_level():
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    library.train_from_iterator([*TEMPLATES.values(), *SAID] * 9, trainer)
    return library


def sentencepiece():
    """Like older Llamas' tokenizers: a space before each text, bytes for what is unknown."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    bytes_of_all = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<|im_start|>", "<|im_end|>", *bytes_of_all],
        show_progress=False,
    )
    library.train_from_iterator(
        [text.replace("\n", " ") for text in (*TEMPLATES.values(), *SAID)] * 9, trainer
    )
    description = json.loads(library.to_str())  # the bytes are tokens like others
    description["added_tokens"] = [
        each for each in description["added_tokens"] if each["content"][1:3] != "0x"
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(description))


@pytest.fixture(scope="module", params=[byte_level, sentencepiece])
def pair(request):
    """The same tokenizer, ours and theirs."""
    library = request.param()
    ours = SubwordTokenizer(json.loads(library.to_str()), {}, 600)
    return ours, transformers.PreTrainedTokenizerFast(tokenizer_object=library)


def as_dicts(conversation):
    return [dataclasses.asdict(message) for message in conversation]


def masked(theirs, source, conversation):
    """The ids and the mask of the assistant's words, by transformers."""
    found = theirs.apply_chat_template(
        as_dicts(conversation),
        chat_template=source,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return list(found["input_ids"]), list(map(bool, found["assistant_masks"]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learnt_is_what_transformers_masks(pair, name):
    ours, theirs = pair
    found = flat_examples(ChatTemplate(TEMPLATES[name]), ours, CONVERSATIONS)
    assert sum(sum(marks) for _, marks in found) > 1_000
    for (ids, marks), conversation in zip(found, CONVERSATIONS, strict=True):
        assert (ids, marks) == masked(theirs, TEMPLATES[name], conversation), conversation


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_trained_conversation_begins_as_the_prompt_that_its_answer_will_have(pair, name):
    ours, theirs = pair
    template = ChatTemplate(TEMPLATES[name])
    for conversation in CONVERSATIONS[:5]:
        place = [message.role for message in conversation].index("assistant")
        asked = conversation[:place]
        prompt = apply_chat_template(template, ours, asked, False)
        expected = theirs.apply_chat_template(
            as_dicts(asked),
            chat_template=template.source,
            add_generation_prompt=True,
            return_dict=True,
        )
        assert prompt == list(expected["input_ids"])
        ids, marks = flat_examples(template, ours, [conversation])[0]
        assert ids[: marks.index(True)] == prompt


REWRITING = {
    "thoughts only in the last turn, as Qwen 3": TEMPLATES["ChatML"].replace(
        "{% generation %}", "{% generation %}{% if loop.last %}{{ '<think></think>' }}{% endif %}"
    ),
    "the system prompt in the last question, as Mistral": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% elif m.role == "
        "'user' %}[INST]"
        "{% if messages[0].role == 'system' and m == (messages | selectattr('role', "
        "'equalto', 'user') | list)[-1] %}"
        "{{ messages[0].content + '\n' }}{% endif %}{{ m.content }}[/INST]{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", REWRITING)
def test_where_earlier_turns_are_written_otherwise_each_answer_is_learnt_after_what_was_given(
    pair, name
):
    ours, theirs = pair
    template = ChatTemplate(REWRITING[name])
    short = [Message("user", "hello"), Message("assistant", "네")]
    long = [
        Message("system", "is"),
        *short,
        Message("user", "city"),
        Message("assistant", "hello there"),
    ]
    found = flat_examples(template, ours, [short, long])
    assert len(found) == 3
    for (ids, marks), given in zip(found, (short, long[:3], long), strict=True):
        assert ids == masked(theirs, template.source, given)[0]
        learnt = decode(
            ours, [token for token, mark in zip(ids, marks, strict=True) if mark]
        ).strip()
        assert learnt.removeprefix("<think></think>") == given[-1].content


def test_a_template_that_writes_the_last_turn_first_is_refused(pair):
    template = ChatTemplate(
        "{% for m in messages[::-1] %}{{ m.content }}{% if m.role == 'assistant' "
        "%}<|im_end|>{% endif %}{% endfor %}"
    )
    talk = [Message("user", "hello"), Message("assistant", "네")]
    with pytest.raises(UserError, match="turns of conversation 42 one after the other"):
        flat_examples(template, pair[0], [talk[1:], talk], first=41)


def test_a_template_that_changes_or_refuses_what_is_said(pair):
    ours, _ = pair
    conversation = [Message("user", "hello"), Message("assistant", "yes <b>")]
    changed = TEMPLATES["ChatML"].replace("m.content +", "m.content | upper +")
    ids, marks = flat_examples(ChatTemplate(changed), ours, [conversation])[0]
    learnt = [token for token, mark in zip(ids, marks, strict=True) if mark]
    # not to be found again: all that the turn added
    assert decode(ours, learnt).strip() == "YES <B>"
    assert ours.token_to_id("<|im_end|>") in learnt
    with pytest.raises(UserError, match="roles must alternate"):
        flat_examples(
            ChatTemplate("{{ raise_exception('roles must alternate') }}"), ours, [conversation]
        )
    with pytest.raises(UserError, match="conversation 7 has no assistant turn"):
        flat_examples(
            ChatTemplate(TEMPLATES["ChatML"]), ours, [conversation, conversation[:1]], first=6
        )


@pytest.mark.parametrize(("count", "turns"), [(12, 25), (1, 90)])
def test_long_conversations_are_not_taken_for_an_attack(count, turns):
    """A template's process may write so much and no more; what is written is asked for in parts."""
    tokenizer = CharacterTokenizer("\n abcdefghijklmnopqrstuvwxyz", ROLE_TOKENS)
    pairs = [
        (Message("user", f"{'question ' * 40}"), Message("assistant", f"{'answer ' * 40}x"))
        for _ in range(turns)
    ]
    conversation = [message for two in pairs for message in two]
    found = flat_examples(DEFAULT_CHAT_TEMPLATE, tokenizer, [conversation] * count)
    assert len(found) == count
    end = tokenizer.token_to_id("<|end|>")
    for ids, marks in found:
        learnt = [token for token, mark in zip(ids, marks, strict=True) if mark]
        assert learnt == [*tokenizer.encode(pairs[0][1].content), end] * turns


def rows(*conversations):
    return "".join(
        json.dumps({"messages": each}, ensure_ascii=False) + "\n" for each in conversations
    )


def exchange(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_a_wrong_conversation_is_named_by_its_number_in_the_file(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(
        rows(*[exchange("a", "b")] * 229, exchange("a", "b")[:1], *[exchange("a", "b")] * 9)
    )
    opened = open_corpus(path)
    with pytest.raises(UserError, match="conversation 230 has no assistant turn"):
        tokenise(opened, make_tokenizer("char", opened), template=DEFAULT_CHAT_TEMPLATE)


@pytest.mark.parametrize("kind", ["skipped", "<unk>", "subword"])
def test_characters_of_conversations_that_a_model_does_not_know_are_counted(tmp_path, kind):
    path = tmp_path / "c.jsonl"
    path.write_text(rows(exchange("ab뷁", "ba"), exchange("뷁a", "b걁b뷁")), encoding="utf-8")
    if kind == "subword":
        library = tokenizers.Tokenizer(
            tokenizers.models.BPE({"?": 0, "a": 1, "b": 2}, [], unk_token="?")
        )
        tokenizer = SubwordTokenizer(json.loads(library.to_str()), {}, 3)
    else:
        tokenizer = CharacterTokenizer("ab", [*ROLE_TOKENS, *([kind] if kind == UNK_TOKEN else [])])
    assert (
        tokenise(
            open_corpus(path),
            tokenizer,
            template=ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}"),
        ).unknown_characters
        == 4
    )


# -- characters and special tokens

SPECIALS = [*ROLE_TOKENS, "<end>", UNK_TOKEN, "<끝>"]
ALPHABET = sorted(set("".join(SAID) + "가각 한글<|>/unkendsr끝\n"))


def characters(specials=SPECIALS):
    return CharacterTokenizer(
        [c for c in ALPHABET if unicodedata.is_normalized("NFC", c)], specials
    )


def strings(count=400):
    rng = np.random.default_rng(3)
    pieces = [
        *SAID,
        *SPECIALS,
        "<|en",
        "d|>",
        "<<end>>",
        "뷁",
        "Ω",
        "\u0301",
        unicodedata.normalize("NFD", "한글 각 é"),
    ]
    for _ in range(count):
        yield "".join(rng.choice(pieces, size=int(rng.integers(0, 6))))


def written(tokenizer, ids):
    """The text of all tokens, special ones by their names."""
    return "".join(
        tokenizer.special_name(token) or tokenizer.token_bytes(token).decode() for token in ids
    )


def test_what_is_typed_never_becomes_a_special_token_and_comes_back_in_nfc():
    tokenizer, bare = characters(), characters([each for each in SPECIALS if each != UNK_TOKEN])
    known, lost = len(tokenizer.characters), tokenizer.token_to_id(UNK_TOKEN)
    for text in strings():
        ids, normal = tokenizer.encode(text), unicodedata.normalize("NFC", text)
        assert [token for token in ids if token >= known] == [lost] * ids.count(lost)
        expected = [c if c in tokenizer.characters else UNK_TOKEN for c in normal]
        assert [written(tokenizer, [token]) for token in ids] == expected
        assert decode(bare, bare.encode(text)) == "".join(c for c in normal if c in bare.characters)
        assert tokenizer.encode(unicodedata.normalize("NFD", text)) == ids
    for name in SPECIALS:
        assert tokenizer.encode(f"a{name}b", parse_special=True) == [
            *tokenizer.encode("a"),
            tokenizer.token_to_id(name),
            *tokenizer.encode("b"),
        ]


def test_transformers_reads_characters_and_special_tokens_the_same(tmp_path):
    ours = characters()
    model = random_checkpoint(characters=[chr(0x4E00 + place) for place in range(ours.vocab_size)])
    end = (ours.token_to_id("<|end|>"),)
    save(
        dataclasses.replace(
            model, tokenizer=ours, chat_template=DEFAULT_CHAT_TEMPLATE, eos_token_ids=end
        ),
        tmp_path / "hf",
        folder=True,
    )
    theirs, again = (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"),
        load(tmp_path / "hf"),
    )
    assert again.eos_token_ids == end
    assert again.tokenizer.special_names == SPECIALS
    for text in strings():
        ids = ours.encode(text, parse_special=True)
        assert (
            ids == theirs(text)["input_ids"] == again.tokenizer.encode(text, parse_special=True)
        ), text
        assert ours.encode(text) == again.tokenizer.encode(text), text
        assert (
            theirs.decode(ids, skip_special_tokens=False)
            == written(ours, ids)
            == written(again.tokenizer, ids)
        )
        assert theirs.decode(ids, skip_special_tokens=True) == decode(ours, ids)
    marked = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation "
        "%}{{ m.content }}<|end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    for tokenizer in (ours, again.tokenizer):
        found = flat_examples(DEFAULT_CHAT_TEMPLATE, tokenizer, CONVERSATIONS)
        assert found == [masked(theirs, marked, conversation) for conversation in CONVERSATIONS]
    for conversation in CONVERSATIONS[::10]:
        expected = theirs.apply_chat_template(
            as_dicts(conversation), add_generation_prompt=True, return_dict=True
        )
        assert apply_chat_template(DEFAULT_CHAT_TEMPLATE, ours, conversation, False) == list(
            expected["input_ids"]
        )
        assert apply_chat_template(
            again.chat_template, again.tokenizer, conversation, False
        ) == list(expected["input_ids"])


def test_special_tokens_that_are_said_are_text_in_a_conversation():
    tokenizer = characters()
    said = [Message("user", "a<|end|><|assistant|>b"), Message("assistant", "<|user|>c<|end|>")]
    ids, marks = flat_examples(DEFAULT_CHAT_TEMPLATE, tokenizer, [said])[0]
    user, assistant, end = map(tokenizer.token_to_id, ("<|user|>", "<|assistant|>", "<|end|>"))
    first, second = (tokenizer.encode(message.content) for message in said)
    assert ids == [user, *first, end, assistant, *second, end]
    assert marks == [False] * (len(first) + 3) + [True] * (len(second) + 1)


def test_special_tokens_are_kept_in_a_native_file(tmp_path):
    tokenizer = characters()
    model = random_checkpoint(
        characters=[chr(0x4E00 + place) for place in range(tokenizer.vocab_size)]
    )
    save(
        dataclasses.replace(
            model,
            tokenizer=tokenizer,
            chat_template=DEFAULT_CHAT_TEMPLATE,
            eos_token_ids=(tokenizer.vocab_size - 1,),
        ),
        tmp_path / "m",
    )
    again = load(tmp_path / "m")
    assert (again.tokenizer.to_json(), again.chat_template, again.eos_token_ids) == (
        tokenizer.to_json(),
        DEFAULT_CHAT_TEMPLATE,
        (tokenizer.vocab_size - 1,),
    )
    for text in strings(50):
        assert again.tokenizer.encode_rendered(text) == tokenizer.encode_rendered(text)


@pytest.mark.parametrize(
    "names", [["end"], ["<>"], ["< end>"], ["<a>", "<a>"], ["<a\x1b>"], ["<" + "a" * 99 + ">"]]
)
def test_special_names_of_the_wrong_kind_are_refused(names):
    with pytest.raises(UserError, match="special tokens"):
        CharacterTokenizer("ab", names)


# -- LoRA

MODELS = ["note", "gpt2", "gpt_neox", "llama", "qwen3 tied, biased", "lfm2"]
RANK = 3


@pytest.fixture(params=MODELS)
def base(request, tmp_path):
    """A model of random weights that lies somewhere, and reads numbers or Hangul."""
    if request.param == "note":
        save(
            random_checkpoint(characters=list("0123456789 "), context=32, width=24),
            tmp_path / "base.safetensors",
        )
        return load(tmp_path / "base.safetensors")
    random_model(*FAMILIES[request.param]).save_pretrained(tmp_path / "base")
    return load(tmp_path / "base")


@pytest.fixture
def numbers(tmp_path):
    return _numbers(tmp_path)


def _numbers(folder):
    path = folder / "numbers.txt"
    path.write_text(" ".join(str(place * 7 % 97) for place in range(1_500)))
    return path


def adapted(base, numbers):
    return trained(
        base,
        numbers,
        numbers.with_name("m"),
        lora_rank=RANK,
        steps=6,
        batch_size=4,
        context_length=16,
        lr=0.02,
    )


def ids_of(checkpoint):
    return torch.from_numpy(
        np.random.default_rng(1).integers(0, checkpoint.config.vocab_size, (2, 20))
    )


def logits(checkpoint, ids):
    return logits_of(build(checkpoint.config, checkpoint.tensors), ids)


def is_adapted(name, array):
    """Whether a tensor is a matrix of a block; the weights of a convolution are none."""
    return name.startswith("blocks.") and array.ndim == 2 and not is_convolution(name)


def test_a_fresh_adapter_changes_nothing_and_alone_can_learn(base):
    model, ids = build(base.config, base.tensors), ids_of(base)
    expected = logits_of(model, ids)
    add_adapters(model, RANK)
    assert torch.equal(logits_of(model, ids), expected)
    names = {name for name, each in model.named_parameters() if each.requires_grad}
    matrices = [name for name, array in base.tensors.items() if is_adapted(name, array)]
    assert names == {name.replace("weight", side) for name in matrices for side in ("up", "down")}
    for name, weight in merge_adapters(model.state_dict()).items():
        assert weight.numpy().tobytes() == base.tensors[name].tobytes(), name


def test_training_an_adapter_leaves_the_model_beside_it_as_it_was_bit_by_bit(base, numbers):
    before = {name: array.tobytes() for name, array in base.tensors.items()}
    run, finished, after = adapted(base, numbers)
    assert finished.last_loss < finished.first_loss
    state = run.trainer.model.state_dict()
    for name, bits in before.items():
        stem, _, kind = name.rpartition(".")
        kept = state.get(f"{stem}.base.{kind}", state.get(name))
        assert kept.numpy().tobytes() == bits == base.tensors[name].tobytes(), name
        if is_adapted(name, base.tensors[name]):
            difference = torch.from_numpy(after.tensors[name] - base.tensors[name]).double()
            assert (torch.linalg.svdvals(difference) > 1e-5).sum() == RANK, name
        else:
            assert after.tensors[name].tobytes() == bits, name
    ids = ids_of(base)
    with_adapter = logits_of(run.trainer.model, ids)
    assert (with_adapter - logits(base, ids)).abs().max() > 0.01
    torch.testing.assert_close(logits(after, ids), with_adapter, rtol=1e-5, atol=1e-5)


def test_an_adapter_opens_with_its_model_and_says_the_same(base, numbers, tmp_path):
    run, _, after = adapted(base, numbers)
    file, ids = tmp_path / "adapter.safetensors", ids_of(base)
    adapter.save_adapter(after, file)
    stored = safetensors.numpy.load_file(file)
    assert all(min(array.shape) == RANK for array in stored.values())
    opened = load(file)
    torch.testing.assert_close(
        logits(opened, ids), logits_of(run.trainer.model, ids), rtol=1e-5, atol=1e-5
    )
    for name, array in opened.tensors.items():
        expected, stem = base.tensors[name].astype(np.float64), name.removesuffix(".weight")
        if f"{stem}.up" in stored:
            expected = expected + stored[f"{stem}.up"].astype(np.float64) @ stored[
                f"{stem}.down"
            ].astype(np.float64)
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
    adapter.save_adapter(opened, tmp_path / "again.safetensors")
    again = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    assert {name: array.tobytes() for name, array in again.items()} == {
        n: a.tobytes() for n, a in stored.items()
    }
    assert read_header(tmp_path / "again.safetensors").metadata == read_header(file).metadata
    if base.path.is_dir():  # merged, it is a model that transformers opens
        save(after, tmp_path / "merged", folder=True)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "merged", attn_implementation="eager"
        )
        torch.testing.assert_close(logits_of(theirs, ids), logits(opened, ids), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def saved_adapter(tmp_path_factory):
    """An adapter's tensors and metadata, and the folder with its model in it."""
    folder = tmp_path_factory.mktemp("lora")
    save(
        random_checkpoint(characters=list("0123456789 "), context=32, width=24),
        folder / "base.safetensors",
    )
    (folder / "t.txt").write_text("0123456789 " * 40)
    run = trained(
        load(folder / "base.safetensors"),
        folder / "t.txt",
        folder / "m",
        lora_rank=2,
        steps=2,
        batch_size=2,
    )
    adapter.save_adapter(run[2], folder / "adapter.safetensors")
    header = read_header(folder / "adapter.safetensors")
    return folder, safetensors.numpy.load_file(header.path), dict(header.metadata)


QKV, UP = "blocks.0.attention.qkv", "blocks.0.mlp.up"
HUGE = np.float32(3e38)
HOSTILE = {
    "another model": (
        {},
        {"base": lambda base: {**base, "sha256": "0" * 64}},
        "was made for other weights",
    ),
    "no model": (
        {},
        {"base": lambda base: {**base, "path": "/no\x1b[31m/model"}},
        "which is neither at that path nor beside",
    ),
    "no model in a folder": (
        {},
        {"base": lambda base: {**base, "path": ""}},
        "without config.json",
    ),
    "a name with a zero": (
        {},
        {"base": lambda base: {**base, "path": "a\0b"}},
        "which is neither at that path nor beside",
    ),
    "an endless name": (
        {},
        {"base": lambda base: {**base, "path": "a" * 9_999}},
        "which is neither at that path nor beside",
    ),
    "itself": (
        {},
        {"base": lambda base: {**base, "path": "hostile.safetensors"}},
        "for another adapter",
    ),
    "no text": (
        {},
        {"base": lambda base: {**base, "path": "t.txt"}},
        "is a text, not a checkpoint",
    ),
    "a device": ({}, {"base": lambda base: {**base, "path": os.devnull}}, "not a regular file"),
    "no digest": (
        {},
        {"base": lambda base: {"path": base["path"]}},
        "does not name its base model",
    ),
    "a list": ({}, {"base": lambda base: [base]}, "does not name its base model"),
    "numbers": (
        {},
        {"base": lambda base: {"path": 3, "sha256": None}},
        "does not name its base model",
    ),
    "no base": ({}, {"base": None}, "no 'base' in its metadata"),
    "a newer version": ({}, {"version": "3"}, "of an unknown version"),
    "no version": ({}, {"version": None}, "of an unknown version"),
    "half of it": ({f"{QKV}.up": None}, {}, "only half of the adapter of blocks.0.attention.qkv"),
    "the other half": (
        {f"{QKV}.down": None},
        {},
        "only half of the adapter of blocks.0.attention.qkv",
    ),
    "nothing in it": (None, {}, "an adapter without tensors"),
    "one more": ({"extra": np.ones((2, 2))}, {}, "fits no matrix of its model: extra"),
    "of no layer": ({"blocks.9.mlp.up.up": np.ones((2, 2))}, {}, "fits no matrix"),
    "of a norm": (
        {"ln_f.up": np.ones((24, 2)), "ln_f.down": np.ones((2, 24))},
        {},
        "fits no matrix",
    ),
    "of a bias": ({f"{UP}.bias.up": np.ones((2, 2))}, {}, "fits no matrix"),
    "a whole matrix": ({f"{QKV}.weight": np.ones((72, 24))}, {}, "fits no matrix"),
    "hostile name": ({"a\x1b[31m": np.ones((2, 2))}, {}, "fits no matrix"),
    "too wide": ({f"{QKV}.down": np.ones((2, 25))}, {}, "must have the shape"),
    "the wrong way round": ({f"{QKV}.down": np.ones((24, 2))}, {}, "must have the shape"),
    "too flat": ({f"{QKV}.down": np.ones(24)}, {}, "must have the shape"),
    "too deep": ({f"{QKV}.up": np.ones((72, 2, 2))}, {}, "must have the shape"),
    "a number": ({f"{QKV}.up": np.ones(())}, {}, "must have the shape"),
    "of rank 0": (
        {f"{QKV}.up": np.ones((72, 0)), f"{QKV}.down": np.ones((0, 24))},
        {},
        "must have the shape",
    ),
    "all of rank 0": (
        lambda array: array[:0] if len(array) == 2 else array[:, :0],
        {},
        "must have the shape",
    ),
    "of two ranks": ({f"{QKV}.up": np.ones((72, 3))}, {}, "or halves of different rank"),
    "of a huge and a small one": (
        {f"{QKV}.up": np.ones((72, 99_999))},
        {},
        "or halves of different rank",
    ),
    "no number": ({f"{QKV}.up": np.full((72, 2), np.nan)}, {}, "not finite"),
    "too much": ({f"{QKV}.down": np.full((2, 24), np.inf)}, {}, "not finite"),
    "too much together": (
        {f"{QKV}.up": np.full((72, 2), HUGE), f"{QKV}.down": np.full((2, 24), HUGE)},
        {},
        "finite",
    ),
    "whole numbers": (
        {f"{QKV}.up": np.ones((72, 2), np.int64)},
        {},
        "must have one of the dtypes F32",
    ),
}


def refused(path, message):
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_adapter_is_refused_in_one_clean_line(saved_adapter, what):
    folder, tensors, metadata = saved_adapter
    changes, said, message = HOSTILE[what]
    if callable(changes):
        changes = {name: changes(array) for name, array in tensors.items()}
    changed = {} if changes is None else {**tensors, **changes}
    changed = {
        name: np.ascontiguousarray(array, None if array.dtype == np.int64 else np.float32)
        for name, array in changed.items()
        if array is not None
    }
    for name, value in said.items():
        told = json.dumps(value(json.loads(metadata["base"]))) if callable(value) else value
        metadata = {**metadata, name: told}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    path = folder / "hostile.safetensors"
    path.write_bytes(safetensors.numpy.save(changed, metadata))
    refused(path, message)


def test_a_rank_above_the_width_is_only_large(saved_adapter):
    folder, tensors, metadata = saved_adapter
    wide = {
        name: np.repeat(array, 500, int(name.endswith("up"))) for name, array in tensors.items()
    }
    path = folder / "wide.safetensors"
    path.write_bytes(safetensors.numpy.save(wide, metadata))
    base, opened = load(folder / "base.safetensors"), load(path)
    expected = base.tensors[f"{QKV}.weight"] + 500 * (tensors[f"{QKV}.up"] @ tensors[f"{QKV}.down"])
    np.testing.assert_allclose(opened.tensors[f"{QKV}.weight"], expected, atol=1e-4)


def test_every_truncation_of_an_adapter_is_refused(saved_adapter):
    folder = saved_adapter[0]
    data = (folder / "adapter.safetensors").read_bytes()
    path = folder / "cut.safetensors"
    for length in (*range(0, 1_200, 7), *range(1_200, len(data), 997), len(data) - 1):
        path.write_bytes(data[:length])
        refused(path, "truncated|not a safetensors file|not valid JSON|header|is empty")
    path.write_bytes(data + b"\0")
    refused(path, "has extra data")


def test_flipped_bytes_in_an_adapter_end_in_no_other_error(saved_adapter):
    folder, tensors, _ = saved_adapter
    data = bytearray((folder / "adapter.safetensors").read_bytes())
    length = len(data) - sum(array.nbytes for array in tensors.values())
    rng, path, wrong = np.random.default_rng(0), folder / "flipped.safetensors", 0
    for place in rng.integers(0, length, 300):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(changed)
        try:
            load(path)
        except UserError as error:
            assert str(error).isprintable()
            wrong += 1
    assert wrong > 200


def test_an_adapter_finds_its_model_beside_it_and_no_changed_one(saved_adapter, tmp_path):
    folder = saved_adapter[0]
    for file in ("adapter.safetensors", "base.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    metadata = read_header(tmp_path / "adapter.safetensors").metadata
    told = {**metadata, "base": metadata["base"].replace(str(folder.resolve()), "/gone")}
    tensors = safetensors.numpy.load_file(tmp_path / "adapter.safetensors")
    (tmp_path / "adapter.safetensors").write_bytes(safetensors.numpy.save(tensors, told))
    assert load(tmp_path / "adapter.safetensors").adapter.base == tmp_path / "base.safetensors"
    base = load(tmp_path / "base.safetensors")
    base.tensors["lm_head.bias"][3] += 1e-3
    save(base, tmp_path / "base.safetensors")
    refused(tmp_path / "adapter.safetensors", "for other weights")
    (tmp_path / "base.safetensors").unlink()
    refused(tmp_path / "adapter.safetensors", "which is neither at that path nor beside")


@pytest.mark.skipif(
    os.name == "nt" or os.uname().sysname == "Darwin", reason="file names are text there"
)
def test_an_adapter_of_a_model_with_a_strange_name_is_saved(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    folder.mkdir()
    save(random_checkpoint(), folder / "base.safetensors")
    start = load(folder / "base.safetensors")
    (tmp_path / "t.txt").write_text("".join(start.tokenizer.characters) * 9, encoding="utf-8")
    after = trained(start, tmp_path / "t.txt", tmp_path / "m", lora_rank=1, steps=1)[2]
    adapter.save_adapter(after, folder / "adapter.safetensors")
    assert load(folder / "adapter.safetensors").adapter is not None


# -- a real model on a real text


@pytest.fixture(scope="module")
def stories():
    return outside("checkpoints/stories260K-hf")


@pytest.fixture(scope="module")
def grimm(tmp_path_factory):
    """Two parts of the brothers' tales: to learn from, and held out."""
    text, folder = (
        outside("data/en/grimm.txt").read_text(encoding="utf-8"),
        tmp_path_factory.mktemp("grimm"),
    )
    (folder / "train.txt").write_text(text[20_000:140_000], encoding="utf-8")
    (folder / "held.txt").write_text(text[300_000:315_000], encoding="utf-8")
    return folder / "train.txt", folder / "held.txt"


def their_loss(folder, ids):
    """The loss in nats per token by transformers, over windows of 128 targets side by side."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    count = (len(ids) - 1) // 128
    inputs, targets = (torch.tensor(ids[at : at + count * 128]).view(count, 128) for at in (0, 1))
    return F.cross_entropy(logits_of(model, inputs).flatten(0, 1), targets.flatten()).item()


@pytest.mark.parametrize(("kind", "settings"), [("whole", {}), ("LoRA", {"lora_rank": 8})])
def test_a_real_model_learns_to_tell_other_tales(stories, grimm, tmp_path, kind, settings):
    start, (train, held) = load(stories), grimm
    run, finished, after = trained(
        start,
        train,
        tmp_path / "m",
        val=str(held),
        steps=30,
        context_length=128,
        batch_size=8,
        eval_interval=15,
        **settings,
    )
    # its bytes stand for all characters
    assert not [note for note in run.notes if "not in the vocabulary" in note]
    assert after.tokenizer is start.tokenizer
    save(after, tmp_path / "after", folder=True)
    known = transformers.PreTrainedTokenizerFast.from_pretrained(stories)
    ids = known(held.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    ids = [known.bos_token_id, *ids]  # a text begins as a prompt does
    assert run.trainer.val.ids.tolist() == ids
    before, now = their_loss(stories, ids), their_loss(tmp_path / "after", ids)
    print(f"{kind}: {before:.3f} before, {now:.3f} after {finished.steps} steps")
    # Both losses are of one small sample of the validation split; `val_loss` is of all of it.
    gained = finished.first_loss - finished.last_loss
    assert gained == pytest.approx(before - now, abs=0.2)
    assert finished.val_loss == pytest.approx(now, abs=1e-3)
    assert now < before - 0.25
    again = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "after")
    assert again.get_vocab() == known.get_vocab()
    assert (
        load(tmp_path / "after").tokenizer.to_json()["description"]
        == start.tokenizer.to_json()["description"]
    )


def test_what_a_model_does_not_know_is_named_for_conversations_too(tmp_path):
    tokenizer = CharacterTokenizer("\n abcd", ROLE_TOKENS)
    model = random_checkpoint(
        characters=[chr(0x4E00 + place) for place in range(tokenizer.vocab_size)]
    )
    start = dataclasses.replace(model, tokenizer=tokenizer, chat_template=DEFAULT_CHAT_TEMPLATE)
    path = tmp_path / "c.jsonl"
    path.write_text(rows(exchange("ab 훈", "dd ZZ"), exchange("훈", "a")), encoding="utf-8")
    run = begin(start, path, tmp_path / "m", steps=1)
    (note,) = [note for note in run.notes if "vocabulary" in note]
    assert note.startswith("4 characters")
    assert note.endswith("skipped: Z, 훈")


# -- a chat from nothing

TAUGHT = {
    "hi": "hello there!",
    "안녕": "반가워요. 날씨가 좋네요!\n",
    "2 + 2?": "4",
    "이름이 뭐야?": "  저는 작은 모델이에요.  ",
    "bye": "see you, 잘 가요 🙂",
}


@pytest.fixture(scope="module", params=["char", "bpe:320"])
def chat(request, tmp_path_factory):
    """A run over conversations, before its first step, and where they lie."""
    folder = tmp_path_factory.mktemp("chat")
    path = folder / "c.jsonl"
    system = [{"role": "system", "content": "Be brief. 짧게."}]
    talk = [system * (place % 2) + exchange(*each) for place, each in enumerate(TAUGHT.items())]
    path.write_text(rows(*talk * 4), encoding="utf-8")
    sizes = {
        "arch": "llama",
        "d_model": 48,
        "n_layers": 2,
        "n_heads": 3,
        "n_kv_heads": 3,
        "context_length": 48,
        "batch_size": 12,
    }
    return begin(
        None,
        path,
        folder / "m",
        steps=160,
        tokenizer=request.param,
        eval_interval=80,
        lr=0.01,
        **sizes,
    ), talk * 4


def test_only_the_assistants_words_have_targets(chat, tmp_path):
    run, talk = chat
    tokenizer = run.start.tokenizer
    sized = random_checkpoint(
        characters=[chr(0x4E00 + place) for place in range(tokenizer.vocab_size)]
    )
    save(dataclasses.replace(sized, tokenizer=tokenizer), tmp_path / "hf", folder=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation "
        "%}{{ m.content }}<|end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    expected = [
        masked(theirs, source, [Message(**each) for each in conversation]) for conversation in talk
    ]
    part = run.trainer.train
    left, place = list(expected), 0
    while place < len(part.ids):  # the conversations come in an order by chance
        ids, marks = next(
            one for one in left if part.ids[place : place + len(one[0])].tolist() == one[0]
        )
        assert part.loss_mask[place : place + len(ids)].tolist() == marks
        left.remove((ids, marks))
        place += len(ids)
    assert not left
    assert part.targets == sum(sum(marks) for _, marks in expected)


def test_what_is_said_to_the_assistant_gives_no_gradient(chat):
    run, _ = chat
    trainer, seen = run.trainer, []

    def keep(_module, _inputs, output):
        output.retain_grad()
        seen.append(output)

    starts = evenly_spaced_starts(trainer.train, 1_000)
    targets = trainer.train.batch(starts)[1]
    for smoothing in (0.0, 0.1):
        hook = trainer.model.register_forward_hook(keep)
        trainer.loss(trainer.train, starts, smoothing)[0].backward()
        hook.remove()
        trainer.model.zero_grad()
        moved = seen.pop().grad.abs().amax(-1)
        assert (moved[targets == IGNORE_INDEX] == 0).all()
        assert (moved[targets != IGNORE_INDEX] > 0).all()
    assert 0.2 < (targets == IGNORE_INDEX).float().mean() < 0.9


def test_a_model_trained_on_a_chat_answers_with_what_it_was_taught(chat, tmp_path):
    run, _ = chat
    *_, finished = run.events(lambda: False, save=False)
    save(run.checkpoint(finished), tmp_path / "chat.safetensors")
    model = ModelLoader().prepare(load(tmp_path / "chat.safetensors"))
    for question, answer in TAUGHT.items():
        session = Session(Settings(temp=0, max_tokens=40))
        session.conversation.start_chat_turn(model, question, session.settings)
        *_, ended = session.conversation.generate(model, session.settings, lambda: False, 0)
        assert ended.text.strip() == answer.strip(), question
        # it has learnt to end its turn, whatever blanks come before
        assert ended.reason == "end", question


def test_an_adapter_of_a_model_that_lies_in_no_file_as_it_is_can_only_be_merged(tmp_path):
    save(random_checkpoint(), tmp_path / "base.safetensors")
    start = load(tmp_path / "base.safetensors")
    (tmp_path / "t.txt").write_text("".join(start.tokenizer.characters) * 9, encoding="utf-8")
    changed = trained(start, tmp_path / "t.txt", tmp_path / "m", steps=1)[2]
    run, _, after = trained(changed, tmp_path / "t.txt", tmp_path / "m", lora_rank=1, steps=1)
    assert any("merged" in note for note in run.notes)
    with pytest.raises(UserError, match="no adapter to save"):
        adapter.save_adapter(after, tmp_path / "adapter.safetensors")


def test_an_adapter_opens_in_any_kind_of_numbers_beside_its_model(tmp_path):
    save(random_checkpoint(), tmp_path / "base.safetensors")
    start = load(tmp_path / "base.safetensors")
    (tmp_path / "t.txt").write_text("".join(start.tokenizer.characters) * 9, encoding="utf-8")
    after = trained(start, tmp_path / "t.txt", tmp_path / "m", lora_rank=1, steps=1)[2]
    adapter.save_adapter(after, tmp_path / "adapter.safetensors")
    assert {
        array.dtype.name for array in load(tmp_path / "adapter.safetensors").tensors.values()
    } == {"float32"}
    halved = load(tmp_path / "adapter.safetensors", dtype="bfloat16")
    assert {array.dtype for array in halved.tensors.values()} == {BFLOAT16}
    assert halved.dtype == "bfloat16"


def test_an_adapter_that_was_resumed_is_saved_and_opens(tmp_path):
    save(random_checkpoint(), tmp_path / "base.safetensors")
    start = load(tmp_path / "base.safetensors")
    (tmp_path / "t.txt").write_text("".join(start.tokenizer.characters) * 9, encoding="utf-8")
    whole = trained(start, tmp_path / "t.txt", tmp_path / "m", lora_rank=2, steps=6)[2]
    cut = begin(start, tmp_path / "t.txt", tmp_path / "m.safetensors", lora_rank=2, steps=6)
    steps = itertools.count()
    list(cut.events(lambda: next(steps) >= 3))
    assert cut.trainer.state.step == 3
    run = resume_run(
        tmp_path / "m.safetensors", RunContext(path=tmp_path / "m.safetensors", device="cpu")
    )
    *_, finished = run.events(lambda: False)
    after = run.checkpoint(finished)
    adapter.save_adapter(after, tmp_path / "adapter.safetensors")
    opened = load(tmp_path / "adapter.safetensors")
    for name, array in whole.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], array)
        np.testing.assert_allclose(opened.tensors[name], array, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["a\0b", "loop", "a" * 9_999, "base.safetensors"])
def test_a_resume_file_of_an_adapter_needs_its_model_unchanged(tmp_path, name):
    save(random_checkpoint(), tmp_path / "base.safetensors")
    start, path = load(tmp_path / "base.safetensors"), tmp_path / "m.safetensors"
    (tmp_path / "t.txt").write_text("".join(start.tokenizer.characters) * 9, encoding="utf-8")
    run = begin(start, tmp_path / "t.txt", path, lora_rank=2, steps=6)
    list(run.events(lambda: run.trainer.state.step == 2))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    file = resume_path(path)
    tensors, metadata = safetensors.numpy.load_file(file), dict(read_header(file).metadata)
    assert not any(".base." in each or "embedding" in each for each in tensors)
    said = json.loads(metadata["run"])
    said["base_model"]["path"] = str(tmp_path / name)
    safetensors.numpy.save_file(tensors, file, {**metadata, "run": json.dumps(said)})
    save(random_checkpoint(seed=3), tmp_path / "base.safetensors")
    with pytest.raises(UserError, match=r"is not at|other weights|cannot open|loop"):
        resume_run(path, RunContext(path=path, device="cpu"))


@pytest.mark.parametrize("kind", [each for each in MODELS if each != "note"])
def test_peft_opens_a_saved_adapter_with_the_same_logits(kind, tmp_path):
    peft = pytest.importorskip("peft", exc_type=ImportError)
    random_model(*FAMILIES[kind]).save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base")
    tuned = adapted(base, _numbers(tmp_path))[2]
    save_trained(tuned, tmp_path / "adapter", is_folder=True)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = ids_of(tuned)
    np.testing.assert_allclose(logits_of(opened, ids), logits(tuned, ids), rtol=0, atol=1e-4)
    assert (logits(tuned, ids) - logits(base, ids)).abs().max() > 0.01
    with pytest.raises(UserError, match="not an empty folder"):
        save_trained(tuned, tmp_path / "adapter", is_folder=True)


def test_an_adapter_of_a_native_model_is_saved_as_a_file_only(tmp_path):
    save(
        random_checkpoint(characters=list("0123456789 "), context=32), tmp_path / "base.safetensors"
    )
    tuned = adapted(load(tmp_path / "base.safetensors"), _numbers(tmp_path))[2]
    with pytest.raises(UserError, match=r"no Hugging Face folder.*adapter\.safetensors"):
        save_trained(tuned, tmp_path / "adapter", is_folder=True)
    saved = save_trained(tuned, tmp_path / "adapter.safetensors")
    assert saved.path.stat().st_size < (tmp_path / "base.safetensors").stat().st_size
    # A file cannot be an adapter for itself.
    save_trained(tuned, tmp_path / "base.safetensors")
    whole = load(tmp_path / "base.safetensors")
    assert whole.adapter is None
    np.testing.assert_array_equal(logits(whole, ids_of(whole)), logits(tuned, ids_of(whole)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_folder_keeps_its_dtype_and_the_losses_are_those_of_its_weights(tmp_path, dtype):
    model = random_model(*FAMILIES["llama"], getattr(torch, dtype))
    model.save_pretrained(tmp_path / "base")
    start = load(tmp_path / "base")
    _run, finished, tuned = trained(start, _numbers(tmp_path), tmp_path / "m", steps=4, lr=0.01)
    assert tuned.dtype == start.dtype == dtype
    saved = save_trained(tuned, tmp_path / "tuned", is_folder=True)
    again = begin(load(saved.path), _numbers(tmp_path), tmp_path / "n", steps=4).trainer
    losses = again.evaluator.final_losses(lambda: False, is_quick=False)
    assert losses[0] == pytest.approx(finished.train_loss, abs=1e-6)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_activations_computed_again_give_the_same_bits(base, numbers, lora_rank):
    kept, again = (
        trained(
            base,
            numbers,
            numbers.with_name("m"),
            lora_rank=lora_rank,
            dropout=0.2,
            steps=3,
            batch_size=4,
            context_length=16,
            grad_checkpointing=each,
        )[2]
        for each in ("off", "on")
    )
    for name, array in kept.tensors.items():
        assert array.tobytes() == again.tensors[name].tobytes(), name


def test_activations_are_computed_again_where_the_memory_is_too_small(monkeypatch, base, numbers):
    plan = {"context_length": 16, "lora_rank": 2}
    large = begin(base, numbers, numbers.with_name("m"), **plan).trainer.plan
    assert large.grad_checkpointing == "off"
    needed = estimate_memory(large, base.config)
    assert (
        estimate_memory(dataclasses.replace(large, grad_checkpointing="on"), base.config) < needed
    )
    monkeypatch.setattr("minillm_repl.training.defaults.available_bytes", lambda: needed - 1)
    run = begin(base, numbers, numbers.with_name("m"), **plan)
    assert run.trainer.plan.grad_checkpointing == "on"
    assert "gradient checkpointing" in describe_method(run.trainer, 1, 0.0)


def test_a_held_out_part_without_a_word_of_the_assistant_is_not_measured_on(tmp_path):
    exchange = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi" * 99}]
    conversation = [*exchange * 60, {"role": "user", "content": "x" * 3_000}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": conversation}), encoding="utf-8")
    run = begin(
        None,
        tmp_path / "t.jsonl",
        tmp_path / "m",
        val="auto",
        steps=3,
        context_length=16,
        d_model=16,
        n_layers=1,
        batch_size=4,
    )
    assert run.trainer.val is None
    assert any("too short" in note for note in run.notes)
