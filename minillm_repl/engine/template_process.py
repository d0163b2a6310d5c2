"""Renders one chat template, as a process of its own: a request as JSON on stdin, the text or an error on stdout.

It is started by its path and imports nothing of this package: what runs here is a stranger's, and has nothing else to
hold on to. What the template sees is what the `transformers` library shows to it.
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_CPU_SECONDS, _MEMORY, _LONGEST = 3, 1 << 30, 4_000_000


class Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; here it is just shown."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's way

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Take the block for what is in it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _limit() -> None:
    """Limit what a template can use up. Elsewhere than on Unix only the parent's clock does."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **more)


def _render(request: dict[str, Any]) -> str:
    # Autoescaping is for HTML; what comes out here is a prompt.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.pop("lipsum", None)
    environment.globals["dict"] = lambda *pairs, **named: dict(*pairs, **named)  # noqa: PLW0108 - not the type: its methods
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    template = environment.from_string(request["template"])
    pieces, length = [], 0
    for piece in template.generate(**request["variables"], messages=request["messages"], add_generation_prompt=True):
        pieces.append(piece)
        length += len(piece)
        if length > _LONGEST:
            _refuse(f"its text is longer than {_LONGEST:,} characters")
    return "".join(pieces)


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    _limit()
    try:
        answer = {"text": _render(request)}
        json.dumps(answer).encode()
    except MemoryError:
        answer = {"error": "it used too much memory"}
    except Exception as error:  # noqa: BLE001 - a stranger's template may raise anything; this process ends here
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
