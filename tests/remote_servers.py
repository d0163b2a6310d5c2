"""Servers on real sockets that replay each engine's shape: one small script of tokens, in eight
wordings. `docs/remote.md` names the engines.
"""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log

# The vocabulary, and a script: each token, and what was listed in its place (raw probabilities).
PIECES = [
    b"Hel",
    b"lo",
    b", ",
    "한".encode()[:2],
    "한".encode()[2:],
    b" you",
    b"\x1b[31m",
    b"<end>",
]
SCRIPT = [
    (0, {0: 0.7, 1: 0.2, 5: 0.05}),
    (1, {1: 0.9, 2: 0.06, 3: 0.01}),
    (5, {2: 0.5, 3: 0.25, 4: 0.125}),  # not among those that are listed
    (2, {2: 0.5, 5: 0.5, 0: 0.0}),
    (3, {3: 0.99, 0: 0.004, 1: 0.003}),  # half a character
    (4, {4: 0.8, 6: 0.15, 2: 0.01}),
]
UNLISTED = {2: 0.03}  # the probability of the chosen token at the places where it is not listed
TEXT = "Hello you, 한"
THOUGHTS = ("I see", " it")  # where a server is asked to think, and tells it apart
NAMES = ("own", "llamacpp", "vllm", "sglang", "ollama", "openai", "completions", "responses")
BASE = NAMES[1:]  # `own` is started for real


def text_of(token):
    return PIECES[token].decode("utf-8", "replace")


def probability(place):
    token, listed = SCRIPT[place]
    return listed.get(token, UNLISTED.get(place))


def _logprob(p, zero=None):
    return log(p) if p else zero


def _chat_token(token, p, zero, more):
    data = {"token": text_of(token), "logprob": _logprob(p, zero)}
    if "bytes" in more:
        data["bytes"] = list(PIECES[token] if more == "id bytes" else text_of(token).encode())
    return data | ({"id": token} if "id" in more else {})


def chat_entry(place, k, zero=-9999.0, more="bytes"):
    token, listed = SCRIPT[place]
    top = [_chat_token(each, p, zero, more) for each, p in list(listed.items())[:k]]
    return _chat_token(token, probability(place), zero, more) | {"top_logprobs": top}


def sse(*events, done=True):
    """Events with what real servers mix in: comments, CR LF, fields that nobody needs."""
    lines = [b": ping\r\n\r\n", b"event: x\r\n"]
    lines += [b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in events]
    return lines + ([b"data: [DONE]\n\n"] if done else [])


def texts_of_parts(groups):
    """The text that each group of tokens completes; half a character waits for the rest."""
    shown, data, found = "", b"", []
    for group in groups:
        data += b"".join(PIECES[SCRIPT[place][0]] for place in group)
        whole = data.decode("utf-8", "ignore")
        found.append(whole[len(shown) :])
        shown = whole
    return found


GROUPS = [[0], [1, 2], [3], [4], [5]]  # several tokens in a chunk


def groups_for(limit):
    """The parts of an answer of at most `limit` tokens."""
    return [[place for place in group if place < limit] for group in GROUPS if group[0] < limit]


def _models(owner):
    return {
        "data": [{"id": "tiny", "owned_by": owner, "max_model_len": 64, "meta": {"n_vocab": 8}}]
    }


def _chat_stream(body, more="bytes"):
    groups = groups_for(body["max_tokens"])
    k = body.get("top_logprobs", 0) if body.get("logprobs") else None
    # As DeepSeek and most name it; as vLLM has named it since 0.12.
    deltas = [{"reasoning_content": THOUGHTS[0]}, {"reasoning": THOUGHTS[1], "content": None}]
    thinks = body.get("chat_template_kwargs", {}).get("enable_thinking") is True
    events = [{"choices": [{"delta": each}]} for each in deltas if thinks]
    for group, text in zip(groups, texts_of_parts(groups), strict=True):
        content = [chat_entry(place, k, more=more) for place in group] if k is not None else None
        logprobs = {"content": content} if content else None
        events.append({"choices": [{"delta": {"content": text}, "logprobs": logprobs}]})
    end = {"choices": [{"delta": {}, "logprobs": None, "finish_reason": "stop"}]}
    return sse(*events, end, {"choices": [], "usage": {}})


