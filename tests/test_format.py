"""`:format`: answers that obey a schema, an expression, choices or a grammar."""

import json
import re

import httpx
import jsonschema
import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

import minillm_repl as mr
from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.generate import Finished, GenerationConfig, Sampling, Step
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.fast_sampling import LARGE_VOCAB
from minillm_repl.generate.generate import generate
from minillm_repl.generate.rules import RuleMaker
from minillm_repl.generate.sampling import make_rng
from minillm_repl.storage.paths import find_checkpoint
from tests.conftest import random_checkpoint
from tests.outside import outside
from tests.test_lessons import printed, shell_for
from tests.test_server import server

llguidance = pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", None, 3]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def hangul():
    return load(find_checkpoint("hangul"))


def rules_of(checkpoint, said):
    return RuleMaker(checkpoint.tokenizer).make(
        answer_format=said, eos_token_ids=checkpoint.eos_token_ids
    )


def answers(checkpoint, said, prompt, count, max_tokens=200, **sampling):
    """Yield steps and end of each of `count` answers, with seeds 0, 1 ..."""
    decoder, rules = make_decoder(checkpoint), rules_of(checkpoint, said)
    config = GenerationConfig(
        max_tokens=max_tokens,
        sampling=Sampling(**({"temp": 1.0} | sampling)),
        eos_token_ids=checkpoint.eos_token_ids,
        rules=rules,
        n_candidates=0,
    )
    ids = checkpoint.tokenizer.encode(prompt)
    for seed in range(count):
        *steps, end = generate(decoder, checkpoint.tokenizer, ids, config, make_rng(seed))
        yield [each for each in steps if isinstance(each, Step)], end


def check_json(text):
    jsonschema.validate(json.loads(text), SCHEMA)


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    return path


def check_answers(checkpoint, cases, count):
    for said, prompt, check in cases:
        for _steps, end in answers(checkpoint, said, prompt, count):
            assert isinstance(end, Finished)
            assert end.reason in ("format", "end")
            assert end.format_complete is True
            check(end.text)


def cases_of(schema):
    expression = r"[가-힣]{2,4}( [가-힣]{1,3})?[.!?]"
    grammar = schema.with_name("sum.lark")
    grammar.write_text('start: NUMBER ("+" NUMBER)+\nNUMBER: /[1-9][0-9]{0,2}/\n', encoding="utf-8")
    gbnf = schema.with_name("list.gbnf")
    gbnf.write_text('root ::= "- " item ("\\n- " item)?\nitem ::= [a-c]+ "!"\n', encoding="utf-8")
    return [
        (f"json={schema}", "질문: 누구?\n답변: ", check_json),
        (f"regex={expression}", "날씨가 ", lambda text: re.fullmatch(expression, text).group()),
        ('choice=좋다,맑다,"네, 그래요"', "날씨가 ", ["좋다", "맑다", "네, 그래요"].index),
        (f"grammar={grammar}", "1+1", re.compile(r"[1-9]\d{0,2}(\+[1-9]\d{0,2})+").fullmatch),
        (f"grammar={gbnf}", "- ", re.compile(r"- [abc]+!(\n- [abc]+!)?").fullmatch),
    ]


def test_answers_obey_their_format(hangul, schema):
    check_answers(hangul, cases_of(schema), 5)


@pytest.mark.slow
def test_ten_thousand_answers_obey_their_format(hangul, schema):
    check_answers(hangul, cases_of(schema), 2_000)


