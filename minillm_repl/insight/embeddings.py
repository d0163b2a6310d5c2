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

_NEAREST = 10
_POINTS = 1_000  # of the map, at most


@torch.no_grad()
def near_view(
    model: LanguageModel,
    tokenizer: Tokenizer,
    terms: Sequence[tuple[int, int]],
    count: int = _NEAREST,
) -> NearView:
    """Return the nearest neighbours, by cosine, of a sum of terms: (1 or −1, token), each as a unit
    vector.

    Raises UserError if the terms cancel out.
    """
    output = (
        None if model.lm_head is None else _nearest(tokenizer, model.lm_head.weight, terms, count)
    )
    named = tuple((sign, Token.of(tokenizer, token)) for sign, token in terms)
    return NearView(named, _nearest(tokenizer, model.token_embedding.weight, terms, count), output)


@torch.no_grad()
def map_view(model: LanguageModel, tokenizer: Tokenizer, text: Sequence[int] = ()) -> MapView:
    """Return the embedding's first two principal components: tokens of the text first, then others.

    The vectors are centred at their mean, not scaled. Raises UserError if all are the same.
    """
    vectors = _table(model.token_embedding.weight)  # (vocab, width)
    centred = vectors - vectors.mean(0)
    # ascending: (width,), (width, width)
    variances, axes = torch.linalg.eigh((centred.T @ centred).double())
    total = float(variances.sum())
    if not total > 0:
        raise UserError(_("all vectors of this embedding are the same: there is nothing to map"))
    axes = axes[:, [-1, -2]]
    # or a re-run could mirror the map
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    size = min(tokenizer.size, len(vectors))
    here = dict.fromkeys(token for token in text if token < size)
    others = [token for token in range(0, size, max(1, size // _POINTS)) if token not in here]
    shown = [*here, *others]
    places = (centred[shown].double() @ axes).tolist()  # (points, 2)
    points = (
        Point(Token.of(tokenizer, each), x, y, each in here)
        for each, (x, y) in zip(shown, places, strict=True)
    )
    return MapView(
        (float(variances[-1]) / total, float(variances[-2]) / total), size, tuple(points)
    )


def _table(weight: Weight) -> Tensor:
    table = weight[:].float()
    if not table.isfinite().all():
        raise UserError(
            _("the vectors of this vocabulary are not all finite numbers: its weights are damaged")
        )
    return table


def _nearest(
    tokenizer: Tokenizer, weight: Weight, terms: Sequence[tuple[int, int]], count: int
) -> tuple[Neighbour, ...]:
    unit = torch.nn.functional.normalize(_table(weight)[: tokenizer.size], dim=-1)  # (vocab, width)
    aim = sum((sign * unit[token] for sign, token in terms), torch.zeros_like(unit[0]))
    if not aim.norm() > 1e-6:
        raise UserError(_("these terms cancel each other out: there is no direction left"))
    cosines = unit @ torch.nn.functional.normalize(aim, dim=0)  # (vocab,)
    asked = {token for _, token in terms}
    order = cosines.argsort(descending=True, stable=True)[: count + len(asked)].tolist()
    return tuple(
        Neighbour(Token.of(tokenizer, each), float(cosines[each]))
        for each in order
        if each not in asked
    )[:count]
