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

_CPU_SECONDS, _MEMORY, _LONGEST = 5, 4 << 30, 4_000_000
_TEMPLATE_MEMORY = 1 << 30
_TRIALS = (
    *("", "Hello, world 12\n\t ", "안녕하세요 👋🏽", "<s>\x00\ufffd"),
    # Long runs of one character are what expressions that take for ever, and texts that grow
    # without end, need.
    *(character * 64 + "!" for character in "aA0 \n._가"),
)
_MOST_TOKENS = 4_096  # of one of them


def render(
    template: str,
    variables: dict[str, str],
    conversations: list[tuple[list[dict[str, str]], bool]],
    tried: list[list[dict[str, str]]],
) -> tuple[list[tuple[str, list[tuple[int, int]]]], list[str]]:
    """Return what a chat template makes of conversations, each with or without the start of an
    answer.

    Beside each text are the parts that the template marks as an answer. Then come the texts of
    conversations that are only tried: of one that is refused, an empty one. It sees what the
    `transformers` library shows to a template.
    """
    pieces: list[str] = []  # of the text that is being made
    answers: list[tuple[int, int]] = []  # its parts that are marked
    environment = template_environment(pieces, answers)
    limit(_TEMPLATE_MEMORY)
    made, length = environment.from_string(template), 0

    def text_of(messages: list[dict[str, str]], prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        nonlocal length
        pieces.clear()
        answers.clear()
        known = {
            **variables,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        for piece in made.generate(**known):
            pieces.append(piece)
            length += len(piece)
            if length > _LONGEST:
                refuse(f"its text is longer than {_LONGEST:,} characters")
        return "".join(pieces), answers.copy()

    def try_text(messages: list[dict[str, str]]) -> str:
        try:
            return text_of(messages, False)[0]
        except Exception:  # noqa: BLE001 - a stranger's work may raise anything
            return ""

    return [text_of(messages, prompt) for messages, prompt in conversations], [
        try_text(each) for each in tried
    ]


def refuse(message: str) -> NoReturn:
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
    environment.globals["dict"] = lambda *pairs, **named: dict(*pairs, **named)  # noqa: PLW0108 - not the type itself
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def try_tokenizer(description: str) -> int:
    """Make a tokenizer and use it; return the largest id it gave."""
    import tokenizers

    limit()
    library = tokenizers.Tokenizer.from_str(description)
    library.no_truncation()
    library.no_padding()
    largest = 0
    for text in _TRIALS:
        ids = library.encode(text).ids
        if len(ids) > _MOST_TOKENS:
            raise ValueError(f"it makes {len(ids):,} tokens of {len(text)} characters")
        library.decode(ids)
        largest = max(largest, *ids, 0)
    return largest


def limit(memory: int = _MEMORY) -> None:
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
    except Exception as error:  # noqa: BLE001 - a stranger's work may raise anything; this process ends here
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
