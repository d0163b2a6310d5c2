"""Two models on the same text."""

import torch
from torch import Tensor

from minillm_repl.insight.surprise import bits_per_byte, byte_spans, surprisals
from minillm_repl.insight.views.texts import CompareView, Difference
from minillm_repl.language import N_
from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.lookup import count_prefix_spaces, has_same_vocabulary
from minillm_repl.views.base import Likely
from minillm_repl.views.inspected_text import InspectedText, kl_divergence, topk_ids

_TOP, _MOST = 8, 8


@torch.no_grad()
def compare_view(ours: InspectedText, theirs: InspectedText, names: tuple[str, str]) -> CompareView:
    """Return what two models make of a text; of two vocabularies, only what can be compared."""
    both = ours, theirs
    logits = tuple(each.logits() for each in both)
    why = _apart(ours, theirs, logits[0].shape[-1] == logits[1].shape[-1])
    differences = (
        [] if why else [_difference(ours, place, logits) for place in range(len(ours.ids))]
    )
    since = _shared_start(ours, theirs) if _text(ours) == _text(theirs) else None
    last = differences[-1] if differences else None
    count = max(len(differences), 1)
    return CompareView(
        names=names,
        tokens=(len(ours.ids), len(theirs.ids)),
        top=(_top(ours, logits[0][-1]), _top(theirs, logits[1][-1])),
        bits_per_byte=(_bits(ours, logits[0], since), _bits(theirs, logits[1], since)),
        bytes=0 if since is None else len(_text(ours)) - since,
        why=why,
        kl=(last.kl, last.kl_back) if last else None,
        kl_mean=(
            sum(each.kl for each in differences) / count,
            sum(each.kl_back for each in differences) / count,
        )
        if last
        else None,
        **ours.window_fields,
        same_top=sum(each.ours.token == each.theirs.token for each in differences)
        if last
        else None,
        differ=tuple(
            sorted((each for each in differences if each.kl), key=lambda each: -each.kl)[:_MOST]
        ),
    )


def _apart(ours: InspectedText, theirs: InspectedText, as_many: bool) -> str:
    """Return why the two distributions cannot be compared token by token; nothing if they can."""
    if _text(ours) != _text(theirs):
        return N_("the two models read different texts: one of them lacks some characters")
    if not as_many or not has_same_vocabulary(ours.tokenizer, theirs.tokenizer):
        return N_("the two models have different vocabularies")
    if ours.window_fields != theirs.window_fields:
        return N_("one model sees less of the text than the other")
    if ours.ids != theirs.ids:
        return N_("the two models tokenize the text differently")
    return ""


def _text(subject: InspectedText) -> bytes:
    """Return the bytes of the whole text, without a space that the tokenizer has put before it."""
    tokens = subject.all_ids
    lead = (
        count_prefix_spaces(subject.tokenizer, tokens)
        if subject.prepended_bytes is None
        else subject.prepended_bytes
    )
    return b"".join(map(subject.tokenizer.token_bytes, tokens))[lead:]


def _shared_start(ours: InspectedText, theirs: InspectedText) -> int | None:
    """Return the first byte of the text from which on both models expect each token, and at
    which both begin one.
    """
    begins = [
        {start for index, (start, _end) in byte_spans(each).items() if index}
        for each in (ours, theirs)
    ]
    return min(begins[0] & begins[1], default=None)


def _difference(subject: InspectedText, place: int, logits: tuple[Tensor, ...]) -> Difference:
    ours, theirs = (each[place].double().log_softmax(-1) for each in logits)
    kl, back = (kl_divergence(of, against) for of, against in ((ours, theirs), (theirs, ours)))
    best = [_likely(subject, each, topk_ids(each, 1)[0]) for each in (ours, theirs)]
    return Difference(subject.position_of(place), subject.tokens[place], kl, back, *best)


def _top(subject: InspectedText, logits: Tensor) -> tuple[Likely, ...]:
    here = logits.double().log_softmax(-1)
    return tuple(_likely(subject, here, token) for token in topk_ids(here, _TOP))


def _likely(subject: InspectedText, log_probabilities: Tensor, token: int) -> Likely:
    return Likely(Token.from_id(subject.tokenizer, token), float(log_probabilities[token].exp()))


def _bits(subject: InspectedText, logits: Tensor, since: int | None) -> float | None:
    return (
        None if since is None else bits_per_byte(subject, surprisals(subject, logits), since=since)
    )
