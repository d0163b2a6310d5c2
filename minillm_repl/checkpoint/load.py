"""The one place that opens a checkpoint, whatever its kind."""

import dataclasses
from pathlib import Path

import numpy as np
import safetensors.numpy

from minillm_repl.checkpoint import bare, native
from minillm_repl.checkpoint.header import FORMAT, is_native, open_regular, read_header
from minillm_repl.checkpoint.native import Checkpoint, Tensors
from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer


def load(path: Path, vocabulary: Tokenizer | None = None) -> Checkpoint:
    """Read a native checkpoint, or the bare state dict of the note's program.

    `vocabulary` serves a file that has none of its own. Raises UserError that names the file, what was expected and
    what was found; nothing in the file is trusted, and nothing in it is run.
    """
    header, name = read_header(path), safe_line(str(path))

    def tensors() -> Tensors:  # called once the header is known to describe the model, all of it float32
        with open_regular(path) as file:  # read, not mapped: a file that is cut short later cannot hurt us
            data = file.read()
        try:
            arrays = safetensors.numpy.load(data)
        except (safetensors.SafetensorError, ValueError) as error:
            raise UserError(f"{name} is damaged: {safe_line(str(error)):.120}") from None
        if {tensor: array.shape for tensor, array in arrays.items()} != {
            tensor: shape for tensor, (_, shape) in header.tensors.items()
        }:
            raise UserError(f"{name} changed while it was read")
        return arrays  # type: ignore[no-any-return]

    if is_native(header):
        checkpoint = native.checkpoint(header, tensors, name)
    elif bare.recognises(header):
        checkpoint = bare.checkpoint(header, tensors, vocabulary, name)
    else:
        raise UserError(
            f"{name} holds neither a minillm checkpoint (metadata format = {FORMAT}) nor the study note's state"
            f" dict (tensors blocks.0.attention.heads.0.…); its first tensors of {len(header.tensors)}:"
            f" {safe_line(', '.join(list(header.tensors)[:3])):.120}"
        )
    for tensor, array in checkpoint.tensors.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} is damaged: {tensor} holds numbers that are not finite")
    return dataclasses.replace(checkpoint, path=path)


def read_vocabulary(path: Path) -> CharacterTokenizer:
    """Make the vocabulary of a text file, for a checkpoint that came without one. Raises UserError."""
    return CharacterTokenizer.from_corpus(read_text(path))


def read_text(path: Path) -> str:
    """Return a UTF-8 text file, line ends as newlines, without a byte order mark. Raises UserError naming the file."""
    with open_regular(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte {data[error.start]:#04x} at {error.start:,} of {len(data):,}"
        raise UserError(f"{safe_line(str(path))} is not UTF-8 text: {wrong}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
