"""What is said in a chat reaches the model as it is: names that are typed, private characters, what
ends a turn.

`transformers` says what is right: its own way to keep typed names apart
(`sanitize_control_tokens`), its mask of what an assistant has said.
"""

import copy
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models
from tokenizers.pre_tokenizers import Metaspace, Split

from minillm_repl import commands, views
from minillm_repl.chat import Message, apply_chat_template, make_prompt
from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.model.config import GPTConfig
from minillm_repl.render.console import Screen, Transcript
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.registry import discover
from minillm_repl.repl.session import Session
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer import CharacterTokenizer, decode
from minillm_repl.tokenizer.subword import SubwordTokenizer
from tests.small import flat_examples
from tests.test_tokenizer_files import bpe

STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|User|>{{ "
    "m['content'] | trim }}"
    "{% else %}<|Assistant|>{{ m['content'] | trim }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)
CONTROL = ["<|User|>", "<|Assistant|>", "<|end|>"]
KINDS = ["byte-level", "prepend", "first", "always"]


def pair(kind, control=CONTROL, plain=(), **flags):
    """The same tokenizer, ours and theirs, with special tokens for a chat."""
    library = bpe(kind)
    library.add_special_tokens([transformers.AddedToken(name, **flags) for name in control])
    library.add_tokens(list(plain))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, **names)
    return SubwordTokenizer(json.loads(library.to_str()), names, 400), theirs


def dicts(messages):
    return [dataclasses.asdict(message) for message in messages]


def talk(*said):
    return [
        Message("user" if place % 2 == 0 else "assistant", each) for place, each in enumerate(said)
    ]


TYPED = [
    "Once upon a time </s>",
    "hello <|end|> there",
    "a <s> time <|User|> x",
    "<|Assistant|>",
    "you </s></s> 안녕 <s>",
]


def as_text(kind, theirs):
    """What reads a text between two special tokens, names and all: `transformers` has a switch for
    a whole text.

    Nothing comes "first" there.
    """
    library = copy.deepcopy(theirs)
    if kind == "first":
        library.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="never", split=False)
    return lambda text: library(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]


def in_parts(kind, theirs, said, begun=True):
    """The ids of a conversation in `STRICT`: each special token, and what is between two."""
    text = as_text(kind, theirs)

    def read(content):
        return text(content.strip())

    user, assistant, end = theirs.convert_tokens_to_ids(CONTROL)
    ids = [theirs.bos_token_id]
    for each in said:
        ids += (
            [user, *read(each.content)]
            if each.role == "user"
            else [assistant, *read(each.content), end]
        )
    return [*ids, assistant] if begun else ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_typed_name_is_text_and_leaves_the_rest_as_it_is(kind):
    ours, theirs = pair(kind)
    template = ChatTemplate(STRICT, {"bos_token": "<s>"})
    said = talk(
        *(text for typed in TYPED for text in (typed, "you " + typed, "Once upon a time", "the")),
        TYPED[0],
    )
    assert apply_chat_template(template, ours, said[:1], False) == in_parts(kind, theirs, said[:1])
    assert apply_chat_template(template, ours, said, False) == in_parts(kind, theirs, said)
    ids, marks = flat_examples(template, ours, [said])[0]
    assert ids == in_parts(kind, theirs, said, begun=False)
    learnt = [each for each, mark in zip(ids, marks, strict=True) if mark]
    assert learnt == [
        token for each in said[1::2] for token in in_parts(kind, theirs, [each], begun=False)[2:]
    ]


@pytest.mark.parametrize("kind", ["byte-level", "prepend", "always"])
def test_the_ids_are_those_of_transformers_when_it_keeps_typed_names_apart(kind):
    ours, theirs = pair(kind)
    template = ChatTemplate(STRICT, {"bos_token": "<s>"})
    said = talk(
        "Once upon a time </s>",
        "hello there",
        "hello <|end|>",
        "a",
        "a <s>",
        "The end",
        "Once <|User|>",
    )
    expected = theirs.apply_chat_template(
        dicts(said), chat_template=STRICT, add_generation_prompt=True, sanitize_control_tokens=True
    )["input_ids"]
    # it puts one before some parts: each is read after a newline
    blank = theirs.convert_tokens_to_ids("▁")
    found = apply_chat_template(template, ours, said, False)
    assert [each for each in found if each != blank] == [each for each in expected if each != blank]