@pytest.mark.parametrize("name", ["gpt2-tok", "stories260K-hf"])
@pytest.mark.parametrize(
    "grammar",
    [
        llguidance.LLMatcher.grammar_from_regex(r"[A-Z][a-z]+( [a-z]+){1,3}\."),
        llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(SCHEMA), {"whitespace_pattern": "[ ]?"}
        ),
    ],
    ids=["regex", "json"],
)
def test_masks_are_those_of_llguidance_with_its_own_reading_of_the_tokenizer(name, grammar):
    """It reads the tokenizer of the transformers library; ours is what the model is run with."""
    import llguidance.hf

    from minillm_repl.generate.constraint import FormatState, Vocabulary
    from minillm_repl.tokenizer.subword import SubwordTokenizer

    folder = outside(f"checkpoints/{name}")
    if name == "gpt2-tok":
        tokenizer = GPT2Tokenizer.from_pretrained(folder)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = llguidance.hf.from_tokenizer(tokenizer)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    size = theirs.vocab_size
    ours = Vocabulary(SubwordTokenizer(description, {}, size), theirs.eos_tokens)
    state = FormatState(llguidance.LLMatcher(ours.library, grammar), ours)
    matcher, rng, steps = llguidance.LLMatcher(theirs, grammar), np.random.default_rng(0), 0
    while not state.ended and steps < 30:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        expected = np.unpackbits(bits, bitorder="little")[:size].astype(bool)
        np.testing.assert_array_equal(state.allowed, expected)
        assert state.is_complete == matcher.is_accepting()
        assert (state.allowed & ours.ends).any() == state.is_complete
        token = int(rng.choice(np.flatnonzero(state.allowed & ~ours.ends)))
        matcher.consume_token(token)
        state.advance(token)
        steps += 1
    assert steps > 3


def test_a_step_tells_what_the_format_left_of_the_models_distribution(nalssi):
    choices = ["좋다", "맑다", "좋고"]
    checked = 0
    for steps, end in answers(nalssi, "choice=" + ",".join(choices), "날씨가 ", 20):
        said = ""
        for step, free in zip(steps, free_steps(nalssi, "날씨가 ", steps), strict=True):
            following = {each[len(said)] for each in choices if each.startswith(said)}
            probs = {each.text: each.model_prob for each in free.top}
            assert step.format.allowed == len(following)
            assert step.format.mass == pytest.approx(sum(probs[each] for each in following))
            assert step.prob == pytest.approx(probs[step.text] / step.format.mass, rel=1e-5)
            said += step.text
            checked += 1
        assert end.text == said
    assert checked == 40


def free_steps(checkpoint, prompt, steps):
    """The steps without a format after the same tokens, with all candidates."""
    ids, decoder = checkpoint.tokenizer.encode(prompt), make_decoder(checkpoint)
    config = GenerationConfig(max_tokens=1, n_candidates=checkpoint.tokenizer.vocab_size)
    for step in steps:
        yield next(generate(decoder, checkpoint.tokenizer, ids, config, make_rng(0)))
        ids.append(step.id)


def test_a_large_vocabulary_draws_what_the_plain_samplers_draw():
    """Its shortcuts see few tokens, of which all samplers make the same."""
    characters = [chr(0x4E00 + place) for place in range(LARGE_VOCAB + 100)]
    large = random_checkpoint(characters=characters, context=16)
    said = "regex=[一-乿]{3}[丁-丐]"
    options = {"top_p": 0.8, "typical_p": 0.9, "min_p": 0.01, "xtc": 0.3, "dry": 1.0}
    for temp in (0.7, 1.5):
        for steps, end in answers(large, said, characters[0], 10, temp=temp, **options):
            assert re.fullmatch("[一-乿]{3}[丁-丐]", end.text)
            assert [step.format.allowed for step in steps] == [128, 128, 128, 16]


