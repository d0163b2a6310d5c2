"""How unexpected a text is to a model: surprisal, perplexity, bits per byte."""

from math import exp, log, log2

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.insight.views.texts import SurpriseView, Surprising
from minillm_repl.language import _
from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.lookup import count_prefix_spaces
from minillm_repl.views.base import Likely
from minillm_repl.views.inspected_text import InspectedText, rank, topk_ids

_TOP, _MOST = 3, 8  # alternatives to a token, tokens


@torch.no_grad()
def surprise_view(subject: InspectedText, first: int = 1) -> SurpriseView:
    """Return how unexpected the tokens from position `first` on were; position 0 has nothing before
    it to expect it.

    Raises UserError for a text of one token.
    """
    if len(subject.ids) < 2:
        raise UserError(
            _("a text of one token has no surprisal: it has no prefix; use a longer text")
        )
    logits = subject.logits()
    nats = surprisals(subject, logits)
    # which of those that are seen
    first = min(max(first - len(subject.unseen_ids), 1), len(subject.ids) - 1)
    of = nats[first - 1 :]
    mean = sum(of) / len(of)
    order = sorted(range(first, len(subject.ids)), key=lambda place: -nats[place - 1])
    return SurpriseView(
        **subject.window_fields,
        first=subject.position_of(first),
        tokens=subject.tokens,
        bits=(None, *(each / log(2) for each in nats)),
        mean=mean,
        perplexity=exp(min(mean, 700.0)),
        bits_per_byte=bits_per_byte(subject, nats, first),
        blind=log2(logits.shape[-1]),
        most=tuple(
            _surprising(subject, place, logits[place - 1], nats[place - 1])
            for place in order[:_MOST]
        ),
    )


def surprisals(subject: InspectedText, logits: Tensor) -> list[float]:
    """Return the surprisal of each token but the first, −ln p(token | before), in nats; `logits`
    are (time, vocab).
    """
    targets = subject.input_ids[0, 1:]
    return [
        float(torch.nn.functional.cross_entropy(row.double(), target))
        for row, target in zip(logits, targets, strict=False)
    ]


def bits_per_byte(
    subject: InspectedText, nats: list[float], first: int = 1, since: int = 0
) -> float | None:
    """Return Σ surprisal ÷ Σ bytes of the tokens that are text, in bits; None without any.

    Counted are those from the index `first` on that begin at the byte `since` of the whole text or
    later. The space that a tokenizer puts before a text is none of its bytes.
    """
    counted = [
        (nats[index - 1], end - start)
        for index, (start, end) in byte_spans(subject).items()
        if index >= first and start >= since
    ]
    size = sum(length for _, length in counted)
    return sum(each for each, _ in counted) / log(2) / size if size else None


def byte_spans(subject: InspectedText) -> dict[int, tuple[int, int]]:
    """Return where in the whole text's bytes each token lies that is seen and is text, by index."""
    tokens = subject.all_ids
    lead = (
        count_prefix_spaces(subject.tokenizer, tokens)
        if subject.prepended_bytes is None
        else subject.prepended_bytes
    )
    spans, at = {}, -lead
    for position, token in enumerate(tokens):
        size = len(subject.tokenizer.token_bytes(token))
        if size and not 0 <= position - subject.prefix_length < len(subject.unseen_ids):
            spans[subject.window.index_of(position)] = max(at, 0), max(at + size, 0)
        at += size
    return spans


def _surprising(subject: InspectedText, place: int, logits: Tensor, nats: float) -> Surprising:
    here, token = logits.double().softmax(-1), subject.ids[place]
    expected = tuple(
        Likely(Token.from_id(subject.tokenizer, each), float(here[each]))
        for each in topk_ids(here, _TOP)
    )
    return Surprising(
        subject.position_of(place),
        subject.tokens[place],
        nats / log(2),
        rank(here, token),
        expected,
    )
