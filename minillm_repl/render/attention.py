"""Draws attention: a head as a matrix, a layer as small maps, and where the last token looked."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, zip_longest

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.insight.views.thinking import FocusView, HeadFocus, HeadView, LayerView, Pattern
from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    MAX_LABEL_WIDTH,
    UNLIMITED_WIDTH,
    fit_to_width,
    label_width,
    level,
    shade,
    title,
    token_style,
)
from minillm_repl.render.tables import plain_table

_CELL = 2  # columns of one weight: as wide as a Hangul syllable
_LOOKED = 8  # cells of a token that was looked at
_HEADS = 32  # that are listed, unless there is room for all
_MAP = 16  # tokens to an edge of a small map, at most
_EVEN = N_("in brackets: the score of uniform attention")


def head_picture(view: HeadView, width: int) -> RenderableType:
    """Return the matrix: rows ask, columns answer.

    Of a text too long for the width, the last tokens.
    """
    labels = label_width(view.tokens) if width > 40 else 5
    numbers = len(str(view.position_of(len(view.tokens) - 1)))
    lead = labels + numbers + 2
    room = max(1, (width - lead) // _CELL)
    first = max(0, len(view.tokens) - room)
    shown = range(first, len(view.tokens))
    lines = Text(no_wrap=True)
    for part in _column_labels([view.tokens[place].label for place in shown]):
        lines.append(" " * lead + part + "\n", MODEL)
    for place in shown:
        token, row = view.tokens[place], view.weights[place]
        lines.append(f"{view.position_of(place):>{numbers}} ", FIGURES)
        lines.append(fit_to_width(token.label, labels) + " ", token_style(token))
        lines.append(
            "".join(shade(row[column]) * _CELL for column in shown[: place - first + 1]), MODEL
        )
        lines.append(f"{'·':>{_CELL}}" * (len(view.tokens) - place - 1) + "\n", FIGURES)
    notes = [
        _("rows: queries · columns: keys · each row sums to 100% · ░ ≥20% ▒ ≥40% ▓ ≥60% █ ≥80%")
    ]
    notes += [_(_EVEN)] if view.patterns else []
    if first:
        notes.insert(
            0,
            _(
                "the last {n} of {all} tokens; :scroll shows all",
                n=len(shown),
                all=len(view.tokens),
            ),
        )
    return Group(
        title(
            _("layer {layer} head {head}", layer=view.layer, head=view.head),
            _patterns(view.patterns[: 3 if width < 100 else 5]),
        ),
        lines,
        Text("\n".join(notes), FIGURES),
    )


def head_pins(view: HeadView) -> tuple[int, int]:
    """Return how many rows and columns of a matrix name its tokens: they are to stay when the
    rest is scrolled.
    """
    labels = _column_labels([token.label for token in view.tokens])
    return 1 + len(labels), label_width(view.tokens) + len(
        str(view.position_of(len(view.tokens) - 1))
    ) + 2


def layer_picture(view: LayerView, width: int) -> RenderableType:
    """Return all heads of a layer as small maps, as many side by side as fit."""
    size = min(len(view.tokens), _MAP)
    cells = max(size * _CELL, 24)
    across = max(1, min((width + 3) // (cells + 3), len(view.heads)))
    grid = Table.grid(padding=(0, 3, 1, 0))
    maps = [_small(head, size, cells) for head in view.heads]
    for start in range(0, len(maps), across):
        grid.add_row(*maps[start : start + across])
    layer = view.heads[0].layer
    facts = [_("{n} heads", n=len(view.heads)), _("rows: queries · columns: keys")]
    if size < len(view.tokens):
        facts.insert(1, _("the last {n} of {all} tokens", n=size, all=len(view.tokens)))
    return Group(
        title(_("layer {layer}", layer=layer), " · ".join(facts)),
        Text(),
        grid,
        Text(
            _(":attn {layer}.0 shows one head with its tokens", layer=layer) + " · " + _(_EVEN),
            FIGURES,
        ),
    )


def focus_picture(view: FocusView, width: int) -> RenderableType:
    """Return, for every head, where the last token looked most; of very many, those that looked
    back the hardest.
    """
    heads = (
        view.heads if len(view.heads) <= _HEADS or width >= UNLIMITED_WIDTH else _looking_back(view)
    )
    patterns = 1 if width < 100 else 2
    room = width - 10 - max(cell_len(_patterns(head.patterns[:patterns])) for head in heads)
    looks = [_looks(view, head.looked) for head in heads]
    cells = [
        max((each.cell_len for each in rank if each), default=0) + 2 for rank in zip_longest(*looks)
    ]
    columns = max(1, sum(total <= room for total in accumulate(cells)))
    table = plain_table(_("head"), _("attends to"), _("pattern"))
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for head, looked in zip(heads, looks, strict=True):
        for look, size in zip(looked, cells, strict=False):
            look.pad_right(size - look.cell_len)
        name = Text(f"{head.layer}.{head.head}", TITLE)
        table.add_row(
            name,
            Text.assemble(*looked[:columns]),
            Text(_patterns(head.patterns[:patterns]), FIGURES),
        )
    last = view.tokens[-1]
    notes = [
        _("attends to: token @ position, weight"),
        _(
            "pattern: the attention pattern the head follows most over the whole text, and "
            "its mean weight"
        ),
        _(_EVEN),
    ]
    if len(heads) < len(view.heads):
        notes.insert(
            0,
            _(
                "top {n} of {all} heads by weight on one earlier token (first token "
                "excluded); :scroll shows all",
                n=len(heads),
                all=len(view.heads),
            ),
        )
    return Group(
        title(
            _("attention of the last token"),
            _(
                "{token}, position {position}",
                token=last.label,
                position=view.position_of(len(view.tokens) - 1),
            ),
        ),
        table,
        Text(" · ".join(notes), FIGURES),
    )


def _looking_back(view: FocusView) -> list[HeadFocus]:
    """Return the heads that give one earlier token the most; the first is where a head looks
    that has nothing to do.
    """
    last = len(view.tokens) - 1

    def hardest(head: HeadFocus) -> float:
        return max(
            (weight for place, weight in head.looked if 0 < view.index_of(place) < last),
            default=0.0,
        )

    strongest = sorted(view.heads, key=hardest, reverse=True)[:_HEADS]
    return sorted(strongest, key=lambda head: (head.layer, head.head))


def _looks(view: FocusView, looked: Iterable[tuple[int, float]]) -> list[Text]:
    """Return `말 @27 73% ▆` for each place that was looked at, but for what rounds to nothing."""
    texts = []
    for place, weight in looked:
        if weight >= 0.005:
            token = view.tokens[view.index_of(place)]
            text = Text(
                fit_to_width(token.label, min(_LOOKED, cell_len(token.label))), token_style(token)
            )
            texts.append(
                text.append(f" @{place} ", FIGURES).append(f"{weight:.0%} {level(weight)}", "")
            )
    return texts


def _small(head: HeadView, size: int, cells: int) -> Text:
    """Return one head's last tokens as a map, with what it does most below its name."""
    first = len(head.tokens) - size
    name = f"{head.layer}.{head.head}  {_patterns(head.patterns[:1])}"
    picture = Text.assemble((fit_to_width(name, cells).rstrip() + "\n", TITLE))
    for place in range(first, len(head.tokens)):
        picture.append(
            "".join(shade(weight) * _CELL for weight in head.weights[place][first : place + 1]),
            MODEL,
        )
        picture.append("·".rjust(_CELL) * (len(head.tokens) - place - 1) + "\n", FIGURES)
    picture.rstrip()
    return picture


def _patterns(patterns: Iterable[Pattern]) -> str:
    return " · ".join(f"{_(each.name)} {each.score:.0%} ({each.chance:.0%})" for each in patterns)


def _column_labels(labels: Sequence[str]) -> list[str]:
    """Return labels written downwards, each in one column, the last character at the bottom."""
    columns = [[each for each in label if cell_len(each)][:MAX_LABEL_WIDTH] for label in labels]
    height = max(map(len, columns), default=0)
    return [
        "".join(
            fit_to_width(
                column[row - height + len(column)] if row >= height - len(column) else "", _CELL
            )
            for column in columns
        )
        for row in range(height)
    ]
