"""What each route of the server does."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from secrets import token_hex
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from minillm_repl.chat.thinking import splitter_after
from minillm_repl.errors import UserError
from minillm_repl.repl.care import Help, is_caring
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.settings import Settings
from minillm_repl.serve import RequestError
from minillm_repl.serve.answers import Added, Answer, Json, chat_logprobs, text_logprobs
from minillm_repl.serve.care import care_choice, care_chunks, without_crises
from minillm_repl.serve.engine import Engine
from minillm_repl.serve.requests import (
    Completion,
    parse_body,
    parse_chat,
    parse_chat_messages,
    parse_completion,
    parse_template,
    text_field,
    token_ids,
)

_MAX_BODY = 4 << 20  # bytes
_BODY_SECONDS = 30.0  # in which a body must come


class Service:
    """What each route does. Each handler raises RequestError for what it refuses."""

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        self.engine, self.settings, self.name = Engine(model), settings, model.name
        self._tokenizer = model.checkpoint.tokenizer

    async def models(self, _request: Request) -> Response:
        """List the one model."""
        model = {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "minillm-repl",
            "max_model_len": self.engine.model.decoder.context_length,
            "vocab_size": self._tokenizer.vocab_size,
            "eos_token_ids": list(self.engine.model.checkpoint.eos_token_ids),
            "chats": self.engine.model.checkpoint.chat_template is not None,
            "care": is_caring(self.settings.care, self.engine.model),
            "sampling": dict(self.engine.model.checkpoint.recommended),
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def properties(self, _request: Request) -> Response:
        """Tell the chat template of the model."""
        template = self.engine.model.checkpoint.chat_template
        return JSONResponse({"chat_template": template.source if template else ""})

    async def health(self, _request: Request) -> Response:
        """Tell that it runs."""
        return JSONResponse({"status": "ok"})

    async def tokenize(self, request: Request) -> Response:
        """Return the ids of a text."""
        body = await read_body(request)
        special, add = body.get("parse_special", True), body.get("add_special", True)
        text = text_field(body, "content", "prompt", "text")
        ids = await run_in_threadpool(
            self._tokenizer.encode, text, add_special=bool(add), parse_special=bool(special)
        )
        pieces = [list(self._tokenizer.token_bytes(token)) for token in ids]
        context = self.engine.model.decoder.context_length
        counts = {"count": len(ids), "max_model_len": context}
        unknown = self._tokenizer.find_unknown(text)  # characters that no token stands for
        return JSONResponse({"tokens": ids, "bytes": pieces, "unknown": unknown} | counts)

    async def detokenize(self, request: Request) -> Response:
        """Return the text of ids, and its bytes: these are exact."""
        body = await read_body(request)
        ids = token_ids(body.get("tokens"), "tokens", self._tokenizer.vocab_size)
        data = b"".join(map(self._tokenizer.token_bytes, ids))
        text = data.decode("utf-8", "replace")
        pieces = [list(self._tokenizer.token_bytes(token)) for token in ids]
        names = [self._tokenizer.special_name(token) for token in ids]  # of special tokens
        each = {"pieces": pieces, "names": names}
        return JSONResponse({"content": text, "prompt": text, "bytes": list(data)} | each)

    async def logits(self, request: Request) -> Response:
        """Return the logits of the token after a prompt of ids: one for each of the vocabulary."""
        body = await read_body(request)
        ids = token_ids(body.get("prompt"), "prompt", self._tokenizer.vocab_size)
        ids = self.engine.text_ids(ids, special=False)  # not empty, and fits the context
        return JSONResponse({"logits": await self.engine.logits(ids)})

    async def apply_template(self, request: Request) -> Response:
        """Return the prompt of a conversation, as text and as ids."""
        body = await read_body(request)
        messages, settings = parse_chat_messages(body), parse_template(body, self.settings)
        special = bool(body.get("parse_special", self.settings.special))
        ids, ends = await run_in_threadpool(
            self.engine.chat_ids, messages, settings, special=special
        )
        tokens = (
            self._tokenizer.token_bytes(each) or self._tokenizer.special_name(each).encode()
            for each in ids
        )
        text = b"".join(tokens).decode("utf-8", "replace")
        return JSONResponse({"prompt": text, "tokens": list(ids), "eos_token_ids": list(ends)})

    async def completions(self, request: Request) -> Response:
        """Continue texts."""
        body = await read_body(request)
        completion = parse_completion(body, self.settings, self._tokenizer.vocab_size)
        special = completion.special
        prompts = [
            await run_in_threadpool(self.engine.text_ids, each, special=special)
            for each in completion.prompts
        ]
        completion = await run_in_threadpool(self.engine.resolved, completion, ())
        ends = self.engine.model.checkpoint.eos_token_ids
        answers = [Answer(completion, self._tokenizer, ends, len(ids)) for ids in prompts]
        if completion.stream:
            chunks = self._chunks(answers[0], prompts[0], (), _text_choice, "cmpl")
            return StreamingResponse(chunks, media_type="text/event-stream")
        for answer, ids in zip(answers, prompts, strict=True):
            await self._complete(request, answer, ids, ())
        choices = [
            _text_choice(answer, Added(answer.text, "", answer.entries), 0) | {"index": index}
            for index, answer in enumerate(answers)
        ]
        usage = {key: sum(answer.usage[key] for answer in answers) for key in answers[0].usage}
        envelope = self._envelope("cmpl", "text_completion")
        return JSONResponse(envelope | {"choices": choices, "usage": usage})

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = await read_body(request)
        completion = parse_chat(body, self.settings, self._tokenizer.vocab_size)
        if is_caring(self.settings.care, self.engine.model):
            messages, crisis_help = await run_in_threadpool(without_crises, completion.messages)
            if crisis_help is not None:
                return self._care(completion, crisis_help)
            completion = replace(completion, messages=messages)
        ids, turn_ends = await run_in_threadpool(
            self.engine.chat_ids,
            completion.messages,
            completion.settings,
            special=completion.special,
            has_format=completion.form is not None,
        )
        completion = await run_in_threadpool(self.engine.resolved, completion, turn_ends)
        ends = self.engine.model.checkpoint.eos_token_ids + turn_ends
        splitter = splitter_after(self._tokenizer, ids) if completion.thoughts_apart else None
        answer = Answer(completion, self._tokenizer, ends, len(ids), splitter)
        if completion.stream:
            chunks = self._chunks(answer, ids, turn_ends, _chat_chunk, "chatcmpl")
            return StreamingResponse(chunks, media_type="text/event-stream")
        await self._complete(request, answer, ids, turn_ends)
        wants_logprobs = completion.n_candidates is not None
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None}
            | ({"reasoning_content": answer.thought} if answer.thought else {}),
            "logprobs": chat_logprobs(answer.entries) if wants_logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        envelope = self._envelope("chatcmpl", "chat.completion")
        return JSONResponse(envelope | {"choices": [choice], "usage": answer.usage})

    def _care(self, completion: Completion, crisis_help: Help) -> Response:
        """Answer in the place of the model."""
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if not completion.stream:
            envelope = self._envelope("chatcmpl", "chat.completion")
            choices = [care_choice(crisis_help)]
            return JSONResponse(envelope | {"choices": choices, "usage": usage})
        envelope = self._envelope("chatcmpl", "chat.completion.chunk")
        chunks: list[Json] = [{"choices": [each]} for each in care_chunks(crisis_help)]
        if completion.usage_at_end:
            chunks.append({"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(envelope | each)}\n\n" for each in chunks]
        return StreamingResponse([*lines, "data: [DONE]\n\n"], media_type="text/event-stream")

    def _envelope(self, prefix: str, kind: str) -> Json:
        created = int(time.time())
        name = f"{prefix}-{token_hex(12)}"
        return {"id": name, "object": kind, "created": created, "model": self.name}

    async def _complete(
        self, request: Request, answer: Answer, ids: tuple[int, ...], turn_ends: tuple[int, ...]
    ) -> None:
        """Compute an answer. A client that leaves ends it: raises ClientDisconnect then."""

        async def compute() -> None:
            async for event in self.engine.run(answer.completion, ids, turn_ends):
                answer.add(event)

        computing = asyncio.create_task(compute())
        try:
            while not (await asyncio.wait([computing], timeout=0.2))[0]:
                if await request.is_disconnected():
                    raise ClientDisconnect
            await computing
        finally:
            computing.cancel()
        if answer.finish_reason is None:
            raise RequestError(503, "the server is ending")

    async def _chunks(
        self,
        answer: Answer,
        ids: tuple[int, ...],
        turn_ends: tuple[int, ...],
        make_choice: "Callable[[Answer, Added, int], Json]",
        prefix: str,
    ) -> AsyncIterator[str]:
        """Yield the answer as server-sent events; an error, if one comes, is the last."""
        kind = "text_completion" if prefix == "cmpl" else "chat.completion.chunk"
        envelope = self._envelope(prefix, kind)

        def chunk(**fields: Any) -> str:
            return f"data: {json.dumps(envelope | fields)}\n\n"

        try:
            if prefix == "chatcmpl":
                role = {"role": "assistant", "content": ""}
                first = {"index": 0, "delta": role, "logprobs": None, "finish_reason": None}
                yield chunk(choices=[first])
            async for event in self.engine.run(answer.completion, ids, turn_ends):
                start = len(answer.text)
                yield chunk(choices=[make_choice(answer, answer.add(event), start)])
            if answer.completion.usage_at_end:
                yield chunk(choices=[], usage=answer.usage)
            yield "data: [DONE]\n\n"
        except (RequestError, UserError) as error:
            yield f"data: {json.dumps(error_body(str(error), None))}\n\n"


def _text_choice(answer: Answer, added: Added, start: int) -> Json:
    wants_logprobs = answer.completion.n_candidates is not None
    return {
        "index": 0,
        "text": added.text,
        "logprobs": text_logprobs(added.entries, start) if wants_logprobs else None,
        "finish_reason": answer.finish_reason,
    }


def _chat_chunk(answer: Answer, added: Added, _start: int) -> Json:
    wants_logprobs = answer.completion.n_candidates is not None and added.entries
    delta = {"reasoning_content": added.thought} if added.thought else {}
    if added.text or (added.entries and not delta):
        delta["content"] = added.text
    return {
        "index": 0,
        "delta": delta,
        "logprobs": chat_logprobs(added.entries) if wants_logprobs else None,
        "finish_reason": answer.finish_reason,
    }


async def read_body(request: Request) -> Mapping[str, Any]:
    """Return the JSON object of a request. Raises RequestError."""
    # A page in a browser can send anything but this to a server on this machine without asking.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RequestError(415, "the content type must be application/json")
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return parse_body(await _read_bytes(request))
    except TimeoutError:
        raise RequestError(408, f"the body did not come within {_BODY_SECONDS:g} seconds") from None


async def _read_bytes(request: Request) -> bytes:
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > _MAX_BODY:
            raise RequestError(413, f"the body is larger than {_MAX_BODY >> 20} MB")
    return bytes(data)


def error_body(message: str, field_name: str | None) -> Json:
    """Return an error as OpenAI's API has it; the field that is wrong, if there is one."""
    return {
        "error": {"message": message, "type": "invalid_request_error", "param": field_name}
        | {"code": None}
    }
