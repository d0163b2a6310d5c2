"""`:near`: the nearest tokens in the embedding."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import (
    bar,
    label_width,
    short_label,
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
