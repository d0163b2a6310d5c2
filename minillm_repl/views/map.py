"""`:map`: the embedding, flattened to its first two principal components."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import fit_to_width, title, token_style
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer.base import Token, Tokenizer
from minillm_repl.views.base import View
from minillm_repl.views.inspected_text import no_grad
from minillm_repl.views.inspecting import import_torch, show
from minillm_repl.views.near import finite_rows

if TYPE_CHECKING:
    from minillm_repl.model.build import LanguageModel
    from minillm_repl.repl.shell import Shell

_MAX_POINTS = 1_000  # tokens
_MAX_WIDTH, _HEIGHT = 100, 18  # cells
_MAX_LABEL = 8  # cells

Cells = dict[tuple[int, int], tuple[str, str]]
"""Text and style by (row, column); a cell that a wide label covers has an empty text."""


@dataclass(frozen=True)
class Point:
    """A token on the map."""

    token: Token
    x: float
    y: float
    in_text: bool


@dataclass(frozen=True)
class MapView(View):
    """The embedding's first two principal components."""

    explained: tuple[float, float]  # the share of the variance along each
    vocabulary: int
    points: tuple[Point, ...]  # first the tokens of the text, then a sample of the others

    def draw(self, width: int) -> RenderableType:
        """Return the map: a token's label at its vector, or a dot if the label does not fit."""
        width = min(width, _MAX_WIDTH)
        cells, unnamed = self._placed(width)
        lines = Text(no_wrap=True, overflow="crop")
        for row in range(_HEIGHT):
            for column in range(width):
                lines.append(*cells.get((row, column), (" ", "")))
            lines.append("\n")
        first, second = self.explained
        notes = [_("→ {first:.0%} of the variance, ↑ {second:.0%}", first=first, second=second)]
        if unnamed:
            notes.append(_("{n} labels omitted", n=unnamed))
        if len(self.points) < self.vocabulary:
            notes.append(_("{n:,} of {all:,} tokens", n=len(self.points), all=self.vocabulary))
        if any(point.in_text for point in self.points):
            notes.append(_("bold: in the text"))
        heading = title(_("map of the embedding"), _("its first two principal components"))
        return Group(heading, lines, Text(" · ".join(notes), FIGURES))

    def _placed(self, width: int) -> tuple[Cells, int]:
        """Return the cells of the map, and how many points have no label."""
        left, right = min(point.x for point in self.points), max(point.x for point in self.points)
        low, high = min(point.y for point in self.points), max(point.y for point in self.points)
        cells: Cells = {}
        unnamed = 0
        for point in self.points:
            label = fit_to_width(point.token.label, min(cell_len(point.token.label), _MAX_LABEL))
            size = cell_len(label)
            row = round((high - point.y) / ((high - low) or 1) * (_HEIGHT - 1))
            column = round((point.x - left) / ((right - left) or 1) * (width - 1))
            column = min(column, width - size)
            style = TITLE if point.in_text else token_style(point.token)
            # A label has a free cell on both sides.
            if all((row, each) not in cells for each in range(column - 1, column + size + 1)):
                cells |= {(row, column + each): ("", "") for each in range(size)}
                cells[row, column] = (label, style)
                continue
            unnamed += 1
            cells.setdefault((row, column), ("·", style))
        return cells, unnamed


@no_grad
def compute(model: "LanguageModel", tokenizer: Tokenizer, text: Sequence[int] = ()) -> MapView:
    """Return the embedding's first two principal components; `text` has the ids to show first.

    The vectors are centred at their mean, not scaled. Raises UserError if all are the same.
    """
    import torch

    vectors = finite_rows(model.token_embedding.weight)  # (vocab, d_model)
    centred = vectors - vectors.mean(0)
    covariance = (centred.T @ centred).double()  # (d_model, d_model)
    variances, axes = torch.linalg.eigh(covariance)  # ascending: (d_model,), (d_model, d_model)
    total = float(variances.sum())
    if not total > 0:
        raise UserError(_("all vectors of this embedding are equal: there is nothing to map"))
    axes = axes[:, [-1, -2]]  # (d_model, 2)
    # The sign of an eigenvector is arbitrary: without this, a re-run could mirror the map.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    size = min(tokenizer.vocab_size, len(vectors))
    text_ids = dict.fromkeys(token for token in text if token < size)
    step = max(1, size // _MAX_POINTS)
    shown = [*text_ids, *(token for token in range(0, size, step) if token not in text_ids)]
    coordinates = (centred[shown].double() @ axes).tolist()  # (points, 2)
    points = tuple(
        Point(Token.from_id(tokenizer, token), x, y, token in text_ids)
        for token, (x, y) in zip(shown, coordinates, strict=True)
    )
    explained = float(variances[-1]) / total, float(variances[-2]) / total
    return MapView(explained, size, points)


@command("map", arguments=(), json=True, aliases=("지도",), group="Look inside", example=":map")
def map_(shell: "Shell", asked: Arguments) -> None:
    """Draw a map of the embedding (PCA).

    The axes are the first two principal components of the embedding: the directions in which its
    vectors vary most. Tokens that are near on the map can be far apart in other dimensions. `:near`
    uses all dimensions.
    """
    model = shell.require_model()
    import_torch(shell)
    ids = shell.session.conversation.ids
    show(shell, compute(model.language_model, model.checkpoint.tokenizer, ids), asked.output)
