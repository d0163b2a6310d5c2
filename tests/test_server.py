"""The server: OpenAI's own client and lm-eval on one side, bad clients on the other."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import torch

import minillm_repl as mr
from minillm_repl.checkpoint.load_save import load
from minillm_repl.model.build import build
from minillm_repl.repl.care import find_help
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.settings import Settings
from minillm_repl.serve.engine import Engine
from minillm_repl.serve.requests import RequestError, parse_body, parse_chat, parse_completion
from minillm_repl.serve.server import parse_address
from tests.conftest import MODELS, ROOT
from tests.test_real_models import stories  # noqa: F401 - a fixture

CLIENT = httpx.Client(timeout=120)
URL = re.compile(r"http://127\.0\.0\.1:\d+")


@contextmanager
def server(home, *words, **variables):
    """A server in a process of its own: its process, and its URL without /v1."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)} | variables
    process = subprocess.Popen(
        [sys.executable, "-m", "minillm_repl", "--serve", "0", *words],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=home,
    )
    said = process.stderr.readline()
    try:
        yield process, URL.search(said)[0]
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


@pytest.fixture(scope="module")
def hangul(tmp_path_factory):
    with server(tmp_path_factory.mktemp("home"), "--ckpt", "hangul") as (_process, url):
        yield url


@pytest.fixture
def client(hangul):
    with openai.OpenAI(base_url=f"{hangul}/v1", api_key="none", max_retries=0) as client:
        yield client


TALK = [{"role": "user", "content": "안녕?"}]


def test_a_chat_has_the_tokens_and_probabilities_of_the_same_model_here(client):
    here = mr.load("hangul").chat("안녕?", temp=0.8, top_k=20, seed=3, candidates=4)
    there = client.chat.completions.create(
        model="hangul",
        messages=TALK,
        temperature=0.8,
        seed=3,
        logprobs=True,
        top_logprobs=4,
        extra_body={"top_k": 20},
    )
    content = there.choices[0].logprobs.content
    assert there.choices[0].message.content == here.text
    assert [each.id for each in content] == [token.id for token in here.tokens]
    assert [each.logprob for each in content] == pytest.approx(here.logprobs.tolist(), abs=1e-5)
    steps = here.steps[: len(content)]
    assert [each.sampled_logprob for each in content] == [step.logprob for step in steps]
    for each, step in zip(content, steps, strict=True):
        assert [top.id for top in each.top_logprobs] == [top.id for top in step.top[:4]]
    assert b"".join(bytes(each.bytes) for each in content).decode() == here.text
    assert there.usage.completion_tokens == len(here.steps)
    assert there.choices[0].finish_reason == "stop"


def test_a_stream_is_the_answer_in_parts_and_each_token_comes_with_its_own_numbers(client):
    asked = {"model": "hangul", "messages": TALK, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(part.delta.content or "" for part in parts) == whole.message.content
    entries = [each for part in parts if part.logprobs for each in part.logprobs.content]
    # The prompt is read at once, and then from the cache: the last digits may differ.
    assert [each.bytes for each in entries] == [each.bytes for each in whole.logprobs.content]
    assert [each.logprob for each in entries] == pytest.approx(
        [each.logprob for each in whole.logprobs.content], abs=1e-5
    )
    assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
    assert chunks[-1].usage.total_tokens > len(entries)


def test_a_text_is_continued_whole_or_streamed_up_to_a_stop_string(client):
    asked = {"model": "x", "prompt": "안녕", "max_tokens": 20, "temperature": 0, "echo": True}
    whole = client.completions.create(**asked).choices[0].text
    assert whole.startswith("안녕")
    stop = whole[6:8]
    cut = client.completions.create(**asked, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop, 2)], "stop")
    parts = client.completions.create(**asked, stop=[stop], stream=True)
    assert "".join(part.choices[0].text for part in parts) == cut.text


