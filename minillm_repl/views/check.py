"""`:train CORPUS check`: what a run would learn from its corpus, before anything is trained."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import DROPPED
from minillm_repl.render.drawing import title, token_style
from minillm_repl.render.tables import plain_table
from minillm_repl.render.training_summary import passes_text
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.views.base import View

if TYPE_CHECKING:
    from minillm_repl.training.run import TrainingRun
    from minillm_repl.training.splits import Split

_PIECES, _PIECE_TOKENS = 3, 64  # of the training split, that are shown
_SHINGLE = 20  # tokens: so long a run that stands in both splits is no chance
_FACTOR = 6364136223846793005  # odd and large; Knuth's
_MAX_COMPARED = 1 << 22  # tokens of a split whose shingles are compared


@dataclass(frozen=True)
class Piece:
    """Some tokens in a row, and which of them the loss counts."""

    tokens: tuple[Token, ...]
    is_target: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class CheckView(View):
    """What a run would learn from."""

    files: tuple[tuple[str, int], ...]  # what they hold, and how many do
    documents: int
    duplicates: int  # documents that are equal to another one, each but the first
    lengths: tuple[int, ...]  # tokens of a document: least, median, 95th percentile, most
    train_tokens: int
    targets: int  # tokens of the training split that the loss counts
    val_tokens: int
    unknown_characters: int
    overlap: float | None  # share of the runs of 20 tokens of the validation split in the other
    context_length: int
    longer: int  # documents that are longer than the context
    steps: int
    passes: float
    memory: int  # bytes at the peak of a step, about
    pieces: tuple[Piece, ...]

    def draw(self, width: int) -> RenderableType:
        """Return the figures, and pieces in which what is not learnt is dim."""
        del width  # rich folds the lines
        table = plain_table("", "", right=(1,), wrap=(0,))
        for name, value in self._figures():
            table.add_row(name, value)
        legend = _("dim: read, but not learnt")
        parts: list[RenderableType] = [title(_("corpus"), _("nothing was trained")), table]
        for number, piece in enumerate(self.pieces, 1):
            heading = _("piece {number} of the training text", number=number)
            parts += [Text(), title(heading, legend), _flow(piece)]
        return Group(*parts)

    def _figures(self) -> list[tuple[str, str]]:
        least, median, long, most = (f"{length:,}" for length in self.lengths)
        rows = [
            *((_("files read as {what}", what=what), f"{count:,}") for what, count in self.files),
            (_("documents"), f"{self.documents:,}"),
            (_("equal to another document"), f"{self.duplicates:,}"),
            (_("tokens in a document: least"), least),
            (_("median"), median),
            (_("95th percentile"), long),
            (_("most"), most),
            (_("longer than the context of {n:,}", n=self.context_length), f"{self.longer:,}"),
            (_("training tokens"), f"{self.train_tokens:,}"),
            (_("of these learnt"), f"{self.targets / max(1, self.train_tokens):.0%}"),
            (_("validation tokens"), f"{self.val_tokens:,}"),
            (_("unknown characters"), f"{self.unknown_characters:,}"),
            (_("steps"), f"{self.steps:,}"),
            (_("passes over the text"), passes_text(self.passes)),
            (_("memory, about"), f"{self.memory / 2**20:,.0f} MiB"),
        ]
        if self.overlap is not None:
            name = _("validation text that also stands in the training text")
            rows.insert(-5, (name, f"{self.overlap:.1%}"))
        return rows


def _flow(piece: Piece) -> Text:
    """Return tokens one after the other; those that are no targets are dim."""
    flow = Text()
    for token, is_target in zip(piece.tokens, piece.is_target, strict=True):
        flow.append(token.label, token_style(token) if is_target else DROPPED)
    return flow


def compute(run: "TrainingRun") -> CheckView:
    """Return what a run that is ready to go would learn from."""
    import numpy as np

    from minillm_repl.training.defaults import estimate_memory
    from minillm_repl.training.splits import count_duplicates

    plan, train, val = run.trainer.plan, run.trainer.train, run.trainer.val
    lengths = np.concatenate([np.diff(part.ends, prepend=0) for part, _weight in run.sources])
    quantiles = np.quantile(lengths, (0, 0.5, 0.95, 1), method="nearest").astype(int).tolist()
    return CheckView(
        files=tuple(Counter(shape.title for _file, shape in run.corpora.train.files).items()),
        documents=run.corpora.train.count,
        duplicates=sum(count_duplicates(part) for part, _weight in run.sources),
        lengths=tuple(quantiles),
        train_tokens=len(train.ids),
        targets=train.targets,
        val_tokens=len(val.ids) if val else 0,
        unknown_characters=sum(part.unknown_characters for part, _weight in run.sources),
        overlap=_overlap(train, val) if val else None,
        context_length=plan.context_length,
        longer=int((lengths > plan.context_length).sum()),
        steps=plan.steps,
        passes=plan.steps * plan.batch_size * plan.context_length / len(train.ids),
        memory=estimate_memory(plan, run.trainer.model.config),
        pieces=tuple(_pieces(train, run.start.tokenizer, plan.seed)),
    )


def _pieces(train: "Split", tokenizer: Tokenizer, seed: int) -> Sequence[Piece]:
    """Return the windows with which a run begins, or their first tokens."""
    pieces = list[Piece]()
    for start in train.training_starts(0, _PIECES, seed).tolist():
        here = slice(start, start + min(_PIECE_TOKENS, train.context_length))
        tokens = [Token.from_id(tokenizer, token) for token in train.ids[here].tolist()]
        mask = [True] * len(tokens) if train.loss_mask is None else train.loss_mask[here].tolist()
        pieces.append(Piece(tuple(tokens), tuple(mask)))
    return pieces


def _overlap(train: "Split", val: "Split") -> float:
    """Return the share of the validation split's runs of tokens that the training split has."""
    import numpy as np

    digests = []
    for split in (val, train):
        ids = split.ids[:_MAX_COMPARED].astype(np.uint64)
        rows = np.zeros(max(0, len(ids) - _SHINGLE + 1), np.uint64)  # a digest of each run
        # A polynomial modulo 2^64; a chance collision changes no digit that is shown.
        for offset in range(_SHINGLE):
            rows = rows * np.uint64(_FACTOR) + ids[offset : offset + len(rows)]
        digests.append(rows)
    ours, theirs = digests
    return float(np.isin(ours, theirs).mean()) if len(ours) else 0.0
