"""`:near` and `:map`: the embedding, as neighbours of a token and as a map."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    bar,
    fit_to_width,
    label_width,
    short_label,
    title,
    token_style,
)
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.lookup import find_token_ids
from minillm_repl.views.base import View, import_torch, show
from minillm_repl.views.inspected_text import no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel
    from minillm_repl.model.layers import Weight
    from minillm_repl.repl.shell import Shell

_NEIGHBOURS = 10  # that are listed
_SIGN = re.compile(r"\s+([-+−])\s+")


@dataclass(frozen=True)
class Neighbour:
    """A token, and the cosine of its vector with the sum of the terms."""

    token: Token
    cosine: float


@dataclass(frozen=True)
class NearView(View):
    """The nearest tokens to a sum of tokens, on the input side and on the output side."""

    terms: tuple[tuple[int, Token], ...]  # 1 or −1, and the token whose unit vector counts
    input: tuple[Neighbour, ...]  # in the embedding, nearest first; without the terms themselves
    output: tuple[Neighbour, ...] | None  # in the output head; None if it is the embedding

    def draw(self, width: int) -> RenderableType:
        """Return the neighbours in the embedding, and beside them those in the output head."""
        sides = [(_("embedding"), self.input)]
        if self.output:
            sides.append((_("unembedding"), self.output))
        headings = [heading for name, _side in sides for heading in (name, _("cosine"), "")]
        table = plain_table("", *headings, right=(2, 5))
        labels = label_width(each.token for _name, side in sides for each in side)
        bars = max(4, min(20, (width - 4) // len(sides) - max(labels, 9) - 16))
        for place, row in enumerate(zip(*(side for _name, side in sides), strict=True), 1):
            table.add_row(str(place), *(cell for each in row for cell in _cells(each, bars)))
        terms = Text()
        for sign, token in self.terms:
            mark = " + " if sign > 0 else " − "
            terms.append("" if not terms and sign > 0 else mark).append_text(short_label(token))
        notes = [_("cosine: 1 same direction, 0 orthogonal, −1 opposite")]
        if not self.output:
            notes.append(_("the unembedding is tied to the embedding"))
        heading = Text.assemble((_("nearest to") + " ", TITLE), terms)
        return Group(heading, table, Text(" · ".join(notes), FIGURES))


def _cells(neighbour: Neighbour, bars: int) -> tuple[Text, str, Text]:
    cosine = neighbour.cosine
    return short_label(neighbour.token), f"{cosine:+.3f}", Text(bar(cosine, bars), MODEL)


@no_grad
def compute_near(
    model: "LanguageModel",
    tokenizer: Tokenizer,
    terms: Sequence[tuple[int, int]],
    top: int = _NEIGHBOURS,
) -> NearView:
    """Return the neighbours, by cosine, of a sum of terms: (1 or −1, token), each a unit vector.

    Raises UserError if the terms cancel out.
    """
    head = model.lm_head
    return NearView(
        terms=tuple((sign, Token.from_id(tokenizer, token)) for sign, token in terms),
        input=_neighbours(tokenizer, model.token_embedding.weight, terms, top),
        output=None if head is None else _neighbours(tokenizer, head.weight, terms, top),
    )


def _neighbours(
    tokenizer: Tokenizer, weight: "Weight", terms: Sequence[tuple[int, int]], top: int
) -> tuple[Neighbour, ...]:
    import torch
    from torch.nn.functional import normalize

    vectors = finite_rows(weight)[: tokenizer.vocab_size]
    unit = normalize(vectors, dim=-1)  # (vocab, d_model)
    direction = sum((sign * unit[token] for sign, token in terms), torch.zeros_like(unit[0]))
    if not direction.norm() > 1e-6:
        raise UserError(_("the terms cancel out: no direction is left"))
    cosines = unit @ normalize(direction, dim=0)  # (vocab,)
    term_ids = {token for _sign, token in terms}
    order = cosines.argsort(descending=True, stable=True)[: top + len(term_ids)].tolist()
    return tuple(
        Neighbour(Token.from_id(tokenizer, token), float(cosines[token]))
        for token in order
        if token not in term_ids
    )[:top]


def finite_rows(weight: "Weight") -> "Tensor":
    """Return a table of vectors (vocab, d_model) in float32. Raises UserError if damaged."""
    table = weight[:].float()
    if not table.isfinite().all():
        raise UserError(
            _("some vectors of this vocabulary are not finite: the weights are damaged")
        )
    return table


@command(
    "near",
    arguments=(Words("terms", "TOKEN [± TOKEN ...]", required=True),),
    json=True,
    aliases=("이웃",),
    group="Look inside",
    example=":near 날 + 씨",
)
def near(shell: "Shell", asked: Arguments) -> None:
    """Show the nearest tokens in the embedding.

    The view shows cosines between rows of the embedding (the input side), and between rows of the
    output head (the output side). The rows are as stored: not centred, and not scaled by the final
    norm.

    `:near king - man + woman` adds and subtracts unit vectors before the search, and leaves its own
    terms out.

    Write a token as it is shown (␣ is a space), or as #ID. A word stands for the token with a space
    before it, if there is one.
    """
    model = shell.require_model()
    tokenizer = model.checkpoint.tokenizer
    first, *rest = _SIGN.split(asked.terms)
    signs = (1, *(1 if sign == "+" else -1 for sign in rest[::2]))
    words = (first, *rest[1::2])
    terms = [
        (sign, find_token_ids(tokenizer, word)[-1]) for sign, word in zip(signs, words, strict=True)
    ]
    import_torch(shell)
    show(shell, compute_near(model.language_model, tokenizer, terms), asked.output)


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
def compute_map(model: "LanguageModel", tokenizer: Tokenizer, text: Sequence[int] = ()) -> MapView:
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
    show(shell, compute_map(model.language_model, model.checkpoint.tokenizer, ids), asked.output)
