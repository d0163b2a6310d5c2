"""What a change of the model's thinking does to the next token."""

import torch
from torch import Tensor

from minillm_repl.insight.subject import Subject, likeliest
from minillm_repl.insight.views.base import Likely
from minillm_repl.insight.views.changes import EffectView
from minillm_repl.model.taps import Tap
from minillm_repl.tokenizer.base import Token

_TOP = 6


@torch.no_grad()
def effect_view(subject: Subject, told: str, tap: Tap, chance: Tap | None = None) -> EffectView:
    """Return what a change does to the next token: the likeliest before and after it, and how far the one is from the
    other. `chance` is another change of the same size in a random direction, for comparison. Raises UserError.
    """
    before, after = _final(subject), _final(subject.with_tap(tap))
    return EffectView(
        subject.tokens,
        told,
        _likely(subject, before),
        _likely(subject, after),
        kl=_divergence(after, before),
        kl_random=None if chance is None else _divergence(_final(subject.with_tap(chance)), before),
        **subject.where,
    )


def _final(subject: Subject) -> Tensor:
    return subject.logits(last=True)[0].double().log_softmax(-1)


def _likely(subject: Subject, final: Tensor) -> tuple[Likely, ...]:
    return tuple(Likely(Token.of(subject.tokenizer, each), float(final[each].exp())) for each in likeliest(final, _TOP))


def _divergence(of: Tensor, against: Tensor) -> float:
    """Return the KL divergence Σ of · ln(of / against), in nats, of two log-probability vectors."""
    return max(float(torch.nn.functional.kl_div(against, of, reduction="sum", log_target=True)), 0.0)
