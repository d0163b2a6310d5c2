"""What the files of a Hugging Face folder say of tokens, taken together; `transformers` says
what is right.
"""

import json

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.errors import UserError
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.session import Session
from minillm_repl.storage.files import parse_json
from minillm_repl.tokenizer import decode

TEXTS = [
    "Once upon a time",
    "hello <|im_start|>you<|im_end|> there",
    " <|im_end|>  x",
    "a<pad>b <pad> c",
    "<x> mid<x>dle <x>",
    "word<w>word <w> word",
    "<s>start</s>",
    "안녕 <|끝|> 하세요",
    "<A> <a>",
    "",
    "<|im_end|>",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def bpe(kind="byte-level", **parts):
    """A small tokenizer of one of three kinds; its vocabulary has about 300 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "byte-level":
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
    else:
        library = tokenizers.Tokenizer(
            models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        library.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        alphabet = []
        if kind == "prepend":
            library.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        else:
            library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    pieces = [] if kind == "byte-level" else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*SPECIAL, *pieces],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    library.train_from_iterator(
        ["Once upon a time there was a word", "hello you there middle time"] * 9, trainer
    )
    description = json.loads(library.to_str())
    description["added_tokens"] = [
        each for each in description["added_tokens"] if each["content"] in SPECIAL
    ]
    library = tokenizers.Tokenizer.from_str(json.dumps(description))
    for name, part in parts.items():
        setattr(library, name, part)
    return library


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with the weights of a tiny Llama of 400 tokens."""
    folder = tmp_path_factory.mktemp("weights")
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(weights, tmp_path):
    """Make a folder of those weights, a tokenizer, more files: those not named JSON are text."""

    def made(library=None, *, settings=None, rows=400, **files):
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        for file in weights.iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        if rows != 400:
            config = transformers.LlamaConfig.from_pretrained(weights, vocab_size=rows)
            transformers.LlamaForCausalLM(config).save_pretrained(path)
        if library is not None:
            (path / "tokenizer.json").write_text(library.to_str(), encoding="utf-8")
        said = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            **(settings or {}),
        }
        (path / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
        for name, content in files.items():
            file, _, ending = name.rpartition("_")
            text = content if isinstance(content, str) else json.dumps(content)
            (path / f"{file}.{ending}").write_text(text, encoding="utf-8", newline="")
        return path

    return made


def token(content, special=True, **flags):
    usual = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, "special": special, **usual, **flags}


def same(path, texts=TEXTS):
    """Hold our tokenizer of a folder to theirs: the added tokens, and the ids of texts, but for
    what closes a text.
    """
    ours, theirs = load(path).tokenizer, transformers.AutoTokenizer.from_pretrained(path)
    added = {
        number: str(each) for number, each in theirs.added_tokens_decoder.items() if each.special
    }
    assert {number: ours.special_name(number) for number in added if number < ours.vocab_size} == {
        number: name for number, name in added.items() if number < ours.vocab_size
    }
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, parse_special=True) == [*first(theirs), *ids], text
        assert ours.encode_rendered(text) == ids, text
    return ours, theirs


def first(theirs):
    whole = theirs("a", return_special_tokens_mask=True)
    return whole["input_ids"][: whole["special_tokens_mask"].index(0)]


