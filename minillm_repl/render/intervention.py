"""Draws what changes when a part of the model is silenced, steered, or from another prompt."""

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.base import Likely
from minillm_repl.insight.views.changes import Averaged, EffectView, HeadEffect, PatchView, ScanView
from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE
from minillm_repl.render.drawing import (
    MAX_LABEL_WIDTH,
    fit_to_width,
    label_width,
    nats,
    shade,
    short_label,
    signed_bar,
    title,
    token_style,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table

_SHOWN = 12  # heads that have a row of their own
_TOKENS = 8  # of those that made a direction, at most
_NUMBER = 5  # cells of a percentage in the map of a patch: ` -12%`
_WHAT = {
    "residual": N_("patching the residual stream"),
    "attention": N_("patching the attention output"),
    "feed-forward": N_("patching the MLP output"),
}


def effect_picture(view: EffectView, width: int) -> RenderableType:
    """Return the likeliest next tokens without and with the change, side by side."""
    label = max(4, min(MAX_LABEL_WIDTH, (width - 24) // 2))
    table = plain_table("", _("before"), "", _("now"), "")
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if place in (0, 2, 4) else "left", True
    for rank, (before, after) in enumerate(zip(view.before, view.after, strict=True), 1):
        table.add_row(str(rank), *_likely(before, label), *_likely(after, label))
    last = {"token": view.tokens[-1].label, "position": view.position_of(len(view.tokens) - 1)}
    return Group(
        title(view.change, _("next token after {token} (position {position})", **last)),
        table,
        Text(
            "\n".join([_("KL(now ‖ before) {kl} nats", kl=nats(view.kl)), *_beside_random(view)]),
            FIGURES,
        ),
        *([_between(*view.between)] if view.between else []),
    )


def _beside_random(view: EffectView) -> list[str]:
    """Return what random directions do, for one that is to mean something."""
    if view.random is None or view.kl_random is None:
        return []
    random = view.random
    return [
        _(
            "{n} random directions of equal norm: median {median}, 5–95% {low}–{high} · "
            "percentile of this one: {below:.0f}",
            n=random.directions,
            median=nats(view.kl_random),
            low=nats(random.low),
            high=nats(random.high),
            below=random.below,
        )
    ]


def _between(to: Averaged, away: Averaged) -> Text:
    """Return the tokens whose activations made a direction, and what they are read after."""
    return Text.assemble(
        (_("towards the mean of") + " ", FIGURES), *_averaged(to), ("\n", ""),
        (_("away from the mean of") + " ", FIGURES), *_averaged(away),
    )  # fmt: skip


def _averaged(side: Averaged) -> list[Text | tuple[str, str]]:
    """Return `␣happy @2   after ⏎`: the tokens, their positions, and the last of those before."""
    last = side.first + len(side.tokens) - 1
    places = f" @{side.first}" if last == side.first else f" @{side.first}–{last}"
    tokens: list[Text | tuple[str, str]] = [short_label(each) for each in side.tokens]
    if len(tokens) > _TOKENS:
        tokens[_TOKENS // 2 : -_TOKENS // 2] = [("…", FIGURES)]
    before = "".join(each.label for each in side.after[-_TOKENS // 2 :])
    return [
        *tokens,
        (places, FIGURES),
        (("   " + _("after {tokens}", tokens=before)) if before else "", FIGURES),
    ]


def scan_picture(view: ScanView, width: int) -> RenderableType:
    """Return the heads whose silence matters most as bars, and all of them as a map."""
    shown = sorted(view.heads, key=lambda head: -abs(head.change))[:_SHOWN]
    shown.sort(key=lambda head: -head.change)
    most = max(abs(head.change) for head in shown)
    names = [f"{head.layer}.{head.head}" for head in shown]
    widest = max(5, *map(len, names))
    lines = Text(no_wrap=True)
    for head, name in zip(shown, names, strict=True):
        lines.append(f"{name:<{widest}} ", TITLE).append_text(
            signed_bar(head.change, most, max(16, min(60, width - 15 - widest)))
        )
        lines.append(f" {head.change:+.4f}\n")
    lines.rstrip()
    note = (
        _("loss with the head zero-ablated − loss, nats per token")
        if view.how == "zero"
        else _("loss with the head mean-ablated (over this text) − loss, nats per token")
    )
    if len(view.heads) > _SHOWN:
        most_of = {"n": _SHOWN, "all": len(view.heads)}
        note = _("top {n} of {all} heads by effect; {change}", change=note, **most_of)
    return Group(
        title(
            _("head ablation scan"),
            _("loss with all heads: {loss:.4f} nats per token", loss=view.loss),
        ),
        Text(note, FIGURES),
        lines,
        _map(view.heads, most),
    )


def patch_picture(view: PatchView, width: int) -> RenderableType:
    """Return how much of A's answer each activation carries over: a row for each position, a
    column for each layer.
    """
    labels = [
        a.label if a == b else f"{a.label}→{b.label}" for a, b in zip(view.a, view.b, strict=True)
    ]
    lead = min(max(label_width(view.b), *map(cell_len, labels)), 24, max(8, width // 3))
    numbers = len(str(len(view.b) - 1))
    room = width - lead - numbers - 2
    cell, drawn = (_NUMBER, _percentage) if len(view.places) * _NUMBER <= room else (2, _shaded)
    places = range(max(0, len(view.places) - room // cell), len(view.places))
    names = [_column(view.places[place]) if cell > 2 or place % 5 == 0 else "" for place in places]
    heading = (
        " " * (numbers + lead + 2)
        + "".join(fit_to_width(name, cell, right=True) for name in names)
        + "\n"
    )
    lines = Text.assemble((heading, FIGURES), no_wrap=True)
    for position, label in enumerate(labels):
        changed = view.a[position] != view.b[position]
        lines.append(f"{position:>{numbers}} ", FIGURES)
        lines.append(
            fit_to_width(label, lead) + " ", TITLE if changed else token_style(view.b[position])
        )
        for place in places:
            share = view.effects[place][position]
            lines.append(
                drawn(share), FIGURES if abs(share) < 0.005 else POSITIVE if share > 0 else NEGATIVE
            )
        lines.append("\n")
    lines.rstrip()
    notes = [
        _("columns: after each layer, emb: the embedding")
        if places[0] == 0 and view.what == "residual"
        else _("columns: after each layer")
    ]
    if cell == 2:
        notes.append(_("░ ≥20% ▒ ≥40% ▓ ≥60% █ ≥80%, -: negative"))
    if not view.likeliest:
        notes.append(_("both prompts have the same answer; these two tokens differ most"))
    if len(places) < len(view.places):
        notes.append(_("the last {n} of {all}", n=len(places), all=len(view.places)))
    answers = {"a": view.answer_a.label, "b": view.answer_b.label}
    return Group(
        title(
            _(_WHAT[view.what]), _("fraction of the {a} − {b} logit difference restored", **answers)
        ),
        Text(
            _(
                "logit difference: {a:+.3f} on A (100%), {b:+.3f} on B (0%)",
                a=view.clean,
                b=view.corrupt,
            ),
            FIGURES,
        ),
        lines,
        Text(" · ".join(notes), FIGURES),
    )


def _column(place: str) -> str:
    return "emb" if place == "embedding" else place.split(maxsplit=1)[0]


def _percentage(share: float) -> str:
    """Return a share in five cells; what is beyond ±999 % is cut there."""
    return f"{round(100 * min(max(share, -9.99), 9.99)):>{_NUMBER - 1}}%"


def _shaded(share: float) -> str:
    """Return two cells: the shade of a share, and a sign where it is against."""
    return shade(abs(share)) + ("-" if share <= -0.1 else shade(abs(share)))


def _map(heads: tuple[HeadEffect, ...], most: float) -> Text:
    """Return layers as rows and heads as columns, as dark as each matters."""
    by = {(head.layer, head.head): head.change for head in heads}
    layers, columns = (1 + max(place) for place in zip(*by, strict=True))
    lines = Text.assemble((_("layer  head 0 →") + "\n", FIGURES), no_wrap=True)
    for layer in range(layers):
        lines.append(f"{layer:>5}  ", FIGURES)
        for head in range(columns):
            share = by[layer, head] / most if most else 0.0
            lines.append(_shaded(share), POSITIVE if share > 0 else NEGATIVE)
        lines.append("\n")
    return lines.append(
        _("darker: closer to {most:.4f} · -: the loss is lower with the head ablated", most=most),
        FIGURES,
    )


def _likely(likely: Likely, cells: int) -> tuple[Text, str]:
    return Text(
        fit_to_width(likely.token.label, cells).rstrip(), token_style(likely.token)
    ), percent(likely.prob)
