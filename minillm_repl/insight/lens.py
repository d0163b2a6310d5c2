"""The logit lens: what the model would say if it stopped thinking here (nostalgebraist, 2020)."""

import torch
from torch import Tensor

from minillm_repl.insight.inspected_text import InspectedText, rank, topk_ids
from minillm_repl.insight.views.base import Likely
from minillm_repl.insight.views.thinking import LensRow, LensView
from minillm_repl.tokenizer.base import Token

_TOP = 5


@torch.no_grad()
def lens_view(subject: InspectedText, position: int = -1, top: int = _TOP) -> LensView:
    """Return the lens at a position: the last norm, computed afresh, and the head on the residual
    stream of each place.

    The last row is the model's own output. Raises UserError if there is no such position.
    """
    index = subject.index_of(position)
    position, subject = subject.position_of(index), subject.up_to(index)
    logits, found = subject.run_with_cache("embedding", "residual", "residual.mid", last_only=True)
    final = logits[0].double().log_softmax(-1)
    answer = topk_ids(final, 1)[0]
    read = [
        (place_name(subject, name), subject.model.unembed(residual[-1]))
        for name, residual in found.items()
    ]
    lens = tuple(
        _row(subject, place, logits.double().log_softmax(-1), final, answer, top)
        for place, logits in read
    )
    later = next((place for place in range(len(lens), 0, -1) if lens[place - 1].rank > 1), 0)
    answered = Token.from_id(subject.tokenizer, answer)
    return LensView(
        position, subject.tokens, answered, lens[later].place, lens, **subject.window_fields
    )


def place_name(subject: InspectedText, name: str) -> str:
    """Return a name for a place in the stream: `blocks.0.residual.mid` is `0 attention`."""
    if name == "embedding":
        return name
    layer, mid = name.split(".")[1], name.endswith(".mid")
    parallel = subject.config.parallel_residual
    return f"{layer} {'attention' if mid else 'block' if parallel else 'feed-forward'}"


def _row(
    subject: InspectedText, place: str, here: Tensor, final: Tensor, answer: int, top: int
) -> LensRow:
    likely = tuple(
        Likely(Token.from_id(subject.tokenizer, each), float(here[each].exp()))
        for each in topk_ids(here, top)
    )
    kl = float((final.exp() * (final - here)).sum())
    return LensRow(place, likely, float(here[answer].exp()), rank(here, answer), max(kl, 0.0))