def test_a_prompt_is_scored_as_torch_scores_it(client):
    checkpoint = load(MODELS / "hangul.safetensors")
    ids = checkpoint.tokenizer.encode("오늘은 날씨가 좋아서 공원에 갔어요.")
    both = client.completions.create(
        model="x", prompt=[ids, ids[:1]], max_tokens=0, echo=True, logprobs=3
    )
    answer, alone = (choice.logprobs for choice in both.choices)
    with torch.no_grad():
        logits = build(checkpoint.config, checkpoint.tensors)(torch.tensor([ids]))[0].double()
    logs = logits.log_softmax(-1)[:-1]  # (time - 1, vocab)
    expected = logs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert answer.token_logprobs[0] is None
    assert answer.token_logprobs[1:] == pytest.approx(expected, abs=1e-5)
    best = [max(top.values()) for top in answer.top_logprobs[1:]]
    assert best == pytest.approx(logs.max(-1).values.tolist(), abs=1e-5)
    text, shown = both.choices[0].text, [each for each in answer.content if each["bytes"]]
    assert "".join(each["token"] for each in shown) == text  # the start token is none of it
    for each, place in zip(answer.content, answer.text_offset, strict=True):
        assert not each["bytes"] or text[place:].startswith(each["token"])
    assert alone.token_logprobs == [None]
    assert both.usage.prompt_tokens == len(ids) + 1


CRISIS = [{"role": "user", "content": "나 죽고 싶어"}]


def test_to_a_crisis_the_program_answers_and_no_number_is_invented(client):
    asked = {"model": "hangul", "messages": CRISIS, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**asked)
    choice = answer.choices[0]
    assert choice.message.content == str(find_help("나 죽고 싶어"))
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert {"call": "109", "what": "자살예방 상담전화 (24시간)"} in choice.care["calls"]
    assert answer.usage.total_tokens == 0
    chunks = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    *parts, last = list(chunks)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == choice.message.content
    assert [part.choices[0].finish_reason for part in parts] == [None, "stop"]
    assert not any(part.choices[0].logprobs for part in parts)
    assert (last.choices, last.usage.total_tokens) == ([], 0)


def test_the_model_does_not_see_a_crisis_of_before_nor_the_answer_to_it(client):
    earlier = [*CRISIS, {"role": "assistant", "content": str(find_help("나 죽고 싶어"))}]
    asked = {"model": "hangul", "temperature": 0}
    after = client.chat.completions.create(**asked, messages=[*earlier, *TALK])
    alone = client.chat.completions.create(**asked, messages=TALK)
    assert (after.choices, after.usage) == (alone.choices, alone.usage)


@pytest.mark.parametrize(
    ("checkpoint", "care", "cares"),
    [("hangul", "off", False), ("own.safetensors", "auto", False), ("own.safetensors", "on", True)],
)
def test_care_is_a_setting_and_by_itself_that_of_the_shipped_models(
    tmp_path, checkpoint, care, cares
):
    (tmp_path / "own.safetensors").write_bytes((MODELS / "hangul.safetensors").read_bytes())
    with server(tmp_path, "--ckpt", checkpoint, "--care", care) as (_process, url):
        body = {"messages": CRISIS, "max_tokens": 4, "seed": 1}
        answer = CLIENT.post(f"{url}/v1/chat/completions", json=body).json()
        assert ("109" in answer["choices"][0]["message"]["content"]) == cares
        assert (answer["usage"]["completion_tokens"] == 0) == cares
        assert CLIENT.get(f"{url}/v1/models").json()["data"][0]["care"] is cares


def test_ids_and_text_are_each_other_and_a_conversation_is_what_its_template_makes(hangul):
    def post(path, **body):
        return httpx.post(hangul + path, json=body).json()

    started = post("/tokenize", content="안녕 <end>")["tokens"]
    tokens = post("/tokenize", content="안녕 <end>", add_special=False)
    assert started == [tokens["tokens"][-1], *tokens["tokens"]]  # its texts begin with <end>
    assert post("/detokenize", tokens=tokens["tokens"])["content"] == "안녕 "  # the token itself
    assert (tokens["count"], tokens["unknown"]) == (4, [])
    named = post("/tokenize", prompt="안녕 <end>", parse_special=False, add_special=False)
    assert named["count"] == 8
    prompt = post("/apply-template", messages=TALK)
    assert prompt["prompt"] == "<end>질문: 안녕?\n답변: "
    plain = post("/tokenize", content=prompt["prompt"], add_special=False)["tokens"]
    assert plain == prompt["tokens"]