def test_what_is_cut_says_so_and_goes_on(hangul):
    shell = shell_for(find_checkpoint("nalssi"))
    for line in (":format regex=[가-힣]{6}", ":max-tokens 3", ":seed 1", "날씨가"):
        shell.run_line(line)
    assert "the answer ended before its format was complete" in printed(shell)
    shell.run_line(":continue")
    assert "the format is complete" in printed(shell)
    text = shell.session.conversation.last_text(shell.session.workspace.model.checkpoint.tokenizer)
    assert re.fullmatch("날씨가[가-힣]{6}", text)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("regex=([", "unclosed"),
        ("regex=" + "(" * 3_000, "cannot be used|crashed"),
        ("regex=(((a{1000}){1000}){1000})", "."),
        ("regex=(?=a)b", "look-around"),
        ("choice=좋다,,", "choice="),
        ("choice=좋다,quiz", "lacks qui"),
        ("json=/nowhere.json", "cannot read"),
        ("grammar=/dev/zero", "more than"),
        ("regex=" + "a" * 5_000, "too long"),
        ("regex=[0-9]+", "no token of the vocabulary can begin"),
    ],
)
def test_a_format_that_cannot_be_is_one_line(nalssi, said, message):
    with pytest.raises(UserError, match=message) as caught:
        rules_of(nalssi, said).constraint.start()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "cannot be used"),
        ("a.json", '{"items":' * 3_000 + "{}" + "}" * 3_000, "cannot be used"),
        ("a.json", '{"$ref": "#"}', "cannot be used"),
        ("a.json", '{"$ref": "http://example.com/a"}', "cannot be used"),
        ("a.json", "false", "cannot be used"),
        ("a.json", json.dumps({"enum": list(map(str, range(20_000)))}), ""),
        ("a.lark", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "cannot be used"),
        ("a.lark", "start: start start", "cannot be used"),
        ("a.lark", "", "cannot be used"),
        ("a.gbnf", "root ::= root", "."),
    ],
)
def test_a_hostile_schema_or_grammar_is_one_line(hangul, tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    kind = "json" if name.endswith("json") else "grammar"
    try:
        rules_of(hangul, f"{kind}={path}").constraint.start()
    except UserError as error:
        assert re.search(message, str(error))
        assert "\n" not in str(error)
    else:
        assert message in ("", ".")


GBNF = 'root ::= ("예" | "아니요") "."'
PERSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with server(tmp_path_factory.mktemp("home"), "--ckpt", "hangul") as (_process, url):
        yield f"{url}/v1"


def post(served, prompt="안녕?", **fields):
    talk = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 300, "temperature": 1}
    return httpx.post(f"{served}/chat/completions", json=talk | fields, timeout=120)


@pytest.mark.parametrize("seed", range(3))
def test_over_http_answers_obey_openais_and_llama_cpps_formats(served, seed):
    def said(**fields):
        choice = post(served, seed=seed, **fields).json()["choices"][0]
        assert choice["finish_reason"] == "stop", choice
        return choice["message"]["content"]

    for fields in ({"response_format": PERSON}, {"json_schema": SCHEMA}):
        jsonschema.validate(json.loads(said(**fields)), SCHEMA)
    assert said(grammar=GBNF) in ("예.", "아니요.")
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    assert json.loads(said(response_format={"type": "json_object", "schema": nothing})) == {}
    assert said(response_format={"type": "text"}) == said()
    # The older route has them too, and the answer is that of `:format` here.
    body = {"prompt": "안녕", "grammar": GBNF, "seed": seed, "temperature": 0.8}
    there = httpx.post(f"{served}/completions", json=body, timeout=60).json()["choices"][0]
    here = mr.load("hangul").generate("안녕", format="choice=예.,아니요.", seed=seed, temp=0.8)
    assert (there["text"], there["finish_reason"]) == (here.text, "stop")


def test_an_object_of_any_kind_is_json_as_far_as_it_goes(served):
    choice = post(served, response_format={"type": "json_object"}, seed=1).json()["choices"][0]
    text, is_cut = choice["message"]["content"], choice["finish_reason"] == "length"
    assert text.startswith("{")
    if not is_cut:
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"json_schema": []}, "json_schema"),
        ({"json_schema": {"$ref": "#"}}, "json_schema"),
        ({"json_schema": {"$ref": "file:///etc/passwd"}}, "json_schema"),
        ({"grammar": 1}, "grammar"),
        ({"grammar": "a" * (1 << 19)}, "grammar"),
        ({"grammar": "start: start start"}, "grammar"),
        ({"grammar": GBNF, "response_format": PERSON}, "grammar"),
        ({"response_format": PERSON, "stream": True, "json_schema": {}}, "json_schema"),
    ],
)
def test_over_http_a_format_that_cannot_be_is_refused_by_name(served, fields, named):
    answer = post(served, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, named)
    assert "\n" not in answer.json()["error"]["message"]


def test_without_the_library_the_line_that_installs_it_is_told(nalssi, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UserError, match=r"needs the package llguidance.*minillm-repl\[format\]"):
        rules_of(nalssi, "choice=좋다,맑다")
