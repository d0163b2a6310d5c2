"""The training and the validation split: windows over documents in an order by chance.

The order of a corpus tells nothing: a sorted list would be validated on its last letters, and each
line of it would give the next one away. So documents are drawn by a digest of their tokens and the
seed. Equal documents fall into the same split, and another order of the lines changes nothing.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minillm_repl.errors import UserError, os_error_text
from minillm_repl.language import _
from minillm_repl.storage.mapped import memory_map, release
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.training import never_interrupted
from minillm_repl.training.plan import TrainPlan
from minillm_repl.training.token_cache import TokenisedCorpus

IGNORE_INDEX = -100  # a target that does not count; torch's own usual number
_GOLDEN = 0.618033988749895  # the golden section, 1 / φ
# Windows read from a mapped file at once: around each, the system may map a megabyte.
_WINDOWS_PER_READ = 64
_VAL_DENOMINATOR = 10  # a tenth of the tokens is held out; of one document its end
_MAX_DEVIATION = 0.05  # of the tokens more or fewer, so that no document is cut
_MIN_VAL_TOKENS = 1_000  # fewer tell nothing
# Pieces that are ordered by chance: a digest takes a microsecond. In a corpus of more documents,
# neighbours stay together.
_MAX_UNITS = 1 << 20
_UNITS_PER_CHECK = 10_000  # between two looks for Ctrl-C


@dataclass
class Split:
    """One row of tokens, and its windows of context + 1: inputs and, one place on, targets."""

    ids: NDArray[np.unsignedinteger]  # (count,), of a mapped file or in memory
    loss_mask: NDArray[np.bool_] | None  # (count,), which tokens count as targets; None: all
    context_length: int

    @property
    def n_windows(self) -> int:
        """How many windows there are: one begins at every token but the last `context_length`."""
        return max(0, len(self.ids) - self.context_length)

    def batch(self, starts: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the windows at `starts` (b,): inputs (b, context) and targets, both int64."""
        places = starts[:, None] + np.arange(self.context_length + 1)  # (b, context + 1)
        ids = torch.from_numpy(_gather(self.ids, places).astype(np.int64))
        inputs, targets = ids[:, :-1], ids[:, 1:]
        if self.loss_mask is not None:
            targets = torch.where(
                torch.from_numpy(_gather(self.loss_mask, places[:, 1:])), targets, IGNORE_INDEX
            )
        return inputs, targets

    def training_starts(self, first: int, count: int, seed: int) -> NDArray[np.int64]:
        """Return where the windows begin that a run reads as number `first` (of all) and on.

        Each is read once before any is read again, and those of one batch lie far apart: they are a
        Weyl sequence, in steps of about the golden section of the row, from another place in each
        round.
        """
        # A stride without a common divisor visits every window once in each round.
        stride = max(1, round(self.n_windows * _GOLDEN))
        while math.gcd(stride, self.n_windows) != 1:
            stride += 1
        starts = list[int]()
        for window_index in range(first, first + count):
            epoch, epoch_index = divmod(window_index, self.n_windows)
            if epoch_index == 0 or not starts:
                offset = int(np.random.default_rng((seed, epoch)).integers(self.n_windows))
            starts.append((offset + epoch_index * stride) % self.n_windows)
        return np.array(starts, dtype=np.int64)

    @property
    def targets(self) -> int:
        """How many tokens count."""
        return len(self.ids) if self.loss_mask is None else int(self.loss_mask.sum())

    def bits_per_character(self, tokenizer: Tokenizer) -> float:
        """Return the factor that turns nats per token into bits per character: the loss per token
        depends on the tokenizer, these can be compared.
        """
        # tokens per character, and 1 / ln 2 bits in a nat
        return self.targets / max(1, self.count_characters(tokenizer)) / math.log(2)

    def count_characters(self, tokenizer: Tokenizer) -> int:
        """Return how many characters of text the tokens that count are; one that stands for the
        unknown is one.
        """
        lengths = np.array(
            [_token_characters(tokenizer, token) for token in range(tokenizer.vocab_size)]
        )
        total = 0
        for start in range(0, len(self.ids), 1 << 20):
            here = slice(start, start + (1 << 20))
            ids = self.ids[here] if self.loss_mask is None else self.ids[here][self.loss_mask[here]]
            total += int(lengths[ids].sum())
            for row in (self.ids, self.loss_mask):
                release(row)
        return total


def _gather(array: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """Return the entries of a row at places (b, t)."""
    gathered = np.empty(indices.shape, array.dtype)
    for first in range(0, len(indices), _WINDOWS_PER_READ):
        here = slice(first, first + _WINDOWS_PER_READ)
        gathered[here] = array[indices[here]]
        release(array)
    return gathered


def _token_characters(tokenizer: Tokenizer, token: int) -> int:
    token_bytes = tokenizer.token_bytes(token)
    if not token_bytes:
        return int(
            bool(tokenizer.unk_token) and tokenizer.special_name(token) == tokenizer.unk_token
        )
    # every byte but those that only continue a character
    return sum(byte & 0xC0 != 0x80 for byte in token_bytes)


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