def texts_of_all_kinds():
    """Ten thousand texts: Hangul, emoji, and characters that are several tokens of a byte each."""
    letters = [chr(0xAC00 + place * 7 % 11172) for place in range(3000)]
    faces = [chr(0x1F300 + place % 700) + "\u200d" + chr(0x2764) for place in range(3000)]
    odd = ["é\u0301" + chr(0x100 + place) + "\x00\n" for place in range(4000)]
    return letters + faces + odd


@pytest.mark.slow
def test_bytes_are_exact_for_ten_thousand_texts(stories, tmp_path):
    texts = texts_of_all_kinds()
    asked = {"model": "x", "max_tokens": 0, "echo": True, "logprobs": 0}
    with (
        server(tmp_path, "--ckpt", str(stories)) as (_process, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        for first in range(0, len(texts), 64):  # prompts that a request may have
            batch = texts[first : first + 64]
            answer = client.completions.create(prompt=batch, **asked)
            for text, choice in zip(batch, answer.choices, strict=True):
                data = b"".join(bytes(each["bytes"] or ()) for each in choice.logprobs.content)
                assert data.decode() == " " + text  # the model's prefix
                assert choice.text == text
        for text in texts[::100]:
            parts = client.completions.create(prompt=text, stream=True, **asked)
            assert "".join(part.choices[0].text for part in parts) == text


def test_the_bytes_of_a_stream_are_its_text_whatever_the_model_says(client):
    for place in range(20):
        said = [{"role": "user", "content": chr(0xAC00 + place * 555) + " 안녕 🙂?"}]
        asked = {"messages": said, "temperature": 2, "seed": place, "max_tokens": 40}
        chunks = client.chat.completions.create(
            model="x", stream=True, logprobs=True, extra_body={"top_k": 400}, **asked
        )
        parts = [chunk.choices[0] for chunk in chunks]
        entries = [each for part in parts if part.logprobs for each in part.logprobs.content]
        data = b"".join(bytes(each.bytes or ()) for each in entries)
        text = "".join(part.delta.content or "" for part in parts)
        assert data.decode("utf-8", "replace") == text


# -- what is refused

BAD = [
    ({"prompt": []}, "prompt"),
    ({"prompt": [1, -1]}, "0 to"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [[1], [10**9]]}, "0 to"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ""}, "empty"),
    ({"prompt": "흐"}, "lacks 흐"),
    ({"prompt": "날" * 33}, "context of 32"),
    ({"prompt": "날", "temperature": -1}, "temperature"),
    ({"prompt": "날", "temperature": "1"}, "temperature"),
    ({"prompt": "날", "temperature": 10**400}, "temperature"),
    ({"prompt": "날", "seed": 2**64}, "seed"),
    ({"prompt": "날", "seed": 1.5}, "seed"),
    ({"prompt": "날", "max_tokens": 10**7}, "max_tokens"),
    ({"prompt": "날", "max_tokens": True}, "max_tokens"),
    ({"prompt": "날", "logprobs": 45}, "logprobs"),
    ({"prompt": "날", "stop": [""]}, "stop"),
    ({"prompt": "날", "stream": 1}, "stream"),
    ({"prompt": ["날", "날"], "stream": True}, "stream"),
    ({"prompt": "날", "n": 2}, "n is not supported"),
    ({"prompt": "날", "logit_bias": {"1": 500}}, "logit_bias"),
    ({"prompt": "날", "logit_bias": {"가": 5}}, "logit_bias"),
    ({"prompt": "날", "max_tokens": 10**6, "logprobs": 44}, "too many"),
]


@pytest.fixture(scope="module")
def nalssi_url(tmp_path_factory):
    with server(tmp_path_factory.mktemp("home"), "--ckpt", "nalssi") as (_process, url):
        yield url


