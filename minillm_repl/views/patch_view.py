"""What `:patch` shows: a row for each position or head, a column for each layer."""

from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE
from minillm_repl.render.drawing import (
    component_name,
    fit_to_width,
    label_width,
    signed_shade,
    title,
    token_style,
)
from minillm_repl.render.tables import plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.views.base import Row, View
from minillm_repl.views.patching import PARTS

_TITLES = {
    "residual": N_("patching the residual stream"),
    "attention": N_("patching the attention output"),
    "feed-forward": N_("patching the MLP output"),
    "z": N_("patching each head's output z"),
    "q": N_("patching each head's queries"),
    "k": N_("patching each KV head's keys"),
    "v": N_("patching each KV head's values"),
    "pattern": N_("patching each head's attention pattern"),
}
_PERCENT_WIDTH, _SHADE_WIDTH = 5, 2  # cells: ` -12%`, `▒▒`
_EMBEDDING = "e", "emb"  # the name of its column, narrow and wide
_MAX_LABEL = 24  # cells of a row's label


@dataclass(frozen=True)
class Checked:
    """A cell of a scan by gradients, and the patch itself."""

    place: str
    row: int  # the position, or the head
    estimate: float
    effect: float

    @property
    def error(self) -> float:
        """How far the estimate is off."""
        return self.estimate - self.effect


@dataclass(frozen=True, kw_only=True)
class PatchView(View):
    """Prompt B, with one activation of prompt A each: how much of A's answer that restores."""

    table = "places", "effects"

    what: str  # a name of `PARTS`
    by: str  # `runs`, or `gradient`: an estimate to first order
    a: tuple[Token, ...]
    b: tuple[Token, ...]
    position: int | None  # where heads are patched; None: at all positions
    answer_a: Token
    answer_b: Token
    likeliest: bool  # whether these are the top tokens after A and B
    clean: float  # logit of A's answer − logit of B's answer, after A
    corrupt: float  # the same after B
    places: tuple[str, ...]  # in the order of the model
    effects: tuple[Row, ...]  # (place, position or head): 0 is as after B, 1 is as after A
    checked: tuple[Checked, ...] = ()  # the largest estimates
    model: str = ""

    @property
    def by_head(self) -> bool:
        """Whether the cells are heads; else they are positions."""
        return PARTS[self.what].head is not None

    def draw(self, width: int) -> RenderableType:
        """Return the restored fraction: rows are positions or heads, columns are layers."""
        labels = self._labels()
        longest = max(label_width(self.b), *map(cell_len, labels))
        name_width = min(longest, _MAX_LABEL, max(8, width // 3))
        index_width = len(str(len(labels) - 1))
        room = width - name_width - index_width - 2
        cell = _PERCENT_WIDTH if len(self.places) * _PERCENT_WIDTH <= room else _SHADE_WIDTH
        shown = range(max(0, len(self.places) - room // cell), len(self.places))
        header = self._header(shown, index_width + name_width + 2, cell)
        lines = Text.assemble((header, FIGURES), no_wrap=True)
        for index, label in enumerate(labels):
            lines.append(f"{index:>{index_width}} ", FIGURES)
            lines.append(fit_to_width(label, name_width) + " ", self._style(index))
            for place in shown:
                lines.append(*_cell(self.effects[place][index], cell))
            lines.append("\n")
        lines.rstrip()
        return Group(
            *self._heading(),
            lines,
            Text(" · ".join(self._notes(shown, cell)), FIGURES),
            *self._checks(),
        )

    def _labels(self) -> list[str]:
        if self.by_head:
            return [_("head") for _head in self.effects[0]]
        return [
            a.label if a == b else f"{a.label}→{b.label}"
            for a, b in zip(self.a, self.b, strict=True)
        ]

    def _style(self, index: int) -> str:
        if self.by_head:
            return ""
        return TITLE if self.a[index] != self.b[index] else token_style(self.b[index])

    def _heading(self) -> list[Text]:
        answers = {"a": self.answer_a.label, "b": self.answer_b.label}
        how = _("fraction of the {a} − {b} logit difference restored", **answers)
        template = N_("logit difference: {a:+.3f} on A (100%), {b:+.3f} on B (0%)")
        lines = [
            title(_(_TITLES[self.what]), how),
            Text(_(template, a=self.clean, b=self.corrupt), FIGURES),
        ]
        if self.by_head:
            texts = ("".join(token.label for token in side) for side in (self.a, self.b))
            prompts = _("A: {a} · B: {b}", **dict(zip("ab", texts, strict=True)))
            lines.append(Text(prompts, FIGURES, no_wrap=True, overflow="ellipsis"))
        if self.by == "gradient":
            estimated = _("estimated from one gradient: (A − B) · ∂(logit difference)")
            lines.append(Text(estimated, FIGURES))
        return lines

    def _header(self, shown: range, indent: int, cell: int) -> str:
        """Return the line of layer numbers; of narrow columns, only every fifth has one."""
        is_wide = cell > _SHADE_WIDTH
        layers = [place.split()[0] for place in self.places]  # `embedding`, or a number
        names = [
            _EMBEDDING[is_wide] if layer == "embedding"
            else layer if is_wide or int(layer) % 5 == 0
            else ""
            for layer in layers[shown.start :]
        ]  # fmt: skip
        return " " * indent + "".join(fit_to_width(name, cell, right=True) for name in names) + "\n"

    def _notes(self, shown: range, cell: int) -> list[str]:
        notes = [_("columns: after each layer")]
        if self.by_head:
            where = _("at all positions")
            if self.position is not None:
                token = self.b[self.position].label
                where = _("at position {n}, {token}", n=self.position, token=token)
            notes = [_("columns: layers"), where]
        elif shown[0] == 0 and self.what == "residual":
            name = _EMBEDDING[cell > _SHADE_WIDTH]
            notes = [_("columns: after each layer, {name}: the embedding", name=name)]
        if cell == _SHADE_WIDTH:
            notes.append(_("░ ≥20% ▒ ≥40% ▓ ≥60% █ ≥80%, -: negative"))
        if not self.likeliest:
            notes.append(_("both prompts have the same answer; these two tokens differ most"))
        if len(shown) < len(self.places):
            notes.append(_("the last {n} of {all}", n=len(shown), all=len(self.places)))
        if self.model:
            notes.append(_("model {name}", name=self.model))
        return notes

    def _checks(self) -> list[RenderableType]:
        """Return the largest estimates beside what the patches really do."""
        if not self.checked:
            return []
        table = plain_table(
            _("place"), _("head") if self.by_head else "#", _("gradient"), _("patch"), _("error"),
            right=(1, 2, 3, 4),
        )  # fmt: skip
        for each in self.checked:
            place = _("L{n}", n=each.place) if each.place.isdigit() else component_name(each.place)
            numbers = (f"{100 * n:+.1f}%" for n in (each.estimate, each.effect, each.error))
            table.add_row(place, str(each.row), *numbers)
        mean = sum(abs(each.error) for each in self.checked) / len(self.checked)
        heading = title(
            _("the largest estimates, patched"),
            _("mean |error| {mean:.1f} points", mean=100 * mean),
        )
        return [Text(), heading, table]


def _cell(effect: float, width: int) -> tuple[str, str]:
    """Return a fraction as a percentage, at most ±999%, or as shades; and its colour."""
    percentage = round(100 * min(max(effect, -9.99), 9.99))
    text = f"{percentage:>{width - 1}}%" if width == _PERCENT_WIDTH else signed_shade(effect)
    if abs(effect) < 0.005:
        return text, FIGURES
    return text, POSITIVE if effect > 0 else NEGATIVE