IM = {"400": token("<|im_start|>"), "401": token("<|im_end|>")}
FOLDERS = {
    "a decoder in the settings": {
        "settings": {"added_tokens_decoder": IM, "eos_token": "<|im_end|>"}
    },
    "flags of tokens": {
        "settings": {
            "added_tokens_decoder": {
                "340": token("<|im_end|>", lstrip=True),
                "341": token("<pad>", rstrip=True),
                "342": token("<w>", single_word=True),
                "343": token("<x>", special=False, normalized=True),
                "344": token("<|끝|>", lstrip=True, rstrip=True),
            }
        }
    },
    "other flags than in tokenizer.json": {
        "settings": {
            "added_tokens_decoder": {
                "1": token("<s>", rstrip=True),
                "2": token("</s>", lstrip=True),
            }
        }
    },
    "special names": {
        "settings": {
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "pad_token": "<pad>",
        }
    },
    "special names with flags": {
        "settings": {
            "extra_special_tokens": [],
            "pad_token": {"__type": "AddedToken", **token("<pad>", lstrip=True)},
        }
    },
    "roles of its own": {
        "settings": {"extra_special_tokens": {"image_token": "<x>", "boi_token": "<w>"}}
    },
    "roles of its own, as newer files have them": {
        "settings": {"model_specific_special_tokens": {"image_token": "<x>", "boi_token": "<w>"}}
    },
    "special in tokenizer.json alone": {
        "settings": {
            "added_tokens_decoder": {
                "2": token("</s>", special=False, rstrip=True),
                "340": token("<x>"),
            }
        }
    },
    "in the wrong order": {
        "settings": {
            "added_tokens_decoder": {
                "342": token("<x>"),
                "340": token("<pad>"),
                "341": token("<w>"),
            }
        }
    },
    "with holes": {
        "settings": {"added_tokens_decoder": {"350": token("<x>"), "344": token("<pad>")}}
    },
    "a map of an older folder": {
        "special_tokens_map_json": {
            "pad_token": token("<pad>", lstrip=True),
            "eos_token": "<|im_end|>",
            "additional_special_tokens": ["<|im_start|>"],
        }
    },
    "added_tokens.json": {
        "added_tokens_json": {"<|im_end|>": 341, "<|im_start|>": 340, "<x>": 342},
        "settings": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
    },
}


@pytest.mark.parametrize("kind", ["byte-level", "prepend", "first"])
@pytest.mark.parametrize("name", FOLDERS)
def test_tokens_that_other_files_know_are_those_of_transformers(folder, name, kind):
    if name == "added_tokens.json" and kind == "prepend":
        pytest.skip(
            "the library finds a token that is not special only where its normaliser would put a "
            "space"
        )
    ours, theirs = same(folder(bpe(kind), **FOLDERS[name]))
    assert len(theirs) > len(SPECIAL)
    for role, each in theirs.special_tokens_map.items():
        assert ours.special_tokens_map[role] == each


