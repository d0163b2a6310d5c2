"""Draws what could come next: by stage, by temperature, of one continuation, on several ways."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import prod

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from minillm_repl.generate.views import BranchesView, ProbView, SamplerView, SweepView
from minillm_repl.language import _, _n
from minillm_repl.render.bars import bar
from minillm_repl.render.console import CHOSEN, DROPPED, FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import NARROW, WIDE, plain_table
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Token

_CANDIDATE, _TEMPERATURE = 10, 9  # cells of a candidate, and of a column of probabilities


def sampler_picture(view: SamplerView, _width: int) -> RenderableType:
    """Return candidates as rows and stages as columns; below, what each stage left and cut."""
    table = _candidates(_("logit"), *(_(stage.name).replace(" ", "\n") for stage in view.stages))
    penalised = any(stage.name.startswith("repeat") for stage in view.stages)
    for each in view.candidates:
        token = short_label(each.token, _CANDIDATE)
        if penalised and each.seen:
            token.append("*")
        table.add_row(token, f"{each.logit:.2f}", *map(_share, each.probs))
    table.add_section()
    for name, values in (
        (_("kept"), [f"{stage.kept:,}" for stage in view.stages]),
        (_("dropped"), [f"{stage.cut:,}" if stage.cut else "" for stage in view.stages]),
        (_("entropy"), [f"{stage.entropy:.2f}" for stage in view.stages]),
    ):
        table.add_row(Text(name, FIGURES), "", *values)
    notes = [
        _("tokens are sampled from the last column · kept, dropped: token counts · entropy in bits")
    ]
    notes += [_("* already in the text: the repetition penalty applies")] if penalised else []
    notes += (
        [_("no sampler is active: sampling from the model's softmax as it is")]
        if len(view.stages) == 1
        else []
    )
    return Group(
        title(
            _("sampling pipeline: logits → sampling distribution"),
            _("after {token}", token=view.after.label),
        ),
        table,
        Text("\n".join(notes), FIGURES),
    )


def sweep_picture(view: SweepView, width: int) -> RenderableType:
    """Return the candidates as rows and as many temperatures as fit as columns, those around the
    one that is set.
    """
    now, fit = view.temps.index(view.now), max(1, (width - _CANDIDATE) // _TEMPERATURE)
    around = sorted(range(len(view.temps)), key=lambda place: abs(place - now))
    places = sorted(around[:fit])
    table = _candidates(
        *(f"{view.temps[place]:g}{'▶' if place == now else ''}" for place in places)
    )
    for column, place in zip(table.columns[1:], places, strict=True):
        column.style = CHOSEN if place == now else ""
    for each in view.candidates:
        table.add_row(
            short_label(each.token, _CANDIDATE), *(_share(each.probs[place]) for place in places)
        )
    table.add_section()
    table.add_row(
        Text(_("entropy"), FIGURES), *(f"{view.entropies[place]:.2f}" for place in places)
    )
    return Group(
        title(
            _("the same candidates at several temperatures"),
            _("after {token}", token=view.after.label),
        ),
        table,
        Text(
            _("▶ current temperature · other samplers as set · entropy in bits"),
            FIGURES,
        ),
    )


def prob_picture(view: ProbView, width: int) -> RenderableType:
    """Return the continuation's tokens, each with its probability, rank, and what was likelier."""
    bars = 24 if width >= WIDE else 10 if width >= NARROW else 0
    table = plain_table(_("token"), _("probability"), "", _("rank"), _("most likely"), "")
    for place, column in enumerate(table.columns):
        column.justify = "right" if place in (1, 3, 5) else "left"
        column.no_wrap = place not in (0, 4) or width >= NARROW
    for each in view.chances:
        table.add_row(
            short_label(each.token),
            _exact(each.prob),
            Text(bar(each.prob, bars), MODEL),
            f"{each.rank:,}",
            short_label(each.likeliest),
            percent(each.likeliest_prob),
        )
    text = "".join(each.token.label for each in view.chances)
    return Group(
        title(_("probability of {text}", text=text), _("after {token}", token=view.after.label)),
        table,
        Text.assemble(
            (_("total") + " ", FIGURES),
            (_exact(view.prob), TITLE),
            (" · " + _("surprisal {bits:.2f} bits", bits=view.bits), FIGURES),
        ),
    )


@dataclass(frozen=True)
class _Way:
    number: int
    tokens: tuple[Token, ...]
    probs: tuple[float, ...]
    prob: float  # of all its tokens from the start


def branches_picture(view: BranchesView, _width: int) -> RenderableType:
    """Return the branches as a tree; where several say the same, they share a stem."""
    tree = Tree(short_label(view.after), guide_style=FIGURES)
    ways = [
        _Way(number, each.tokens, each.probs, each.prob)
        for number, each in enumerate(view.branches, 1)
    ]
    _grow(tree, ways, whole=True)
    return Group(
        title(
            _n("{n} continuation", "{n} continuations", len(ways)),
            _("seeds {seed} to {last}", seed=view.seed, last=view.seed + len(ways) - 1)
            if len(ways) > 1
            else _("seed {seed}", seed=view.seed),
        ),
        tree,
        Text(
            _(
                "%: probability of a segment given its prefix · =: probability of the "
                "whole continuation · `:branch take N` continues from one"
            ),
            FIGURES,
        ),
    )


def _grow(tree: Tree, ways: Sequence[_Way], *, whole: bool) -> None:
    """Add the ways below a node: those that begin alike share a stem as long as they agree.

    `whole` says that they begin here: a piece that is all of a way has the way's probability.
    """
    firsts = dict.fromkeys(way.tokens[0].id for way in ways if way.tokens)
    for first in firsts:
        same = [way for way in ways if way.tokens and way.tokens[0].id == first]
        places = zip(*([token.id for token in way.tokens] for way in same), strict=False)
        stem = len(list(takewhile(lambda ids: len(set(ids)) == 1, places)))
        chance = prod(same[0].probs[:stem])
        ended = [way for way in same if len(way.tokens) == stem]
        label = Text.assemble(
            (_text(same[0].tokens[:stem]), MODEL), (f"  {_exact(chance)}", FIGURES)
        )
        for way in ended:
            label.append(f"  [{way.number}]", TITLE)
            if not whole:
                label.append(f"={_exact(way.prob)}")
        rest = [
            _Way(way.number, way.tokens[stem:], way.probs[stem:], way.prob)
            for way in same
            if way not in ended
        ]
        _grow(tree.add(label), rest, whole=False)
    for way in ways:
        if not way.tokens:
            tree.add(Text(_("[{number}] ends here", number=way.number), FIGURES))


def _text(tokens: Sequence[Token]) -> str:
    """Return tokens as running text on one line; special ones by their names."""
    pieces = [bytes(token.bytes) or token.text.encode("utf-8", "replace") for token in tokens]
    return safe_line(b"".join(pieces).decode("utf-8", "replace"))


def _candidates(*columns: str) -> Table:
    table = plain_table(_("token"), *columns)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return table


def _share(prob: float | None) -> Text:
    return Text(_("dropped"), DROPPED) if prob is None else Text(percent(prob))


def _exact(prob: float) -> str:
    """Return a probability as a percentage that still says something when it is small."""
    return percent(prob) if prob >= 0.001 or prob == 0 else f"{100 * prob:.2g}%"
