"""Models on servers: our own, started for real, and servers that replay, lie and break off."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import log

import pytest

import minillm_repl as mr
from minillm_repl.checkpoint.gguf.write import save_gguf
from minillm_repl.cli import main
from minillm_repl.errors import UserError
from minillm_repl.generate import Finished, GenerationConfig, Sampling
from minillm_repl.remote import numbers
from minillm_repl.remote.address import parse_url
from minillm_repl.remote.events import entropy_bounds, remote_events
from minillm_repl.remote.http import Connection, Limits, ServerError
from minillm_repl.remote.probe import open_engine
from minillm_repl.remote.sse import read_events
from minillm_repl.remote.tokenizer import RemoteTokenizer
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.storage.paths import find_checkpoint
from tests import remote_servers as replayed
from tests.conftest import ROOT
from tests.terminal import Terminal
from tests.test_server import server


@pytest.fixture(scope="module")
def hangul(tmp_path_factory):
    with server(tmp_path_factory.mktemp("home"), "--ckpt", "hangul") as (_process, url):
        yield url


def printed(capsys, *flags):
    assert main([*flags]) == 0
    return capsys.readouterr().out


# -- our own server


def test_tokens_probabilities_and_text_are_those_of_the_same_model_here(hangul):
    settings = {"temp": 0.9, "top_k": 40, "seed": 5, "candidates": 5, "max_tokens": 30}
    for ask in ("chat", "generate"):
        here = getattr(mr.load("hangul"), ask)("오늘 날씨 어때?", **settings)
        there = getattr(mr.load(hangul), ask)("오늘 날씨 어때?", **settings)
        assert (there.text, there.ids, there.reason) == (here.text, here.ids, here.reason)
        for mine, theirs in zip(here.steps, there.steps, strict=True):
            assert [each.id for each in theirs.top] == [each.id for each in mine.top]
            assert (theirs.rank, theirs.bytes, theirs.listing) == (mine.rank, mine.bytes, None)
            expected = [mine.model_prob, mine.prob, mine.entropy]
            found = [theirs.model_prob, theirs.prob, theirs.entropy]
            assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("prob", "좋아요"), ("choose", "좋아요 | 나빠요"), ("sampler", ""), ("surprise", "")],
)
def test_views_of_predictions_are_those_of_the_same_model_here(hangul, name, argument):
    here = mr.load("hangul").view(name, "오늘 날씨가", *filter(None, [argument])).to_dict()
    there = mr.load(hangul).view(name, "오늘 날씨가", *filter(None, [argument])).to_dict()

    def rounded(value):
        if isinstance(value, dict):  # a server lists more tokens than are shown
            return {key: rounded(each) for key, each in value.items() if key != "listed"}
        if isinstance(value, list | tuple):
            return [rounded(each) for each in value]
        return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value

    assert rounded(there) == rounded(here)


@pytest.mark.parametrize("name", ["attn", "lens", "why", "residual", "near", "shapes", "grad"])
def test_a_view_that_needs_weights_says_so_in_one_line(hangul, name):
    with pytest.raises(UserError, match="stay on the server") as error:
        mr.load(hangul).view(name, "하")
    assert "\n" not in str(error.value)


def test_training_and_saving_say_so_too(hangul, tmp_path):
    (tmp_path / "text.txt").write_text("하늘이 맑다. " * 200)
    with pytest.raises(UserError, match="stay on the server"):
        mr.load(hangul).save(tmp_path / "copy.safetensors")
    with pytest.raises(UserError, match="stay on the server"):
        mr.train(tmp_path / "text.txt", model=mr.load(hangul), steps=1)


def test_care_answers_here_as_the_server_would(hangul, capsys):
    assert "109" in printed(capsys, "--ckpt", hangul, "-p", "나 죽고 싶어")
    assert mr.load(hangul).chat("나 죽고 싶어").reason == "care"


def test_only_a_model_of_the_server_can_be_chosen(hangul):
    assert ModelLoader(server_model="hangul").load(find_checkpoint(hangul)).name == "hangul"
    with pytest.raises(UserError, match="no model other: it has hangul"):
        ModelLoader(server_model="other").load(find_checkpoint(hangul))


def test_the_key_is_sent_and_never_shown(tmp_path, monkeypatch, capsys):
    variables = {"MINILLM_API_KEY": "secret-key-1"}
    with server(tmp_path, "--ckpt", "nalssi", **variables) as (_process, url):
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        assert main(["--ckpt", url, "-p", "날씨", "-n", "3"]) == 1
        monkeypatch.setenv("MINILLM_API_KEY", "secret-key-1")
        assert main(["--ckpt", url, "-p", "날씨", "-n", "3"]) == 0
        loader = ModelLoader(server_key="secret-key-1")
        model = loader.load(find_checkpoint(url))
    said = capsys.readouterr()
    assert "refuses (401)" in said.err
    for shown in (said.out, said.err, repr(loader), repr(model), repr(model.decoder.__dict__)):
        assert "secret" not in shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://", "no address of a server"),
        ("http://127.0.0.1:99999", "no address of a server"),
        ("http://user:pass@127.0.0.1:1", "MINILLM_API_KEY"),
        ("http://127.0.0.1:1", "127.0.0.1:1 does not answer"),
    ],
)
def test_an_address_that_is_none_is_one_clear_line(url, said):
    with pytest.raises(UserError, match=said) as error:
        mr.load(url)
    assert "\n" not in str(error.value)
    assert "pass" not in str(error.value).replace("MINILLM_API_KEY", "")


def test_nothing_of_it_is_imported_at_the_start(capsys):
    code = (
        "import sys, minillm_repl.cli as c; c.main(['-p', '날씨', '-n', '1', '--ckpt', 'nalssi'])\n"
        "assert not {'httpx', 'asyncio', 'minillm_repl.remote'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


# -- every shape, replayed


@pytest.fixture(scope="module", params=replayed.BASE)
def shape(request):
    with replayed.replay(request.param) as (there, url):
        yield request.param, there, url


def asked(model, text="Hello", **settings):
    ask = model.chat if model.checkpoint.chat_template else model.generate
    return ask(text, candidates=3, temp=1, max_tokens=10, **settings)


def test_each_token_has_its_own_numbers_and_no_others(shape):
    name, _there, url = shape
    model = mr.load(url)
    found = model.generate("Hello", candidates=3, temp=1) if name == "sglang" else asked(model)
    assert (found.text, found.reason) == (
        replayed.TEXT, "length" if name == "completions" else "done",
    )  # fmt: skip
    assert len(found.steps) == len(replayed.SCRIPT)
    for place, step in enumerate(found.steps):
        token, listed = replayed.SCRIPT[place]
        if name == "completions":  # a list by text has one of two tokens with equal texts
            listed = {replayed.text_of(each): each for each in listed}
            listed = {each: replayed.SCRIPT[place][1][each] for each in listed.values()}
        prob = step.prob if name == "sglang" else step.model_prob
        assert prob == pytest.approx(replayed.probability(place))
        others = sorted(listed.values(), reverse=True)
        assert step.rank == (others.index(listed[token]) + 1 if token in listed else None)
        shown = [each.prob if name == "sglang" else each.model_prob for each in step.top]
        expected = others + ([] if token in listed else [replayed.probability(place)])
        assert shown == pytest.approx(expected)
        is_exact = name == "llamacpp"
        assert step.bytes == tuple(
            b"" if not is_exact and "\ufffd" in replayed.text_of(token) else replayed.PIECES[token]
        )
        assert [each.chosen for each in step.top].count(True) == 1
        assert step.listing.mass == pytest.approx(sum(expected))
        least, most = step.listing.entropy
        assert least <= most
        assert step.listing.exact_bytes == is_exact
    if name in ("llamacpp", "sglang"):
        assert [step.id for step in found.steps] == [token for token, _listed in replayed.SCRIPT]


def test_what_a_server_says_is_found_by_asking_it(shape):
    name, _there, url = shape
    facts = mr.load(url)._loaded.decoder.engine.facts
    completes = name not in ("openai", "responses")
    assert (facts.completes, facts.chats) == (completes, name != "completions")
    assert facts.has_ids == (name in ("llamacpp", "vllm", "sglang"))
    # The replayed numbers are the same at every temperature, but for those of SGLang.
    assert facts.stage == ("sampled" if name == "sglang" else "raw")
    assert facts.most_listed(in_chat=not completes) == 3
    assert not facts.is_full


@pytest.fixture(scope="module")
def openings(shape):
    """An engine, its tokenizer, and ids that it continues."""
    _name, _there, url = shape
    engine, _names = open_engine(Connection(parse_url(url)))
    tokenizer = RemoteTokenizer(engine)
    if engine.facts.completes:
        return engine, tokenizer, tokenizer.encode("Hello")
    from minillm_repl.chat import Message

    return engine, tokenizer, [tokenizer.intern_messages([Message("user", "Hello")])]


def run(openings, **settings):
    engine, tokenizer, ids = openings
    config = GenerationConfig(max_tokens=10, sampling=Sampling(temp=1), n_candidates=3, **settings)
    events = remote_events(engine, tokenizer, ids, config, 1, lambda: False)
    try:
        *steps, finished = events
    except UserError as error:
        assert "\n" not in str(error)
        return [], None
    assert isinstance(finished, Finished)
    return steps, finished


def check_cut(whole, found):
    """What has come is the beginning of the whole, number for number."""
    (steps, finished), (all_steps, _end) = found, whole
    assert steps == all_steps[: len(steps)]
    if finished is not None:
        assert finished.text == "".join(step.text for step in steps)
        assert finished.reason in ("cut", "done", "length")
        assert (finished.reason == "cut") == bool(finished.detail)


def test_a_stream_that_is_cut_at_any_byte_is_a_beginning(openings, shape, monkeypatch):
    _name, there, _url = shape
    whole = run(openings)
    data = b"".join(there.stream)
    connection = openings[0].connection
    for length in range(len(data)):
        monkeypatch.setattr(connection, "stream", lambda *_words, n=length: iter([data[:n]]))
        check_cut(whole, run(openings))
    bytes_alone = [data[place : place + 1] for place in range(len(data))]
    monkeypatch.setattr(connection, "stream", lambda *_words: iter(bytes_alone))
    assert run(openings)[0] == whole[0]


def cut_at_sockets(openings, there, step):
    whole = run(openings)
    size = len(b"".join(there.stream))
    try:
        for there.cut in range(1, size, step):
            check_cut(whole, run(openings))
    finally:
        there.cut = None


def test_a_connection_that_is_cut_is_one_clear_line(openings, shape):
    cut_at_sockets(openings, shape[1], 211)


@pytest.mark.slow
def test_a_connection_that_is_cut_at_any_byte_is_one_clear_line(openings, shape):
    cut_at_sockets(openings, shape[1], 1)


def test_the_tables_name_source_and_what_is_not_listed(shape, capsys):
    name, _there, url = shape
    chat = ("--chat", "off") if name == "sglang" else ()
    out = printed(capsys, "--ckpt", url, *chat, "-p", "Hello", "--verbose", "3", "--temp", "1")
    address = url.removeprefix("http://")
    assert address in out
    assert "3 listed, other tokens" in out
    assert ("after the temperature" if name == "sglang" else "before the samplers") in out
    assert "rank > " in out
    assert "\x1b[31m" not in out.replace("\x1b[31m▶", "")
    assert "␛[31m" in out


def test_an_answer_by_ids_is_scored_and_stepped_through(shape):
    name, _there, url = shape
    model = mr.load(url)
    if name in ("openai", "responses"):
        with pytest.raises(UserError, match="only answers messages"):
            model.generate("Hello")
        return
    tree = model.view("branch", "Hello", "1", "tokens=3")
    assert len(tree.branches[0].tokens) == 3
    assert all(prob is None or 0 < prob <= 1 for prob in tree.branches[0].probs)


def test_a_given_text_is_scored_where_the_server_tells_it(shape, capsys):
    name, _there, url = shape
    model = mr.load(url)
    if name in ("openai", "responses", "ollama", "completions"):
        with pytest.raises(UserError, match="does not tell the probabilities of a given text"):
            model.view("surprise", "Hello you")
        return
    found = model.view("surprise", "Hello you")
    if name == "llamacpp":  # the script says the same of the first place at each
        assert found.bits[1] is not None
        return
    assert found.bits[1:] == pytest.approx([1.5 / log(2)] * 2)
    assert {each.rank for each in found.most} == {2 if name == "vllm" else None}


# What each shape is asked for with `:think on`; None: it has no such thing.
THINKS = {"enable_thinking": True, "thinking": True}
ASKED_TO_THINK = {
    "vllm": ("chat_template_kwargs", THINKS),
    "sglang": ("chat_template_kwargs", THINKS),
    "openai": ("chat_template_kwargs", THINKS),
    "ollama": ("think", True),
}


def test_thoughts_that_a_server_tells_apart_are_a_block_of_the_answer(shape):
    name, there, url = shape
    if name in ("llamacpp", "completions"):
        pytest.skip("it writes a text, with its tags")
    model = mr.load(url)
    if name == "responses":
        with pytest.raises(UserError, match="takes no variables for a chat template"):
            asked(model, think="on")
        found = asked(model, "Think!")
    else:
        field, value = ASKED_TO_THINK[name]
        found = asked(model, think="on")
        assert there.asked[field] == value
    assert found.text == f"<think>\nI see it\n</think>\n\n{replayed.TEXT}"
    assert found.messages[-1].content == found.text
    numbers = [step.model_prob for step in found.steps]
    assert len(numbers) == len(asked(model).steps) + 2
    again = model.chat([*found.messages, {"role": "user", "content": "and?"}], max_tokens=3)
    said = there.asked.get("messages") or there.asked["input"]
    assert said[1] == {"role": "assistant", "content": replayed.TEXT}
    assert "think" not in again.text
    with pytest.raises(UserError, match="cannot be told when to end"):
        asked(model, think=5)


def test_variables_of_a_template_reach_the_server_that_has_it(shape):
    name, there, url = shape
    if name in ("completions", "ollama", "responses"):
        pytest.skip("it takes none")
    asked(mr.load(url), template=("tone=kind", "n=2"))
    if name != "llamacpp":  # there, the prompt is rendered first
        assert there.asked["chat_template_kwargs"] == {"tone": "kind", "n": 2}
    else:
        assert there.rendered["chat_template_kwargs"] == {"tone": "kind", "n": 2}
        assert there.asked["preserved_tokens"] == ["<think>", "</think>"]


# -- numbers and streams


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-0.5, -0.5), (0, 0.0), (1e-7, 0.0), (-9999.0, float("-inf")), (-3.4e38, float("-inf")),
        (float("nan"), None), (float("inf"), None), (2.0, None), (10**400, None), (True, None),
        ("-1", None), (None, None), ([], None),
    ],
)  # fmt: skip
def test_a_logprob_is_a_number_or_nothing(value, expected):
    assert numbers.logprob(value) == expected


def test_ids_and_bytes_are_what_they_can_be_or_nothing():
    assert [numbers.token_id(each) for each in (0, 7, -1, 1 << 31, True, 1.0, "1")] == [
        0, 7, None, None, None, None, None,
    ]  # fmt: skip
    assert numbers.byte_values([237, 256]) is None
    assert numbers.byte_values([237, -1]) is None
    assert numbers.byte_values([237]) == (237,)


def test_events_are_read_whatever_the_chunks_and_the_line_ends():
    data = b': hi\r\n\r\ndata: {"a":\rdata: 1}\r\r\n\ndata:{"b": "\xed\x95\x9c"}\n\ndata: [1'
    expected = [{"a": 1}, {"b": "한"}]
    for size in range(1, len(data)):
        chunks = [data[place : place + size] for place in range(0, len(data), size)]
        assert list(read_events(chunks)) == expected


def test_entropy_is_between_one_other_token_and_all_others():
    least, most = entropy_bounds([0.5, 0.25], 10)
    assert least == pytest.approx(1.5)
    assert most == pytest.approx(1.0 + 0.25 * 5)
    assert entropy_bounds([0.5, 0.5], 10) == (1.0, 1.0)
    assert entropy_bounds([0.5], None)[1] == float("inf")
    assert entropy_bounds([], 10) is None


# -- servers that lie, flood and stall

LIMITS = Limits(probe_seconds=1.0, idle_seconds=0.6, total_seconds=1.5, connect_seconds=1.0)


@contextmanager
def raw_server(answer):
    """A server that hands each connection, after its request, to `answer(connection)`."""
    listening = socket.create_server(("127.0.0.1", 0))
    requests = []

    def work():
        while True:
            try:
                connection, _address = listening.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection):
        with connection:
            requests.append(connection.recv(1 << 16))
            with suppress(OSError):  # the client has left, as it should
                answer(connection)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", requests
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


def page(body, status="200 OK", headers=b""):
    def answer(connection):
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n".encode()
        connection.sendall(head + headers + b"\r\n" + body)

    return answer


def flood(start, chunk, pause=0.0, most=1 << 34):
    def answer(connection):
        connection.sendall(start)
        for _each in range(most // len(chunk)):
            connection.sendall(chunk)
            time.sleep(pause)

    return answer


OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
LONG = b"content-length: 10737418240\r\n\r\n"
MODEL = b'{"data": [{"id": "\\u001b[2Jx"}]}'

HOSTILE = {
    "10 GB of JSON": (flood(OK + LONG, b" " * (1 << 20)), "more than 1 MB"),
    "endless headers": (flood(OK, b"x-a: " + b"b" * 1000 + b"\r\n"), "broke off|cannot be asked"),
    "slow drip": (flood(OK + LONG, b" ", 0.05), "is not done after 1 seconds"),
    # It waits until the client leaves.
    "silence": (lambda connection: connection.recv(1), "says nothing for 0.6 seconds"),
    "closed at once": (lambda connection: None, "broke off its answer"),
    "redirect": (page(b"", "302 Found", b"location: http://127.0.0.1:1/x\r\n"), "sends to"),
    "redirect to an escape": (page(b"", "302 Found", b"location: \x1b[31m\r\n"), "broke off|sends"),
    "not HTTP": (lambda connection: connection.sendall(b"\x00\x1b[2J" * 50), "broke off"),
    "no JSON": (page(b"<html>\x1b[31m"), "did not answer with JSON"),
    "deep JSON": (page(b"[" * 100_000), "did not answer with JSON"),
    "a number of 100,000 digits": (page(b"9" * 100_000), "did not answer with JSON"),
    "compressed": (page(b"x", headers=b"content-encoding: gzip\r\n"), "compresses"),
    "an error with an escape": (page(b'{"error": "\\u001b[2J"}', "500 No"), "refuses .500.: ␛"),
    "no model": (page(b'{"data": []}'), "has no model"),
    "another shape": (page(b"[1, 2]"), "has no model"),
    "only a list of models": (page(MODEL), "answers neither|has no|no JSON|broke off|sends no"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_is_one_clear_line_in_time(name):
    answer, said = HOSTILE[name]
    limits = replace(LIMITS, max_bytes=1 << 20, max_stream_bytes=1 << 20)
    with raw_server(answer) as (url, _requests):
        started = time.monotonic()
        with pytest.raises(UserError, match=said) as error:
            open_engine(Connection(parse_url(url, "secret"), limits))
        assert time.monotonic() - started < 20
    text = str(error.value)
    assert text.isprintable(), text
    assert len(text) < 500
    assert "secret" not in text


def test_a_key_does_not_follow_a_redirect_nor_come_back_in_an_error():
    with raw_server(page(b"{}")) as (other, requests):
        head = f"location: {other}/v1/models\r\n".encode()
        with raw_server(page(b"", "307 Temporary Redirect", head)) as (url, seen):
            with pytest.raises(ServerError):
                Connection(parse_url(url, "secret-1")).get("/v1/models")
            assert b"Bearer secret-1" in seen[0]
        assert requests == []
    with raw_server(page(b"key secret-1 is wrong", "401 No")) as (url, _seen):
        with pytest.raises(ServerError, match="401") as error:
            Connection(parse_url(url, "secret-1")).get("/v1/models")
        assert "secret" not in str(error.value)


def test_a_key_is_not_sent_where_others_can_read_it():
    assert parse_url("http://192.0.2.1:80", "secret").sendable_key == ""
    assert parse_url("https://192.0.2.1", "secret").sendable_key == "secret"
    assert parse_url("http://[::1]:80", "secret").sendable_key == "secret"


def test_ctrl_c_closes_the_connection_and_keeps_what_came():
    gone = threading.Event()

    def answer(connection):
        connection.sendall(OK + b"transfer-encoding: chunked\r\n\r\n")
        event = b'data: {"choices": [{"delta": {"content": "and "}}]}\n\n'
        while True:
            try:
                connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
            except OSError:
                gone.set()
                return
            time.sleep(0.01)

    with replayed.replay("openai") as (_there, url):
        engine, _names = open_engine(Connection(parse_url(url)))
    tokenizer = RemoteTokenizer(engine)
    with raw_server(answer) as (url, _requests):
        engine.connection = Connection(parse_url(url))
        steps = []
        from minillm_repl.chat import Message

        ids = [tokenizer.intern_messages([Message("user", "hi")])]
        config = GenerationConfig(max_tokens=10**6)
        events = remote_events(engine, tokenizer, ids, config, 1, lambda: len(steps) > 5)
        for event in events:
            steps.append(event)
        assert gone.wait(5)
    *steps, finished = steps
    assert finished.reason == "interrupt"
    assert finished.text == "".join(step.text for step in steps) != ""
    assert all((step.model_prob, step.top) == (None, ()) for step in steps)


# -- two terminals


def test_two_terminals_one_model(hangul, tmp_path):
    """One has the model (`--serve`), the other talks to it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "xterm"}
    flags = ["--ckpt", hangul, "--seed", "3", "--no-history", "--lang", "en"]
    with Terminal(flags, environment=environment, folder=tmp_path) as terminal:
        terminal.wait_for_prompt()
        assert "안녕" in terminal.do("안녕?").removeprefix(">>> 안녕?")
        told = " ".join(terminal.do(":prob 좋아요").split())
        assert "surprisal" in told
        assert "all probabilities, before the samplers" in told
        assert "2 continuations" in terminal.do(":branch 2 tokens=3")
        assert "perplexity" in terminal.do(":surprise 날씨가 좋아요")
        assert "stay on the server" in terminal.do(":attn")
        assert hangul.removeprefix("http://") in terminal.do(":model")
        terminal.send(":step 안녕?")
        terminal.wait_for("Enter takes")
        terminal.keys("enter", "enter")
        terminal.type("q")
        terminal.wait_for("2 tokens chosen by hand")
        terminal.wait_for_prompt()
        terminal.do(":verbose 3")
        assert "entropy" in terminal.do("고마워")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """llama-cpp-python's server with hangul, in the Python that MINILLM_LLAMA_PYTHON names."""
    python = os.environ.get("MINILLM_LLAMA_PYTHON", sys.executable)
    probe = [python, "-c", "import llama_cpp.server.app"]
    found = subprocess.run(probe, check=False, capture_output=True)
    if found.returncode:
        pytest.skip("llama-cpp-python[server] is not installed")
    folder = tmp_path_factory.mktemp("llama")
    shell = mr.load("hangul")._shell()
    save_gguf(shell.session.workspace.model.checkpoint, folder / "h.gguf", "f16", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--model", "h.gguf", "--port", str(port), "--logits_all", "true", "--n_ctx", "256"]
    with subprocess.Popen(
        [python, "-m", "llama_cpp.server", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said = ""
            while "running on" not in said:
                said = process.stderr.readline()
                assert said, f"the server ended with {process.wait()}"
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.slow
def test_a_server_of_llama_cpp_has_the_probabilities_of_the_same_model_here(llama):
    settings = {"temp": 0, "candidates": 5, "max_tokens": 12}
    here = mr.load("hangul").generate("오늘 날씨", **settings)
    there = mr.load(llama).generate("오늘 날씨", **settings)
    assert there.text == here.text
    expected = [step.model_prob for step in here.steps]
    assert [step.model_prob for step in there.steps] == pytest.approx(expected, abs=2e-3)  # f16
    assert {step.listing.stage for step in there.steps} == {"raw"}
    # It does not know the fields for a template, and answers all the same.
    chats = [
        mr.load(llama).chat("안녕?", temp=0, max_tokens=9, think=each) for each in ("auto", "off")
    ]
    assert chats[0].text == chats[1].text != ""
