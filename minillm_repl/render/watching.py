"""Draws how a model learnt what comes after a prompt."""

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.changes import Moment, WatchView
from minillm_repl.language import _
from minillm_repl.render.bars import bar
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import component_name, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Token

_ROWS = 20


def watch_picture(view: WatchView, width: int) -> RenderableType:
    """Return a row for each moment, or so many: what was likely, and since which layer."""
    last = len(view.moments) - 1
    rows = sorted({round(place * last / (_ROWS - 1)) for place in range(_ROWS)})
    bars = 20 if width >= 100 else 8
    answer = view.answer.label
    table = plain_table(
        _("step"),
        f"p({answer})",
        "",
        _("most likely"),
        _("{token} from", token=answer),
        _("attends to most"),
    )
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if place in (0, 1) else "left", place != 3
    for moment in (view.moments[row] for row in rows):
        likeliest = Text(" ").join(
            short_label(likely.token, 8) for likely in moment.top[: 3 if width < 100 else 5]
        )
        first = component_name(moment.lens.first) if moment.top[0].token == view.answer else "–"
        table.add_row(
            f"{moment.step:,}",
            percent(moment.prob),
            Text(bar(moment.prob, bars), MODEL),
            likeliest,
            first,
            _look(moment),
        )
    notes = [
        _("from: first layer from which the logit lens keeps {token} on top", token=answer),
        _("attends to most: the head and the token with the largest weight"),
        _("`:watch step=N` shows one step"),
    ]
    if len(rows) <= last:
        notes.insert(2, _("{n} of {all} moments", n=len(rows), all=last + 1))
    return Group(
        title(_("how it learned"), _("next token after {text}", text=_text(view.tokens))),
        table,
        Text(" · ".join(notes), FIGURES),
    )


def moment_picture(moment: Moment, width: int) -> RenderableType:
    """Return the logit lens and the attention of one moment."""
    return Group(
        Text(_("after step {step:,}", step=moment.step), FIGURES),
        moment.lens.draw(width),
        moment.attention.draw(width),
    )


def moment_line(moment: Moment, prompt: str) -> Text:
    """Return what is likely after the prompt right now, in one line."""
    line = Text.assemble(
        (_("watch") + " ", FIGURES),
        safe_line(prompt),
        (" → ", FIGURES),
        no_wrap=True,
        overflow="ellipsis",
    )
    for likely in moment.top:
        line.append_text(short_label(likely.token, 8)).append(f" {percent(likely.prob)}  ")
    return line


def _look(moment: Moment) -> Text:
    head = max(moment.attention.heads, key=lambda head: head.looked[0][1])
    place, weight = head.looked[0]
    token = moment.attention.tokens[moment.attention.index_of(place)]
    return Text.assemble(
        (f"{head.layer}.{head.head} ", TITLE),
        short_label(token, 8),
        (f" @{place}", FIGURES),
        f" {weight:.0%}",
    )


def _text(tokens: tuple[Token, ...]) -> str:
    return "".join(token.label for token in tokens[-20:])
