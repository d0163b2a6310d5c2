"""`:lens j` and `:lens tuned`: what a fitted lens reads from each layer, beside the logit lens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, WARNING
from minillm_repl.render.drawing import UNLIMITED_WIDTH, component_name, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import WIDE, plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View
from minillm_repl.views.inspected_text import InspectedText, no_grad, topk_ids
from minillm_repl.views.lens_maps import HeldOut, Kind, LensMaps, lens_name, residuals
from minillm_repl.views.lens_row import LensRow, draw_top, lens_row

if TYPE_CHECKING:
    from torch import Tensor

_FIT_ROWS = 14  # places on a screen


@dataclass(frozen=True)
class FitView(View):
    """How well a fitted lens tells the model's own output, on text that it was not fitted on."""

    kind: Kind
    source: str  # empty: samples of the model
    texts: int
    tokens: int
    steps: int
    rows: tuple[HeldOut, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each place, with the logit lens and the control beside the lens."""
        count = len(self.rows)
        everything = count <= _FIT_ROWS or width >= UNLIMITED_WIDTH
        chosen = {round(at * (count - 1) / (_FIT_ROWS - 1)) for at in range(_FIT_ROWS)}
        rows = self.rows if everything else [self.rows[at] for at in sorted(chosen)]
        table = plain_table(
            _("after"), _("KL, nats"), _("logit lens"), _("control"), _("same top"),
            _("logit lens"), _("control"), right=range(1, 7), wrap=(),
        )  # fmt: skip
        for row in rows:
            table.add_row(
                component_name(row.place),
                *(f"{kl:.3f}" for kl in (row.kl, row.logit_kl, row.control_kl)),
                *(f"{same:.0%}" for same in (row.same, row.logit_same, row.control_same)),
            )
        heading = title(lens_name(self.kind), fitted_on(self.source, self.texts, self.tokens))
        told = legend()
        if not everything:
            told = (
                _("{n} of {all} places; :scroll shows all", n=len(rows), all=count) + f" · {told}"
            )
        return Group(heading, table, self.verdict(), Text(told, FIGURES))

    def verdict(self) -> Text:
        """Return in how many layers the lens is better than the logit lens, and the control worse.

        A lens that is no better than its control has learnt nothing that counts.
        """
        better = sum(row.kl < row.logit_kl for row in self.rows)
        worse = sum(row.control_kl > row.kl for row in self.rows)
        told = _(
            "nearer to the output than the logit lens in {better} of {all} places; the shuffled "
            "control is worse in {worse}", better=better, worse=worse, all=len(self.rows),
        )  # fmt: skip
        return Text(told, FIGURES if worse == len(self.rows) else WARNING)


def fitted_on(source: str, texts: int, tokens: int) -> str:
    """Return what a lens was fitted on."""
    if source:
        return _(
            "fitted on {texts} texts of {tokens} tokens from {source}, measured on others",
            texts=texts, tokens=tokens, source=source,
        )  # fmt: skip
    return _(
        "fitted on {texts} samples of the model of {tokens} tokens, measured on others",
        texts=texts, tokens=tokens,
    )  # fmt: skip


def legend() -> str:
    """Return what the numbers on held-out text are."""
    return _(
        "on held-out text: KL(final ‖ lens), mean over tokens · same top: tokens whose most likely "
        "token is the model's own · control: the lens, its difference from the identity shuffled"
    )


def view_of(maps: LensMaps) -> FitView:
    """Return how well a lens does."""
    return FitView(
        kind=maps.kind, source=maps.source, texts=maps.texts, tokens=maps.tokens,
        steps=maps.steps, rows=maps.held_out,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FittedView(View, Truncation):
    """A fitted lens at one position, and the logit lens beside it. Positions count from 0."""

    kind: Kind
    position: int
    tokens: tuple[Token, ...]  # up to the position
    answer: Token  # the token asked about, else the most likely one of the last row
    rows: tuple[LensRow, ...]  # by the fitted lens; the last is the model's own output
    logit_rows: tuple[LensRow, ...]  # the same by the logit lens
    fit: FitView  # how well the lens does on text held out

    def draw(self, width: int) -> RenderableType:
        """Return a row for each place: here, and on held-out text."""
        answer = short_label(self.answer).plain
        names = max(cell_len(component_name(row.place)) for row in self.rows)
        is_wide = width >= WIDE
        left = max(width - names - (88 if is_wide else 60), 8)
        here = (f"p({answer})", _("KL, nats"), _("logit lens")) if is_wide else ()
        table = plain_table(
            _("after"), _("top tokens"), _("logit lens"), *here, _("held out"),
            _("logit lens"), _("control"), right=range(3, 9), wrap=(0, 1, 2) if left < 10 else (),
        )  # fmt: skip
        held = {row.place: row for row in self.fit.rows}
        for row, logit in zip(self.rows, self.logit_rows, strict=True):
            figures = (percent(row.prob), f"{row.kl:.3f}", f"{logit.kl:.3f}") if is_wide else ()
            table.add_row(
                component_name(row.place),
                draw_top(row.top, left),
                short_label(logit.top[0].token, 10),
                *figures,
                *_figures(held.get(row.place)),
            )
        where = _(
            "after {token} (position {position}), beside the logit lens",
            token=self.tokens[-1].label,
            position=self.position,
        )
        about = fitted_on(self.fit.source, self.fit.texts, self.fit.tokens)
        note = _(
            "held out: KL(final ‖ lens) in nats, and the tokens with the model’s own top token · "
            "{fitted}", fitted=about,
        )  # fmt: skip
        heading = title(lens_name(self.kind), where)
        return Group(heading, table, self.fit.verdict(), Text(note, FIGURES))


def _figures(held: HeldOut | None) -> tuple[str, ...]:
    """Return the figures on held-out text of the lens, the logit lens and the control."""
    if held is None:
        return ("", "", "")
    pairs = (
        (held.kl, held.same), (held.logit_kl, held.logit_same), (held.control_kl, held.control_same)
    )  # fmt: skip
    return tuple(f"{kl:.2f} {same:>4.0%}" for kl, same in pairs)


@no_grad
def compute(
    inspected: InspectedText, maps: LensMaps, position: int = -1, token: int | None = None
) -> FittedView:
    """Return what a fitted lens and the logit lens read at a position, after each layer.

    p and rank are those of `token`; without it, of the most likely one of the last row. Raises
    UserError if there is no such position.
    """
    index = inspected.index_of(position)
    position, inspected = inspected.position_of(index), inspected.up_to(index)
    logits, streams = residuals(inspected, last_only=True)
    final = logits[-1].double().log_softmax(-1)  # (vocab,)
    answer = topk_ids(final, 1)[0] if token is None else token
    maps = maps.to(final.device)

    def read(place: str, residual: "Tensor") -> LensRow:
        return lens_row(inspected, place, residual, final, answer)

    return FittedView(
        kind=maps.kind,
        position=position,
        tokens=inspected.tokens,
        answer=Token.from_id(inspected.tokenizer, answer),
        rows=tuple(read(name, maps.read(name, each[-1])) for name, each in streams.items()),
        logit_rows=tuple(read(name, each[-1]) for name, each in streams.items()),
        fit=view_of(maps),
        **inspected.window_fields,
    )
