"""`:sampler`: what the samplers make of the logits, stage by stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.generate import Sampling
from minillm_repl.language import _
from minillm_repl.render.console import DROPPED, FIGURES
from minillm_repl.render.drawing import short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import TABLE_GAP, plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import verbose_rows
from minillm_repl.settings import format_value, specs, value_of
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation, with_truncation
from minillm_repl.views.base import View, show, text_ids

if TYPE_CHECKING:
    from minillm_repl.generate import Decoder
    from minillm_repl.generate.sampling import Probabilities, Scores, Situation
    from minillm_repl.repl.shell import Shell

CANDIDATE_WIDTH = 10  # cells of a candidate's label
COLUMN_WIDTH = 9  # cells of a number beside it
_MIN_STAGE = 7  # cells of a stage: `dropped`
_PENALTIES = ("repeat-penalty", "presence-penalty", "frequency-penalty", "dry")


@dataclass(frozen=True)
class Stage:
    """The distribution after one sampler."""

    # `model` before all samplers, then `temp 0.8`, `top-k 40` ... in the order of application
    name: str
    kept: int  # tokens that can still be sampled
    cut: int  # tokens that this sampler dropped
    cut_mass: float  # the probability that these had before it
    entropy: float  # bits


@dataclass(frozen=True)
class SamplerCandidate:
    """A token, and its probability after each stage."""

    token: Token
    logit: float
    seen: bool  # in the text already: penalties apply
    probs: tuple[float | None, ...]  # None once it is dropped


@dataclass(frozen=True)
class SamplerView(View, Truncation):
    """From logits to the sampling distribution, stage by stage."""

    after: Token  # the last token of the text
    stages: tuple[Stage, ...]
    candidates: tuple[SamplerCandidate, ...]  # most likely to be sampled first, then dropped ones

    def draw(self, width: int) -> RenderableType:
        """Return candidates as rows and stages as columns; below, what each stage keeps."""
        headings = [_heading(stage.name) for stage in self.stages]
        tables = [self._table(columns, headings) for columns in _fitting(headings, width)]
        notes = [
            _(
                "tokens are sampled from the last column · kept, dropped: token counts · "
                "dropped p: the probability that the dropped ones had · entropy in bits"
            )
        ]
        if self._is_penalised:
            notes.append(_("* already in the text: a penalty applies"))
        if any(stage.name.startswith("xtc") for stage in self.stages):
            notes.append(_("xtc: as where its coin says yes"))
        if any(stage.name.startswith("mirostat") for stage in self.stages):
            notes.append(_("mirostat: as at the start of an answer; its limit moves"))
        if len(self.stages) == 1:
            notes.append(_("no sampler is active: sampling from the model's softmax as it is"))
        heading = title(
            _("sampling pipeline: logits → sampling distribution"),
            _("after {token}", token=self.after.label),
        )
        return Group(heading, *tables, Text("\n".join(notes), FIGURES))

    @property
    def _is_penalised(self) -> bool:
        return any(stage.name.partition(" ")[0] in _PENALTIES for stage in self.stages)

    def _table(self, columns: Sequence[int], headings: Sequence[str]) -> Table:
        """Return the table of some stages."""
        stages = [self.stages[column] for column in columns]
        table = candidates_table(_("logit"), *(headings[column] for column in columns))
        for each in self.candidates:
            token = short_label(each.token, CANDIDATE_WIDTH)
            if self._is_penalised and each.seen:
                token.append("*")
            cells = (probability_cell(each.probs[column]) for column in columns)
            table.add_row(token, f"{each.logit:.2f}", *cells)
        table.add_section()
        for name, values in (
            (_("kept"), [f"{stage.kept:,}" for stage in stages]),
            (_("dropped"), [f"{stage.cut:,}" if stage.cut else "" for stage in stages]),
            (_("dropped p"), [percent(stage.cut_mass) if stage.cut else "" for stage in stages]),
            (_("entropy"), [f"{stage.entropy:.2f}" for stage in stages]),
        ):
            table.add_row(Text(name, FIGURES), "", *values)
        return table


def _heading(name: str) -> str:
    """Return the name of a stage in lines: `repeat`, `penalty`, `1.3`."""
    return _(name).replace("-penalty", " penalty").replace(" ", "\n")


def _fitting(headings: Sequence[str], width: int) -> list[list[int]]:
    """Return the columns in groups, of as many as fit beside the token and its logit."""
    groups: list[list[int]] = []
    room = 0
    for column, heading in enumerate(headings):
        cells = max(_MIN_STAGE, *map(cell_len, heading.split("\n"))) + TABLE_GAP
        if cells > room:
            groups.append([])
            room = width - CANDIDATE_WIDTH - COLUMN_WIDTH
        groups[-1].append(column)
        room -= cells
    return groups


def candidates_table(*columns: str) -> Table:
    """Return an empty table of tokens and of numbers about them."""
    numbers = range(1, len(columns) + 1)
    return plain_table(_("token"), *columns, right=numbers, wrap=(0,))


def probability_cell(prob: float | None) -> Text:
    """Return a probability, or that a sampler dropped the token."""
    return Text(_("dropped"), DROPPED) if prob is None else Text(percent(prob))


def compute(
    logits: "Scores",
    sampling: Sampling,
    ids: Sequence[int],
    tokenizer: Tokenizer,
    top: int,
    situation: "Situation | None" = None,
) -> SamplerView:
    """Return the distribution after `ids` as each active sampler leaves it; logits (vocab,)."""
    from minillm_repl.generate.sampling import NOTHING_ELSE, softmax, stages

    situation = situation or NOTHING_ELSE
    seen = set(ids[situation.answer_start if sampling.penalise == "answer" else 0 :])
    columns = [("model", logits)]
    for name, sampler in stages(sampling, ids, situation):
        label = f"{name} {format_value(specs(sampling)[name], value_of(sampling, name))}"
        columns.append((label, sampler(columns[-1][1])))
    distributions = [softmax(scores)[0] for _name, scores in columns]  # (vocab,) each
    return SamplerView(
        after=Token.from_id(tokenizer, ids[-1]),
        stages=(
            _stage("model", logits, distributions[0], logits, distributions[0]),
            *(
                _stage(name, scores, probabilities, before[1], earlier)
                for (name, scores), probabilities, before, earlier in zip(
                    columns[1:], distributions[1:], columns[:-1], distributions[:-1], strict=True
                )
            ),
        ),
        candidates=tuple(
            SamplerCandidate(
                token=Token.from_id(tokenizer, token),
                logit=float(logits[token]),
                seen=token in seen,
                probs=tuple(
                    kept_probability(scores, probabilities, token)
                    for (_name, scores), probabilities in zip(columns, distributions, strict=True)
                ),
            )
            for token in _listed(logits, columns[-1][1], top)
        ),
    )


def _stage(
    name: str,
    scores: "Scores",
    probabilities: "Probabilities",
    before: "Scores",
    earlier: "Probabilities",
) -> Stage:
    """Return a stage: scores and distribution (vocab,) after it, and those before it."""
    import numpy as np

    kept = np.isfinite(scores)
    cut = np.isfinite(before) & ~kept
    return Stage(
        name=name,
        kept=int(kept.sum()),
        cut=int(cut.sum()),
        cut_mass=float(earlier[cut].sum()),
        entropy=entropy_bits(probabilities),
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


def next_situation(shell: "Shell", ids: Sequence[int], text: str = "") -> "Situation":
    """Return what the next draw after `ids` depends on besides; a given text is all prompt.

    Raises UserError for a token of `:ban` or `:bias` that the model does not have.
    """
    from minillm_repl.generate.sampling import Situation

    model, conversation = shell.require_model(), shell.session.conversation
    rules = model.token_rules(shell.session.settings, conversation.eos_token_ids(model))
    is_answer = not text and conversation.turns
    start = conversation.turns[-1].answer_start if is_answer else len(ids)
    if rules.constraint is None:
        return Situation(rules, start)
    state = rules.constraint.start(ids[start:])
    if state.ended:
        raise UserError(_("the format is complete: nothing can follow"))
    return Situation(rules, start, state.allowed)


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
    after each active sampler. The samplers apply in this order: format, ban, bias, repetition,
    presence and frequency penalty, DRY, top-nσ, temperature, top-k, top-p, min-p, typical-p, XTC,
    Mirostat; `:sampler-order` changes it. Tokens are sampled from the last column; `dropped` marks
    tokens that a sampler removed. dropped p is the probability that the tokens which a sampler
    removed had just before it.

    Entropy is −Σ p·log2 p of the probabilities in a column, in bits: how open the choice is.

    `:temp sweep` shows the same candidates at several temperatures.
    """
    model, settings = shell.require_model(), shell.session.settings
    ids = text_ids(shell, model, asked.text)
    logits = next_logits(model.decoder, ids, shell.interrupted)
    top = verbose_rows(settings)
    situation = next_situation(shell, ids, asked.text)
    view = compute(logits, settings, ids, model.checkpoint.tokenizer, top, situation)
    show(shell, with_truncation(view, model.visible_window(ids)), asked.output)
