"""Loading of a checkpoint in any format."""

import dataclasses
import os
from pathlib import Path

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.formats import adapter, bare, foreign, huggingface, native
from minillm_repl.checkpoint.formats.folder import find_folder
from minillm_repl.checkpoint.formats.header import FORMAT, Header, is_native, read_header
from minillm_repl.checkpoint.weight_map import Progress, ReadOptions
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text
from minillm_repl.tokenizer.base import CharacterTokenizer, Tokenizer


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
    """Read a checkpoint: a folder, a format that a header declares, or a guess by tensor names."""
    name = safe_line(str(path))
    folder = find_folder(path)
    if folder is not None and folder.weight_file is None:
        return huggingface.read_folder(folder, options)
    header = read_header(path)
    if is_native(header):
        return native.read_native(header, name, options)
    if adapter.is_adapter(header):
        return _load_adapter(header, name, options)
    if bare.is_note_state_dict(header):
        return bare.read_note_state_dict(header, vocabulary, name, options)
    if folder is not None:
        return huggingface.read_folder(folder, options)
    raise _unsupported_error(path, header)


def _load_adapter(header: Header, name: str, options: ReadOptions) -> Checkpoint:
    """Read an adapter and its model. Raises UserError."""
    path = adapter.find_base(header, name)
    # The base of an adapter is a model: otherwise two adapters could name each other for ever.
    if not path.is_dir() and adapter.is_adapter(read_header(path)):
        raise UserError(
            _(
                "{name} is an adapter for another adapter, {base}, not for a model",
                name=name,
                base=safe_line(str(path)),
            )
        )
    base = load(path, None, "auto", options.progress)
    return adapter.merge(header, base, name, options.dtype)


def _unsupported_error(path: Path, header: Header) -> UserError:
    """Return the error for a safetensors file of an unknown program."""
    name = safe_line(str(path))
    if os.path.lexists(path.parent / foreign.ADAPTER_CONFIG):
        return UserError(
            _("{name} is {kind}", name=name, kind=foreign.describe_adapter(path.parent))
        )
    lora_tensor = foreign.find_lora_tensor(header.tensors)
    if lora_tensor:
        return UserError(
            _(
                "{name} is a LoRA adapter, not a model: it contains {tensor:.80}",
                name=name,
                tensor=safe_line(lora_tensor),
            )
        )
    return UserError(
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
