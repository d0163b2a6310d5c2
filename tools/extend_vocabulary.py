"""Give a character model a larger vocabulary: `python -m tools.extend_vocabulary IN OUT`.

The 2,350 syllables of KS X 1001, the single letters of Hangul, ASCII and some signs are added, and
bytes for the others, so that no text has an unknown character. The context becomes 512. What the
model knew stays; the new rows are near the mean of the old ones, and must be learnt.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.checkpoint.load_save import load, save
from minillm_repl.tokenizer import UNK_TOKEN, CharacterTokenizer

_CONTEXT = 512  # tokens
_SIGNS = "…·“”‘’♥♡★☆~^_+*/=<>[]{}@#&$|;`\\→×÷°℃"
_NOISE = 0.3  # of the new rows, relative to the standard deviation of the old ones


def main() -> None:
    """Write the extended model. Raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    asked = parser.parse_args()
    save(extended(load(asked.source, dtype="float32")), asked.target)


def extended(checkpoint: Checkpoint) -> Checkpoint:
    """Return a character model with the larger vocabulary and context."""
    old = checkpoint.tokenizer
    assert isinstance(old, CharacterTokenizer)
    syllables = [
        bytes([row, cell]).decode("euc-kr")
        for row in range(0xB0, 0xC9)
        for cell in range(0xA1, 0xFF)
    ]
    letters = map(chr, range(0x3131, 0x3164))
    ascii_ = [*map(chr, range(0x20, 0x7F)), "\n"]
    characters = sorted({*old.characters, *syllables, *letters, *ascii_, *_SIGNS})
    specials = [name for name in old.specials if name != UNK_TOKEN]
    new = CharacterTokenizer(characters, specials, old.start, has_bytes=True)
    rows = [_old_id(old, new, token) for token in range(new.vocab_size)]
    arrays = {
        name: _extend(array, rows) if array.shape[0] == old.vocab_size else array
        for name, array in checkpoint.arrays().items()
    }
    return replace(
        checkpoint,
        config=replace(checkpoint.config, vocab_size=new.vocab_size, context_length=_CONTEXT),
        tokenizer=new,
        tensors=arrays,
        eos_token_ids=tuple(
            token
            for name in map(old.special_name, checkpoint.eos_token_ids)
            if (token := new.token_to_id(name)) is not None
        ),
        path=None,
        is_on_disk=False,
    )


def _old_id(old: CharacterTokenizer, new: CharacterTokenizer, token: int) -> int | None:
    """Return which row of the old embedding a new token has; None for one that is new."""
    if name := new.special_name(token):
        return old.token_to_id(name)
    text = new.token_bytes(token).decode(errors="ignore")
    ids = old.encode(text, add_special=False) if text in old.characters else []
    return ids[0] if ids else None


def _extend(matrix: NDArray[np.float32], rows: list[int | None]) -> NDArray[np.float32]:
    """Return a matrix (token, d_model), or a bias (token,), with the old rows in new places."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, _NOISE * matrix.std(), (len(rows), *matrix.shape[1:]))
    extended_rows: NDArray[np.float32] = (matrix.mean(0) + noise).astype(np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            extended_rows[place] = matrix[row]
    return extended_rows


if __name__ == "__main__":
    main()
