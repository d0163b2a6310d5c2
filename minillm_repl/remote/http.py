"""A connection to a server: requests that can be stopped, within limits of time and size.

The server is not trusted. No redirect is followed, TLS is verified, answers are bounded, and the
key goes to no other place than the one that the user named.
"""

import asyncio
import json
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from minillm_repl.errors import UserError
from minillm_repl.generate import never_interrupted
from minillm_repl.language import _
from minillm_repl.remote.address import Address
from minillm_repl.safetext import safe_line

_MOST_SHOWN = 300  # characters of what a server says went wrong
_POLL = 0.05  # seconds between two looks for Ctrl-C
_MAX_PENDING = 64  # chunks that nobody has read yet


class Stopped(UserError):  # noqa: N818 - a wish, not an error
    """Ctrl-C ended a request."""


class ServerError(UserError):
    """A server refused a request, or did not answer it."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status  # of HTTP; 0 where there was no answer


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long an answer may take, and how large it may be."""

    connect_seconds: float = 10.0
    idle_seconds: float = 300.0  # between two chunks: a long prompt is read in silence
    total_seconds: float = 3600.0
    probe_seconds: float = 20.0  # of a request that only asks what there is
    max_bytes: int = 64 << 20  # of one JSON document: 150,000 tokens with numbers take 20 MB
    max_stream_bytes: int = 1 << 30


