"""A model on a server as the open model: the same session, and one line for what it cannot do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from minillm_repl.chat import Message, Prompt
from minillm_repl.checkpoint import ChatTemplate, Checkpoint
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.repl.settings import check_recommended
from minillm_repl.safetext import safe_line

if TYPE_CHECKING:
    from minillm_repl.remote import Facts
    from minillm_repl.remote.decoder import RemoteDecoder
    from minillm_repl.remote.engines import Engine
    from minillm_repl.remote.tokenizer import RemoteTokenizer


class _NoWeights(Mapping[str, Any]):
    """The weights of a model that is elsewhere: each look at them raises UserError."""

    def __init__(self, message: str) -> None:
        self._message = message

    def _refuse(self) -> NoReturn:
        raise UserError(self._message)

    def __getitem__(self, _name: str) -> Any:
        self._refuse()

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    def __len__(self) -> int:  # noqa: PLE0303 - it returns nothing at all
        self._refuse()


class _NoConfig:
    """What is known of the sizes of such a model; any other size raises UserError."""

    def __init__(self, vocab_size: int, context_length: int, message: str) -> None:
        self.vocab_size, self.context_length = vocab_size, context_length
        self._message = message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(self._message)


@dataclass(frozen=True, kw_only=True)
class ServerModel:
    """What a server tells of its model, for headings."""

    name: str
    source: str  # the engine and its address
    cares: bool  # its server answers a crisis in its place; then the program does so here
    headline: str  # what it is, in one line
    numbers: str  # whose numbers its views show, and which of them the server tells
    models: tuple[str, ...]  # the names of all that the server has


def describe(facts: "Facts", names: tuple[str, ...]) -> ServerModel:
    """Return what to say of a model on a server."""
    name = safe_line(facts.model[:200])
    parts = [name, facts.source]
    if facts.vocab_size:
        parts.append(_("{n:,} tokens", n=facts.vocab_size))
    if facts.context_length:
        parts.append(_("context {n:,}", n=facts.context_length))
    numbers = numbers_line(facts)
    return ServerModel(
        name=name,
        source=facts.source,
        cares=facts.cares,
        headline=safe_line(" · ".join([*parts, numbers])),
        numbers=safe_line(f"{facts.source} · {numbers}"),
        models=names,
    )


def numbers_line(facts: "Facts") -> str:
    """Return which probabilities a server tells."""
    if facts.is_full:
        return _("all probabilities, before the samplers")
    listed = max(facts.n_listed, facts.n_listed_chat or 0)
    if not listed:
        return _("no probabilities")
    if facts.stage == "raw":
        return _("probabilities of {n} tokens a step, before the samplers", n=listed)
    if facts.stage == "sampled":
        return _("probabilities of {n} tokens a step, after the temperature", n=listed)
    return _("probabilities of {n} tokens a step, as the server is set", n=listed)


def open_remote(url: str, name: str, key: str) -> "tuple[Checkpoint, RemoteDecoder, ServerModel]":
    """Open a model on a server. Raises UserError."""
    try:
        from minillm_repl.remote.address import parse_url
        from minillm_repl.remote.http import Connection
    except ImportError as error:
        raise UserError(
            _(
                "a model on a server needs the package {name}: "
                "`pip install 'minillm-repl[remote]'`",
                name=safe_line(str(error.name)),
            )
        ) from None
    from minillm_repl.remote.decoder import RemoteDecoder, weights_elsewhere
    from minillm_repl.remote.probe import open_engine
    from minillm_repl.remote.tokenizer import RemoteTokenizer

    engine, names = open_engine(Connection(parse_url(url, key)), name)
    tokenizer, facts = RemoteTokenizer(engine), engine.facts
    decoder = RemoteDecoder(engine, tokenizer)
    message = weights_elsewhere(facts.source)
    config = _NoConfig(facts.vocab_size or 0, decoder.context_length, message)
    render = partial(_render, engine, tokenizer)
    checkpoint = Checkpoint(
        config=cast("AnyConfig", config),
        tokenizer=tokenizer,
        tensors=_NoWeights(message),
        chat_template=ChatTemplate(facts.template, remote=render) if facts.chats else None,
        eos_token_ids=facts.eos_token_ids,
        recommended=check_recommended(facts.recommended)[0],
    )
    return checkpoint, decoder, describe(facts, names)


def _render(
    engine: "Engine",
    tokenizer: "RemoteTokenizer",
    messages: Sequence[Message],
    parse_special: bool,
    variables: Mapping[str, Any],
) -> Prompt:
    rendered = engine.render(messages, variables, parse_special=parse_special)
    if rendered is None:
        return Prompt([tokenizer.intern_messages(messages, variables)], ())
    return Prompt(list(rendered.ids), rendered.eos_token_ids)
