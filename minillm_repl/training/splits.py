"""Documents in an order by chance, and which of them are held out.

The order of a corpus tells nothing: a sorted list would be validated on its last letters, and each
line of it would give the next one away. So documents are drawn by a digest of their tokens and the
seed. Equal documents fall into the same split, and another order of the lines changes nothing.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.training import never_interrupted
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.tokenize import memory_map
from minillm_repl.training.tokens import Split, TokenisedCorpus, release

_VAL_DENOMINATOR = 10  # a tenth of the tokens is held out; of one document its end
_MAX_DEVIATION = 0.05  # of the tokens more or fewer, so that no document is cut
_MIN_VAL_TOKENS = 1_000  # fewer tell nothing
# Pieces that are ordered by chance: a digest takes a microsecond. In a corpus of more documents,
# neighbours stay together.
_MAX_UNITS = 1 << 20
_UNITS_PER_CHECK = 10_000  # between two looks for Ctrl-C


Weighted = tuple[TokenisedCorpus, float]
"""A corpus, and how often its documents come in one pass."""
Spans = NDArray[np.int64]
"""The documents of a corpus, (documents, 2): the first token of each, and the place after its last.

Of more than a million documents, neighbours are together."""
_Part = tuple[TokenisedCorpus, Spans, float]  # documents of a corpus, and its weight


def make_splits(
    train: Sequence[Weighted],
    val: TokenisedCorpus | None,
    plan: TrainPlan,
    name: str,
    interrupted: Callable[[], bool] = never_interrupted,
) -> tuple[Split, Split | None]:
    """Return the training split, and the validation split if there is one: a text of its own, or
    a tenth of each corpus that is long enough, in whole documents if there are several.

    Raises UserError if either has not even one window, or when interrupted.
    """
    context = plan.context_length
    ordered = [(tokens, *_in_order(tokens, plan.seed), weight) for tokens, weight in train]
    n_tokens = sum(len(tokens.ids) for tokens, _weight in train)
    splits = list[Split]()
    if (
        val is None
        and plan.val == "auto"
        and n_tokens // _VAL_DENOMINATOR >= max(_MIN_VAL_TOKENS, 4 * context)
    ):
        rest, held_out = list[_Part](), list[_Part]()
        for tokens, spans, digests, weight in ordered:
            first, last = _hold_out(tokens, spans, digests)
            rest.append((tokens, first, weight))
            held_out.append((tokens, last, 1.0))
        splits = [_write_row(each, plan, interrupted) for each in (rest, held_out)]
    if not splits or not splits[1].targets:
        everything = [(tokens, spans, weight) for tokens, spans, _digests, weight in ordered]
        splits = [_write_row(everything, plan, interrupted)]
    if val is not None:
        spans, _order = _in_order(val, plan.seed)
        splits.append(_write_row([(val, spans, 1.0)], plan, interrupted))
    for split in splits:
        if not split.targets:
            raise UserError(
                _("{name} has no assistant turns: there is nothing to learn", name=name)
            )
        if not split.n_windows:
            raise UserError(
                _(
                    "{name} has {count:,} tokens that the model knows, but a context of "
                    "{context} needs at least {least:,}. Use a longer text or a smaller "
                    "`context=N`",
                    name=name,
                    count=len(split.ids),
                    context=context,
                    least=context + 1,
                )
            )
    return splits[0], splits[1] if len(splits) > 1 else None


def _in_order(tokens: TokenisedCorpus, seed: int) -> tuple[Spans, NDArray[np.uint64]]:
    """Return the documents of a corpus in the order of their digests, and these (documents,)."""
    every = -(-len(tokens.ends) // _MAX_UNITS)
    stops = np.append(tokens.ends[every - 1 : -1 : every], len(tokens.ids))
    spans = np.stack([np.append(0, stops[:-1]), stops], 1)
    key, digests = seed.to_bytes(8, "little"), np.zeros(len(spans), np.uint64)
    for index, (first, last) in enumerate(spans.tolist() if len(spans) > 1 else ()):
        data = tokens.ids[first:last].tobytes()
        digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
        digests[index] = int.from_bytes(digest, "little")
    release(tokens.ids)
    order = digests.argsort(kind="stable")
    return spans[order], digests[order]


def count_duplicates(tokens: TokenisedCorpus) -> int:
    """Return how many documents are equal to another one, without the first of each."""
    _spans, digests = _in_order(tokens, 0)
    return int((digests[1:] == digests[:-1]).sum())


def _hold_out(
    tokens: TokenisedCorpus, spans: Spans, digests: NDArray[np.uint64]
) -> tuple[Spans, Spans]:
    """Return the documents to train on, and those that are held out: a tenth of the tokens.

    Few long documents cannot be parted so: then one is cut, as a text that is one document is.
    """
    ends = np.cumsum(spans[:, 1] - spans[:, 0])  # (units,)
    target = len(tokens.ids) - -(-len(tokens.ids) // _VAL_DENOMINATOR)
    # Equal documents follow one another: no cut parts them.
    cuts = np.flatnonzero(digests[1:] != digests[:-1]) + 1
    best = int(cuts[np.abs(ends[cuts - 1] - target).argmin()]) if len(cuts) else 0
    if best and abs(int(ends[best - 1]) - target) <= _MAX_DEVIATION * len(tokens.ids):
        return spans[:best], spans[best:]
    index = int(np.searchsorted(ends, target, side="right"))
    before = int(ends[index - 1]) if index else 0
    place = int(spans[index, 0]) + target - before
    first, last = spans[index].copy(), spans[index].copy()
    first[1] = last[0] = place
    return np.vstack([spans[:index], first]), np.vstack([last, spans[index + 1 :]])


def _write_row(
    parts: Sequence[_Part],
    plan: TrainPlan,
    interrupted: Callable[[], bool],
) -> Split:
    """Return documents as a row of tokens in an order by chance, in a mapped file without a name;
    of a single document, a view of where it is.
    """
    tokens, spans, weight = parts[0]
    if len(parts) == 1 and len(spans) == 1 and weight == 1:
        here = slice(*spans[0].tolist())
        mask = None if tokens.loss_mask is None else tokens.loss_mask[here]
        return Split(tokens.ids[here], mask, plan.context_length)
    # (documents, 3): which corpus, and the span in it
    entries = np.vstack([_repeat(number, *part[1:]) for number, part in enumerate(parts)])
    entries = entries[np.random.default_rng(plan.seed).permutation(len(entries))]
    lead = next((tokens.lead for tokens, _spans, _weight in parts if tokens.lead), ())
    ids = _write([tokens.ids for tokens, _spans, _weight in parts], entries, lead, interrupted)
    if all(tokens.loss_mask is None for tokens, _spans, _weight in parts):
        return Split(ids, None, plan.context_length)
    masks = [
        np.broadcast_to(np.True_, len(tokens.ids)) if tokens.loss_mask is None else tokens.loss_mask
        for tokens, _spans, _weight in parts
    ]
    loss_mask = _write(masks, entries, (False,) * len(lead), interrupted)
    return Split(ids, loss_mask, plan.context_length)


def _repeat(number: int, spans: Spans, weight: float) -> Spans:
    """Return the documents of a corpus as often as its weight says; of 1.5, the first half twice.

    They are in an order by chance, so the first of them are any.
    """
    more = round(len(spans) * (weight % 1))
    repeated = np.vstack([*[spans] * int(weight), spans[:more]])
    return np.hstack([np.full((len(repeated), 1), number), repeated])


def _write(
    arrays: Sequence[NDArray[Any]],
    entries: Spans,
    lead: Sequence[int],
    interrupted: Callable[[], bool],
) -> NDArray[Any]:
    """Return spans of several arrays, one after the other, mapped. Raises UserError."""
    dtype = arrays[0].dtype
    try:
        with tempfile.TemporaryFile() as file:
            file.write(np.array(lead, dtype).tobytes())
            for index, (number, first, last) in enumerate(entries.tolist()):
                if index % _UNITS_PER_CHECK == 0 and interrupted():
                    raise UserError(_("stopped while reading the text"))
                file.write(arrays[number][first:last].tobytes())
            for array in arrays:
                release(array)
            return memory_map(file, dtype)
    except OSError as error:
        raise UserError(
            _("could not write a temporary file: {reason}", reason=os_error_text(error))
        ) from None
