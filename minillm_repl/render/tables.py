"""Draws what commands show: settings, help, a model's card, the tokens of a text."""

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from minillm_repl.checkpoint.load_save import Summary
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.render.console import DROPPED, FIGURES, MODEL, SPECIAL, TITLE
from minillm_repl.safetext import safe_line
from minillm_repl.settings import default_of, format_value, specs, value_of
from minillm_repl.tokenizer import Token

WIDE, NARROW = 100, 72
"""Columns of a terminal: from the first on bars are long; below the second there are none and words
are folded, so that no number is cut."""

_STACKED = 60  # columns of a terminal: below, settings are no table
TABLE_GAP = 3  # cells between two columns of `plain_table`


def plain_table(
    *columns: str,
    right: Container[int] = (),
    wrap: Container[int] | None = None,
    narrow: bool = False,
) -> Table:
    """Return an empty table in the house style.

    `right` has the columns that are aligned to the right, `wrap` those that may take several lines:
    by default all. `narrow` leaves one cell between two columns, for a small terminal.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        # Top, right, bottom, left. The divider of the box is the third cell of TABLE_GAP.
        padding=(0, 0 if narrow else TABLE_GAP - 1, 0, 0),
        header_style=FIGURES,
        show_edge=False,
    )
    for index, column in enumerate(columns):
        table.add_column(
            column,
            overflow="fold",  # a number is never cut
            justify="right" if index in right else "left",
            no_wrap=wrap is not None and index not in wrap,
        )
    return table


def settings_table(
    settings: Any, sources: Mapping[str, str] = MappingProxyType({}), width: int = WIDE
) -> Table | Text:
    """Return all settings: name, value, meaning; bold, and with the default, if not the default.

    `sources` say where each value comes from; without them, this column is left out. In few columns
    the meaning stands below the others.
    """
    lines = Text()
    origin = (_("from"),) if sources else ()
    table = plain_table(_("setting"), _("value"), *origin, _("meaning"), wrap=(1, 2 + len(origin)))
    for name, spec in specs(settings).items():
        value, default = value_of(settings, name), default_of(settings, name)
        is_changed, shown = value != default, format_value(spec, value)
        # `auto` and `off` have no unit, and 1 would need another form of it.
        unit = f" {_(spec.unit)}" if spec.unit and shown.isdigit() and shown != "1" else ""
        meaning = Text(_(spec.help))
        if is_changed:
            default_text = format_value(spec, default) or "–"
            meaning.append(" " + _("(default {value})", value=default_text), FIGURES)
        cells = (Text(sources[name], FIGURES),) if sources else ()
        value_cell = Text((shown or "–") + unit, TITLE if is_changed else "")
        if width < _STACKED:
            origin_note = f"   {sources[name]}" if sources else ""
            lines.append_text(Text.assemble(name, " ", value_cell, (origin_note, FIGURES), "\n"))
            lines.append_text(Text.assemble("  ", meaning, "\n"))
            continue
        table.add_row(name, value_cell, *cells, meaning)
    lines.rstrip()
    return lines if width < _STACKED else table


def commands_table(rows: Iterable[tuple[str, str]], width: int | None = None) -> Table:
    """Return names or usages, in a column of `width` cells, and their summaries beside it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=TITLE, no_wrap=True, width=width)
    table.add_column()
    for usage, summary in rows:
        table.add_row(usage, summary)
    return table


def headline(name: str, family: str, config: AnyConfig, runs_on: str = "", context: int = 0) -> str:
    """Return a model in one line; `context` is how many tokens it sees if that was limited."""
    facts = (
        name,
        family,
        _("{n:,} parameters", n=config.n_params),
        _("{n:,} tokens", n=config.vocab_size),
        _("context {n:,}", n=min(context or config.context_length, config.context_length)),
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


def tokens_flow(tokens: Sequence[Token], kept: int = 0, unseen: int = 0) -> Text:
    """Return all tokens one after the other, each with its id, as many in a line as fit.

    After `kept` tokens, the `unseen` ones stand in brackets.
    """
    return _flow([(token, "", f" {token.id}") for token in tokens], kept, unseen)


def positions_flow(tokens: Sequence[Token], kept: int = 0, unseen: int = 0) -> Text:
    """Return all tokens one after the other, each after its position, as `tokens_flow` does."""
    return _flow([(token, f"@{at} ", "") for at, token in enumerate(tokens)], kept, unseen)


def _flow(labelled: Sequence[tuple[Token, str, str]], kept: int, unseen: int) -> Text:
    """Return tokens, each between what stands before and after it."""
    # `last` is the last unseen token. If all are seen, it lies before `kept` and matches none.
    flow, last = Text(), min(kept + unseen, len(labelled)) - 1
    for index, (token, before, after) in enumerate(labelled):
        is_unseen = kept <= index <= last
        flow.append("⟦" if is_unseen and index == kept else "", DROPPED)
        flow.append(before, DROPPED)
        flow.append(token.label, DROPPED if is_unseen else MODEL if token.bytes else SPECIAL)
        flow.append(after + ("⟧" if index == last and is_unseen else ""), DROPPED)
        flow.append("  ")
    return flow


def models_table(models: Iterable[tuple[str, str, Summary | None]]) -> Table:
    """Return a table of what can be opened: its name, where it comes from, and what it is."""
    table = plain_table(
        _("name"), _("source"), _("family"), _("parameters"), _("dtype"), _("size"), _("changed"),
        right=(3, 5), wrap=(0, 1, 2),
    )  # fmt: skip
    for name, source, summary in models:
        facts = _facts(summary) if summary else ("–", "", "", "", "")
        table.add_row(Text(safe_line(name), TITLE), source, *facts)
    return table


def _facts(summary: Summary) -> tuple[str, str, str, str, str]:
    # M is 10^6 parameters, MiB 2^20 bytes.
    parameters = f"{summary.parameters / 1e6:,.1f} M"
    size = f"{summary.size / 2**20:,.1f} MiB"
    day = f"{datetime.fromtimestamp(summary.modified):%Y-%m-%d}"  # in the user's time zone
    return summary.family, parameters, summary.dtype, size, day


def tokens_line(tokens: int, characters: int, size: int) -> Text:
    """Return `3 tokens · 3 characters · 9 bytes`."""
    return Text(
        _(
            "{tokens} tokens · {characters} characters · {size} bytes",
            tokens=tokens,
            characters=characters,
            size=size,
        ),
        FIGURES,
    )