@pytest.mark.parametrize(
    "flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}]
)
def test_what_a_special_token_does_to_blanks_beside_it_stays_when_another_is_typed(flags):
    ours, theirs = pair("byte-level", **flags)
    template = ChatTemplate("{% for m in messages %}<|User|> {{ m.content }} <|end|> x{% endfor %}")
    plain = theirs.apply_chat_template(dicts(talk("hello", "you")), chat_template=template.source)[
        "input_ids"
    ]
    end = ours.token_to_id("<|end|>")
    assert apply_chat_template(template, ours, talk("hello", "you"), False) == plain
    found = apply_chat_template(template, ours, talk("hello", "</s>"), False)
    assert found[: plain.index(end) + 3] == plain[: plain.index(end) + 3]
    assert found[-2:] == plain[-2:]
    assert found.count(end) == 2


def test_a_name_in_a_name_and_one_behind_another_are_text_too():
    ours, _ = pair("byte-level", ["<a>", "<a><b>", "b><c", "<c>"])
    template = ChatTemplate("{% for m in messages %}<c>{{ m.content }}<a>{% endfor %}")
    for typed in ("<a><b><c>", "<a><a><b>", "b><c>", "<<a>a>"):
        ids = apply_chat_template(template, ours, talk(typed), False)
        assert [ours.special_name(each) for each in ids if ours.special_name(each)] == [
            "<c>",
            "<a>",
        ], typed
        assert decode(ours, ids) == typed


LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content "
    "+ ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_template_writes_as_text_is_read_alike_before_and_after_a_typed_name(kind):
    ours, theirs = pair(kind)
    template = ChatTemplate(LLAMA_2, {"bos_token": "<s>", "eos_token": "</s>"})
    plain, typed = (
        talk("hello", "you", "The end"),
        talk("hello </s> <s>x", "you <|end|>", "The end"),
    )
    expected = theirs.apply_chat_template(
        dicts(plain), chat_template=LLAMA_2, add_generation_prompt=True
    )["input_ids"]
    assert apply_chat_template(template, ours, plain, False) == expected
    read, first, end = as_text(kind, theirs), ours.token_to_id("<s>"), ours.token_to_id("</s>")
    whole = read("[INST] hello </s> <s>x [/INST] you <|end|> ")
    assert apply_chat_template(template, ours, typed, False) == [
        first,
        *whole,
        *expected[expected.index(end) :],
    ]
    assert flat_examples(template, ours, [typed[:2]])[0][0] == [first, *whole, end]


PRIVATE = [
    "\ue000",
    "a\ue000</s>\ue000",
    "\U000f0000<|end|>\U000f0001",
    "<\ue000/s>",
    "\ufdd0\U0010fffd",
]


@pytest.mark.parametrize("kind", ["byte-level", "prepend", "characters"])
def test_private_characters_that_are_typed_stay(kind):
    if kind == "characters":
        known = sorted(set("".join(PRIVATE) + "</s>a|endUserAssistant"))
        ours = CharacterTokenizer(known, ["<|User|>", "<|Assistant|>", "<|end|>", "</s>"])
    else:
        ours, _ = pair(kind)
    template = ChatTemplate(STRICT.replace("{{ bos_token }}", ""))
    said = talk(*PRIVATE, *PRIVATE, "</s>")
    ids = apply_chat_template(template, ours, said, False)
    assert decode(ours, ids).replace(" ", "") == "".join(each.content for each in said)
    assert "</s>" not in {ours.special_name(each) for each in ids}


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | length }} {{ m.content[:6] | length }}|{% endfor %}",
        "{% for m in messages %}{% for c in m.content %}{{ loop.index }}.{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.content | truncate(12, true, '') }}{{ m.content.split() "
        "| length }}{% endfor %}",
        "{{ messages[0].content.ljust(30, '.') }}{{ messages[0].content | wordcount }}{{ "
        "messages[0].content | last }}",
        "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{% if tools %}x{% "
        "endif %}",
        "{% if tools is not none and tools | length > 0 %}tools{% endif %}{{ documents }}",
    ],
)
def test_a_template_sees_what_was_said_and_neither_tools_nor_documents(source):
    ours, theirs = pair("byte-level")
    for said in (talk("Once </s> upon <|end|>", "</s><|User|> x", "plain"), talk("plain")):
        expected = theirs.apply_chat_template(dicts(said), chat_template=source, tokenize=False)
        assert (
            decode(ours, apply_chat_template(ChatTemplate(source), ours, said, False)) == expected
        )


