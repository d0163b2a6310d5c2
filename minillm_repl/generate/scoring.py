"""Scores a given text: how likely the model finds each of its tokens. This needs torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.generate import never_interrupted
from minillm_repl.language import _
from minillm_repl.model.attention import KVCache
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.hooks import Hook, no_hook

_CHUNK_LOGITS = 1 << 23  # logits per pass: 32 MB in float32, twice that in float64


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of a given text, under the model's own softmax after the tokens before it."""

    id: int
    logprob: float  # natural logarithm
    rank: int  # 1 = most likely; tokens as likely as this one do not count
    top: tuple[tuple[int, float], ...]  # the most likely ids and their logprobs, likeliest first


@torch.inference_mode()
def score(
    model: LanguageModel,
    ids: Sequence[int],
    n_candidates: int = 0,
    interrupted: Callable[[], bool] = never_interrupted,
    hook: Hook = no_hook,
) -> Iterator[TokenScore]:
    """Yield the score of each token of `ids` but the first, which has no text before it.

    Raises UserError if `interrupted`, which is asked between two passes; for more tokens than the
    context has; and if the logits are not finite.
    """
    if len(ids) > model.config.context_length:
        raise UserError(
            _(
                "{count} tokens are more than the context of {context}",
                count=len(ids),
                context=model.config.context_length,
            )
        )
    device = next(model.parameters()).device
    cache = KVCache(model.config, device)
    chunk = max(1, _CHUNK_LOGITS // model.config.vocab_size)
    for start in range(0, len(ids) - 1, chunk):
        if interrupted():
            raise UserError(_("stopped"))
        inputs = torch.tensor([list(ids[start : min(start + chunk, len(ids) - 1)])], device=device)
        logits = model(inputs, cache, hook)[0]  # (chunk, vocab)
        if not logits.isfinite().all():
            raise UserError(
                _(
                    "the logits are not finite: a weight is not finite, or a result "
                    "overflows float32"
                )
            )
        targets = ids[start + 1 : start + 1 + len(logits)]
        yield from _scores(logits.double().log_softmax(-1), targets, n_candidates)


def _scores(logprobs: Tensor, targets: Sequence[int], n_candidates: int) -> Iterator[TokenScore]:
    """Yield the score of each target; `logprobs` (time, vocab) are those before it."""
    found = logprobs.gather(1, torch.tensor(targets, device=logprobs.device)[:, None])  # (time, 1)
    ranks = (logprobs > found).sum(-1) + 1  # (time,)
    top = logprobs.topk(min(n_candidates, logprobs.shape[-1]))
    rows = zip(targets, found[:, 0].tolist(), ranks.tolist(), strict=True)
    for (token, logprob, rank), ids, values in zip(
        rows, top.indices.tolist(), top.values.tolist(), strict=True
    ):
        yield TokenScore(token, logprob, rank, tuple(zip(ids, values, strict=True)))
