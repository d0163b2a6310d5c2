"""The one place that opens a checkpoint, whatever its kind."""

import dataclasses
import os
from pathlib import Path

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.formats import adapter, bare, foreign, huggingface, native
from minillm_repl.checkpoint.formats.folder import folder_at
from minillm_repl.checkpoint.formats.header import FORMAT, is_native, read_header
from minillm_repl.checkpoint.weight_map import Progress, Reading
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import Written, read_text
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer


def load(
    path: Path,
    vocabulary: Tokenizer | None = None,
    dtype: str = "auto",
    progress: Progress = lambda _: None,
    *,
    nonfinite: bool = False,
) -> Checkpoint:
    """Read a native checkpoint, a Hugging Face folder or a file in one, or the bare state dict of
    the note's program.

    `vocabulary` serves a file that has none of its own; `dtype` is float32, bfloat16, float16, or
    auto for what is in the file; `nonfinite` takes weights that are infinite or no numbers too.
    Raises UserError that names the file, what was expected and what was found; nothing in it is
    trusted, and nothing in it is run.
    """
    checkpoint = _load(path, vocabulary, Reading(dtype, nonfinite, progress))
    return dataclasses.replace(checkpoint, on_disk=dtype in ("auto", "float32"))


def _load(path: Path, vocabulary: Tokenizer | None, how: Reading) -> Checkpoint:
    name = safe_line(str(path))
    folder = folder_at(path)
    if folder is not None and folder.chosen is None:
        return huggingface.checkpoint(folder, how)
    header = read_header(path)
    if is_native(header):
        return native.checkpoint(header, name, how)
    if adapter.is_adapter(header):
        base = adapter.base_of(header, name)
        if not base.is_dir() and adapter.is_adapter(read_header(base)):
            raise UserError(
                _(
                    "{name} is an adapter for another adapter, {base}, not for a model",
                    name=name,
                    base=safe_line(str(base)),
                )
            )
        return adapter.merge(header, load(base, vocabulary, "auto", how.progress), name, how.dtype)
    if bare.recognises(header):
        return bare.checkpoint(header, vocabulary, name, how)
    if folder is not None:
        return huggingface.checkpoint(folder, how)
    if os.path.lexists(path.parent / foreign.ADAPTER):
        raise UserError(_("{name} is {kind}", name=name, kind=foreign.adapter(path.parent)))
    half = foreign.lora_in(header.tensors)
    if half:
        raise UserError(
            _(
                "{name} is a LoRA adapter, and no model by itself: it holds {tensor:.80}",
                name=name,
                tensor=safe_line(half),
            )
        )
    raise UserError(
        _(
            "{name} holds neither a minillm checkpoint (metadata format = {format}) nor the "
            "study note's"
            " state dict (tensors blocks.0.attention.heads.0.…), and no config.json lies "
            "beside it; its"
            " first tensors of {count}: {tensors:.120}",
            name=name,
            format=FORMAT,
            count=len(header.tensors),
            tensors=safe_line(", ".join(list(header.tensors)[:3])),
        )
    )


def read_vocabulary(path: Path, written: Written | None = None) -> CharacterTokenizer:
    """Make the vocabulary of a text file, for a checkpoint that came without one.

    Raises UserError.
    """
    return CharacterTokenizer.from_corpus(read_text(path, written))
