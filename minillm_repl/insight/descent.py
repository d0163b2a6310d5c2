"""One step of plain gradient descent, on a copy of the weights: what training does, once and
without any refinement.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor

from minillm_repl.checkpoint.weight_map import WeightMap
from minillm_repl.checkpoint.weights import locate_in_file
from minillm_repl.errors import UserError
from minillm_repl.insight.views.changes import DescentView, Target
from minillm_repl.language import _
from minillm_repl.model.build import build_on_meta, float32_weights
from minillm_repl.storage.memory import check_memory
from minillm_repl.views.inspected_text import InspectedText, check_finite


def descent_view(
    subject: InspectedText, rate: float, recipe: WeightMap | None = None
) -> DescentView:
    """Return what one step makes of the loss of a text; the model stays as it is.

    Computed in float32, of weights in 8 or 4 bits too. With the recipe of the model's file, the
    weight is named as it is there. Raises UserError for a text of one token, for want of memory,
    for weights that are no numbers, and for a rate that leads to none.
    """
    if len(subject.ids) < 2:
        raise UserError(_("a text of one token has no next token; put a longer text in quotes"))
    # each weight, its gradient and its new value
    check_memory(12 * subject.config.n_params, _("gradient descent step"))
    weights = {
        name: weight.requires_grad_() for name, weight in float32_weights(subject.model).items()
    }
    with torch.enable_grad():
        before = check_finite(_losses(subject, weights))
        found = torch.autograd.grad(
            before.mean(), list(weights.values()), allow_unused=True, materialize_grads=True
        )
    gradients = dict(zip(weights, found, strict=True))
    with torch.no_grad():
        after = _losses(subject, {name: weights[name] - rate * gradients[name] for name in weights})
    before, after = before.detach().abs(), after.abs()  # no −0
    if not after.isfinite().all():
        raise UserError(
            _(
                "the loss is not finite with rate={rate}; use a smaller rate",
                rate=f"{rate:g}",
            )
        )
    most = max(gradients, key=lambda name: float(gradients[name].abs().max()))
    place = int(gradients[most].abs().argmax())
    value, gradient = (
        float(each.detach().flatten()[place]) for each in (weights[most], gradients[most])
    )
    shape = tuple(gradients[most].shape)
    index = tuple(int(each) for each in torch.unravel_index(torch.tensor(place), shape))
    name, index = locate_in_file(recipe, most, shape, index) if recipe else (most, index)
    return DescentView(
        subject.tokens,
        rate,
        tuple(
            Target(subject.position_of(position), math.exp(-old), math.exp(-new), old, new)
            for position, (old, new) in enumerate(zip(before.tolist(), after.tolist(), strict=True))
        ),
        float(before.mean()),
        float(after.mean()),
        name,
        index,
        value,
        gradient,
        value - rate * gradient,
        **subject.window_fields,
    )


def _losses(subject: InspectedText, weights: dict[str, Tensor]) -> Tensor:
    """Return −ln p of each token but the first (time − 1,), by the model with these weights."""
    ids = subject.input_ids
    model = build_on_meta(subject.config)
    logits = torch.func.functional_call(model, weights, (ids[:, :-1],), {"hook": subject.hook})[0]
    return F.cross_entropy(logits.double(), ids[0, 1:], reduction="none")