def test_names_of_added_tokens_json_are_one_token_each_wherever_a_template_writes_them(folder):
    path = folder(
        bpe("prepend"),
        added_tokens_json={"<|im_start|>": 340, "<|im_end|>": 341},
        settings={"eos_token": "<|im_end|>"},
    )
    tokenizer = load(path).tokenizer
    ids = tokenizer.encode_rendered("<|im_start|>hello<|im_end|><|im_start|>there<|im_start|>")
    start, end = (tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    assert [each for each in ids if each in (start, end)] == [start, end, start, start]


def gpt2_files(library):
    model = json.loads(library.to_str())["model"]
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    return {
        "vocab_json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges_txt": f"#version: 0.2\n{merges}\n",
    }


@pytest.mark.parametrize(
    "kind", ["GPT2Tokenizer", "Qwen2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer"]
)
@pytest.mark.parametrize("lines", ["\n", "\r\n", "\n\n"])
def test_files_like_gpt_2s_are_read_with_what_is_added_however_their_lines_end(folder, kind, lines):
    files = gpt2_files(bpe())
    settings = {"tokenizer_class": kind, "unk_token": "<unk>", "pad_token": "</s>"}
    settings |= {"added_tokens_decoder": {"400": token("<|im_start|>"), "401": token("<|im_end|>")}}
    wanted = folder(None, settings=settings, **files)
    odd = folder(
        None,
        settings=settings,
        **{
            name: "\ufeff" + content.replace("\n", lines) + lines for name, content in files.items()
        },
    )
    texts = [*TEXTS, "it's 1234 e\u0301 x\r\n\r\n y", "He said: “I'LL” !!"]
    theirs = transformers.AutoTokenizer.from_pretrained(wanted)
    for path in (wanted, odd):
        ours = load(path).tokenizer
        for text in texts:
            assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"], text


def test_every_file_of_a_tokenizer_may_begin_with_a_mark_and_end_its_lines_otherwise(folder):
    template = "{% for m in messages %}\r\n<|im_start|>{{ m.content }}<|im_end|>\r\n{% endfor %}"
    path = folder(bpe(), settings={"added_tokens_decoder": IM}, chat_template_jinja=template)
    expected = transformers.AutoTokenizer.from_pretrained(path).apply_chat_template(
        [{"role": "user", "content": "a"}]
    )
    for file in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        text = (path / file).read_bytes().decode()
        (path / file).write_bytes(
            ("\ufeff" + text.replace("\r\n", "\n").replace("\n", "\r\n") + "\r\n").encode()
        )
    checkpoint = load(path)
    from minillm_repl.chat import Message, apply_chat_template

    found = apply_chat_template(
        checkpoint.chat_template, checkpoint.tokenizer, [Message("user", "a")], False
    )
    newline = checkpoint.tokenizer.encode("\n", add_special=False)
    assert found == [*expected["input_ids"], *newline][: len(found)]
    # the blank line at its end, as Jinja takes it
    assert len(found) - len(expected["input_ids"]) in (0, 1)


ENDINGS = {
    "a template with an end": processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    ),
    "an end alone": processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    ),
    "two of each": processors.TemplateProcessing(
        single="<s> <unk> $A </s> </s>",
        pair="$A $B",
        special_tokens=[("<s>", 1), ("</s>", 2), ("<unk>", 0)],
    ),
    "the same on both sides": processors.TemplateProcessing(
        single="</s> $A </s>", pair="$A $B", special_tokens=[("</s>", 2)]
    ),
    "as RoBERTa": processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 1), trim_offsets=True, add_prefix_space=False
    ),
    "as BERT": processors.BertProcessing(("</s>", 2), ("<unk>", 0)),
    "one after the other": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="$A </s>", pair="$A $B", special_tokens=[("</s>", 2)]
            ),
            processors.TemplateProcessing(
                single="<s> $A </s>", pair="$A $B", special_tokens=[("<s>", 1), ("</s>", 2)]
            ),
        ]
    ),
    "none": processors.ByteLevel(trim_offsets=False),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_text_is_begun_as_transformers_begins_it_and_never_closed(folder, name):
    ours, theirs = same(folder(bpe(post_processor=ENDINGS[name])))
    assert ours.encode("") == first(theirs)
    assert ours.encode_batch(["time"]) == [theirs("time", add_special_tokens=False)["input_ids"]]
    again = type(ours)(ours.description, ours.special_tokens_map, ours.vocab_size)
    assert again.encode("a time") == ours.encode("a time")


@pytest.mark.parametrize(
    "said", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
@pytest.mark.parametrize("json_file", [True, False])
def test_whether_there_is_a_start_token_is_said_by_the_tokenizer_json_or_else_by_the_settings(
    folder, said, json_file
):
    library = bpe(post_processor=ENDINGS["a template with an end"])
    files = {} if json_file else gpt2_files(library)
    settings = {**said, "unk_token": "<unk>", "tokenizer_class": "GPT2Tokenizer"}
    if json_file:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    ours, theirs = same(folder(library if json_file else None, settings=settings, **files))
    assert bool(first(theirs)) == (json_file or ("add_bos_token" in said and said["add_bos_token"]))
    assert ours.encode("", add_special=False) == []


def test_a_chat_and_a_prompt_are_given_open(folder):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = folder(
        bpe(post_processor=ENDINGS["a template with an end"]), chat_template_jinja=template
    )
    session, model = Session(), ModelLoader().load(path)
    session.conversation.start_chat_turn(model, "hello there", session.settings)
    assert (
        model.checkpoint.tokenizer.token_to_id("</s>")
        not in session.conversation.turns[-1].prompt_ids
    )


@pytest.mark.parametrize(
    "file",
    [
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "vocab.bpe",
        "encoder.json",
        "tekken.json",
        "qwen.tiktoken",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model.v3",
    ],
)
def test_a_vocabulary_that_is_not_read_is_named_and_its_tokens_do_not_become_numbers(folder, file):
    path = folder(None)
    assert load(path).tokenizer.encode("5") == [5]  # as researchers save a model, without any
    (path / file).write_text('{"a": 0}')
    with pytest.raises(
        UserError,
        match=f"{file} alone is not enough; tokenizer.json is needed, "
        "or vocab.json with merges.txt",
    ):
        load(path)


# -- more tokens than rows


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("where", ["tokenizer.json", "settings"])
def test_a_pad_token_without_a_row_opens_and_using_it_is_an_error(folder, where, special):
    library = bpe("prepend")
    rows = library.get_vocab_size()
    settings = {"pad_token": "<pad>"}
    if where == "tokenizer.json":
        library.add_tokens([tokenizers.AddedToken("<pad>", special=special, normalized=False)])
    elif not special:
        settings = {"added_tokens_decoder": {str(rows): token("<pad>", special=False)}}
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<pad>' }}"
    path = folder(library, settings=settings, rows=rows, chat_template_jinja=template)
    checkpoint = load(path)
    ours, theirs = checkpoint.tokenizer, transformers.AutoTokenizer.from_pretrained(path)
    assert theirs.pad_token_id in (rows, None)
    assert ours.vocab_size == rows
    for text in TEXTS:
        if "<pad>" not in text:
            assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]
    typed = ours.encode("x <pad>", parse_special=False) if special else []
    assert max(typed, default=0) < rows
    model = ModelLoader().prepare(checkpoint)
    session = Session()
    for use in (
        lambda: ours.encode("x <pad>", parse_special=True),
        lambda: ours.encode_rendered("<pad>"),
        lambda: session.conversation.start_chat_turn(model, "hello", session.settings),
        *([] if special else [lambda: ours.encode_batch(["a", "b<pad>"])]),
    ):
        with pytest.raises(
            UserError, match=rf"<pad> \(#{rows}\) is in the vocabulary.* only {rows} tokens and no"
        ):
            use()
    assert not session.conversation.turns
    assert ours.token_to_id("<pad>") is None


