"""`:sampler` and `:temp sweep`: what the samplers and the temperature make of the logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.generate import Sampling
from minillm_repl.language import _
from minillm_repl.render.console import CHOSEN, DROPPED, FIGURES
from minillm_repl.render.drawing import short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS
from minillm_repl.settings import format_value, specs, value_of
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation, with_truncation
from minillm_repl.views.base import Row, View, show, text_ids

if TYPE_CHECKING:
    from minillm_repl.generate import Decoder
    from minillm_repl.generate.sampling import Probabilities, Scores
    from minillm_repl.repl.shell import Shell

CANDIDATE_WIDTH = 10  # cells of a candidate's label


@dataclass(frozen=True)
class Stage:
    """The distribution after one sampler."""

    # `model` before all samplers, then `temp 0.8`, `top-k 40` ... in the order of application
    name: str
    kept: int  # tokens that can still be sampled
    cut: int  # tokens that this sampler dropped
    entropy: float  # bits


@dataclass(frozen=True)
class SamplerCandidate:
    """A token, and its probability after each stage."""

    token: Token
    logit: float
    seen: bool  # in the text already: the repetition penalty applies
    probs: tuple[float | None, ...]  # None once it is dropped


@dataclass(frozen=True)
class SamplerView(View, Truncation):
    """From logits to the sampling distribution, stage by stage."""

    after: Token  # the last token of the text
    stages: tuple[Stage, ...]
    candidates: tuple[SamplerCandidate, ...]  # most likely to be sampled first, then dropped ones

    def draw(self, _width: int) -> RenderableType:
        """Return candidates as rows and stages as columns; below, what each stage keeps."""
        headings = [_(stage.name).replace(" ", "\n") for stage in self.stages]
        table = candidates_table(_("logit"), *headings)
        is_penalised = any(stage.name.startswith("repeat") for stage in self.stages)
        for each in self.candidates:
            token = short_label(each.token, CANDIDATE_WIDTH)
            if is_penalised and each.seen:
                token.append("*")
            table.add_row(token, f"{each.logit:.2f}", *map(probability_cell, each.probs))
        table.add_section()
        for name, values in (
            (_("kept"), [f"{stage.kept:,}" for stage in self.stages]),
            (_("dropped"), [f"{stage.cut:,}" if stage.cut else "" for stage in self.stages]),
            (_("entropy"), [f"{stage.entropy:.2f}" for stage in self.stages]),
        ):
            table.add_row(Text(name, FIGURES), "", *values)
        notes = [
            _(
                "tokens are sampled from the last column · kept, dropped: token counts · "
                "entropy in bits"
            )
        ]
        if is_penalised:
            notes.append(_("* already in the text: the repetition penalty applies"))
        if len(self.stages) == 1:
            notes.append(_("no sampler is active: sampling from the model's softmax as it is"))
        heading = title(
            _("sampling pipeline: logits → sampling distribution"),
            _("after {token}", token=self.after.label),
        )
        return Group(heading, table, Text("\n".join(notes), FIGURES))


def candidates_table(*columns: str) -> Table:
    """Return an empty table of tokens and of numbers about them."""
    numbers = range(1, len(columns) + 1)
    return plain_table(_("token"), *columns, right=numbers, wrap=(0,))


def probability_cell(prob: float | None) -> Text:
    """Return a probability, or that a sampler dropped the token."""
    return Text(_("dropped"), DROPPED) if prob is None else Text(percent(prob))


def compute(
    logits: "Scores", sampling: Sampling, ids: Sequence[int], tokenizer: Tokenizer, top: int
) -> SamplerView:
    """Return the distribution after `ids` as each active sampler leaves it; logits (vocab,)."""
    import numpy as np

    from minillm_repl.generate.sampling import softmax, stages

    columns = [("model", logits)]
    for name, sampler in stages(sampling, ids):
        label = f"{name} {format_value(specs(sampling)[name], value_of(sampling, name))}"
        columns.append((label, sampler(columns[-1][1])))
    distributions = [softmax(scores)[0] for _name, scores in columns]  # (vocab,) each
    kept_counts = [int(np.isfinite(scores).sum()) for _name, scores in columns]
    return SamplerView(
        after=Token.from_id(tokenizer, ids[-1]),
        stages=tuple(
            Stage(name, kept, before - kept, entropy_bits(probabilities))
            for (name, _scores), before, kept, probabilities in zip(
                columns, [len(logits), *kept_counts[:-1]], kept_counts, distributions, strict=True
            )
        ),
        candidates=tuple(
            SamplerCandidate(
                token=Token.from_id(tokenizer, token),
                logit=float(logits[token]),
                seen=token in ids,
                probs=tuple(
                    kept_probability(scores, probabilities, token)
                    for (_name, scores), probabilities in zip(columns, distributions, strict=True)
                ),
            )
            for token in _listed(logits, columns[-1][1], top)
        ),
    )


def _listed(logits: "Scores", final: "Scores", top: int) -> list[int]:
    """Return the top tokens by the model and by the samplers (vocab,), as they will be sampled."""
    from minillm_repl.generate.sampling import topk_ids

    kept = [token for token in topk_ids(final, top) if isfinite(final[token])]
    tokens = dict.fromkeys([*kept, *topk_ids(logits, top)])
    return sorted(tokens, key=lambda token: (-final[token], -logits[token]))


def kept_probability(scores: "Scores", probabilities: "Probabilities", token: int) -> float | None:
    """Return the probability of a token, or None if a sampler dropped it."""
    return float(probabilities[token]) if isfinite(scores[token]) else None


def entropy_bits(probabilities: "Probabilities") -> float:
    """Return −Σ p · log2 p of a distribution (vocab,)."""
    import numpy as np

    from minillm_repl.generate.sampling import entropy

    positive = probabilities[probabilities > 0]
    return entropy(positive, np.log(positive))


def next_logits(
    decoder: "Decoder", ids: Sequence[int], interrupted: Callable[[], bool] = lambda: False
) -> "Scores":
    """Return the logits (vocab,) after a text of one token or more.

    Raises UserError if interrupted, or if they are not finite.
    """
    from minillm_repl.generate.scoring import read_window

    return read_window(decoder, ids, interrupted)


@command(
    "sampler",
    arguments=(TextArgument(free=True),),
    json=True,
    aliases=("샘플러",),
    group="Predictions",
    example=":sampler 날씨가 좋",
)
def sampler(shell: "Shell", asked: Arguments) -> None:
    """Show how each sampler changes the next-token distribution.

    From left to right: the logit, the model's own probability (its softmax), and the probability
    after each active sampler. The samplers apply in this order: repetition penalty, temperature,
    top-k, top-p, min-p. Tokens are sampled from the last column; `dropped` marks tokens that a
    sampler removed.

    Entropy is −Σ p·log2 p of the probabilities in a column, in bits: how open the choice is.

    `:temp sweep` shows the same candidates at several temperatures.
    """
    model, settings = shell.require_model(), shell.session.settings
    ids = text_ids(shell, model, asked.text)
    logits = next_logits(model.decoder, ids, shell.interrupted)
    top = settings.verbose or DEFAULT_VERBOSE_ROWS
    view = compute(logits, settings, ids, model.checkpoint.tokenizer, top)
    show(shell, with_truncation(view, model.visible_window(ids)), asked.output)


_TEMPERATURES = (0.0, 0.3, 0.6, 1.0, 1.5, 2.0)
_COLUMN_WIDTH = 9  # cells of a temperature


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
        fit = max(1, (width - CANDIDATE_WIDTH) // _COLUMN_WIDTH)
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
    logits: "Scores", sampling: Sampling, ids: Sequence[int], tokenizer: Tokenizer, top: int
) -> SweepView:
    """Return the sampling distribution after `ids` at several temperatures, the set one included.

    The logits are (vocab,).
    """
    from minillm_repl.generate.sampling import process_logits, softmax, topk_ids

    temps = tuple(sorted({*_TEMPERATURES, sampling.temp}))
    columns = [process_logits(logits, replace(sampling, temp=temp), ids) for temp in temps]
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
    top = settings.verbose or DEFAULT_VERBOSE_ROWS
    view = compute_sweep(logits, settings, ids, model.checkpoint.tokenizer, top)
    show(shell, with_truncation(view, model.visible_window(ids)), asked.output)
