"""Documents in an order by chance, and which of them are held out.

The order of a corpus tells nothing: a sorted list would be validated on its last letters, and each
line of it would give the next one away. So documents are drawn by a digest of their tokens and the
seed. Equal documents fall into the same split, and another order of the lines changes nothing.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Units:
    """Documents of a corpus, in an order by chance that does not depend on that of the corpus."""

    tokens: TokenisedCorpus
    spans: NDArray[np.int64]  # (units, 2): the first token of each, and the place after its last
    digests: NDArray[np.uint64]  # (units,), ascending

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The tokens of each, (units,)."""
        return self.spans[:, 1] - self.spans[:, 0]

    def part(self, first: int, last: int) -> "_Units":
        """Return some of them."""
        return _Units(self.tokens, self.spans[first:last], self.digests[first:last])


def make_splits(
    tokens: TokenisedCorpus,
    val_tokens: TokenisedCorpus | None,
    plan: TrainPlan,
    name: str,
    interrupted: Callable[[], bool] = never_interrupted,
) -> tuple[Split, Split | None]:
    """Return the training split, and the validation split if there is one: a text of its own, or
    a tenth of a text that is long enough, in whole documents if there are several.

    Raises UserError if either has not even one window, or when interrupted.
    """
    context = plan.context_length
    n_val = len(tokens.ids) // _VAL_DENOMINATOR
    if val_tokens is not None:
        splits = [_row(each, plan, interrupted) for each in (tokens, val_tokens)]
    elif plan.val == "auto" and n_val >= max(_MIN_VAL_TOKENS, 4 * context):
        splits = _held_out(tokens, plan, interrupted)
    else:
        splits = [_row(tokens, plan, interrupted)]
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


def _row(tokens: TokenisedCorpus, plan: TrainPlan, interrupted: Callable[[], bool]) -> Split:
    """Return all of a corpus as one split."""
    if len(tokens.ends) < 2:
        return Split(tokens.ids, tokens.loss_mask, plan.context_length)
    return _write_row(_shuffled(tokens, plan.seed), plan, interrupted)


def _held_out(
    tokens: TokenisedCorpus, plan: TrainPlan, interrupted: Callable[[], bool]
) -> list[Split]:
    """Return the training and the validation split of a corpus; or one split, if the other has
    nothing that counts.
    """
    target = len(tokens.ids) - -(-len(tokens.ids) // _VAL_DENOMINATOR)
    if len(tokens.ends) < 2:
        whole = Split(tokens.ids, tokens.loss_mask, plan.context_length)
        splits = _cut(whole, target)
        return splits if splits[1].targets else [whole]
    units = _shuffled(tokens, plan.seed)
    ends = np.cumsum(units.lengths)  # (units,)
    # Equal documents follow one another: no cut parts them.
    cuts = np.flatnonzero(units.digests[1:] != units.digests[:-1]) + 1
    best = int(cuts[np.abs(ends[cuts - 1] - target).argmin()]) if len(cuts) else 0
    if best and abs(int(ends[best - 1]) - target) <= _MAX_DEVIATION * ends[-1]:
        parts = units.part(0, best), units.part(best, len(units.spans))
        splits = [_write_row(part, plan, interrupted) for part in parts]
    else:  # a few long documents
        splits = _cut(_write_row(units, plan, interrupted), target)
    return splits if splits[1].targets else [_write_row(units, plan, interrupted)]


def _cut(row: Split, place: int) -> list[Split]:
    """Return a row of tokens as two."""
    return [
        Split(
            row.ids[span],
            None if row.loss_mask is None else row.loss_mask[span],
            row.context_length,
        )
        for span in (slice(0, place), slice(place, None))
    ]


def _shuffled(tokens: TokenisedCorpus, seed: int) -> _Units:
    """Return the documents of a corpus in the order of their digests."""
    every = -(-len(tokens.ends) // _MAX_UNITS)
    stops = np.append(tokens.ends[every - 1 : -1 : every], len(tokens.ids))  # (units,)
    spans = np.stack([np.append(0, stops[:-1]), stops], 1)  # (units, 2)
    key = seed.to_bytes(8, "little")
    digests = np.empty(len(spans), np.uint64)
    for index, (first, last) in enumerate(spans.tolist()):
        data = tokens.ids[first:last].tobytes()
        digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
        digests[index] = int.from_bytes(digest, "little")
    release(tokens.ids)
    order = digests.argsort(kind="stable")
    return _Units(tokens, spans[order], digests[order])


def _write_row(units: _Units, plan: TrainPlan, interrupted: Callable[[], bool]) -> Split:
    """Return documents as a row of tokens, in a file without a name that is mapped."""
    tokens = units.tokens
    # Equal documents follow one another in the order of digests; here they no longer do.
    order = np.random.default_rng(plan.seed).permutation(len(units.spans))
    rows = list[NDArray[np.generic]]()
    for array, lead in ((tokens.ids, tokens.lead), (tokens.loss_mask, (False,) * len(tokens.lead))):
        if array is None:
            continue
        try:
            with tempfile.TemporaryFile() as file:
                file.write(np.array(lead, array.dtype).tobytes())
                for piece in _pieces(array, units.spans[order].tolist(), interrupted):
                    file.write(piece)
                rows.append(memory_map(file, array.dtype))
        except OSError as error:
            raise UserError(
                _("could not write a temporary file: {reason}", reason=os_error_text(error))
            ) from None
        release(array)
    mask = rows[1] if len(rows) > 1 else None
    return Split(rows[0], mask, plan.context_length)  # type: ignore[arg-type]


def _pieces(
    array: NDArray[np.generic],
    spans: Sequence[Sequence[int]],
    interrupted: Callable[[], bool],
) -> Iterator[bytes]:
    """Yield the entries of spans as bytes. Raises UserError when interrupted."""
    for number, (first, last) in enumerate(spans):
        if number % _UNITS_PER_CHECK == 0 and interrupted():
            raise UserError(_("stopped while reading the text"))
        yield array[first:last].tobytes()