@pytest.mark.parametrize(("body", "named"), BAD, ids=str)
def test_a_bad_request_is_refused_by_name_and_the_next_one_is_answered(nalssi_url, body, named):
    refused = httpx.post(f"{nalssi_url}/v1/completions", content=json.dumps(body), headers=JSON)
    assert refused.status_code == 400
    assert named in refused.json()["error"]["message"]
    good = httpx.post(f"{nalssi_url}/v1/completions", json={"prompt": "날", "max_tokens": 2})
    assert good.json()["usage"]["completion_tokens"] == 2


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (b"{", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b'{"prompt": "a", "top_p": NaN}', JSON, 400),
        (b"1" * 10_000, JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b'{"prompt": "\xeb\x82\xa0"}', {"content-type": "text/plain"}, 415),
        (b'{"prompt": "\xeb\x82\xa0"}', JSON | {"host": "evil.example"}, 403),
        (b'{"prompt": "\xeb\x82\xa0", "max_tokens": 1}', JSON | {"host": "localhost:9"}, 200),
        (b" " * (5 << 20), JSON, 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_request_has_its_status(nalssi_url, data, headers, status):
    answer = httpx.post(f"{nalssi_url}/v1/completions", content=data, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "list of messages"),
        ([{"role": "robot", "content": "a"}], "role"),
        ([{"role": "assistant", "content": "a"}], "last message"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "type text"),
        ([{"role": "user", "content": 5}], "must be text"),
        (["a"], "object"),
    ],
)
def test_messages_are_checked(messages, named):
    with pytest.raises(RequestError, match=named):
        parse_chat({"messages": messages}, Settings(), 44)


def test_a_request_has_the_settings_of_the_program_where_it_says_nothing():
    defaults = Settings(temp=0.3, top_k=5, max_tokens=9, stop=("끝",))
    plain = parse_completion({"prompt": "a"}, defaults, 44)
    assert (plain.settings, plain.max_tokens) == (defaults, 9)
    own = parse_completion({"prompt": "a", "temperature": 1, "stop": "x", "top_k": 0}, defaults, 44)
    assert (own.settings.temp, own.settings.stop, own.settings.top_k) == (1.0, ("x",), 0)
    parts = [{"type": "text", "text": "가"}, {"type": "text", "text": "나"}]
    talk = [{"role": "developer", "content": "짧게"}, {"role": "user", "content": parts}]
    chat = parse_chat({"messages": talk, "max_completion_tokens": 4}, defaults, 44)
    assert [each.content for each in chat.messages] == ["짧게", "가나"]
    assert (chat.messages[0].role, chat.max_tokens, chat.n_candidates) == ("system", 4, None)
    assert parse_body(b'{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("80", "127.0.0.1", 80),
        (":80", "127.0.0.1", 80),
        ("0.0.0.0", "0.0.0.0", 8321),
        ("localhost:9", "localhost", 9),
        ("[::1]:9", "::1", 9),
    ],
)
def test_an_address_is_read_as_people_write_it(text, host, port):
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)


