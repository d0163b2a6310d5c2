"""Loading of a checkpoint in any format."""

import dataclasses
import os
from pathlib import Path

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.formats import adapter, bare, foreign, huggingface, native
from minillm_repl.checkpoint.formats.folder import find_folder
from minillm_repl.checkpoint.formats.header import FORMAT, is_native, read_header
from minillm_repl.checkpoint.weight_map import Progress, ReadOptions
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import CharacterTokenizer


def load(
    path: Path,
    vocabulary: Tokenizer | None = None,
    dtype: str = "auto",
    progress: Progress = lambda _share: None,
    *,
    allow_nonfinite: bool = False,
) -> Checkpoint:
    """Read a native file, a Hugging Face folder or file, or a state dict of the study note.

    `vocabulary` is for a file without one. `dtype` is float32, bfloat16, float16, or auto: that of
    the file. `allow_nonfinite` accepts weights that are infinite or NaN. No code of a file is run.
    Raises UserError naming the file, the expectation and what was found.
    """
    checkpoint = _load(path, vocabulary, ReadOptions(dtype, allow_nonfinite, progress))
    # float32 keeps every bit of a smaller dtype; a smaller dtype rounds.
    return dataclasses.replace(checkpoint, is_on_disk=dtype in ("auto", "float32"))


def _load(path: Path, vocabulary: Tokenizer | None, options: ReadOptions) -> Checkpoint:
    name = safe_line(str(path))
    # The order: a folder first, then the kinds that a header declares, then the guesses.
    folder = find_folder(path)
    if folder is not None and folder.weight_file is None:
        return huggingface.read_folder(folder, options)
    header = read_header(path)
    if is_native(header):
        return native.read_native(header, name, options)
    if adapter.is_adapter(header):
        base = adapter.find_base(header, name)
        # An adapter of an adapter could go round in a circle.
        if not base.is_dir() and adapter.is_adapter(read_header(base)):
            raise UserError(
                _(
                    "{name} is an adapter for another adapter, {base}, not for a model",
                    name=name,
                    base=safe_line(str(base)),
                )
            )
        return adapter.merge(
            header, load(base, vocabulary, "auto", options.progress), name, options.dtype
        )
    if bare.is_note_state_dict(header):
        return bare.read_note_state_dict(header, vocabulary, name, options)
    if folder is not None:
        return huggingface.read_folder(folder, options)
    # Nothing fits. The most helpful error comes first.
    if os.path.lexists(path.parent / foreign.ADAPTER_CONFIG):
        raise UserError(
            _("{name} is {kind}", name=name, kind=foreign.describe_adapter(path.parent))
        )
    lora_tensor = foreign.find_lora_tensor(header.tensors)
    if lora_tensor:
        raise UserError(
            _(
                "{name} is a LoRA adapter, not a model: it contains {tensor:.80}",
                name=name,
                tensor=safe_line(lora_tensor),
            )
        )
    raise UserError(
        _(
            "{name} is neither a minillm checkpoint (metadata format = {format}) nor a "
            "state dict of the study note (tensors blocks.0.attention.heads.0.…). No "
            "config.json lies beside it. The first of its {count} tensors: {tensors:.120}",
            name=name,
            format=FORMAT,
            count=len(header.tensors),
            tensors=safe_line(", ".join(list(header.tensors)[:3])),
        )
    )


def read_vocabulary(path: Path, detected: DetectedEncoding | None = None) -> CharacterTokenizer:
    """Return the tokenizer of a text file's characters. Raises UserError."""
    return CharacterTokenizer.from_corpus(read_text(path, detected))
