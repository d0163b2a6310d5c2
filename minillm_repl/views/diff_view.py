"""What `:diff` shows: how far two models part, on which tokens, and where in the layers."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE, WARNING
from minillm_repl.render.drawing import UNLIMITED_WIDTH, bar, nats, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.views.base import View
from minillm_repl.views.inspected_text import Likely

_WORST = 6  # positions that are listed
_LAYERS = 7  # rows of layers on a screen


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The predictions of two models after one position."""

    position: int
    token: Token
    kl: float  # nats: KL(ours ‖ theirs)
    ours: Likely  # the most likely next token
    theirs: Likely


@dataclass(frozen=True)
class LayerGap:
    """How far the residual streams are apart after one place: means over all positions."""

    place: str  # `embedding`, or the number of a layer
    distance: float  # Σ ‖ours − theirs‖ / Σ ‖theirs‖
    cosine: float


@dataclass(frozen=True, kw_only=True)
class DiffView(View):
    """Two models on the same tokens. p is the open model, q the other. Positions count from 0."""

    names: tuple[str, str]
    text: str  # what was read: a file, or the text
    positions: int  # that were compared
    stopped: str  # why it ended before the end; empty if it did not
    kl_mean: float  # nats: KL(p ‖ q) = Σ p · ln(p / q), over all positions
    kl_median: float
    kl_max: float
    flips: int  # positions where the most likely token is another
    loss: tuple[float, float]  # nats per token of the text; NaN if it has one token only
    layers: tuple[LayerGap, ...]  # empty where the models have other shapes
    parts_at: str  # the first place where the residual streams differ; empty: none
    worst: tuple[Parting, ...]  # the largest KL first, all above 0

    @property
    def notes(self) -> list[Text]:
        """A warning, if Ctrl-C has ended the comparison."""
        return [Text(self.stopped, WARNING)] if self.stopped else []

    def draw(self, width: int) -> RenderableType:
        """Return the figures, the distance after each layer, and the positions that differ most."""
        heading = title(
            _("{ours} against {theirs}", ours=self.names[0], theirs=self.names[1]),
            _("{n:,} positions of {text}", n=self.positions, text=self.text),
        )
        parts: list[RenderableType] = [heading, Text(self._figures())]
        everything = width >= UNLIMITED_WIDTH
        if self.layers:
            parts.append(self._layer_table(None if everything else _LAYERS, width))
        if self.worst:
            parts.append(self._worst_table(self.worst if everything else self.worst[:_WORST]))
        return Group(*parts, Text(self._legend(), FIGURES))

    def _figures(self) -> str:
        if not self.kl_max and not self.parts_at:
            return _("no difference: KL is 0 at every position")
        share = percent(self.flips / self.positions)
        figures = _(
            "KL mean {mean} · median {median} · max {most} nats · top-1 flips {flips:,} ({share})",
            mean=nats(self.kl_mean),
            median=nats(self.kl_median),
            most=nats(self.kl_max),
            flips=self.flips,
            share=share,
        )
        if self.loss[0] != self.loss[0]:  # NaN: one token has no loss
            return figures
        change = _(
            "loss {ours:.4f} against {theirs:.4f} nats per token ({change:+.4f})",
            ours=self.loss[0],
            theirs=self.loss[1],
            change=self.loss[0] - self.loss[1],
        )
        return f"{figures}\n{change}"

    def _layer_table(self, rows: int | None, width: int) -> RenderableType:
        table = plain_table(_("after"), _("distance"), "", _("cos"), right=(0, 1, 3), wrap=())
        most = max(each.distance for each in self.layers) or 1.0
        shown = _spread(len(self.layers), rows or len(self.layers))
        for index in shown:
            each = self.layers[index]
            name = _("embedding") if each.place == "embedding" else each.place
            table.add_row(
                Text(name, TITLE if each.place == self.parts_at else ""),
                percent(each.distance),
                Text(bar(each.distance / most, max(8, min(30, width - 40))), MODEL),
                f"{each.cosine:.4f}",
            )
        return table

    def _worst_table(self, worst: tuple[Parting, ...]) -> RenderableType:
        table = plain_table(
            "#", _("after"), _("KL, nats"), _("open"), "", _("other"), "", right=(0, 2, 4, 6),
            wrap=(),
        )  # fmt: skip
        for each in worst:
            flipped = each.ours.token != each.theirs.token
            table.add_row(
                str(each.position),
                short_label(each.token, 10),
                nats(each.kl),
                short_label(each.ours.token, 10),
                percent(each.ours.prob),
                short_label(each.theirs.token, 10) if flipped else Text("=", FIGURES),
                percent(each.theirs.prob),
            )
        return table

    def _legend(self) -> str:
        notes = [_("KL(open ‖ other) = Σ p · ln(p / q), p: {model}", model=self.names[0])]
        if self.layers:
            notes.append(_("distance: ‖r_open − r_other‖ / ‖r_other‖ of the residual stream"))
            if self.parts_at:
                place = _("embedding") if self.parts_at == "embedding" else self.parts_at
                notes.append(_("they part at: {place}", place=place))
        else:
            notes.append(_("the layers have other shapes, so only the predictions are compared"))
        return " · ".join(notes)


def _spread(count: int, rows: int) -> list[int]:
    """Return which of `count` rows are shown: all, or some from the first to the last."""
    if count <= rows:
        return list(range(count))
    return sorted({round(row * (count - 1) / (rows - 1)) for row in range(rows)})
