"""Draws texts and the vocabulary: tokens, surprisal, neighbours, the map of the embedding, two
models on one text.
"""

from math import log

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.insight.views.base import Likely
from minillm_repl.insight.views.texts import (
    CompareView,
    MapView,
    NearView,
    Neighbour,
    SurpriseView,
    TokensView,
)
from minillm_repl.language import _, _n
from minillm_repl.render.bars import bar
from minillm_repl.render.console import FIGURES, MODEL, NEGATIVE, POSITIVE, SPECIAL, TITLE
from minillm_repl.render.drawing import (
    MAX_LABEL_WIDTH,
    fit_to_width,
    nats,
    short_label,
    title,
    token_strip,
    token_style,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table, tokens_line

_LN2 = log(2)
_NUMBERS = 64  # of a vector, at most: `--json` has all
_SURPRISING = 0.05  # bits: below, nobody is surprised


def tokens_picture(view: TokensView, width: int) -> RenderableType:
    """Return the pieces side by side in alternating colours, a row for each, and the counts."""
    tokens = [piece.token for piece in view.pieces]
    pieces = Text.assemble(("│", FIGURES))
    for place, token in enumerate(tokens):
        pieces.append(
            token.label, (POSITIVE, NEGATIVE)[place % 2] if token.bytes else SPECIAL
        ).append("│", FIGURES)
    table = plain_table("#", _("token"), "id", _("bytes"), _("norm"), _("vector"))
    for place, column in enumerate(table.columns):
        column.justify = "right" if place in (0, 2, 4) else "left"
    longest = max((3 * len(token.bytes) for token in tokens), default=0)
    numbers = min(_NUMBERS, max(1, (width - 40 - min(longest, 24)) // 7))
    for place, piece in enumerate(view.pieces):
        token = piece.token
        vector = "".join(f"{number:+7.2f}" for number in piece.vector[:numbers])
        more = " …" if len(piece.vector) > numbers else ""
        table.add_row(
            str(place),
            short_label(token),
            str(token.id),
            Text(bytes(token.bytes).hex(" ").upper() or _("special"), FIGURES),
            f"{piece.norm:.2f}",
            Text(vector + more, FIGURES, no_wrap=True, overflow="crop"),
        )
    rates = []
    if view.tokens_per_character is not None:
        rates.append(_("{rate:.2f} tokens per character", rate=view.tokens_per_character))
    if view.bytes_per_token is not None:
        rates.append(_("{rate:.2f} bytes per token", rate=view.bytes_per_token))
    counts = tokens_line(len(tokens), view.characters, view.bytes)
    return Group(
        pieces, Text(), table, counts, *([Text(" · ".join(rates), FIGURES)] if rates else [])
    )


def surprise_picture(view: SurpriseView, width: int) -> RenderableType:
    """Return the text with levels of surprisal, the figures, and the most surprising tokens."""
    first = view.index_of(view.first)
    shares = [
        None if bits is None or place < first else bits / view.blind if view.blind else 0.0
        for place, bits in enumerate(view.bits)
    ]
    figures = [
        _("mean {bits:.2f} bits ({nats:.3f} nats)", bits=view.mean / _LN2, nats=view.mean),
        _("perplexity {number:,.2f}", number=view.perplexity),
    ]
    if view.bits_per_byte is not None:
        figures.append(_("{rate:.3f} bits per byte", rate=view.bits_per_byte))
    count = len(view.tokens) - first
    table = plain_table("#", _("token"), _("bits"), _("rank"), _("top token"))
    for place, column in enumerate(table.columns):
        column.justify = "right" if place in (0, 2, 3) else "left"
    listed = [each for each in view.most if each.bits >= _SURPRISING] or view.most[:1]
    for each in listed:
        expected = Text("  ").join(
            Text.assemble(short_label(likely.token), f" {percent(likely.prob)}")
            for likely in each.expected
        )
        table.add_row(
            str(each.position),
            short_label(each.token),
            f"{each.bits:.2f}",
            f"{each.rank:,}",
            expected,
        )
    notes = [
        _(
            "▁ low surprisal · █ {bits:.2f} bits or more (uniform guess, log₂ of the "
            "vocabulary size)",
            bits=view.blind,
        )
    ]
    return Group(
        title(
            _("surprisal"),
            _n(
                "of {n} token, each given its prefix",
                "of {n} tokens, each given its prefix",
                count,
            ),
        ),
        token_strip(view.tokens, shares, width),
        Text(" · ".join(figures)),
        Text(" · ".join(notes), FIGURES),
        Text(),
        table,
        *(
            [
                Text(
                    _("highest-surprisal tokens (at least {bits:g} bits)", bits=_SURPRISING),
                    FIGURES,
                )
            ]
            if len(listed) < count
            else []
        ),
    )


def near_picture(view: NearView, width: int) -> RenderableType:
    """Return the neighbours in the embedding, and beside them those in the output head."""
    sides = [
        (_("embedding"), view.input),
        *([(_("unembedding"), view.output)] if view.output else []),
    ]
    table = plain_table("", *(part for name, _side in sides for part in (name, _("cosine"), "")))
    for place in range(len(sides)):
        table.columns[3 * place + 2].justify = "right"
    bars = max(4, min(20, (width - 8) // len(sides) - MAX_LABEL_WIDTH - 16))
    for place, row in enumerate(zip(*(side for _name, side in sides), strict=True), 1):
        table.add_row(str(place), *(cell for each in row for cell in _neighbour(each, bars)))
    asked = Text()
    for sign, token in view.terms:
        asked.append("" if not asked and sign > 0 else " + " if sign > 0 else " − ").append_text(
            short_label(token)
        )
    notes = [_("cosine: 1 same direction, 0 orthogonal, −1 opposite")]
    if not view.output:
        notes.append(_("the unembedding is tied to the embedding"))
    return Group(
        Text.assemble((_("nearest to") + " ", TITLE), asked),
        table,
        Text(" · ".join(notes), FIGURES),
    )


def map_picture(view: MapView, width: int, height: int = 18) -> RenderableType:
    """Return the map: a token's name where its vector lies, a dot where the name has no room."""
    width = min(width, 100)
    xs, ys = [point.x for point in view.points], [point.y for point in view.points]
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    unnamed = 0
    for point in view.points:
        name = fit_to_width(point.token.label, min(cell_len(point.token.label), 8))
        size = cell_len(name)
        row = round((max(ys) - point.y) / ((max(ys) - min(ys)) or 1) * (height - 1))
        column = min(
            round((point.x - min(xs)) / ((max(xs) - min(xs)) or 1) * (width - 1)), width - size
        )
        style = TITLE if point.in_text else token_style(point.token)
        if all((row, each) not in cells for each in range(column - 1, column + size + 1)):
            cells |= {(row, column + each): ("", "") for each in range(size)}
            cells[row, column] = (name, style)
        elif (row, column) not in cells:
            cells[row, column], unnamed = ("·", style), unnamed + 1
        else:
            unnamed += 1
    lines = Text(no_wrap=True, overflow="crop")
    for row in range(height):
        for column in range(width):
            lines.append(*cells.get((row, column), (" ", "")))
        lines.append("\n")
    first, second = view.explained
    notes = [_("→ {first:.0%} of the variance, ↑ {second:.0%}", first=first, second=second)]
    if unnamed:
        notes.append(_("{n} labels omitted", n=unnamed))
    if len(view.points) < view.vocabulary:
        notes.append(_("{n:,} of {all:,} tokens", n=len(view.points), all=view.vocabulary))
    if any(point.in_text for point in view.points):
        notes.append(_("bold: in the text"))
    return Group(
        title(_("map of the embedding"), _("its first two principal components")),
        lines,
        Text(" · ".join(notes), FIGURES),
    )


def compare_picture(view: CompareView, width: int) -> RenderableType:
    """Return the likeliest next tokens of both models side by side, and where they differ most."""
    names = [fit_to_width(name, min(cell_len(name), max(8, width // 3))) for name in view.names]
    table = plain_table("", names[0], "", "", names[1], "", "")
    bars = max(4, min(20, (width - 2 * MAX_LABEL_WIDTH - 34) // 2))
    for place, (ours, theirs) in enumerate(zip(*view.top, strict=False), 1):
        table.add_row(str(place), *_bar(ours, bars), *_bar(theirs, bars))
    bits = " · ".join(
        f"{name} {each:.3f}"
        for name, each in zip(names, view.bits_per_byte, strict=True)
        if each is not None
    )
    parts: list[RenderableType] = [
        title(_("next token"), _("by each model's own probabilities")),
        table,
    ]
    if bits:
        parts.append(
            Text(
                _(
                    "bits per byte over the same {n:,} bytes: {bits}",
                    n=view.bytes,
                    bits=bits,
                )
            )
        )
    if view.why or view.kl is None or view.kl_mean is None:
        why = _(view.why)
        only = (
            _("only bits per byte can be compared: {why}", why=why)
            if bits
            else _("no numbers can be compared: {why}", why=why)
        )
        return Group(*parts, Text(only, FIGURES))
    here, mean = (
        _("{kl} nats ({back} back)", kl=nats(there), back=nats(back))
        for there, back in (view.kl, view.kl_mean)
    )
    parts.append(Text(_("KL here {here} · mean {mean}", here=here, mean=mean)))
    parts.append(_agreement(view))
    if not view.differ:
        return Group(*parts, Text(_("both models predict the same after every token"), FIGURES))
    note = _(
        "KL: Σ p · ln(p / q) at each position, p by {ours} and q by {theirs}; reverse: p "
        "and q swapped",
        ours=names[0],
        theirs=names[1],
    )
    heading = Text(_("largest differences"), TITLE)
    return Group(*parts, Text(), heading, _differences(view, names), Text(note, FIGURES))


def _agreement(view: CompareView) -> Text:
    return Text(
        _(
            "same top-1 token at {same:,} of {all:,} positions",
            same=view.same_top or 0,
            all=view.tokens[0],
        )
    )


def _differences(view: CompareView, names: list[str]) -> Table:
    table = plain_table("#", _("after"), "KL", _("reverse"), *names)
    for place in (0, 2, 3):
        table.columns[place].justify = "right"
    for each in view.differ:
        table.add_row(
            str(each.position), short_label(each.token), nats(each.kl), nats(each.kl_back),
            Text.assemble(short_label(each.ours.token), f" {percent(each.ours.prob)}"),
            Text.assemble(short_label(each.theirs.token), f" {percent(each.theirs.prob)}"),
        )  # fmt: skip
    return table


def _neighbour(neighbour: Neighbour, bars: int) -> tuple[Text, str, Text]:
    return (
        short_label(neighbour.token),
        f"{neighbour.cosine:+.3f}",
        Text(bar(neighbour.cosine, bars), MODEL),
    )


def _bar(likely: Likely, bars: int) -> tuple[Text, str, Text]:
    return short_label(likely.token), percent(likely.prob), Text(bar(likely.prob, bars), MODEL)
