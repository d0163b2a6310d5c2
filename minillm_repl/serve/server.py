"""The routes of `--serve`, and what no client may do."""

import hmac
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.settings import Settings
from minillm_repl.safetext import safe_line
from minillm_repl.serve import RequestError
from minillm_repl.serve.service import Service, error_body

_IDLE_SECONDS = 5  # between two requests of one connection
_MAX_CONNECTIONS = 256
_SHUTDOWN_SECONDS = 3  # for answers to end when the server does
_PORT = 8321
_ADDRESS = re.compile(r"(?:(\[[\da-fA-F:]+\]|[\w.-]*[A-Za-z.][\w.-]*)(?::|$)|:)?(\d{1,5})?")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine reach it."""
        return self.host in _LOOPBACK

    @property
    def url(self) -> str:
        """What a client is given as its base URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    # What remains of a body that is not wanted is not read: the connection ends.
    headers = {"connection": "close"} if error.status in (408, 413) else {}
    body = error_body(error.message, error.field_name)
    return JSONResponse(body, status_code=error.status, headers=headers)


async def _refuse_user_error(_request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(str(error), None), status_code=500)


async def _ignore_leaver(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


Handler = Callable[[Request], Awaitable[Response]]


def make_application(
    service: Service, *, key: str = "", address: Address | None = None
) -> Starlette:
    """Return the routes. With a key, each request must bring it; at a loopback address without
    one, it must have been sent to that address, which a page in a browser cannot pretend.
    """

    def guarded(handler: Handler) -> Handler:
        async def check(request: Request) -> Response:
            _check_allowed(request, key, address)
            return await handler(request)

        return check

    routes = {
        ("GET", "/v1/models"): service.models,
        ("GET", "/health"): service.health,
        ("GET", "/props"): service.properties,
        ("POST", "/v1/completions"): service.completions,
        ("POST", "/v1/chat/completions"): service.chat,
        ("POST", "/tokenize"): service.tokenize,
        ("POST", "/detokenize"): service.detokenize,
        ("POST", "/apply-template"): service.apply_template,
        ("POST", "/logits"): service.logits,
    }

    @asynccontextmanager
    async def lifespan(_application: Starlette) -> AsyncIterator[None]:
        yield
        service.engine.close()

    return Starlette(
        routes=[
            Route(path, guarded(handler), methods=[method])
            for (method, path), handler in routes.items()
        ],
        exception_handlers={
            RequestError: _refuse,
            UserError: _refuse_user_error,
            ClientDisconnect: _ignore_leaver,
        },
        lifespan=lifespan,
    )


def _check_allowed(request: Request, key: str, address: Address | None) -> None:
    if key:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if not hmac.compare_digest(sent, key.encode()):
            raise RequestError(401, "the key is missing or wrong: Authorization: Bearer KEY")
    elif address and address.is_loopback:
        host = request.headers.get("host", "").rpartition(":")
        if (host[0] or host[2]) not in _LOOPBACK:
            raise RequestError(403, "this server answers only requests to its own address")


def parse_address(text: str) -> Address:
    """Return the address of `HOST:PORT`, `HOST` or `PORT`. Raises UserError."""
    found = re.fullmatch(
        r"(?:(\[[\da-fA-F:]+\]|[\w.-]*[A-Za-z.][\w.-]*)(?::|$)|:)?(\d{1,5})?", text
    )
    if not found or int(found[2] or 0) >= 1 << 16:
        raise UserError(_("{text} is no HOST:PORT", text=safe_line(text)))
    host, port = found.groups()
    return Address(
        host=(host or _LOOPBACK[0]).strip("[]"), port=_PORT if port is None else int(port)
    )


def serve(
    model: LoadedModel,
    settings: Settings,
    address: Address,
    key: str,
    on_ready: Callable[[Address], None],
) -> None:
    """Answer requests until Ctrl-C or SIGTERM. Raises UserError if the address cannot be had."""
    # A client that leaves is no fault of ours: asyncio warns at each write to it.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    service = Service(model, settings)
    config = uvicorn.Config(
        make_application(service, key=key, address=address),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        limit_concurrency=_MAX_CONNECTIONS,
    )
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listening = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UserError(
            _(
                "cannot listen at {address}: {error}",
                address=address.url,
                error=os_error_text(error),
            )
        ) from None
    # Connections inherit it. Without it, each answer waits 40 ms for the client's acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listening, suppress(KeyboardInterrupt):
        on_ready(Address(host=address.host, port=listening.getsockname()[1]))
        uvicorn.Server(config).run([listening])
