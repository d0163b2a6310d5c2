"""Loading and saving of a checkpoint in any format, and its config without its weights.

This module imports numpy only to load or save, so that the first prompt appears at once.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm_repl.checkpoint import Checkpoint, Progress, ReadOptions, foreign
from minillm_repl.checkpoint.families import family_title
from minillm_repl.checkpoint.folder import find_folder
from minillm_repl.checkpoint.foreign import quantisation_of_config
from minillm_repl.checkpoint.gguf.architectures import find_architecture
from minillm_repl.checkpoint.gguf.header import GGUFHeader, is_gguf, read_split_headers
from minillm_repl.checkpoint.header import FORMAT, Header, is_native, read_header
from minillm_repl.checkpoint.native import parse_config, read_native, save_native
from minillm_repl.checkpoint.record import TrainingRecord, parse_training_record
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.atomic import convert_os_errors
from minillm_repl.storage.encoding import DetectedEncoding, read_text
from minillm_repl.tokenizer import CharacterTokenizer, Tokenizer


def load(
    path: Path,
    vocabulary: Tokenizer | None = None,
    dtype: str = "auto",
    progress: Progress = lambda _share: None,
    *,
    allow_nonfinite: bool = False,
    base: Path | None = None,
) -> Checkpoint:
    """Read a native file, a Hugging Face folder or file, a GGUF file, or the study note's tensors.

    `vocabulary` is for a file without one. `dtype` is float32, bfloat16, float16, or auto: that of
    the file. `allow_nonfinite` accepts weights that are infinite or NaN. `base` is the model of an
    adapter, whatever the adapter names. No code of a file is run.
    Raises UserError naming the file, the expectation and what was found.
    """
    checkpoint = _load(path, vocabulary, ReadOptions(dtype, allow_nonfinite, progress, base))
    # float32 keeps every bit of a smaller dtype; a smaller dtype rounds.
    return dataclasses.replace(checkpoint, is_on_disk=dtype in ("auto", "float32"))


def _load(  # noqa: PLR0911 - a format a line
    path: Path, vocabulary: Tokenizer | None, options: ReadOptions
) -> Checkpoint:
    """Read a checkpoint: a folder, a format that a header declares, or a guess by tensor names."""
    from minillm_repl.checkpoint import adapter, huggingface, study_note

    name = safe_line(str(path))
    if is_gguf(path):
        from minillm_repl.checkpoint.gguf.read import read_gguf

        return read_gguf(path, options)
    folder, adapter_folder = find_folder(path), foreign.find_adapter_folder(path)
    if adapter_folder is not None:
        return _load_peft(adapter_folder, options)
    if folder is not None and folder.weight_file is None:
        return huggingface.read_folder(folder, options)
    # A file in a folder may still be native, an adapter, or the study note's.
    header = read_header(path)
    if is_native(header):
        return read_native(header, name, options)
    if adapter.is_adapter(header):
        return _load_adapter(header, name, options)
    if study_note.is_note_state_dict(header):
        return study_note.read_note_state_dict(header, vocabulary, name, options)
    if folder is not None:
        return huggingface.read_folder(folder, options)
    raise _unsupported_error(path, header)


def _load_adapter(header: Header, name: str, options: ReadOptions) -> Checkpoint:
    """Read an adapter and its model. Raises UserError."""
    from minillm_repl.checkpoint import adapter

    path = options.base or adapter.find_base(header, name)
    return adapter.merge(header, _load_base(path, name, options), name, options.dtype)


def _load_peft(folder: Path, options: ReadOptions) -> Checkpoint:
    """Read an adapter of PEFT and its model. Raises UserError."""
    from minillm_repl.checkpoint import peft

    base = _load_base(peft.find_base(folder, options.base), safe_line(str(folder)), options)
    return peft.merge_folder(folder, base, options.dtype)


def _load_base(path: Path, name: str, options: ReadOptions) -> Checkpoint:
    """Read the model of the adapter `name`. Raises UserError."""
    from minillm_repl.checkpoint import adapter

    # The base of an adapter is a model: otherwise two adapters could name each other for ever.
    is_safetensors = not path.is_dir() and not is_gguf(path) and path.suffix != ".json"
    if foreign.find_adapter_folder(path) or (
        is_safetensors and adapter.is_adapter(read_header(path))
    ):
        raise UserError(
            _(
                "{name} is an adapter for another adapter, {base}, not for a model",
                name=name,
                base=safe_line(str(path)),
            )
        )
    return load(path, None, "auto", options.progress)


def _unsupported_error(path: Path, header: Header) -> UserError:
    """Return the error for a safetensors file of an unknown program."""
    name = safe_line(str(path))
    # The most frequent files of other programs have messages of their own.
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


def read_config(path: Path) -> AnyConfig | None:
    """Return the config of a native checkpoint or a Hugging Face folder; None for a state dict
    or an adapter.

    Raises UserError if the path has no checkpoint.
    """
    if is_gguf(path):
        from minillm_repl.checkpoint.gguf.read import read_gguf_config

        return read_gguf_config(read_split_headers(path, keep_strings=False))
    if foreign.find_adapter_folder(path):
        return None  # it is that of another model
    folder = find_folder(path)
    if folder is not None and folder.weight_file is None:
        return folder.config
    header = read_header(path)
    if is_native(header):
        return parse_config(header, safe_line(str(path)))
    return folder.config if folder is not None else None


def read_record(path: Path) -> TrainingRecord | None:
    """Return how a checkpoint or an adapter was trained, without its weights; None if no file says.

    Raises UserError if the path has no checkpoint.
    """
    folder = find_folder(path)
    if folder is not None and folder.weight_file is None:
        return None
    return parse_training_record(read_header(path), safe_line(str(path)))


@dataclass(frozen=True)
class Summary:
    """What a checkpoint is, told by its config and the headers of its files."""

    family: str  # `Llama`
    parameters: int
    dtype: str  # that most weights are stored in: `BF16`
    size: int  # bytes of the files
    modified: float  # seconds since 1970


def summarise(path: Path) -> Summary | None:
    """Return what a checkpoint is; None if it cannot be opened."""
    try:
        config = read_config(path)
        if config is None:
            return None
        folder = find_folder(path)
        is_file = folder is None or folder.weight_file is not None
        files = [path] if is_file else sorted(path.glob("*.safetensors"))
        headers: Sequence[Header | GGUFHeader] = (
            read_split_headers(path, keep_strings=False)
            if is_gguf(path)
            else [read_header(file) for file in files]
        )
        stats = [header.path.stat() for header in headers]
    except (UserError, OSError):
        return None
    sizes = Counter[str]()  # bytes by dtype
    for header in headers:
        for tensor in header.tensors.values():
            sizes[tensor.dtype] += tensor.nbytes
    quantised = "" if is_file or folder is None else quantisation_of_config(folder.config_fields)
    return Summary(
        family=family_title(config, read_model_type(path)),
        parameters=config.n_params,
        dtype=quantised or ", ".join(dtype for dtype, _bytes in sizes.most_common(1)),
        size=sum(each.st_size for each in stats),
        modified=max((each.st_mtime for each in stats), default=0.0),
    )


def read_model_type(path: Path) -> str:
    """Return the `model_type` of a Hugging Face folder or a GGUF file; empty for any other.

    Raises UserError.
    """
    if is_gguf(path):
        return find_architecture(
            read_split_headers(path, keep_strings=False)[0].metadata
        ).model_type
    folder = find_folder(path) if is_in_folder(path) else None
    return folder.family.model_type if folder is not None else ""


def is_in_folder(path: Path) -> bool:
    """Tell whether a path is a Hugging Face folder or a file in one; it is not replaced."""
    folder = find_folder(path)
    # A path that does not exist yet is a new file, wherever it is.
    if folder is None or not os.path.lexists(path):
        return False
    if folder.weight_file is None:
        return True
    try:
        return not is_native(read_header(path))
    except UserError:
        return False


def save(
    checkpoint: Checkpoint,
    path: Path,
    *,
    folder: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> Checkpoint:
    """Write a native file, or a Hugging Face folder with `folder` or if `path` is one.

    `gguf.write.save_gguf` writes GGUF files. Return the checkpoint with its new path. Raises
    UserError, also when `interrupted` returns True; the earlier file is unchanged then.
    """
    with convert_os_errors(path):
        if folder or path.is_dir():
            from minillm_repl.checkpoint import huggingface

            return huggingface.save_folder(checkpoint, path, interrupted)
        return save_native(checkpoint, path, interrupted)
