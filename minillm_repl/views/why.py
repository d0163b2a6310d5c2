"""`:why`: direct logit attribution, what each part of the model adds to a logit by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import (
    component_name,
    fit_to_width,
    format_logit,
    label_width,
    largest_first,
    numbered_label,
    signed_axis,
    signed_bar,
    title,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, ChoiceOption, TextArgument
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import TOKENS, View, inspect_tokens, show
from minillm_repl.views.contributions import HeadReads, logit_direction, written
from minillm_repl.views.inspected_text import InspectedText, no_grad, rank, topk_ids

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_ROWS = 14  # parts that have a row of their own; the others share one
_MIN_BAR = 8  # cells: a shorter bar says nothing
# The kinds of parts that belong to a layer: 0 to its attention, 1 to its MLP.
_OF_LAYER = {"head": 0, "attention": 0, "attention bias": 0, "convolution": 0, "feed-forward": 1}


@dataclass(frozen=True)
class Part:
    """What one part of the model adds to a logit, or to the difference of two."""

    name: str  # `embedding`, `head 2.1`, `feed-forward 2`, `bias`
    value: float


@dataclass(frozen=True, kw_only=True)
class WhyView(View, Truncation):
    """Direct logit attribution: the parts sum to the logit, or to the difference of two."""

    tokens: tuple[Token, ...]
    token: Token
    versus: Token | None
    logit: float  # of the token, or how far it is above that of the other
    prob: float  # of the token
    rank: int
    parts: tuple[Part, ...]  # in the order in which the model works
    positions: tuple[float, ...]  # of these, what the heads read from each token
    by: str = "size"  # how the picture lists them: by `size`, by `layer`, or by `position`
    logit_softcap: float = 0.0  # the cap c of a model whose logit is c · tanh(logit / c); 0: none

    def draw(self, width: int) -> RenderableType:
        """Return what each part adds, as bars: the strongest parts, or a row for each layer."""
        about = _(
            "direct logit attribution for the token after {token} (position {position})",
            token=self.tokens[-1].label,
            position=self.position_of(len(self.tokens) - 1),
        )
        draw = {"layer": self._draw_layers, "position": self._draw_positions}
        picture = draw.get(self.by, self._draw_strongest)(width)
        if self.logit_softcap:
            about += " · " + _(
                "the logit before the final softcap: the model's own is {cap:g} · tanh(logit / "
                "{cap:g})",
                cap=self.logit_softcap,
            )
        return Group(self._title(), Text(about, FIGURES), *picture)

    def _draw_strongest(self, width: int) -> list[RenderableType]:
        """Return the strongest parts, strongest first, the others as one, and the total."""
        shown, others = _strongest(self.parts)
        names = [component_name(part.name) for part in shown]
        total_name = _("total")
        name_width = max(map(cell_len, (*names, total_name)))
        max_abs = max(abs(part.value) for part in shown)
        bars = min(60, max(_MIN_BAR, width - name_width - 14))
        lines = Text.assemble(" " * (name_width + 2), signed_axis(max_abs, bars), no_wrap=True)
        lines.append("\n")
        for part, name in zip(shown, names, strict=True):
            lines.append(f"{fit_to_width(name, name_width)}  ")
            lines.append_text(signed_bar(part.value, max_abs, bars))
            lines.append(f" {part.value:+9.3f}\n")
        gap = " " * (2 * (bars // 2) + 1)
        lines.append(f"{fit_to_width(total_name, name_width)}  {gap} {self._total:+9.3f}", TITLE)
        if not others:
            return [lines]
        rest = _("others: the remaining {n} components, each smaller than those shown", n=others)
        return [lines, Text(rest, FIGURES)]

    def _draw_layers(self, width: int) -> list[RenderableType]:
        """Return a row for each layer: what its attention and its MLP add; then the other parts."""
        layers, others = _by_layer(self.parts)
        max_abs = max((abs(value) for pair in layers.values() for value in pair), default=0.0)
        bars = min(40, (width - 36) // 2)
        is_narrow = bars < _MIN_BAR  # then the numbers stand alone
        headings = _("layer"), _("attention"), _("MLP")
        table = plain_table(
            *(headings if is_narrow else (headings[0], headings[1], "", headings[2], "")),
            right=range(3) if is_narrow else (0, 1, 3), wrap=(),
        )  # fmt: skip
        if not is_narrow:
            axis = signed_axis(max_abs, bars)
            table.add_row("", "", axis, "", axis)

        def row(name: str, pair: Sequence[float], *, has_bars: bool = not is_narrow) -> None:
            numbers = [f"{value:+.3f}" for value in pair]
            drawn = [signed_bar(value, max_abs, bars) if has_bars else "" for value in pair]
            both = [each for cell in zip(numbers, drawn, strict=True) for each in cell]
            table.add_row(name, *(numbers if is_narrow else both))

        for layer, pair in layers.items():
            row(str(layer), pair)
        sums = [sum(pair[at] for pair in layers.values()) for at in (0, 1)]
        table.add_section()
        row("Σ", sums, has_bars=False)
        rest = [f"{component_name(part.name)} {part.value:+.3f}" for part in others]
        outside = _("outside the layers: {parts}", parts=" · ".join(rest))
        total = Text(_("total") + f" {self._total:+.3f}", TITLE)
        return [table, Text(outside, FIGURES), total]

    def _draw_positions(self, width: int) -> list[RenderableType]:
        """Return the tokens that the heads read most from, the largest |value| first."""
        order = largest_first(self.positions)[:_ROWS]
        max_abs = max(abs(value) for value in self.positions)
        names, last = label_width(self.tokens), self.position_of(len(self.tokens) - 1)
        bars = min(60, max(16, width - names - 22))
        lines = []
        for index in order:
            line = numbered_label(self.tokens[index], self.position_of(index), last, names)
            line.append_text(signed_bar(self.positions[index], max_abs, bars))
            lines.append(line.append(f" {self.positions[index]:+.3f}"))
        read = sum(self.positions)
        note = _(
            "read through attention, by all heads: {read:+.3f} from {n} tokens, each value times "
            "its weight, through W_O · the rest (embedding, MLPs, biases here): {rest:+.3f}",
            read=read,
            n=len(self.positions),
            rest=self._total - read,
        )
        total = Text(_("total") + f" {self._total:+.3f}", TITLE)
        return [Text("\n", no_wrap=True).join(lines), Text(note, FIGURES), total]

    @property
    def _total(self) -> float:
        return sum(part.value for part in self.parts)

    def _title(self) -> Text:
        question = (
            _("why {token} rather than {versus}", token=self.token.label, versus=self.versus.label)
            if self.versus
            else _("why {token}", token=self.token.label)
        )
        logit = format_logit(self.logit, is_difference=self.versus is not None)
        chance = _(
            "p({token}) {chance} · rank {rank:,}",
            token=self.token.label,
            chance=percent(self.prob),
            rank=self.rank,
        )
        return title(question, f"{logit} · {chance}")


def _strongest(parts: tuple[Part, ...]) -> tuple[list[Part], int]:
    """Return the strongest parts, strongest first, then the rest as one; and how many that are."""
    order = sorted(parts, key=lambda part: -abs(part.value))
    rest = order[_ROWS:]
    if len(rest) < 2:
        return order, 0
    return [*order[:_ROWS], Part("others", sum(part.value for part in rest))], len(rest)


def _by_layer(parts: tuple[Part, ...]) -> tuple[dict[int, list[float]], list[Part]]:
    """Return what attention and MLP of each layer add, and the parts that are of neither."""
    layers: dict[int, list[float]] = {}
    others = []
    for part in parts:
        kind, _space, number = part.name.rpartition(" ")
        if kind not in _OF_LAYER:
            others.append(part)
            continue
        layer = int(number.partition(".")[0])  # of `2`, or of the head `2.1`
        layers.setdefault(layer, [0.0, 0.0])[_OF_LAYER[kind]] += part.value
    return layers, others


@no_grad
def compute(
    inspected: InspectedText,
    token: int | None = None,
    versus: int | None = None,
    by: str = "size",
) -> WhyView:
    """Return what each part adds to the next token's logit, or to the difference of two.

    The default token is the most likely one. Every part writes into the residual stream, and the
    logit is a dot product with its end: with the scale of each norm on that way held at its value,
    the parts sum to the logit. They are computed in float64. Where the model caps its logits, this
    is the logit before the cap.
    """
    heads = HeadReads(inspected)
    names = "embedding", "attention.z", "attention.out", "mlp.out", "residual"
    reading = inspected.with_hook(heads.hook)
    logits, last = reading.run_with_cache(*names, last_only=True, rows=1)
    cache = {name: tensor[-1].double() for name, tensor in last.items()}
    final = logits[0].double()  # (vocab,)
    token = topk_ids(final, 1)[0] if token is None else token
    last_residual = cache[f"blocks.{inspected.config.n_layers - 1}.residual"]  # (d_model,)
    direction, constant = logit_direction(inspected.model, last_residual, token)
    logit, softcap = float(final[token]), inspected.config.logit_softcap
    if versus is not None:
        other_direction, other_constant = logit_direction(inspected.model, last_residual, versus)
        direction = direction - other_direction
        constant -= other_constant
        logit -= float(final[versus])
    if softcap:
        logit = float(last_residual @ direction) + constant
    parts = [
        Part(name, float(vector @ direction)) for name, vector in written(inspected, cache).items()
    ]
    return WhyView(
        tokens=inspected.tokens,
        token=Token.from_id(inspected.tokenizer, token),
        versus=None if versus is None else Token.from_id(inspected.tokenizer, versus),
        logit=logit,
        prob=float(final.softmax(-1)[token]),
        rank=rank(final, token),
        parts=(*parts, Part("bias", constant)),
        positions=tuple(heads.from_positions(cache, direction).tolist()),
        by=by,
        logit_softcap=softcap,
        **inspected.window_fields,
    )


@command(
    "why",
    arguments=(
        TOKENS,
        PlaceArgument(),
        ChoiceOption("by", "size", "layer", "position"),
        TextArgument(quoted=True),
    ),
    json=True,
    aliases=("이유", "왜"),
    group="Look inside",
    example=':why 다 vs 고 "날씨가 좋"',
)
def why(shell: "Shell", asked: Arguments) -> None:
    """Show what each head and MLP adds to the next token's logit.

    This is direct logit attribution. The embedding, every head, every MLP and the biases write into
    the residual stream. Each bar is what one of them adds directly to the token's logit. The bars
    sum to the logit. The scale of the final norm is held at its value, and so is that of a norm
    after attention or MLP. Indirect effects, through later components, are not in the bar. Where a
    model caps its logits, the bars sum to the logit before the cap.

    by=layer shows one row per layer instead: the sum of its heads, and its MLP. by=position shows
    what the heads of all layers read from each token of the text: its value, times the attention
    weight, through W_O. What is not read through attention is named below.

    Without TOKEN, the target is the most likely token. With `vs`, it is the difference of two
    logits: why this token and not the other. Without a text and a place, a token that was predicted
    in what was said is explained there, the last time that it was. A place is a position (@3, @-1)
    or a token (@날, @날:2 for the second), and the token that follows there is explained.

    Write a token as it is shown (␣ is a space), or as #ID. If it is not clear whether a space
    belongs to the token, the command takes the more likely one.
    """
    question = inspect_tokens(shell, asked.texts, asked.text, asked.place)
    show(shell, compute(*question, asked.by), asked.output)
