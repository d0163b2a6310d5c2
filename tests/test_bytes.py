"""Bits per byte: those of the text, and for two models those of the same text, by torch's loss."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minillm_repl.model.build import build
from minillm_repl.tokenizer.lookup import count_prefix_spaces
from minillm_repl.tokenizer.subword import SubwordTokenizer
from minillm_repl.views.compare import compute as compare_view
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.surprise import compute as surprise_view
from minillm_repl.views.tokens import compute as tokens_view
from tests.small import random_checkpoint
from tests.test_lessons import printed, shell_for, state  # noqa: F401 - the last is a fixture

TEXT = "cab bade faced"


def made(kind, start=True, merges=(("a", "b"), ("c", "a"), ("d", "e"))):
    """A tokenizer of letters and pairs, which puts a space before a text in one of several ways."""
    letters = [chr(byte) for byte in range(ord("a"), ord("g"))]
    space = {"byte level": "Ġ", "byte level, prefix": "Ġ"}.get(kind, "▁")
    names = ["<s>", "</s>", space, *letters, *("".join(pair) for pair in merges), space + "b"]
    vocabulary = {name: place for place, name in enumerate(names)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [*merges, (space, "b")]))
    if kind == "normalizer":
        library.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    elif kind.startswith("metaspace"):
        library.pre_tokenizer = pre_tokenizers.Metaspace(
            "▁", prepend_scheme=kind.removeprefix("metaspace ")
        )
    else:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="prefix" in kind)
    library.decoder = (
        decoders.ByteLevel()
        if "byte" in kind
        else decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    )
    library.add_special_tokens(["<s>", "</s>"])
    if start:
        library.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return SubwordTokenizer(json.loads(library.to_str()), {"bos_token": "<s>"}, len(vocabulary))


def of(tokenizer, text, seed=0, known=False):
    checkpoint = random_checkpoint(vocab=tokenizer.vocab_size, context=64, seed=seed)
    ids = tuple(tokenizer.encode(text))
    lead = count_prefix_spaces(tokenizer, ids, text) if known else None
    return InspectedText(
        build(checkpoint.config, checkpoint.tensors), tokenizer, ids, prepended_bytes=lead
    )


def bits_of(subject, since):
    """The bits of the tokens from an index on, by torch's own loss."""
    logits, ids = subject.model(subject.input_ids)[0, :-1].double(), subject.input_ids[0, 1:]
    losses = torch.nn.functional.cross_entropy(logits, ids, reduction="none")
    return float(losses[since - 1 :].sum()) / math.log(2)


KINDS = [
    "normalizer",
    "metaspace always",
    "metaspace first",
    "metaspace never",
    "byte level",
    "byte level, prefix",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_the_text(kind):
    tokenizer = made(kind)
    subject = of(tokenizer, TEXT)
    assert subject.tokens[0].text == "<s>"
    expected = bits_of(subject, 1) / len(TEXT.encode())
    assert surprise_view(subject).bits_per_byte == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [TEXT, " " + TEXT, "b"])
def test_tokens_have_no_more_bytes_than_the_text(kind, text):
    tokenizer = made(kind)
    ids = tokenizer.encode(text)
    view = tokens_view(tokenizer, np.zeros((tokenizer.vocab_size, 4), np.float32), ids, text)
    assert view.bytes == len(text.encode())
    assert view.bytes_per_token == pytest.approx(view.bytes / (len(ids) - 1))  # the first is <s>


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [" " + TEXT, "  bad", "b"])
def test_a_space_that_was_typed_is_a_byte_of_the_text(kind, text):
    tokenizer = made(kind)
    subject = of(tokenizer, text, known=True)
    whole = b"".join(map(tokenizer.token_bytes, subject.ids))
    alone = whole[len(whole) - len(text.encode()) :]
    assert alone == text.encode()
    assert surprise_view(subject).bits_per_byte == pytest.approx(
        bits_of(subject, 1) / len(text.encode()), abs=1e-9
    )


