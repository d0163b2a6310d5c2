"""What a change of the model's thinking does to the next token."""

from collections.abc import Iterable

import torch
from torch import Tensor

from minillm_repl.insight.views.changes import Averaged, EffectView, Yardstick
from minillm_repl.model.hooks import Hook
from minillm_repl.tokenizer.base import Token
from minillm_repl.views.base import Likely
from minillm_repl.views.inspected_text import InspectedText, check_finite, kl_divergence, topk_ids

_TOP = 6


@torch.no_grad()
def effect_view(
    subject: InspectedText,
    description: str,
    hook: Hook,
    random_hooks: Iterable[Hook] = (),
    averaged_texts: tuple[Averaged, Averaged] | None = None,
) -> EffectView:
    """Return what a change does to the next token: the likeliest before and after it, and how far
    the one is from the other. `chance` are changes of the same size in random directions, each tap
    one or a batch of them, for comparison;
    `between` is what the direction was made of. Raises UserError.
    """
    before, after = (
        _last_log_probabilities(each)[0] for each in (subject, subject.with_hook(hook))
    )
    kl = kl_divergence(after, before)
    random_kls = torch.tensor(
        [
            kl_divergence(row, before)
            for each in random_hooks
            for row in _last_log_probabilities(subject.with_hook(each))
        ],
        dtype=torch.float64,
    )
    return EffectView(
        subject.tokens,
        description,
        _most_likely(subject, before),
        _most_likely(subject, after),
        kl=kl,
        kl_random=float(random_kls.quantile(0.5)) if len(random_kls) else None,
        random=_random_baseline(kl, random_kls) if len(random_kls) else None,
        between=averaged_texts,
        **subject.window_fields,
    )


def _random_baseline(kl: float, random_kls: Tensor) -> Yardstick:
    low, high = random_kls.quantile(torch.tensor([0.05, 0.95], dtype=random_kls.dtype)).tolist()
    return Yardstick(len(random_kls), low, high, float((random_kls < kl).double().mean()) * 100)


def _last_log_probabilities(subject: InspectedText) -> Tensor:
    """Return the log-probabilities after the last token (row, vocab), for each row that a tap
    has made of it.
    """
    logits = subject.model(subject.input_ids, hook=subject.hook, last_only=True)[:, -1]
    return check_finite(logits).double().log_softmax(-1)


def _most_likely(subject: InspectedText, log_probabilities: Tensor) -> tuple[Likely, ...]:
    return tuple(
        Likely(Token.from_id(subject.tokenizer, each), float(log_probabilities[each].exp()))
        for each in topk_ids(log_probabilities, _TOP)
    )