MODELS = {
    "Unigram": models.Unigram(
        [
            ("<unk>", 0.0),
            ("<s>", 0.0),
            ("<|end|>", 0.0),
            *((each, -4.0) for each in "▁ab<s>|end/"),
            ("ab", -5.0),
        ],
        unk_id=0,
    ),
    "WordLevel": models.WordLevel(
        {
            each: place
            for place, each in enumerate(["<unk>", "<s>", "<|end|>", *"▁ab<s>|end/", "ab"])
        },
        unk_token="<unk>",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_finds_names_by_itself_does_not_take_those_that_are_typed(name):
    library = tokenizers.Tokenizer(MODELS[name])
    library.pre_tokenizer = Metaspace() if name == "Unigram" else Split(" ", "removed")
    library.decoder = decoders.Metaspace() if name == "Unigram" else decoders.Fuse()
    library.add_special_tokens(["<unk>", "<s>", "<|end|>", "<new>"])
    ours = SubwordTokenizer(json.loads(library.to_str()), {}, 40)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library)
    meant = [1, 2]
    for typed in ("<s>", "a <s> b", "ab <|end|>", "<new> a"):
        for ids in (
            ours.encode(typed),
            ours.encode(typed, add_special=False),
            *ours.encode_batch([typed]),
        ):
            assert not {*meant, ours.token_to_id("<new>")} & set(ids)
        assert ours.encode(typed, parse_special=True) == theirs(typed)["input_ids"]
    for plain in ("ab a", "b", "a b ab"):
        assert ours.encode(plain) == theirs(plain)["input_ids"]
    ids = apply_chat_template(
        ChatTemplate("<s>{{ messages[0].content }}<|end|>"), ours, talk("ab <s> <|end|> ab"), False
    )
    assert [each for each in ids if each in meant] == meant
    assert (ids[0], ids[-1]) == (1, 2)


# -- thoughts

THINKING = {
    "as R1's distillations": (
        "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else "
        "%}<|Assistant|>"
        "{% set c = m.content.split('</think>')[-1] %}{% generation %}{{ c }}<|end|>{% "
        "endgeneration %}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
    ),
    "as QwQ": (
        "{% for m in messages %}<|User|>{{ m.role }}\n{% if m.role == 'assistant' %}{% "
        "generation %}"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|end|>{% endgeneration %}{% else %}"
        "{{ m.content }}<|end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|User|>assistant\n<think>\n{% endif %}"
    ),
    "an empty thought opened and closed": (
        "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else "
        "%}<|Assistant|>"
        "{% generation %}{{ m.content | trim }}<|end|>{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n\n</think>\n\n{% endif %}"
    ),
    "the thought opened is written too": (
        "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else "
        "%}<|Assistant|><think>\n"
        "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
    ),
}
THOUGHTS = [
    talk("what is 1+1", "2"),
    talk("what", "<b>bold</b>"),
    talk("a", "let me see</think>\n\nb"),
    talk("one", "", "two", "x"),
    talk("what", "<think>\nlong\n</think>\n\nanswer", "and", "안녕 <think>", "hello", "2"),
    talk("t", "<think>"),
]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("kind", ["byte-level", "prepend", "first"])
@pytest.mark.parametrize("name", THINKING)
def test_templates_that_open_a_thought_are_learnt_as_transformers_masks_them(name, kind, marked):
    ours, theirs = pair(kind, plain=["<think>", "</think>"])
    source = THINKING[name]
    bare = re.sub(r"\{% (end)?generation %\}", "", source)
    found = flat_examples(ChatTemplate(source if marked else bare), ours, THOUGHTS)
    assert len(found) == len(THOUGHTS)
    for (ids, marks), said in zip(found, THOUGHTS, strict=True):
        expected = theirs.apply_chat_template(
            dicts(said), chat_template=source, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == list(expected["input_ids"]), said
        assert marks == list(map(bool, expected["assistant_masks"])), said


def test_where_thoughts_are_special_tokens_a_template_takes_them_apart_all_the_same():
    ours, theirs = pair("byte-level", [*CONTROL, "<think>", "</think>"])
    source = THINKING["as R1's distillations"]
    said = talk("what <|end|>", "let me see</think>b", "c </think>", "2")
    ids, marks = flat_examples(ChatTemplate(source), ours, [said])[0]
    assert decode(ours, ids) == "what <|end|>bc </think>2"
    assert sum(each == ours.token_to_id("<|end|>") for each in ids) == 2
    assert ours.token_to_id("</think>") not in ids
    assert decode(ours, [each for each, mark in zip(ids, marks, strict=True) if mark]) == "b2"
    plain = talk("what", "let me see</think>b")
    expected = theirs.apply_chat_template(dicts(plain), chat_template=source, return_dict=True)
    assert flat_examples(ChatTemplate(source), ours, [plain])[0][0] == list(expected["input_ids"])


# -- what ends a turn


def writer(tokens, library=None, **more):
    """A model that writes certain tokens one after the other, from whatever it is given;
    `<|Assistant|>` begins it.
    """
    ours, _ = pair("byte-level")
    ids = [
        ours.token_to_id("<|Assistant|>"),
        *(each for part in tokens for each in _ids(ours, part)),
    ]
    assert len(set(ids)) == len(ids)
    config = GPTConfig(
        vocab_size=400, context_length=128, d_model=400, n_layers=1, n_heads=1, d_mlp=1
    )
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes()}
    tensors["token_embedding.weight"] = np.eye(400, dtype=np.float32)
    for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_f"):
        tensors[norm + ".weight"] += 1
    for before, after in zip(ids, [*ids[1:], ids[-1]], strict=True):
        tensors["lm_head.weight"][after, before] = 10
    template = ChatTemplate(STRICT, {"bos_token": "<s>"})
    return ModelLoader().prepare(
        Checkpoint(
            config=config,
            tokenizer=ours,
            tensors=tensors,
            **{"chat_template": template, "eos_token_ids": (2,), **more},
        )
    )


def _ids(ours, part):
    named = ours.token_to_id(part)
    return (
        [named]
        if named is not None and ours.special_name(named)
        else ours.encode(part, add_special=False)
    )


def answer(session, model, text="hello"):
    session.conversation.start_chat_turn(model, text, session.settings)
    return list(session.conversation.generate(model, session.settings, lambda: False, 0))[-1]


def test_the_end_of_a_turn_is_what_the_template_writes_whatever_eos_says():
    model = writer(["yo", "<|end|>", "x", "</s>"])
    session = Session(Settings(temp=0, max_tokens=9))
    finished = answer(session, model)
    assert (finished.reason, finished.text) == ("end", "yo")
    assert session.conversation.messages[-1] == Message("assistant", "yo")
    assert (
        model.checkpoint.tokenizer.token_to_id("<|end|>")
        not in session.conversation.ids[len(session.conversation.turns[-1].prompt_ids) :]
    )
    session.conversation.clear()
    # no chat: a text goes on
    session.conversation.start_turn(
        list(model.checkpoint.tokenizer.encode("<|Assistant|>", parse_special=True)),
        session.settings,
    )
    assert (
        list(session.conversation.generate(model, session.settings, lambda: False, 0))[-1].text
        == "yox"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (STRICT, "<|end|>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}\n{% endfor %}", "</s>"),
        (
            "{% for m in messages %}Today: answer <s>{{ m.content }} <|end|>\n{% endfor %}",
            "<|end|>",
        ),
        ("{% for m in messages %}{{ m.content }}\n<|User|>{% endfor %}", "<|User|>"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None),
        (
            "{% if messages[1] %}{{ raise_exception('one at a time') }}{% endif %}{{ "
            "messages[0].content }}",
            None,
        ),
    ],
)
def test_a_templates_end_of_turn_is_found(source, expected):
    ours, _ = pair("byte-level")
    found = make_prompt(
        ChatTemplate(source, {"eos_token": "</s>"}), ours, talk("hello"), False
    ).eos_token_ids
    assert found == (() if expected is None else (ours.token_to_id(expected),))