def test_without_a_start_token_the_first_token_is_not_counted():
    subject = of(made("metaspace always", start=False), TEXT)
    first = len(bytes(subject.tokens[0].bytes)) - 1  # less the space that was put there
    expected = bits_of(subject, 1) / (len(TEXT.encode()) - first)
    assert surprise_view(subject).bits_per_byte == pytest.approx(expected, abs=1e-9)


PAIRS = [
    (("metaspace always", True), ("byte level", True)),
    (("metaspace always", True), ("byte level", False)),
    (("byte level, prefix", False), ("normalizer", True)),
    (("metaspace first", False), ("byte level", False)),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("text", [TEXT, "abcabc", "deface a cab", "bead"])
def test_two_models_are_compared_over_the_same_bytes(one, other, text):
    merges = (("b", "c"), ("f", "a")), (("a", "b"), ("c", "a"), ("d", "e"))
    tokenizers_ = [made(*each, merges=its) for each, its in zip((one, other), merges, strict=True)]
    subjects = [of(tokenizer, text, seed) for seed, tokenizer in enumerate(tokenizers_)]
    begins = []  # the byte of the text that each token begins at, by hand
    for subject, (kind, _start) in zip(subjects, (one, other), strict=True):
        at, starts = 0 if kind == "byte level" else -1, {}
        for index, token in enumerate(subject.tokens):
            if token.bytes and index:
                starts.setdefault(max(at, 0), index)
            at += len(token.bytes)
        assert at == len(text)
        begins.append(starts)
    since = min(set(begins[0]) & set(begins[1]))
    view = compare_view(*subjects, ("a", "b"))
    assert view.bytes == len(text) - since
    for found, subject, starts in zip(view.bits_per_byte, subjects, begins, strict=True):
        assert found == pytest.approx(
            bits_of(subject, starts[since]) / (len(text) - since), abs=1e-9
        )


def test_special_tokens_within_a_text_are_left_out_of_the_comparison():
    tokenizer, letters = made("byte level"), made("metaspace always")
    plain = of(tokenizer, "cab")
    closed = replace(plain, ids=(*plain.ids, tokenizer.token_to_id("</s>")))
    other = of(letters, "cab", seed=1)
    both = compare_view(closed, other, ("a", "b")), compare_view(plain, other, ("a", "b"))
    assert both[0].bytes == both[1].bytes == 3
    assert both[0].bits_per_byte == pytest.approx(both[1].bits_per_byte, rel=1e-6)


def test_a_model_that_sees_less_is_compared_over_what_both_see():
    long, short = of(made("byte level"), TEXT), of(made("byte level", start=False), TEXT, seed=1)
    cut = replace(short, ids=short.ids[4:], unseen_ids=short.ids[:4])
    view = compare_view(long, cut, ("a", "b"))
    since = len(b"".join(map(short.tokenizer.token_bytes, short.ids[:5])))
    assert view.bytes == len(TEXT) - since
    assert view.bits_per_byte[1] == pytest.approx(bits_of(cut, 1) / view.bytes, abs=1e-9)
    assert view.bits_per_byte[0] == pytest.approx(bits_of(long, 6) / view.bytes, abs=1e-9)
    same = compare_view(
        replace(short, ids=short.ids[4:], unseen_ids=short.ids[:4]), short, ("a", "b")
    )
    assert same.why == "one model sees less of the text than the other"


@pytest.mark.parametrize("typed", ["", f' "{TEXT}"'])
def test_the_command_compares_what_was_typed(typed, tmp_path):
    from minillm_repl.checkpoint.native import save_native as save

    checkpoints = [
        replace(
            random_checkpoint(vocab=tokenizer.vocab_size, context=64, seed=seed),
            tokenizer=tokenizer,
        )
        for seed, tokenizer in enumerate((made("byte level, prefix"), made("metaspace always")))
    ]
    save(checkpoints[1], tmp_path / "other.safetensors")
    shell = shell_for(checkpoints[0])
    shell.session.conversation.start_turn(
        shell.encode(shell.require_model(), TEXT), shell.session.settings
    )
    shell.run_line(f":compare {tmp_path / 'other.safetensors'}{typed} --json -")
    view = json.loads(printed(shell).splitlines()[-1])
    assert view["bytes"] == len(TEXT)
