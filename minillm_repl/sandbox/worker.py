"""The second process: one job as JSON on stdin, its answer or an error as JSON on stdout.

It is started by its path and imports nothing of this package. Untrusted code runs here, and it
finds nothing of the program to use.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

_CPU_SECONDS = 5
_MAX_MEMORY = 4 << 30  # bytes; the largest vocabularies need 1 GiB
_TEMPLATE_MEMORY = 1 << 30  # bytes
_GRAMMAR_MEMORY = 1 << 30  # bytes
_GRAMMAR_STEPS = 64  # bytes of a text of the form
_MAX_CHARACTERS = 4_000_000  # in all texts that a template makes
_PROBE_TEXTS = (
    *("", "Hello, world 12\n\t ", "안녕하세요 👋🏽", "<s>\x00\ufffd"),
    # Long runs of one character expose expressions that backtrack for ever.
    *(character * 64 + "!" for character in "aA0 \n._가"),
)
_MAX_TOKENS = 4_096  # of one probe text


def render(
    template: str,
    variables: dict[str, Any],
    conversations: list[tuple[list[dict[str, str]], bool]],
    probes: list[list[dict[str, str]]],
) -> tuple[list[tuple[str, list[tuple[int, int]]]], list[str]]:
    """Return the texts of conversations, each with its marked answers, and the texts of probes.

    A conversation comes with a flag: whether the start of an answer follows it. A marked answer
    is a pair of character positions. A probe that the template refuses becomes an empty text. The
    template sees the same variables as in the `transformers` library.
    """
    chunks: list[str] = []  # of the text in progress
    answers: list[tuple[int, int]] = []  # marked in the text in progress
    environment = template_environment(chunks, answers)
    limit_resources(_TEMPLATE_MEMORY)
    compiled = environment.from_string(template)
    length = 0  # characters of all texts so far

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
        # Any error: a template is a stranger's program, and a probe may well fail.
        except Exception:  # noqa: BLE001
            return ""

    rendered = [render_one(messages, prompt) for messages, prompt in conversations]
    return rendered, [render_or_empty(each) for each in probes]


def raise_template_error(message: str) -> NoReturn:
    """Raise Jinja's own error: templates call this to refuse a conversation."""
    from jinja2 import TemplateError

    raise TemplateError(message)


def template_environment(chunks: list[str], answers: list[tuple[int, int]]) -> Any:
    """Return Jinja's immutable sandbox, with the additions of the `transformers` library.

    `chunks` is the text in progress. The sandbox appends the marked answers of it to `answers`.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an answer of the assistant, for training."""

        tags = {"generation"}  # noqa: RUF012 - Jinja reads it so

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            text = caller()
            start = sum(map(len, chunks))
            answers.append((start, start + len(text)))
            return text

    def tojson(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    # No autoescape: the output is a prompt, not HTML.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.pop("lipsum", None)
    # A function, because the type itself leads to other classes.
    environment.globals["dict"] = lambda *pairs, **named: dict(*pairs, **named)  # noqa: PLW0108
    environment.globals["raise_exception"] = raise_template_error
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def try_tokenizer(description: str) -> int:
    """Make a tokenizer, encode the probe texts, and return the largest id."""
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


def try_grammar(kind: str, text: str, options: Any) -> str:
    """Compile a format, and go some steps in it; return it as llguidance takes it.

    The kinds are `json` (a JSON Schema), `regex` and `grammar` (of Lark or llama.cpp).
    """
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
    from llguidance.gbnf_to_lark import any_to_lark

    limit_resources(_GRAMMAR_MEMORY)
    if kind == "json":
        json.loads(text)  # its errors name a line
        grammar = LLMatcher.grammar_from_json_schema(text, options)
    elif kind == "regex":
        grammar = LLMatcher.grammar_from_regex(text)
    else:
        grammar = LLMatcher.grammar_from_lark(any_to_lark(text))
    library = LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=[256], slices=[])
    matcher = LLMatcher(library, grammar, log_level=0)
    for _step in range(_GRAMMAR_STEPS):
        if matcher.is_error():
            raise ValueError(_short(matcher.get_error()))
        mask = matcher.compute_bitmask()
        following = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if matcher.is_error() or not following:
            break
        # A different byte at each step, so that not all steps repeat one.
        matcher.consume_token(following[_step * 7 % len(following)])
    if matcher.is_error():
        raise ValueError("no text has this form, or it takes too many steps to find one")
    return grammar


def _short(error: str) -> str:
    """Return the line of an error of several that says what is wrong."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["unknown"]
    return next((line for line in lines if line.startswith("error: ")), lines[0])


class _Bytes:
    """A vocabulary of bytes, and an end token."""

    eos_token_id, bos_token_id = 256, None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def limit_resources(memory: int = _MAX_MEMORY) -> None:
    """Limit the CPU time (seconds) and the memory (bytes) of the rest of this process.

    Only Unix has such limits. Elsewhere the parent's timeout is the only one.
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
        jobs: dict[str, Callable[..., Any]] = {
            "template": render,
            "tokenizer": try_tokenizer,
            "grammar": try_grammar,
        }
        answer = {"answer": jobs[sys.argv[1]](**request)}
        json.dumps(answer).encode()
    except MemoryError:
        answer = {"error": "it used too much memory"}
    # Any error: untrusted work may raise anything, and the parent reports it.
    except Exception as error:  # noqa: BLE001
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