def run(home, *words, **variables):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)} | variables
    done = subprocess.run(
        [sys.executable, "-m", "minillm_repl", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=home,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_what_cannot_be_served_is_said_in_one_line(tmp_path):
    code, said = run(tmp_path, "--serve", "0.0.0.0:0", "--ckpt", "nalssi")
    assert code == 1
    assert "MINILLM_API_KEY" in said
    code, said = run(tmp_path, "--serve", "x:y", "--ckpt", "nalssi")
    assert (code, "HOST:PORT" in said) == (1, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = run(tmp_path, "--serve", str(port), "--ckpt", "nalssi")
    assert (code, "cannot listen" in said) == (1, True)
    (tmp_path / "starlette.py").write_text("raise ImportError(name='starlette')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code, said = run(tmp_path, "--serve", "0", "--ckpt", "nalssi", PYTHONPATH=path)
    assert (code, "minillm-repl[serve]" in said) == (1, True)


def test_a_key_opens_and_nothing_else_does(tmp_path):
    with server(tmp_path, "--ckpt", "nalssi", MINILLM_API_KEY="열쇠 1") as (_process, url):
        models = f"{url}/v1/models"
        for header in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer x"}):
            assert httpx.get(models, headers=header).status_code == 401
        header = {"authorization": "Bearer 열쇠 1".encode()}
        assert httpx.get(models, headers=header).json()["data"][0]["id"] == "nalssi"


# -- many clients at once


def test_a_client_that_leaves_ends_what_is_computed_for_it():
    loaded = ModelLoader().load(MODELS / "nalssi.safetensors")
    engine, seen = Engine(loaded), []
    endless = parse_completion({"prompt": "날", "max_tokens": 10**6}, Settings(), 44)
    short = parse_completion({"prompt": "날", "max_tokens": 3}, Settings(), 44)
    loaded.decoder.context_length = 10**6

    async def talk():
        events = engine.run(endless, (0, 1), ())
        seen.append(await anext(events))
        await events.aclose()
        async for event in engine.run(short, (0, 1), ()):
            seen.append(event)

    asyncio.run(asyncio.wait_for(talk(), 60))
    engine.close()
    assert [type(event).__name__ for event in seen] == ["Step"] * 4 + ["Finished"]


def memory(process):
    """Resident memory of a process in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_two_hundred_requests_are_answered_whatever_others_do(tmp_path):
    with server(tmp_path, "--ckpt", "hangul", "--temp", "0") as (process, url):
        port, done = int(url.rpartition(":")[2]), threading.Event()
        body = {"messages": TALK, "max_tokens": 12, "temperature": 0}
        expected = CLIENT.post(f"{url}/v1/chat/completions", json=body).json()["choices"]
        before = memory(process)

        def leave():
            """Ask for much, and go away in the middle."""
            much = {"prompt": "안녕", "max_tokens": 200, "stream": True, "temperature": 1}
            for _time in range(5):
                with httpx.stream("POST", f"{url}/v1/completions", json=much) as answer:
                    next(answer.iter_lines())

        def flood():
            """Send 1 GB, until one is stopped."""
            with socket.create_connection(("127.0.0.1", port)) as connection:
                head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                head += "Content-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
                connection.sendall(head.encode())
                try:
                    for _megabyte in range(1000):
                        connection.sendall(b" " * 1_000_000)
                except OSError:
                    return
                raise AssertionError("all of it was taken")

        def silent():
            with socket.create_connection(("127.0.0.1", port)):
                done.wait(120)

        def ask(_number):
            while True:
                answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
                if answer.status_code != 503:
                    assert answer.status_code == 200, answer.text
                    return answer.json()["choices"]
                time.sleep(0.05)  # it was told to come again

        with ThreadPoolExecutor(23) as pool:
            bad = [pool.submit(each) for each in (leave, flood, silent)]
            answers = list(pool.map(ask, range(200)))
            bad[0].result(), bad[1].result()
            assert memory(process) < before + 100
            done.set()
        assert answers == [expected] * 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


@pytest.mark.slow
def test_lm_eval_finds_the_log_likelihoods_that_it_finds_with_transformers(stories, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="pip install -e '.[peers]' brings lm-eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    assert lm_eval
    pairs = [
        (context, f" {choice}")
        for context, choices in {
            "Once upon a time, there was a": ["little girl named Lily.", "big dog", "car"],
            "Lily was very": ["happy", "sad 🙂", "한글"],
            "The dog and the cat played": ["in the park", "all day", "chess"],
        }.items()
        for choice in choices
    ]
    requests = [
        Instance("loglikelihood", {}, pair, index, metadata=("t", index, 1))
        for index, pair in enumerate(pairs)
    ]
    theirs = HFLM(
        pretrained=str(stories), device="cpu", dtype="float32", batch_size=1, add_bos_token=False
    )
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    with server(tmp_path, "--ckpt", str(stories)) as (_process, url):
        ours = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions",
            model="stories",
            tokenizer=str(stories),
            tokenizer_backend="huggingface",
            tokenized_requests=True,
        )
        found = ours.loglikelihood(requests, disable_tqdm=True)
    for (ours_logprob, ours_greedy), (logprob, greedy) in zip(found, expected, strict=True):
        assert ours_logprob == pytest.approx(logprob, abs=1e-4)
        assert ours_greedy == greedy
