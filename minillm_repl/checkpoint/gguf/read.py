"""A GGUF file as a checkpoint: its matrices stay in the blocks that the file has."""

import math
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minillm_repl.checkpoint import (
    TRANSPOSED,
    Checkpoint,
    ReadOptions,
    SourceTensor,
    WeightMap,
)
from minillm_repl.checkpoint.gguf.architectures import (
    ROPE_FACTORS,
    find_architecture,
    gguf_weight_map,
)
from minillm_repl.checkpoint.gguf.config import parse_gguf_config, with_rope_factors
from minillm_repl.checkpoint.gguf.header import GGUFHeader, read_split_headers
from minillm_repl.checkpoint.gguf.tokenizer import GGUFTokenizer
from minillm_repl.checkpoint.recommended import from_gguf
from minillm_repl.checkpoint.weights import (
    TensorLocation,
    Weight,
    check_finite,
    convert_finite,
    convert_read_errors,
    find_tensors,
    locate_tensors,
    resolve_dtype,
    share_of_bytes,
)
from minillm_repl.errors import UserError
from minillm_repl.model.bfloat16 import to_float32
from minillm_repl.model.blocks import BLOCK_TYPES, F32, FLOATS, RowBlocks
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.quantised import BlockMatrix, pack_blocks
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import check_memory

_KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
_PACKING_THREADS = min(4, os.cpu_count() or 1)


def read_gguf(path: Path, options: ReadOptions) -> Checkpoint:
    """Read a GGUF file, or all parts of a split one. Raises UserError naming the file."""
    name = safe_line(str(path))
    headers = read_split_headers(path)
    metadata = headers[0].metadata
    locations = find_tensors(headers, name)
    try:
        config = read_gguf_config(headers)
        tokenizer_data = GGUFTokenizer(metadata, config.vocab_size)
        weight_map = gguf_weight_map(find_architecture(metadata), config, locations)
        tokenizer, eos_token_ids = tokenizer_data.read(), tokenizer_data.eos_token_ids()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    locations = locate_tensors(weight_map, headers, name, _KINDS)
    # The weights take the longest: every other error comes before them.
    tensors = _read_tensors(weight_map, locations, name, options)
    return Checkpoint(
        config=config,
        tokenizer=tokenizer,
        tensors=tensors,
        path=path,
        chat_template=tokenizer_data.chat_template(),
        eos_token_ids=eos_token_ids,
        weight_map=weight_map,
        model_type=find_architecture(metadata).model_type,
        recommended=from_gguf(metadata),
        notes=tokenizer_data.notes,
    )


def read_gguf_config(headers: Sequence[GGUFHeader]) -> AnyConfig:
    """Return the config of a file, given the headers of its parts. Raises UserError."""
    locations = find_tensors(headers, "")
    shapes = {name: info.shape for name, (_path, info) in locations.items()}
    config, factors = parse_gguf_config(headers[0].metadata, shapes), None
    if ROPE_FACTORS in locations:
        path, info = locations[ROPE_FACTORS]
        with convert_read_errors(safe_line(str(path))):
            factors = np.fromfile(path, "<f4", math.prod(info.shape), offset=info.start)
    return with_rope_factors(config, factors)


def _read_tensors(
    weight_map: WeightMap,
    locations: Mapping[str, TensorLocation],
    name: str,
    options: ReadOptions,
) -> dict[str, Weight]:
    """Read all tensors of a model, each once.

    Raises UserError if the memory is too small, before any tensor is read; if a file changed after
    its header was read; and, without `allow_nonfinite`, for a value that is not finite.
    """
    in_blocks = options.dtype == "auto"
    infos = [info for _path, info in locations.values()]
    total = sum(info.nbytes for info in infos)
    values = sum(math.prod(info.shape) for info in infos)
    width = 4 if in_blocks else resolve_dtype(options.dtype, set()).itemsize
    check_memory(total if in_blocks else values * width, name)
    done = 0.0
    weights = dict[str, Weight]()
    for tensor, pieces in weight_map.sources.items():
        parts = list[RowBlocks]()
        for piece in pieces:
            parts.append(_read_rows(piece, locations[piece.name], name))
            done += share_of_bytes(piece, locations[piece.name])
            options.progress(done / total)
        is_vector, first = len(pieces[0].part_shape) == 1, pieces[0].name
        # Of the positions, single rows are read.
        if not in_blocks or is_vector or tensor == "position_embedding.weight":
            array = np.concatenate(
                [part.to_float32() for part in parts], axis=1 if is_vector else 0
            )
            dtype = resolve_dtype("float32" if is_vector else options.dtype, {"F32"})
            weights[tensor] = convert_finite(
                array[0] if is_vector else array, dtype, first, name, options.allow_nonfinite
            )
            continue
        if not options.allow_nonfinite:
            check_finite(all(part.is_finite() for part in parts), first, name)
        weights[tensor] = _as_matrix(parts)
    return weights


def _read_rows(piece: SourceTensor, location: TensorLocation, name: str) -> RowBlocks:
    """Return a tensor of a file in the layout of the model; a vector is one row.

    Raises UserError.
    """
    path, info = location
    kind, rows = _KINDS[info.dtype], math.prod(piece.part_shape[:-1])
    shape = rows, kind.row_bytes(piece.part_shape[-1])
    size = math.prod(shape)
    start = info.start + (piece.index or 0) * size
    with convert_read_errors(name):
        data = np.fromfile(path, np.uint8, size, offset=start).reshape(shape)
    if piece.layout is TRANSPOSED:  # a convolution, whose numbers change places, not its rows
        taps = RowBlocks(kind, data).to_float32().T
        return RowBlocks(F32, np.ascontiguousarray(taps).view(np.uint8))
    if len(piece.part_shape) > 1:
        return RowBlocks(kind, np.ascontiguousarray(piece.layout.from_file(data)))
    # The layout of a vector moves its values, not its one row.
    values = piece.layout.from_file(RowBlocks(kind, data).to_float32()[0])
    return RowBlocks(F32, np.ascontiguousarray(values).view(np.uint8)[None])


def _joined(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    # A copy of one alone, an embedding of 160 MB, would be seen in the peak of memory.
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _as_matrix(parts: Sequence[RowBlocks]) -> Weight:
    """Return rows one below the other as a matrix: an array of plain floats, or packed blocks."""
    runs = [
        RowBlocks(kind, _joined([part.data for part in run]))
        for kind, run in groupby(parts, key=lambda part: part.kind)
    ]
    arrays = [run.data.view(FLOATS[run.kind.name]) for run in runs if not run.kind.bits]
    if len(arrays) == len(runs):
        return arrays[0] if len(arrays) == 1 else np.concatenate([to_float32(a) for a in arrays])
    return BlockMatrix(
        tuple(
            pack_blocks(run, _PACKING_THREADS)
            if run.kind.bits
            else run.data.view(FLOATS[run.kind.name])
            for run in runs
        )
    )
