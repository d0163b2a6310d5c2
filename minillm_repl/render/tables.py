"""Draws what commands show: settings, help, a model's card, the tokens of a text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from minillm_repl.model.config import GPTConfig
from minillm_repl.render.console import CUT, FIGURES, MODEL, TITLE
from minillm_repl.safetext import safe_line, show_token
from minillm_repl.settings import default_of, show, specs, value_of


def plain_table(*columns: str) -> Table:
    """Return an empty table in the house style."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style=FIGURES, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def settings_table(settings: Any) -> Table:
    """Return all settings: name, value, default, unit, meaning; what differs from its default is bold."""
    table = plain_table("setting", "value", "default", "unit", "meaning")
    for name, spec in specs(settings).items():
        value, default = value_of(settings, name), default_of(settings, name)
        table.add_row(
            name, Text(show(spec, value), TITLE if value != default else ""), show(spec, default), spec.unit, spec.help
        )
    return table


def commands_table(rows: Iterable[tuple[str, str]]) -> Table:
    """Return usages and summaries side by side."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=TITLE, no_wrap=True)
    table.add_column()
    for usage, summary in rows:
        table.add_row(usage, summary)
    return table


def headline(name: str, config: GPTConfig, runs_on: str = "") -> str:
    """Return a model in one line."""
    facts = (
        name,
        "GPT",
        f"{config.parameters:,} parameters",
        f"{config.vocab:,} tokens",
        f"context {config.context}",
        runs_on,
    )
    return safe_line(" · ".join(fact for fact in facts if fact))


def card(rows: Mapping[str, str]) -> Table:
    """Return names and values; values are made safe."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=FIGURES, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, safe_line(value))
    return table


@dataclass(frozen=True)
class TokenView:
    """The tokens of a text: ids and bytes, side by side."""

    text: str
    ids: Sequence[int]
    pieces: Sequence[bytes]


def tokens_table(view: TokenView) -> Table:
    """Return a table of tokens, one a row."""
    table = plain_table("#", "token", "id", "bytes")
    for place, (token, piece) in enumerate(zip(view.ids, view.pieces, strict=True)):
        table.add_row(str(place), Text(show_token(piece), MODEL), str(token), Text(piece.hex(" ").upper(), CUT))
    return table


def tokens_line(view: TokenView) -> Text:
    """Return `3 tokens · 3 characters · 9 bytes`."""
    size = len(view.text.encode("utf-8", "replace"))
    return Text(f"{len(view.ids)} tokens · {len(view.text)} characters · {size} bytes", FIGURES)