def _text_stream(body, by_id=False):
    groups, k = groups_for(body["max_tokens"]), body.get("logprobs")

    def name(token):
        return f"token_id:{token}" if by_id else text_of(token)

    events = []
    for group, text in zip(groups, texts_of_parts(groups), strict=True):
        logprobs = None
        if k is not None:
            tops = [
                {name(each): _logprob(p, -9999.0) for each, p in list(SCRIPT[place][1].items())[:k]}
                for place in group
            ]
            logprobs = {
                "tokens": [name(SCRIPT[place][0]) for place in group],
                "token_logprobs": [_logprob(probability(place)) for place in group],
                "top_logprobs": tops,
            }
        events.append({"choices": [{"text": text, "logprobs": logprobs}]})
    return sse(*events, {"choices": [{"text": "", "finish_reason": "length"}]})


def _encode(text):
    """A tokenizer of a kind: the longest piece first, and `<end>` for what is none."""
    ids, data = [], text.encode()
    while data:
        fits = [t for t, piece in enumerate(PIECES) if data.startswith(piece)]
        token = max(fits, key=lambda t: len(PIECES[t]), default=7)
        ids.append(token)
        data = data[len(PIECES[token]) if fits else 1 :]
    return ids


def _llamacpp(path, body):
    if path == "/props":
        return {"default_generation_settings": {"n_ctx": 64}, "chat_template": "{{ x }}"}
    if path == "/tokenize":
        ids = _encode(body["content"])
        if not body.get("with_pieces"):
            return {"tokens": ids}
        pieces = [list(PIECES[t]) if "\ufffd" in text_of(t) else text_of(t) for t in ids]
        return {"tokens": [{"id": t, "piece": p} for t, p in zip(ids, pieces, strict=True)]}
    if path == "/apply-template":
        return {"prompt": "".join(each["content"] for each in body["messages"])}
    if path == "/detokenize":
        return {"content": "".join(map(text_of, body["tokens"]))}
    if path != "/completion":
        return None
    zero = -3.4028234663852886e38
    groups, k = groups_for(body["n_predict"]), body["n_probs"]
    events = [
        {
            "content": text,
            "stop": False,
            "completion_probabilities": [chat_entry(p, k, zero, "id bytes") for p in group],
        }
        for group, text in zip(groups, texts_of_parts(groups), strict=True)
    ]
    if body["stream"]:
        return sse(*events, {"content": "", "stop": True, "stop_type": "eos"}, done=False)
    return events[0]


def _vllm(path, body):
    if path == "/version":
        return {"version": "0.20"}
    if path == "/tokenize":
        return {"tokens": _encode(body["prompt"])}
    if path == "/detokenize":
        return {"prompt": "".join(map(text_of, body["tokens"]))}
    if path == "/v1/chat/completions":
        return _chat_stream(body)
    if path == "/v1/completions" and "prompt_logprobs" in body:
        places = [None] + [
            {str(t): {"logprob": -1.5, "rank": 2, "decoded_token": text_of(t)}}
            for t in body["prompt"][1:]
        ]
        return {"choices": [{"text": "x", "prompt_logprobs": places}]}
    return _text_stream(body, by_id=True) if path == "/v1/completions" else None


def _sglang(path, body):
    if path == "/get_model_info":
        return {"model_path": "tiny"}
    if path == "/tokenize":
        return {"tokens": _encode(body["prompt"])}
    if path == "/detokenize":
        return {"text": "".join(map(text_of, body["tokens"]))}
    if path == "/v1/chat/completions":
        return _chat_stream(body)
    if path != "/generate":
        return None
    if not body.get("stream"):
        ids = body["input_ids"]
        tokens = [[None if place == 0 else -1.5, t, text_of(t)] for place, t in enumerate(ids)]
        tops = [None, *([[-0.5, 0, "Hel"]] for _each in ids[1:])]
        meta = {"input_token_logprobs": tokens, "input_top_logprobs": tops}
        return {"text": "", "meta_info": meta}
    limit, k = body["sampling_params"]["max_new_tokens"], body["top_logprobs_num"]
    groups = groups_for(limit)
    events, tokens, tops, text = [], [], [], ""
    temperature = body["sampling_params"]["temperature"]
    for group, new in zip(groups, texts_of_parts(groups), strict=True):
        text += new
        for place in group:
            token, listed = SCRIPT[place]
            tokens = [*tokens, [_logprob(probability(place)) / temperature, token, text_of(token)]]
            found = [
                [_logprob(p, -1e9) / temperature, t, text_of(t)]
                for t, p in list(listed.items())[:k]
            ]
            tops = [*tops, found]
        meta = {"output_token_logprobs": tokens, "output_top_logprobs": tops}
        meta |= {"completion_tokens": len(tokens), "finish_reason": None}
        events.append({"text": text, "meta_info": meta})
    events[-1]["meta_info"] |= {"finish_reason": {"type": "stop"}}
    return sse(*events)


