"""The view of `:ablate scan`: parts of the model by what ablating each one alone does."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE
from minillm_repl.render.drawing import (
    component_name,
    fit_to_width,
    nats,
    signed_bar,
    signed_shade,
    title,
)
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View

By = Literal["loss", "logits", "kl"]
Kind = Literal["head", "attention", "feed-forward", "layer"]
KINDS: dict[str, tuple[Kind, ...]] = {
    "heads": ("head",),
    "attention": ("attention",),
    "feed-forward": ("feed-forward",),
    "layers": ("layer",),
    "all": ("head", "attention", "feed-forward", "layer"),
}
"""What a scan takes away, by the word that asks for it."""

_TITLES = {
    "heads": N_("head ablation scan"),
    "attention": N_("attention ablation scan"),
    "feed-forward": N_("feed-forward ablation scan"),
    "layers": N_("layer ablation scan"),
    "all": N_("ablation scan"),
}
_HOW = {
    "zero": N_("each part set to zero"),
    "mean": N_("each part at its mean over this text"),
    "reference": N_("each part at its mean over {n} texts of {source}"),
    "resample": N_("each part as on another text, the mean over {n} texts of {source}"),
}
_ROWS = 12  # parts that have a bar


@dataclass(frozen=True)
class PartEffect:
    """What ablating one part alone does."""

    part: str  # `head 2.1`, `2 attention`, `2 feed-forward`, `2 block`
    kind: Kind
    layer: int
    head: int | None
    change: float  # of the loss or of the logit difference; or the KL


@dataclass(frozen=True, kw_only=True)
class ScanView(View, Truncation):
    """Parts of the model, by what ablating each one alone does on a text."""

    tokens: tuple[Token, ...]
    what: str  # a name of `KINDS`
    how: str  # `zero`, `mean`, `resample`
    source: str  # the reference: a file or `samples`; empty for the text itself
    texts: int  # of the reference
    by: str  # `loss`, `logits`, `kl`
    # loss in nats per token, or logit difference, with all parts; null for the KL
    before: float | None
    answer: Token | None  # whose logit it is, and from which the other's is taken
    other: Token | None
    effects: tuple[PartEffect, ...]  # the largest change first
    parts: int  # that there are; more than `effects` where the scan was stopped

    def draw(self, width: int) -> RenderableType:
        """Return the parts with the largest effects as bars, and all parts as a map."""
        strongest = sorted(self.effects, key=lambda each: -abs(each.change))[:_ROWS]
        strongest.sort(key=lambda each: -each.change)
        max_abs = max(abs(each.change) for each in strongest)
        names = [_name(each) for each in strongest]
        name_width = max(5, *map(cell_len, names))
        bars = max(16, min(60, width - 15 - name_width))
        lines = Text(no_wrap=True)
        for each, name in zip(strongest, names, strict=True):
            lines.append(fit_to_width(name, name_width) + " ", TITLE)
            lines.append_text(signed_bar(each.change, max_abs, bars))
            shown = nats(each.change) if self.by == "kl" else f"{each.change:+.4f}"
            lines.append(f" {shown}\n")
        lines.rstrip()
        about = [self._measured(), _(_HOW[self._how], n=self.texts, source=self.source)]
        if len(self.effects) > _ROWS:
            about.append(_("top {n} of {all} parts", n=_ROWS, all=len(self.effects)))
        if len(self.effects) < self.parts:
            about.append(_("stopped after {n} of {all}", n=len(self.effects), all=self.parts))
        heading = title(_(_TITLES[self.what]), self._before())
        return Group(heading, Text(" · ".join(about), FIGURES), lines, self._map())

    @property
    def _how(self) -> str:
        return "reference" if self.how == "mean" and self.source else self.how

    def _before(self) -> str:
        """Return what is measured, and its value with all parts."""
        if self.by == "loss":
            return _("loss with all parts: {loss:.4f} nats per token", loss=self.before)
        place = _(
            "next token after {token} (position {position})",
            token=self.tokens[-1].label,
            position=self.position_of(len(self.tokens) - 1),
        )
        return f"KL(ablated ‖ whole)   {place}" if self.by == "kl" else place

    def _measured(self) -> str:
        """Return what a number is, and its unit."""
        if self.by == "loss":
            return _("loss without the part − loss, nats per token")
        if self.by == "kl":
            return _("KL(ablated ‖ whole) = Σ ablated · ln(ablated / whole), nats")
        assert self.answer is not None
        assert self.other is not None
        return _(
            "logit difference {a} − {b} without the part − {before:+.3f} with all",
            a=self.answer.label,
            b=self.other.label,
            before=self.before,
        )

    def _map(self) -> Text:
        """Return layers as rows and heads as columns, and other parts as rows of layers: the
        darker, the larger the effect.
        """
        lines, scales = Text(no_wrap=True), list[str]()
        heads = [each for each in self.effects if each.head is not None]
        if heads:
            lines.append(_("layer  head 0 →") + "\n", FIGURES)
            most = _largest(heads)
            for layer in sorted({each.layer for each in heads}):  # those with attention
                row = sorted((each for each in heads if each.layer == layer), key=_by_place)
                _shaded(lines, f"{layer:>5}  ", row, most)
            scales.append(f"{most:.4f}")
        others = [each for each in self.effects if each.head is None]
        if others:
            most = _largest(others)
            kinds = [kind for kind in KINDS["all"] if any(each.kind == kind for each in others)]
            names = {kind: component_name(f"0 {_COMPONENT[kind]}")[3:] for kind in kinds}
            size = max(map(cell_len, names.values()))
            lines.append(f"{'':{size}}  " + _("layer 0 →") + "\n", FIGURES)
            for kind, name in names.items():
                found = (each for each in others if each.kind == kind)
                _shaded(lines, fit_to_width(name, size) + "  ", sorted(found, key=_by_place), most)
            scales.append(f"{most:.4f}")
        legend = _("darker: closer to {most}", most=" · ".join(scales))
        if len(scales) > 1:
            legend = _("darker: closer to {heads} (heads), {others} (others)",
                       heads=scales[0], others=scales[1])  # fmt: skip
        if self.by != "kl":
            legend += " · " + _("-: below 0")
        return lines.append(legend, FIGURES)


def _by_place(effect: PartEffect) -> tuple[int, int]:
    return effect.layer, effect.head or 0


def _largest(effects: Iterable[PartEffect]) -> float:
    return max(abs(each.change) for each in effects)


def _shaded(lines: Text, name: str, effects: Iterable[PartEffect], most: float) -> None:
    """Append a row of shades."""
    lines.append(name, FIGURES)
    for each in effects:
        share = each.change / most if most else 0.0
        lines.append(signed_shade(share), POSITIVE if share > 0 else NEGATIVE)
    lines.append("\n")


_COMPONENT = {"attention": "attention", "feed-forward": "feed-forward", "layer": "block"}


def _name(effect: PartEffect) -> str:
    return component_name(effect.part) if effect.head is None else f"{effect.layer}.{effect.head}"