class Connection:
    """Requests to one server. One thread carries them all out, so that each can be stopped."""

    def __init__(self, address: Address, limits: Limits | None = None) -> None:
        self.address, self.limits = address, limits or Limits()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx.AsyncClient | None = None

    def get(self, path: str) -> Any:
        """Return the JSON of a page. Raises ServerError."""
        return self._json("GET", path, None, never_interrupted, self.limits.probe_seconds)

    def ask(self, path: str, body: Any) -> Any:
        """Return the JSON that answers a question of the probe. Raises ServerError."""
        return self._json("POST", path, body, never_interrupted, self.limits.probe_seconds)

    def post(
        self, path: str, body: Any, interrupted: Callable[[], bool] = never_interrupted
    ) -> Any:
        """Return the JSON that answers a request. Raises ServerError, and Stopped."""
        return self._json("POST", path, body, interrupted, self.limits.total_seconds)

    def _json(
        self, method: str, path: str, body: Any, interrupted: Callable[[], bool], seconds: float
    ) -> Any:
        most = self.limits.max_bytes
        data = bytearray()
        for chunk in self._chunks(method, path, body, interrupted, seconds, most):
            data += chunk
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ServerError(
                _("{server} did not answer with JSON", server=self.address.name)
            ) from None

    def stream(
        self, path: str, body: Any, interrupted: Callable[[], bool] = never_interrupted
    ) -> Iterator[bytes]:
        """Yield the chunks of an answer as they come. Closing this closes the connection.

        Raises ServerError, and Stopped.
        """
        limits = self.limits
        yield from self._chunks(
            "POST", path, body, interrupted, limits.total_seconds, limits.max_stream_bytes
        )

    def _chunks(
        self,
        method: str,
        path: str,
        body: Any,
        interrupted: Callable[[], bool],
        seconds: float,
        max_bytes: int,
    ) -> Iterator[bytes]:
        inbox = queue.SimpleQueue[bytes | Exception | None]()
        work = self._fetch(method, path, body, max_bytes, inbox)
        future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        idle = min(seconds, self.limits.idle_seconds)
        deadline, silent_since = time.monotonic() + seconds, time.monotonic()
        try:
            while True:
                try:
                    chunk = inbox.get(timeout=_POLL)
                except queue.Empty:
                    chunk = b""
                now = time.monotonic()
                if interrupted():
                    raise Stopped(_("stopped"))
                if chunk is None:
                    return
                if isinstance(chunk, Exception):
                    raise self._explain(chunk) from None
                if chunk:
                    silent_since = now
                if now > deadline or now - silent_since > idle:
                    raise self._late(now - silent_since > idle, seconds, idle)
                if chunk:
                    yield chunk
        finally:
            future.cancel()

    async def _fetch(
        self,
        method: str,
        path: str,
        body: Any,
        max_bytes: int,
        inbox: "queue.SimpleQueue[bytes | Exception | None]",
    ) -> None:
        try:
            assert self._client is not None
            content = None if body is None else json.dumps(body).encode()
            request = self._client.build_request(method, self.address.url + path, content=content)
            response = await self._client.send(request, stream=True)
            try:
                await self._check(response)
                received = 0
                async for chunk in response.aiter_raw():
                    received += len(chunk)
                    if received > max_bytes:
                        raise ServerError(self._too_large(max_bytes))
                    while inbox.qsize() > _MAX_PENDING:
                        await asyncio.sleep(_POLL)
                    inbox.put(chunk)
            finally:
                await response.aclose()
            inbox.put(None)
        # Whatever it is, the thread that waits must be told.
        except Exception as error:  # noqa: BLE001
            inbox.put(error)

    async def _check(self, response: httpx.Response) -> None:
        """Raise ServerError for an answer that is a redirect, an error, or compressed."""
        status, server = response.status_code, self.address.name
        if response.is_redirect:
            place = self._clean(response.headers.get("location", ""))
            message = _("{server} sends to another address: {place}", server=server, place=place)
            raise ServerError(message, status)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ServerError(_("{server} compresses its answers, unasked", server=server), status)
        if status >= 400:
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > 1 << 16:
                    break
            said = self._clean(error_text(bytes(data)))
            message = _("{server} refuses ({status}): {said}",
                        server=server, status=status, said=said)  # fmt: skip
            raise ServerError(self._key_hint(status, message), status)

    def _key_hint(self, status: int, message: str) -> str:
        if status != 401 or self.address.sendable_key:
            return message
        if self.address.key:
            return _("{message}; the key is not sent: http:// would show it on the way",
                     message=message)  # fmt: skip
        return _("{message}; a key goes into MINILLM_API_KEY", message=message)

    def _clean(self, text: str) -> str:
        """Return what a server said, for the terminal: without the key, on one line, and short."""
        key = self.address.key
        return safe_line((text.replace(key, "…") if key else text)[:_MOST_SHOWN])

    def error(self, text: str) -> ServerError:
        """Return the error that a server reports in the middle of an answer."""
        said = self._clean(text)
        return ServerError(_("{server} reports: {said}", server=self.address.name, said=said))

    def _too_large(self, max_bytes: int) -> str:
        return _("{server} answers with more than {n:,} MB",
                 server=self.address.name, n=max_bytes >> 20)  # fmt: skip

    def _late(self, is_idle: bool, seconds: float, idle: float) -> ServerError:
        server = self.address.name
        if is_idle:
            return ServerError(_("{server} says nothing for {n:g} seconds", server=server, n=idle))
        return ServerError(_("{server} is not done after {n:g} seconds", server=server, n=seconds))

    def _explain(self, error: Exception) -> UserError:
        server, said = self.address.name, self._clean(str(error) or type(error).__name__)
        if isinstance(error, UserError):
            return error
        if isinstance(error, httpx.ConnectTimeout):
            seconds = self.limits.connect_seconds
            return ServerError(
                _("{server} does not answer within {n:g} seconds", server=server, n=seconds)
            )
        if isinstance(error, httpx.ConnectError):
            if "attempts failed" in said:  # httpx's words for: nobody listens there
                return ServerError(
                    _("{server} does not answer: is it running there?", server=server)
                )
            return ServerError(_("cannot reach {server}: {error}", server=server, error=said))
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
            return ServerError(
                _("{server} broke off its answer: {error}", server=server, error=said)
            )
        return ServerError(_("{server} cannot be asked: {error}", server=server, error=said))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            client, loop = self._make_client(), asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(loop,), daemon=True).start()
            self._client, self._loop = client, loop
            weakref.finalize(self, _close, client, loop)  # with the model that it belonged to
        return self._loop

    def _make_client(self) -> httpx.AsyncClient:
        key = self.address.sendable_key
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        return httpx.AsyncClient(
            headers=headers | ({"authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(None, connect=self.limits.connect_seconds),
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE counts
            follow_redirects=False,
            trust_env=False,  # neither .netrc nor a proxy gets the key
        )


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
    """Close all that is open, and end the thread."""

    async def close() -> None:
        await client.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)


def error_text(data: bytes) -> str:
    """Return what an error of a server says: `{"error": {"message": …}}`, or the text itself."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return data.decode("utf-8", "replace")
    return error_of(found) or data.decode("utf-8", "replace")


def error_of(found: Any) -> str:
    """Return the message of an error object; empty for anything else."""
    if not isinstance(found, dict):
        return ""
    error = found.get("error") or found.get("detail") or found.get("message")
    if isinstance(error, dict):
        error = error.get("message") or error
    return str(error) if error else ""