@pytest.mark.parametrize("rows", [270, 500])
def test_a_vocabulary_may_be_larger_or_smaller_than_the_embedding(folder, rows):
    library = bpe()
    ours, theirs = same(folder(library, rows=rows), ["a", "b c"])
    assert ours.vocab_size == rows
    assert all(ours.special_name(each).startswith("<unused") for each in range(len(theirs), rows))
    words = ("Once upon a time", "hello there", "you there", "middle", "a time there was")
    beyond = [word for word in words if max(theirs(word)["input_ids"]) >= rows]
    assert bool(beyond) == (rows == 270)
    for word in beyond:
        with pytest.raises(UserError, match="no embedding for this one"):
            ours.encode(word)


def test_such_a_model_is_saved_and_opens_here_and_there(folder, tmp_path):
    library = bpe("prepend")
    rows = library.get_vocab_size()
    settings = {
        "added_tokens_decoder": {str(rows): token("<pad>"), "700": token("<x>")},
        "pad_token": "<pad>",
    }
    checkpoint = load(folder(library, settings=settings, rows=rows))
    for path, as_folder in ((tmp_path / "m.safetensors", False), (tmp_path / "hf", True)):
        save(checkpoint, path, folder=as_folder)
        again = load(path)
        assert again.tokenizer.to_json() == checkpoint.tokenizer.to_json()
        for name in again.tensors:
            np.testing.assert_array_equal(again.tensors[name], checkpoint.tensors[name])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.pad_token_id == rows
    assert theirs("a <x>")["input_ids"][-1] == rows + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {
            "added_tokens_decoder": {
                "x": 1,
                "5": [],
                "-1": {},
                "7": {"content": 3},
                "9" * 30: token("<x>"),
            }
        },
        {
            "added_tokens_decoder": [1],
            "extra_special_tokens": 7,
            "bos_token": [1],
            "eos_token": {"content": {}},
        },
        {
            "additional_special_tokens": [1, None, {}, {"content": "<x>", "lstrip": 5}],
            "add_bos_token": "yes",
        },
        {"extra_special_tokens": {"image_token": 5, "x": None}, "pad_token": ""},
    ],
)
def test_settings_of_any_kind_open_or_are_refused_in_one_line(folder, wrong):
    path = folder(bpe(), settings=wrong, added_tokens_json={"<x>": "1", "": 5, "<y>": -3})
    ours = load(path).tokenizer
    assert decode(ours, ours.encode("Once upon")) == "Once upon"
    (path / "added_tokens.json").write_text("[1]")
    (path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="not a JSON object"):
        load(path)
    assert parse_json("{}", "x") == {}