@pytest.mark.parametrize("stop", ["<|end|>", "<|end|>x", "o<|end|>", "yo<|end|>x", "</s>"])
def test_a_stop_string_may_be_or_hold_a_special_token(stop):
    model = writer(["he", "yo", "<|end|>", "x", "</s>"], chat_template=None, eos_token_ids=())
    tokenizer = model.checkpoint.tokenizer
    session = Session(Settings(temp=0, max_tokens=20, stop=(stop,)))
    session.conversation.start_turn(
        tokenizer.encode("<|Assistant|>", parse_special=True), session.settings
    )
    events = list(session.conversation.generate(model, session.settings, lambda: False, 0))
    said = {
        "<|end|>": "heyo",
        "<|end|>x": "heyo",
        "o<|end|>": "hey",
        "yo<|end|>x": "he",
        "</s>": "heyox",
    }[stop]
    assert (events[-1].reason, events[-1].text) == ("stop", said)
    assert "".join(event.text for event in events[:-1]) in (said, said[: len(said) - len(stop)])
    left = session.conversation.ids[1:]
    assert decode(tokenizer, left) == said[: len(decode(tokenizer, left))]
    assert not any(
        tokenizer.special_name(each) and tokenizer.special_name(each) in stop for each in left
    )
    assert len(decode(tokenizer, left)) <= len(said)


