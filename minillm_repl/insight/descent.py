"""One step of plain gradient descent, on a copy of the weights: what training does, once and
without any refinement.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor

from minillm_repl.checkpoint.weight_map import Recipe
from minillm_repl.checkpoint.weights import place_in_file
from minillm_repl.errors import UserError
from minillm_repl.insight.inspected_text import Subject, checked
from minillm_repl.insight.views.changes import DescentView, Target
from minillm_repl.language import _
from minillm_repl.model.build import in_float32, without_weights
from minillm_repl.storage.memory import check_room


def descent_view(subject: Subject, rate: float, recipe: Recipe | None = None) -> DescentView:
    """Return what one step makes of the loss of a text; the model stays as it is.

    Computed in float32, of weights in 8 or 4 bits too. With the recipe of the model's file, the
    weight is named as it is there. Raises UserError for a text of one token, for want of memory,
    for weights that are no numbers, and for a rate that leads to none.
    """
    if len(subject.ids) < 2:
        raise UserError(
            _("a text of one token has no next token to learn: give a longer one in quotes")
        )
    # each weight, its gradient and its new value
    check_room(12 * subject.config.parameters, _("a step of descent"))
    weights = {name: weight.requires_grad_() for name, weight in in_float32(subject.model).items()}
    with torch.enable_grad():
        before = checked(_losses(subject, weights))
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
                "rate={rate} goes so far that the loss is no number any more: take less",
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
    name, index = place_in_file(recipe, most, shape, index) if recipe else (most, index)
    return DescentView(
        subject.tokens,
        rate,
        tuple(
            Target(subject.position(position), math.exp(-old), math.exp(-new), old, new)
            for position, (old, new) in enumerate(zip(before.tolist(), after.tolist(), strict=True))
        ),
        float(before.mean()),
        float(after.mean()),
        name,
        index,
        value,
        gradient,
        value - rate * gradient,
        **subject.where,
    )


def _losses(subject: Subject, weights: dict[str, Tensor]) -> Tensor:
    """Return −ln p of each token but the first (time − 1,), by the model with these weights."""
    ids = subject.input
    model = without_weights(subject.config)
    logits = torch.func.functional_call(model, weights, (ids[:, :-1],), {"tap": subject.tap})[0]
    return F.cross_entropy(logits.double(), ids[0, 1:], reduction="none")