def _ollama(path, body):
    if path == "/api/version":
        return {"version": "0.30"}
    if path not in ("/api/chat", "/api/generate"):
        return None
    groups = groups_for(body["options"]["num_predict"])
    said = [{"message": {"content": "", "thinking": each}, "done": False} for each in THOUGHTS]
    lines = [json.dumps(each).encode() + b"\n" for each in said if body.get("think") is True]
    for group, text in zip(groups, texts_of_parts(groups), strict=True):
        line = {"message": {"content": text}} if path == "/api/chat" else {"response": text}
        if body.get("logprobs"):
            line["logprobs"] = [chat_entry(place, body["top_logprobs"]) for place in group]
        lines.append(json.dumps(line | {"done": False}).encode() + b"\n")
    return [*lines, json.dumps({"done": True, "done_reason": "stop"}).encode() + b"\n"]


def _openai(path, body):
    return _chat_stream(body) if path == "/v1/chat/completions" else None


def _completions(path, body):
    return _text_stream(body) if path == "/v1/completions" else None


def _responses(path, body):
    if path != "/v1/responses":
        return None
    groups, k = groups_for(body["max_output_tokens"]), body.get("top_logprobs")
    events = [{"type": "response.created"}]
    thoughts = [{"type": "response.reasoning_text.delta", "delta": each} for each in THOUGHTS]
    events += thoughts if "Think!" in body["input"][-1]["content"] else []
    for group, text in zip(groups, texts_of_parts(groups), strict=True):
        logprobs = [chat_entry(place, k) for place in group] if k else []
        events.append({"type": "response.output_text.delta", "delta": text, "logprobs": logprobs})
    return sse(*events, {"type": "response.completed"}, done=False)


SHAPES = {
    "llamacpp": ("llamacpp", _llamacpp),
    "vllm": ("vllm", _vllm),
    "sglang": ("sglang", _sglang),
    "ollama": ("library", _ollama),
    "openai": ("openai", _openai),
    "completions": ("openai", _completions),
    "responses": ("openai", _responses),
}


class Server(ThreadingHTTPServer):
    """A server of one shape. After `cut` bytes of a stream it closes the connection."""

    daemon_threads = True
    cut = None
    stream = ()  # the chunks of the last stream
    asked = rendered = None  # the bodies of the last request, and of the last for a prompt

    def handle_error(self, request, client_address):
        pass  # a client that leaves is what is tested


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_words):
        pass

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body):
        owner, answer = SHAPES[self.server.shape]
        self.server.asked = body or self.server.asked
        if self.path == "/apply-template":
            self.server.rendered = body
        found = _models(owner) if self.path == "/v1/models" else answer(self.path, body)
        if isinstance(found, list):
            self._stream(found)
            return
        data = json.dumps(found if found is not None else {"error": {"message": "no route"}})
        self.send_response(404 if found is None else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def _stream(self, chunks):
        self.server.stream = chunks
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        left = self.server.cut
        for chunk in chunks:
            part = chunk if left is None else chunk[:left]
            if part:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            if left is not None:
                left -= len(part)
                if left <= 0:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
        self.wfile.write(b"0\r\n\r\n")


@contextmanager
def replay(shape):
    """A server of a shape: it, and its URL."""
    server = Server(("127.0.0.1", 0), _Handler)
    server.shape = shape
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
