"""The other process: one job as JSON on stdin, its answer or an error on stdout.

It is started by its path and imports nothing of this package: what runs here is a stranger's, and
has nothing else to hold on to.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

_CPU_SECONDS, _MAX_MEMORY, _MAX_CHARACTERS = 5, 4 << 30, 4_000_000
_TEMPLATE_MEMORY = 1 << 30
_PROBE_TEXTS = (
    *("", "Hello, world 12\n\t ", "안녕하세요 👋🏽", "<s>\x00\ufffd"),
    # Long runs of one character are what expressions that take for ever, and texts that grow
    # without end, need.
    *(character * 64 + "!" for character in "aA0 \n._가"),
)
_MAX_TOKENS = 4_096  # of one of them


def render(
    template: str,
    variables: dict[str, str],
    conversations: list[tuple[list[dict[str, str]], bool]],
    probes: list[list[dict[str, str]]],
) -> tuple[list[tuple[str, list[tuple[int, int]]]], list[str]]:
    """Return what a chat template makes of conversations, with or without an answer's start.

    Beside each text are the parts that the template marks as an answer. Then come the texts of
    conversations that are only tried: of one that is refused, an empty one. It sees what the
    `transformers` library shows to a template.
    """
    chunks: list[str] = []  # of the text that is being made
    answers: list[tuple[int, int]] = []  # its parts that are marked
    environment = template_environment(chunks, answers)
    limit_resources(_TEMPLATE_MEMORY)
    compiled, length = environment.from_string(template), 0

    def render_one(
        messages: list[dict[str, str]], prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        nonlocal length
        chunks.clear()
        answers.clear()
        context = {
            **variables,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        for piece in compiled.generate(**context):
            chunks.append(piece)
            length += len(piece)
            if length > _MAX_CHARACTERS:
                raise_template_error(f"its text is longer than {_MAX_CHARACTERS:,} characters")
        return "".join(chunks), answers.copy()

    def render_or_empty(messages: list[dict[str, str]]) -> str:
        try:
            return render_one(messages, False)[0]
        except Exception:  # noqa: BLE001 - a stranger's work may raise anything
            return ""

    return [render_one(messages, prompt) for messages, prompt in conversations], [
        render_or_empty(each) for each in probes
    ]


def raise_template_error(message: str) -> NoReturn:
    """Raise what a template may raise itself."""
    from jinja2 import TemplateError

    raise TemplateError(message)


def template_environment(pieces: list[str], answers: list[tuple[int, int]]) -> Any:
    """Return Jinja's immutable sandbox, with what the `transformers` library adds to it.

    `pieces` are those of the text that is being made; where an answer is marked in it goes to
    `answers`.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant said, for training."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's way

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            text, start = caller(), sum(map(len, pieces))
            answers.append((start, start + len(text)))
            return text

    def tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    # Autoescaping is for HTML; what comes out here is a prompt.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.pop("lipsum", None)
    # A function, not the type itself.
    environment.globals["dict"] = lambda *pairs, **named: dict(*pairs, **named)  # noqa: PLW0108
    environment.globals["raise_exception"] = raise_template_error
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def try_tokenizer(description: str) -> int:
    """Make a tokenizer and use it; return the largest id it gave."""
    import tokenizers

    limit_resources()
    library = tokenizers.Tokenizer.from_str(description)
    library.no_truncation()
    library.no_padding()
    largest = 0
    for text in _PROBE_TEXTS:
        ids = library.encode(text).ids
        if len(ids) > _MAX_TOKENS:
            raise ValueError(f"it makes {len(ids):,} tokens of {len(text)} characters")
        library.decode(ids)
        largest = max(largest, *ids, 0)
    return largest


def limit_resources(memory: int = _MAX_MEMORY) -> None:
    """Limit what the rest of this process can use up.

    Elsewhere than on Unix only the parent's clock does.
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    try:
        jobs: dict[str, Callable[..., Any]] = {"template": render, "tokenizer": try_tokenizer}
        answer = {"answer": jobs[sys.argv[1]](**request)}
        json.dumps(answer).encode()
    except MemoryError:
        answer = {"error": "it used too much memory"}
    # A stranger's work may raise anything; this process ends here.
    except Exception as error:  # noqa: BLE001
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
