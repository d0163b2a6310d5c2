"""`:map`: the vectors of the embedding as a map, of all tokens or of chosen ones."""

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
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.lookup import find_token_ids
from minillm_repl.views.base import View, import_torch, show
from minillm_repl.views.embedding import finite_rows
from minillm_repl.views.inspected_text import no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel
    from minillm_repl.repl.shell import Shell

_MAX_POINTS = 1_000  # tokens
_MAX_WIDTH, _HEIGHT = 100, 18  # cells
_MAX_LABEL = 8  # cells
_MAX_CHOSEN_LABEL = 20
_MIN_AXES = 3  # chosen tokens that make axes of their own; two have one only

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
    """The first two principal components of the embedding, or of some of its vectors."""

    explained: tuple[float, float]  # the share of the variance along each
    vocabulary: int
    points: tuple[Point, ...]  # first the tokens of the text, then a sample of the others
    chosen: bool = False  # whether the points are tokens that were chosen, and no others
    own_axes: bool = False  # whether the components are those of these points alone

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
        if len(self.points) < self.vocabulary and not self.chosen:
            notes.append(_("{n:,} of {all:,} tokens", n=len(self.points), all=self.vocabulary))
        if any(point.in_text for point in self.points):
            notes.append(_("bold: in the text"))
        axes = (
            _("the first two principal components of these {n} tokens", n=len(self.points))
            if self.own_axes
            else _("its first two principal components")
        )
        heading = title(_("map of the embedding"), axes)
        return Group(heading, lines, Text(" · ".join(notes), FIGURES))

    def _placed(self, width: int) -> tuple[Cells, int]:
        """Return the cells of the map, and how many points have no label."""
        left, right = min(point.x for point in self.points), max(point.x for point in self.points)
        low, high = min(point.y for point in self.points), max(point.y for point in self.points)
        cells: Cells = {}
        unnamed = 0
        for point in self.points:
            longest = min(_MAX_CHOSEN_LABEL if self.chosen else _MAX_LABEL, width)
            label = fit_to_width(point.token.label, min(cell_len(point.token.label), longest))
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
def compute_map(
    model: "LanguageModel",
    tokenizer: Tokenizer,
    text: Sequence[int] = (),
    chosen: Sequence[int] = (),
) -> MapView:
    """Return the embedding's first two principal components; `text` has the ids to show first.

    With `chosen` ids, these alone are shown; the components are theirs, if they are three or more.
    The vectors are centred at their mean, not scaled. Raises UserError if all are the same.
    """
    vectors = finite_rows(model.token_embedding.weight)  # (vocab, d_model)
    chosen = tuple(dict.fromkeys(chosen))
    own_axes = len(chosen) >= _MIN_AXES
    basis = vectors[list(chosen)] if own_axes else vectors
    explained, axes = _components(basis - basis.mean(0))
    size = min(tokenizer.vocab_size, len(vectors))
    text_ids = dict.fromkeys(token for token in text if token < size)
    step = max(1, size // _MAX_POINTS)
    shown = [*text_ids, *(token for token in range(0, size, step) if token not in text_ids)]
    shown = list(chosen) or shown
    coordinates = ((vectors[shown] - basis.mean(0)).double() @ axes).tolist()  # (points, 2)
    points = tuple(
        Point(Token.from_id(tokenizer, token), x, y, token in text_ids)
        for token, (x, y) in zip(shown, coordinates, strict=True)
    )
    return MapView(explained, size, points, bool(chosen), own_axes)


def _components(centred: "Tensor") -> "tuple[tuple[float, float], Tensor]":
    """Return the share of the variance along the first two principal components of vectors
    (n, d_model), and these: (d_model, 2).
    """
    import torch

    covariance = (centred.T @ centred).double()  # (d_model, d_model)
    variances, axes = torch.linalg.eigh(covariance)  # ascending: (d_model,), (d_model, d_model)
    total = float(variances.sum())
    if not total > 0:
        raise UserError(_("all vectors of this embedding are equal: there is nothing to map"))
    axes = axes[:, [-1, -2]]  # (d_model, 2)
    # The sign of an eigenvector is arbitrary: without this, a re-run could mirror the map.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return (float(variances[-1]) / total, float(variances[-2]) / total), axes


@command(
    "map",
    arguments=(Words("tokens", "[TOKEN ...]"),),
    json=True,
    aliases=("지도",),
    group="Look inside",
    example=":map",
)
def map_(shell: "Shell", asked: Arguments) -> None:
    """Draw a map of the embedding (PCA).

    The axes are the first two principal components of the embedding: the directions in which its
    vectors vary most. Tokens that are near on the map can be far apart in other dimensions. `:near`
    uses all dimensions.

    `:map king queen man woman` shows these tokens alone. The axes are then those in which their own
    vectors vary most, if there are three or more. Write a token as it is shown (␣ is a space), or
    as #ID. A word stands for the token with a space before it, if there is one.
    """
    model = shell.require_model()
    tokenizer = model.checkpoint.tokenizer
    chosen = [find_token_ids(tokenizer, word)[-1] for word in asked.tokens.split()]
    import_torch(shell)
    ids = shell.session.conversation.ids
    show(shell, compute_map(model.language_model, tokenizer, ids, chosen), asked.output)
