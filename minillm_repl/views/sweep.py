"""`:temp sweep`: the most likely next tokens at several temperatures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.generate import Sampling
from minillm_repl.language import _
from minillm_repl.render.console import CHOSEN, FIGURES
from minillm_repl.render.drawing import short_label, title
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.settings import verbose_rows
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation, with_truncation
from minillm_repl.views.base import Row, View, show, text_ids
from minillm_repl.views.sampler import (
    CANDIDATE_WIDTH,
    COLUMN_WIDTH,
    candidates_table,
    entropy_bits,
    kept_probability,
    next_logits,
    next_situation,
    probability_cell,
)

if TYPE_CHECKING:
    from minillm_repl.generate.sampling import Scores, Situation
    from minillm_repl.repl.shell import Shell

_TEMPERATURES = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class TemperatureCandidate:
    """A token, and its sampling probability at each temperature."""

    token: Token
    probs: tuple[float | None, ...]  # None where a sampler drops it


@dataclass(frozen=True, kw_only=True)
class SweepView(View, Truncation):
    """The same candidates at several temperatures; the other samplers are as set."""

    after: Token
    temps: Row
    now: float  # the temperature that is set
    entropies: Row  # bits, of the sampling distributions
    candidates: tuple[TemperatureCandidate, ...]

    def draw(self, width: int) -> RenderableType:
        """Return candidates as rows, and the temperatures around the set one as columns."""
        now = self.temps.index(self.now)
        fit = max(1, (width - CANDIDATE_WIDTH) // COLUMN_WIDTH)
        nearest = sorted(range(len(self.temps)), key=lambda index: abs(index - now))
        columns = sorted(nearest[:fit])
        table = candidates_table(
            *(f"{self.temps[index]:g}{'▶' if index == now else ''}" for index in columns)
        )
        for column, index in zip(table.columns[1:], columns, strict=True):
            column.style = CHOSEN if index == now else ""
        for each in self.candidates:
            cells = (probability_cell(each.probs[index]) for index in columns)
            table.add_row(short_label(each.token, CANDIDATE_WIDTH), *cells)
        table.add_section()
        entropies = (f"{self.entropies[index]:.2f}" for index in columns)
        table.add_row(Text(_("entropy"), FIGURES), *entropies)
        heading = title(
            _("the same candidates at several temperatures"),
            _("after {token}", token=self.after.label),
        )
        legend = _("▶ current temperature · other samplers as set · entropy in bits")
        return Group(heading, table, Text(legend, FIGURES))


def compute_sweep(
    logits: "Scores",
    sampling: Sampling,
    ids: Sequence[int],
    tokenizer: Tokenizer,
    top: int,
    situation: "Situation | None" = None,
) -> SweepView:
    """Return the sampling distribution after `ids` at several temperatures, the set one included.

    The logits are (vocab,).
    """
    from minillm_repl.generate.sampling import NOTHING_ELSE, process_logits, softmax, topk_ids

    temps = tuple(sorted({*_TEMPERATURES, sampling.temp}))
    columns = [
        process_logits(logits, replace(sampling, temp=temp), ids, situation or NOTHING_ELSE)
        for temp in temps
    ]
    distributions = [softmax(scores)[0] for scores in columns]  # (vocab,) each
    return SweepView(
        after=Token.from_id(tokenizer, ids[-1]),
        temps=temps,
        now=sampling.temp,
        entropies=tuple(map(entropy_bits, distributions)),
        candidates=tuple(
            TemperatureCandidate(
                Token.from_id(tokenizer, token),
                tuple(
                    kept_probability(scores, probabilities, token)
                    for scores, probabilities in zip(columns, distributions, strict=True)
                ),
            )
            for token in topk_ids(logits, top)
        ),
    )


def sweep(shell: "Shell", asked: Arguments) -> None:
    """Show the most likely next tokens at several temperatures."""
    model, settings = shell.require_model(), shell.session.settings
    ids = text_ids(shell, model, asked.text)
    logits = next_logits(model.decoder, ids, shell.interrupted)
    top = verbose_rows(settings)
    situation = next_situation(shell, ids, asked.text)
    view = compute_sweep(logits, settings, ids, model.checkpoint.tokenizer, top, situation)
    show(shell, with_truncation(view, model.visible_window(ids)), asked.output)
