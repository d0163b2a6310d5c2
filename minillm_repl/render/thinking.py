"""Draws single parts at work: a query and the keys it meets, neurons, gradients."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.thinking import GradView, NeuronsView, QKVView
from minillm_repl.language import _
from minillm_repl.render.bars import bar
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    format_logit,
    label_width,
    short_label,
    signed_bar,
    title,
    token_strip,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table

_NUMBER = 6  # cells of one number of a vector
_FIRES = 12  # tokens that a neuron fired on, at most


def qkv_picture(view: QKVView, width: int) -> RenderableType:
    """Return the query, a row for each key that it met, and the mix of values that comes out."""
    size = len(view.query)
    bars = 6 if width >= 100 else 0
    fixed = 44 + bars + label_width(view.tokens)
    numbers = max(1, min(size, (width - fixed) // (2 * _NUMBER)))
    asks = view.tokens[-1]
    table = plain_table("#", _("token"), _("key"), "q·k", "÷√d", _("softmax"), "", _("value"))
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if place in (0, 3, 4, 5) else "left", True
    most = max(each.weight for each in view.met)
    for each in view.met:
        style = TITLE if each.weight == most else ""
        table.add_row(
            str(each.position),
            short_label(view.tokens[view.index_of(each.position)]),
            _vector(each.key, numbers),
            f"{each.dot:.2f}",
            f"{each.scaled:.2f}",
            Text(percent(each.weight), style),
            Text(bar(each.weight, bars), MODEL),
            _vector(each.value, numbers),
        )
    table.add_section()
    table.add_row("", "", "", "", "", "100.0%", "", _vector(view.mixed, numbers))
    sought = (
        _("query vector, first {n} of {all} dimensions", n=numbers, all=size)
        if numbers < size
        else _("query vector")
    )
    return Group(
        title(
            _("layer {layer} head {head}", layer=view.layer, head=view.head),
            _(
                "query: {token} at position {position} · head_dim = {size}",
                token=asks.label,
                position=view.position,
                size=size,
            ),
        ),
        Text.assemble(
            (_("query") + " ", FIGURES), _vector(view.query, numbers), ("   " + sought, FIGURES)
        ),
        table,
        Text(
            _(
                "softmax(q·k / √d) weights the values; the last row is their weighted sum: "
                "the head's output before W_O (library analogy: `:help qkv`)"
            ),
            FIGURES,
        ),
    )


def neurons_picture(view: NeuronsView, width: int) -> RenderableType:
    """Return the most active neurons, each with the tokens that it fired on most."""
    table = plain_table(_("neuron"), _("max"), "", _("fires on: token @ position, activation"))
    for place, column in enumerate(table.columns):
        column.justify, column.no_wrap = "right" if place in (0, 1) else "left", True
    most = max(abs(value) for each in view.neurons for value in each.activations) or 1.0
    for each in view.neurons:
        order = _strongest(each.activations)
        room, fires = width - 34, Text()
        for place in order[:_FIRES]:
            part = Text.assemble(
                short_label(view.tokens[place], 8),
                (f" @{view.position_of(place)}", FIGURES),
                f" {each.activations[place]:+.2f}  ",
            )
            if fires.cell_len + part.cell_len > room:
                break
            fires.append_text(part)
        peak = each.activations[order[0]]
        table.add_row(
            f"{view.layer}.{each.index}",
            f"{peak:+.2f}",
            Text(bar(abs(peak) / most, 8), MODEL),
            fires,
        )
    return Group(
        title(
            _("neurons of layer {layer}", layer=view.layer),
            _("top {n} of {all:,} by activation on this text", n=len(view.neurons), all=view.size),
        ),
        table,
        Text(
            _(
                ":neurons {layer}.{neuron} shows one neuron over the whole text",
                layer=view.layer,
                neuron=view.neurons[0].index,
            ),
            FIGURES,
        ),
    )


def neuron_picture(view: NeuronsView, width: int) -> RenderableType:
    """Return the whole text with one neuron's activation at each token, and the tokens that it
    fired on most.
    """
    neuron = view.neurons[0]
    most = max(map(abs, neuron.activations)) or 1.0
    names, bars = label_width(view.tokens), max(16, min(60, width - 40))
    lines = Text(no_wrap=True)
    for place in _strongest(neuron.activations)[:10]:
        lines.append_text(_named(place, view, names))
        lines.append_text(signed_bar(neuron.activations[place], most, bars))
        lines.append(f" {neuron.activations[place]:+.3f}\n")
    lines.rstrip()
    return Group(
        title(
            _("neuron {layer}.{neuron}", layer=view.layer, neuron=neuron.index),
            _("after its activation function; at most {most:.3f}", most=most),
        ),
        token_strip(view.tokens, [abs(value) / most for value in neuron.activations], width),
        Text(),
        lines,
    )


def grad_picture(view: GradView, width: int) -> RenderableType:
    """Return the text with each gradient's level of norm, and a bar for gradient · vector."""
    most_norm, most = max(view.norms), max(map(abs, view.times)) or 1.0
    names, bars = label_width(view.tokens), max(16, min(60, width - 44))
    lines = Text(no_wrap=True)
    for place in _strongest(view.times)[:12]:
        lines.append_text(_named(place, view, names))
        lines.append_text(signed_bar(view.times[place], most, bars))
        lines.append(f" {view.times[place]:+8.3f} {view.norms[place]:8.3f}\n")
    lines.rstrip()
    asked = (
        _(
            "input attribution for {token} rather than {versus}",
            token=view.token.label,
            versus=view.versus.label,
        )
        if view.versus
        else _("input attribution for {token}", token=view.token.label)
    )
    answer = format_logit(view.logit, is_difference=view.versus is not None)
    return Group(
        title(asked, _("{logit}, after {token}", logit=answer, token=view.tokens[-1].label)),
        token_strip(view.tokens, [norm / (most_norm or 1.0) for norm in view.norms], width),
        Text(_("levels: gradient norm, at most {most:.3f}", most=most_norm), FIGURES),
        Text(),
        lines,
        Text(
            _(
                "bars: gradient · embedding (right raises the logit, left lowers it) · last "
                "column: gradient norm"
            ),
            FIGURES,
        ),
    )


def _named(place: int, view: GradView | NeuronsView, width: int) -> Text:
    """Return a token's position, and the token, before a bar; equally wide throughout a text."""
    name, digits = (
        short_label(view.tokens[place]),
        max(4, len(str(view.position_of(len(view.tokens) - 1)))),
    )
    name.pad_right(width - name.cell_len + 2)
    return Text.assemble((f"{view.position_of(place):>{digits}}  ", FIGURES), name)


def _vector(numbers: Sequence[float], shown: int) -> Text:
    return Text(
        "".join(
            f"{number:+{_NUMBER}.{1 if abs(number) < 100 else 0}f}" for number in numbers[:shown]
        )
    )


def _strongest(values: Sequence[float]) -> list[int]:
    """Return the places of values, the largest |value| first."""
    return sorted(range(len(values)), key=lambda place: -abs(values[place]))
