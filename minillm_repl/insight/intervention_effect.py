"""What a change of the model's thinking does to the next token."""

from collections.abc import Iterable

import torch
from torch import Tensor

from minillm_repl.insight.inspected_text import Subject, checked, likeliest
from minillm_repl.insight.views.base import Likely
from minillm_repl.insight.views.changes import Averaged, EffectView, Yardstick
from minillm_repl.model.hooks import Tap
from minillm_repl.tokenizer.base import Token

_TOP = 6


@torch.no_grad()
def effect_view(
    subject: Subject,
    told: str,
    tap: Tap,
    chance: Iterable[Tap] = (),
    between: tuple[Averaged, Averaged] | None = None,
) -> EffectView:
    """Return what a change does to the next token: the likeliest before and after it, and how far
    the one is from the other. `chance` are changes of the same size in random directions, each tap
    one or a batch of them, for comparison;
    `between` is what the direction was made of. Raises UserError.
    """
    before, after = (_final(each)[0] for each in (subject, subject.with_tap(tap)))
    kl = divergence(after, before)
    at_random = torch.tensor(
        [divergence(row, before) for each in chance for row in _final(subject.with_tap(each))],
        dtype=torch.float64,
    )
    return EffectView(
        subject.tokens,
        told,
        _likely(subject, before),
        _likely(subject, after),
        kl=kl,
        kl_random=float(at_random.quantile(0.5)) if len(at_random) else None,
        random=_yardstick(kl, at_random) if len(at_random) else None,
        between=between,
        **subject.where,
    )


def divergence(of: Tensor, against: Tensor) -> float:
    """Return the KL divergence KL(of ‖ against) = Σ of · ln(of / against), in nats, of two
    log-probability vectors.
    """
    return max(
        float(torch.nn.functional.kl_div(against, of, reduction="sum", log_target=True)), 0.0
    )


def _yardstick(kl: float, at_random: Tensor) -> Yardstick:
    low, high = at_random.quantile(torch.tensor([0.05, 0.95], dtype=at_random.dtype)).tolist()
    return Yardstick(len(at_random), low, high, float((at_random < kl).double().mean()) * 100)


def _final(subject: Subject) -> Tensor:
    """Return the log-probabilities after the last token (row, vocab), for each row that a tap
    has made of it.
    """
    logits = subject.model(subject.input, tap=subject.tap, last=True)[:, -1]
    return checked(logits).double().log_softmax(-1)


def _likely(subject: Subject, final: Tensor) -> tuple[Likely, ...]:
    return tuple(
        Likely(Token.of(subject.tokenizer, each), float(final[each].exp()))
        for each in likeliest(final, _TOP)
    )
