"""What a model knows of its vocabulary apart from any text: the vectors of the embedding and of
the output head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.insight.views.texts import MapView, NearView, Neighbour, Point
from minillm_repl.language import _
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.layers import Weight
from minillm_repl.tokenizer.base import Token, Tokenizer

_DEFAULT_NEIGHBOURS = 10
_MAX_POINTS = 1_000  # of the map, at most


@torch.no_grad()
def near_view(
    model: LanguageModel,
    tokenizer: Tokenizer,
    terms: Sequence[tuple[int, int]],
    count: int = _DEFAULT_NEIGHBOURS,
) -> NearView:
    """Return the neighbours, by cosine, of a sum of terms: (1 or −1, token), each a unit vector.

    Raises UserError if the terms cancel out.
    """
    output = (
        None
        if model.lm_head is None
        else _nearest_neighbours(tokenizer, model.lm_head.weight, terms, count)
    )
    named = tuple((sign, Token.from_id(tokenizer, token)) for sign, token in terms)
    return NearView(
        named, _nearest_neighbours(tokenizer, model.token_embedding.weight, terms, count), output
    )


@torch.no_grad()
def map_view(model: LanguageModel, tokenizer: Tokenizer, text: Sequence[int] = ()) -> MapView:
    """Return the embedding's first two principal components: tokens of the text first, then others.

    The vectors are centred at their mean, not scaled. Raises UserError if all are the same.
    """
    vectors = _embedding_table(model.token_embedding.weight)  # (vocab, width)
    centred = vectors - vectors.mean(0)
    # ascending: (width,), (width, width)
    variances, axes = torch.linalg.eigh((centred.T @ centred).double())
    total = float(variances.sum())
    if not total > 0:
        raise UserError(_("all vectors of this embedding are equal: there is nothing to map"))
    axes = axes[:, [-1, -2]]
    # or a re-run could mirror the map
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    size = min(tokenizer.vocab_size, len(vectors))
    text_tokens = dict.fromkeys(token for token in text if token < size)
    others = [
        token for token in range(0, size, max(1, size // _MAX_POINTS)) if token not in text_tokens
    ]
    shown = [*text_tokens, *others]
    coordinates = (centred[shown].double() @ axes).tolist()  # (points, 2)
    points = (
        Point(Token.from_id(tokenizer, each), x, y, each in text_tokens)
        for each, (x, y) in zip(shown, coordinates, strict=True)
    )
    return MapView(
        (float(variances[-1]) / total, float(variances[-2]) / total), size, tuple(points)
    )


def _embedding_table(weight: Weight) -> Tensor:
    table = weight[:].float()
    if not table.isfinite().all():
        raise UserError(
            _("some vectors of this vocabulary are not finite: the weights are damaged")
        )
    return table


def _nearest_neighbours(
    tokenizer: Tokenizer, weight: Weight, terms: Sequence[tuple[int, int]], count: int
) -> tuple[Neighbour, ...]:
    unit = torch.nn.functional.normalize(
        _embedding_table(weight)[: tokenizer.vocab_size], dim=-1
    )  # (vocab, width)
    direction = sum((sign * unit[token] for sign, token in terms), torch.zeros_like(unit[0]))
    if not direction.norm() > 1e-6:
        raise UserError(_("the terms cancel out: no direction is left"))
    cosines = unit @ torch.nn.functional.normalize(direction, dim=0)  # (vocab,)
    term_tokens = {token for _, token in terms}
    order = cosines.argsort(descending=True, stable=True)[: count + len(term_tokens)].tolist()
    return tuple(
        Neighbour(Token.from_id(tokenizer, each), float(cosines[each]))
        for each in order
        if each not in term_tokens
    )[:count]