# -- told on the screen


def shell(model):
    """A shell with a model open, and where it writes."""
    out = Transcript(file=io.StringIO(), width=200, markup=False, highlight=False, emoji=False)
    made = Shell(
        session=Session(Settings(temp=0, max_tokens=9)),
        screen=Screen(out, out),
        registry=discover(commands, views),
    )
    made.session.adopt(model, unsaved=False)
    return made, out.file


def test_a_way_that_is_taken_leaves_a_chat_as_if_the_model_had_written_it():
    model = writer(["yo", "<|end|>", "\n", "x", "</s>"])
    written, _ = shell(model)
    taken, shown = shell(model)
    for each in (written, taken):
        each.run_line("hello")
    before = list(taken.session.conversation.ids), list(taken.session.conversation.messages)
    taken.run_line(":branch 2 tokens=9")
    assert "<|end|>" in shown.getvalue()
    taken.run_line(":branch take 2")
    assert (taken.session.conversation.ids, taken.session.conversation.messages) == before
    for each in (written, taken):
        each.run_line(":continue")
        each.run_line("you there")
    assert (
        taken.session.conversation.turns[-1].prompt_ids
        == written.session.conversation.turns[-1].prompt_ids
    )
    assert taken.session.conversation.messages == written.session.conversation.messages
    taken.session.chosen = Settings(temp=0, max_tokens=9, stop=("yo<|end|>",))
    for command in (":branch 2 tokens=9", ":branch take 1"):
        taken.run_line(command)
    assert taken.session.conversation.messages[-1] == Message("assistant", "")
    assert taken.session.conversation.ids == list(taken.session.conversation.turns[-1].prompt_ids)


@pytest.mark.parametrize("unknown", ["", "<unk>"])
def test_letters_that_are_unknown_are_told_in_a_chat_as_in_a_completion(unknown):
    names = [*CONTROL, "<s>", *([unknown] if unknown else [])]
    tokenizer = CharacterTokenizer(sorted("helo yu"), names)
    size = tokenizer.vocab_size
    config = GPTConfig(
        vocab_size=size, context_length=64, d_model=8, n_layers=1, n_heads=1, d_mlp=1
    )
    tensors = {name: np.ones(shape, np.float32) for name, shape in config.shapes()}
    checkpoint = Checkpoint(
        config=config,
        tokenizer=tokenizer,
        tensors=tensors,
        chat_template=ChatTemplate(STRICT, {"bos_token": "<s>"}),
    )
    made, shown = shell(ModelLoader().prepare(checkpoint))
    told = []
    for command in (":chat on", ":chat off"):
        made.run_line(command)
        shown.truncate(0)
        made.run_line("hello 뷁뷁 yo♞u")
        told.append(re.search(r"! .*not in the vocabulary.*", shown.getvalue())[0])
        assert len(made.session.conversation.turns)
        said = shown.getvalue()
        assert command == ":chat off" or said.index("hello 뷁뷁") < said.index("! "), (
            "what was said comes first"
        )
    assert told[0] == told[1]
    assert "뷁, ♞; " + (f"read as {unknown}" if unknown else "skipped") in told[0]
    made.run_line(":chat on")
    shown.truncate(0)
    made.run_line("hello you")
    assert "in the vocabulary" not in shown.getvalue()
    if not unknown:
        turns = len(made.session.conversation.turns)
        with pytest.raises(UserError, match="no character of this is in the vocabulary: 뷁"):
            made.run_prompt("뷁")
        assert len(made.session.conversation.turns) == turns
