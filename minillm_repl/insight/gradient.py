"""Which input tokens a prediction depends on: gradients with respect to the vectors that enter
the first layer.
"""

import torch
from torch import Tensor

from minillm_repl.insight.views.thinking import GradView
from minillm_repl.model.hooks import compose
from minillm_repl.tokenizer.base import Token
from minillm_repl.views.inspected_text import InspectedText, check_finite, topk_ids


def grad_view(
    subject: InspectedText, token: int | None = None, versus: int | None = None
) -> GradView:
    """Return the gradient of the next token's logit, or a difference of two, by input vector.

    By default it is the likeliest token's. An input vector is what enters the first layer: the
    token's embedding, and its position's where that is learned.
    """
    entered: list[Tensor] = []

    def tap(name: str, tensor: Tensor) -> Tensor:
        if name != "embedding":
            return tensor
        entered.append(tensor.detach().requires_grad_())
        return entered[0]

    with torch.enable_grad():
        logits = check_finite(
            subject.model(subject.input_ids, hook=compose(subject.hook, tap), last_only=True)[0, -1]
        )
        token = topk_ids(logits.detach(), 1)[0] if token is None else token
        logit = logits[token] if versus is None else logits[token] - logits[versus]
        (gradient,) = torch.autograd.grad(logit, entered)
    vectors, gradient = entered[0].detach()[0], gradient[0]  # each (time, width)
    return GradView(
        tokens=subject.tokens,
        token=Token.from_id(subject.tokenizer, token),
        versus=None if versus is None else Token.from_id(subject.tokenizer, versus),
        logit=float(logit.detach()),
        times=tuple((gradient * vectors).sum(-1).tolist()),
        norms=tuple(gradient.norm(dim=-1).tolist()),
        **subject.window_fields,
    )
