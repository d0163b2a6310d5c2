"""Thoughts of a reasoning model: told from the answer, shown, hidden, limited, turned off."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import httpx
import jinja2
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import minillm_repl as mr
from minillm_repl.chat.thinking import ThoughtSplitter
from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.model.config import GPTConfig
from minillm_repl.render.json_lines import print_json
from minillm_repl.tokenizer.subword import SubwordTokenizer
from tests.small import random_checkpoint
from tests.test_lessons import printed, shell_for
from tests.test_server import server

# As Qwen 3's, without its tools: thoughts of earlier turns are left out.
QWEN = """{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""
# As DeepSeek R1's: the prompt opens the block, and no variable closes it.
R1 = QWEN.replace("enable_thinking is defined and enable_thinking is false", "true").replace(
    "\\n\\n</think>\\n\\n", "\\n"
)
SAID = "<think>\nabc</think>\n\nXY"


def thinker(template=QWEN, special=False):
    """A model that thinks `abc` after `assistant`, and answers `XY` after a newline."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(
        models.BPE({letter: place for place, letter in enumerate(alphabet)}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    tags = [tokenizers.AddedToken(name, special=special) for name in ("<think>", "</think>")]
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    (library.add_special_tokens if special else library.add_tokens)(tags)
    tokenizer = SubwordTokenizer(json.loads(library.to_str()), {}, 260)
    config = GPTConfig(vocab_size=260, context_length=256, d_model=260, n_layers=1, n_heads=1)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in config.shapes()}
    tensors["token_embedding.weight"] = np.eye(260, dtype=np.float32)
    for norm in ("blocks.0.ln1", "blocks.0.ln2", "ln_f"):
        tensors[norm + ".weight"] += 1

    def id_of(name):
        return tokenizer.encode(name, add_special=False, parse_special=True)[0]

    chain = ["t", "<think>", "a", "b", "c", "</think>", "\n", "X", "Y", "<|im_end|>"]
    for before, after in pairwise(chain):
        tensors["lm_head.weight"][id_of(after), id_of(before)] = 10
    return Checkpoint(
        config=config,
        tokenizer=tokenizer,
        tensors=tensors,
        chat_template=ChatTemplate(template),
        eos_token_ids=(id_of("<|im_end|>"),),
    )


@pytest.fixture
def shell():
    return shell_of(thinker())


def shell_of(checkpoint):
    made = shell_for(checkpoint)
    made.screen = replace(made.screen, interactive=True)
    for line in (":temp 0", ":max-tokens 20"):
        made.run_line(line)
    return made


def said_by(shell, line):
    before = len(printed(shell))
    shell.run_line(line)
    return printed(shell)[before:]


def prompt_of(shell):
    tokenizer = shell.require_model().checkpoint.tokenizer
    ids = shell.session.conversation.turns[-1].prompt_ids
    return b"".join(
        tokenizer.token_bytes(each) or tokenizer.special_name(each).encode() for each in ids
    ).decode()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        (SAID, "\nabc", "\n\nXY"),
        ("\n <think>a < b </thin</think>c", "a < b </thin", "c"),
        ("<think>a", "a", ""),
        ("<think>a</thi", "a</thi", ""),
        ("no <think>a</think>", "", "no <think>a</think>"),
        ("<thin", "", "<thin"),
        ("<think></think>a<think>b</think>", "", "a<think>b</think>"),
    ],
)
def test_thoughts_are_told_from_the_answer_in_pieces_of_any_size(text, thought, answer, size):
    splitter = ThoughtSplitter()
    pieces = [
        piece
        for start in range(0, len(text), size)
        for piece in splitter.feed(text[start : start + size])
    ] + splitter.finish()
    assert "".join(piece.text for piece in pieces if piece.is_thought) == thought
    assert "".join(piece.text for piece in pieces if not piece.is_thought) == answer
    assert splitter.text == thought


@pytest.mark.parametrize("special", [False, True])
def test_thoughts_stand_apart_and_are_counted(special):
    shell = shell_of(thinker(special=special))
    said = said_by(shell, "hi")
    assert said.splitlines()[1:4] == ["abc", "▴ 3 tokens of thought", "XY"]
    assert "9 tokens · 3 tokens of thought · " in said


def test_hidden_thoughts_leave_a_line_and_scroll_shows_them(shell):
    shell.run_line(":think hide")
    said = said_by(shell, "hi")
    assert "abc" not in said
    assert "▸ 3 tokens of thought, hidden\nXY\n" in said
    assert said_by(shell, ":scroll").endswith(":scroll\nabc\n")


def test_a_limit_ends_the_thoughts_and_the_answer_follows(shell):
    shell.run_line(":think 2")
    said = said_by(shell, "hi")
    assert "ab\n▴ 2 tokens of thought\nXY\n" in said
    assert shell.session.conversation.messages[-1].content == "<think>ab\n</think>\n\nXY"
    model = shell.require_model()
    shell.run_line(":regen")
    assert shell.session.conversation.messages[-1].content == "<think>ab\n</think>\n\nXY"
    shell.session.conversation.retry_turn(shell.session.settings)
    stream = io.StringIO()
    print_json(
        shell.session.conversation.generate(model, shell.session.settings, lambda: False, 0), stream
    )
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [each["event"] for each in events] == [
        *["step"] * 3,
        "inserted",
        *["step"] * 3,
        "finished",
    ]
    assert events[3]["text"] == "\n</think>\n\n"
    assert [each["index"] for each in events if each["event"] == "step"][2:4] == [
        2,
        3 + len(events[3]["ids"]),
    ]
    assert events[-1]["tokens"] == 6 + len(events[3]["ids"])


@pytest.mark.parametrize("special", [False, True])
def test_a_script_gets_the_text_as_the_model_writes_it(special):
    shell = shell_of(thinker(special=special))
    shell.screen = replace(shell.screen, interactive=False)
    assert "<think>abc</think>\nXY" in said_by(shell, "hi")
    assert shell.session.conversation.messages[-1].content == "<think>abc</think>\nXY"
    shell.run_line("</think>ho")  # and the template leaves the thoughts of before out
    assert "assistantXY<|im_end|>" in prompt_of(shell)
    # A name that is typed is text where the model's files call it special.
    tokenizer = shell.require_model().checkpoint.tokenizer
    tag = tokenizer.token_to_id("</think>")
    assert (tag in shell.session.conversation.turns[-1].prompt_ids) == (not special)


def test_over_http_thoughts_stand_apart_and_are_set_as_here(tmp_path):
    """Our server, for clients of OpenAI's and llama.cpp's, and for our own."""
    from minillm_repl.checkpoint.load_save import save

    for special in (False, True):
        path = tmp_path / f"t{special}.safetensors"
        save(thinker(special=special), path)
        with server(tmp_path, "--ckpt", str(path), "--temp", "0") as (_process, url):
            check_served(path, url)


def check_served(path, url):
    def said(**fields):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20} | fields
        answer = httpx.post(f"{url}/v1/chat/completions", json=body).json()
        message = answer["choices"][0]["message"] if "choices" in answer else answer["error"]
        return tuple(message.get(name) for name in ("reasoning_content", "content", "param"))

    assert said() == ("abc", "XY", None)
    assert said(reasoning_format="none") == (None, "<think>abc</think>\nXY", None)
    assert said(think=2) == ("ab\n", "XY", None)
    off = said(chat_template_kwargs={"enable_thinking": False})
    assert off == said(think=False)
    assert off[0] is None
    assert said(chat_template_kwargs={"messages": []})[2] == "chat_template_kwargs"
    assert said(think="much")[2] == "think"
    assert said(reasoning_format="other")[2] == "reasoning_format"

    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    lines = httpx.post(f"{url}/v1/chat/completions", json=body).text.split("\n\n")
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    for field, whole in (("reasoning_content", "abc"), ("content", "XY")):
        assert "".join(each["delta"].get(field, "") for each in choices) == whole

    for settings in ({}, {"think": "off"}, {"think": 2}, {"template": ("enable_thinking=false",)}):
        here, there = (
            mr.load(each).chat("hi", max_tokens=20, temp=0, **settings) for each in (path, url)
        )
        assert (there.text, there.ids) == (here.text, here.ids)
        assert len(there.logprobs) == len(there.tokens)


@pytest.mark.parametrize("line", [":think off", ":template enable_thinking=false"])
def test_thinking_is_turned_off_by_the_templates_variable(shell, line):
    shell.run_line(line)
    shell.run_line("hi")
    messages = [{"role": "user", "content": "hi"}]
    oracle = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(QWEN)
    assert prompt_of(shell) == oracle.render(
        messages=messages, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt_of(shell).endswith("<think>\n\n</think>\n\n")


def test_a_template_without_a_variable_gets_an_empty_block_and_one_that_opens_it_is_understood():
    shell = shell_of(thinker(R1))
    shell.run_line("hi")
    assert prompt_of(shell).endswith("<|im_start|>assistant<think>\n")
    shell.run_line(":think off")
    shell.run_line("hi")
    assert prompt_of(shell).endswith("<|im_start|>assistant<think>\n\n</think>\n\n")
    plain = shell_of(random_checkpoint(characters=[*"<>abcdefghijklmnopqrstuvwxyz|/\n "]))
    plain.run_line(":think off")
    plain.run_line("abc")  # a model that completes does not care


def test_an_answer_with_a_format_begins_after_the_block_that_the_prompt_opens():
    pytest.importorskip("llguidance")
    shell = shell_of(thinker(R1))
    shell.run_line(":format choice=XY,no")
    shell.run_line("hi")
    assert prompt_of(shell).endswith("<|im_start|>assistant<think>\n\n</think>\n\n")
    assert shell.session.conversation.messages[-1].content == "XY"


def test_thoughts_of_earlier_turns_are_the_templates_to_leave_out(shell):
    shell.run_line("hi")
    shell.run_line("ho")
    assert "assistantXY<|im_end|>" in prompt_of(shell)


@pytest.mark.parametrize("typed", ["enable_thinking", "messages=1", "a-b=1", "=1"])
def test_what_is_no_variable_is_refused(shell, typed):
    with pytest.raises(UserError, match="enable_thinking=false"):
        shell.run_line(f":template {typed}")
