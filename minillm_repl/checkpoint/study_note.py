"""The state dict of the study note's program: only tensors, with one matrix per head."""

import re
from collections.abc import Iterator

import numpy as np

from minillm_repl.checkpoint import (
    AS_IS,
    Checkpoint,
    Layout,
    ReadOptions,
    SourceTensor,
    WeightMap,
)
from minillm_repl.checkpoint.header import Header
from minillm_repl.checkpoint.weights import locate_tensors, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.bfloat16 import convert, to_float32
from minillm_repl.model.config import GPTConfig
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.tokenizer.ids import IdTokenizer

_QUERY_NAME = re.compile(r"blocks\.(\d{1,4})\.attention\.heads\.(\d{1,4})\.query\.weight")
_NOTE_NAMES = {"mlp.up": "ff.net.0", "mlp.down": "ff.net.2"}


def is_note_state_dict(header: Header) -> bool:
    """Tell whether the tensors have the names of the note's program."""
    return "blocks.0.attention.heads.0.query.weight" in header.tensors


def read_note_state_dict(
    header: Header, vocabulary: Tokenizer | None, name: str, options: ReadOptions
) -> Checkpoint:
    """Return the checkpoint of a state dict: the shapes give the config, and the heads are fused.

    The note's attention scale is multiplied into the queries. Without a vocabulary, tokens are
    numbers. Raises UserError if the tensors are not those of the note.
    """
    config = _infer_config(header, name)
    if vocabulary is not None and vocabulary.vocab_size != config.vocab_size:
        raise UserError(
            _(
                "{name} was trained with {vocab} distinct characters, but the vocabulary "
                "text has {size}",
                name=name,
                vocab=config.vocab_size,
                size=vocabulary.vocab_size,
            )
        )
    weight_map = WeightMap(dict(_sources(config)), re.compile(r"\.tril$"))  # the causal mask
    tensors = read_weights(weight_map, locate_tensors(weight_map, [header], name), name, options)
    return Checkpoint(
        config=config,
        tokenizer=vocabulary or IdTokenizer(config.vocab_size),
        tensors=tensors,
        path=header.path,
    )


def _infer_config(header: Header, name: str) -> GPTConfig:
    """Return the config that the tensors' shapes and names imply. Raises UserError."""
    # The note has one query matrix per layer and head: their names give both numbers.
    matches = [match for match in map(_QUERY_NAME.fullmatch, header.tensors) if match]
    tables = [header.tensors.get(f"{table}_embedding.weight") for table in ("token", "position")]
    shapes = [entry.shape if entry else () for entry in tables]
    if any(len(shape) != 2 for shape in shapes):
        raise UserError(
            _(
                "{name} has no token_embedding.weight and position_embedding.weight with "
                "two dimensions",
                name=name,
            )
        )
    # If the two d_model differ, `locate_tensors` finds it.
    (vocab_size, d_model), (context_length, _d_model) = shapes
    n_layers = 1 + max(int(match[1]) for match in matches)
    n_heads = 1 + max(int(match[2]) for match in matches)
    # One name could claim a thousand layers of a thousand heads.
    if len(matches) != n_layers * n_heads:
        raise UserError(
            _(
                "{name} has queries for {count:,} heads instead of {layers:,} layers × "
                "{heads:,} heads",
                name=name,
                count=len(matches),
                layers=n_layers,
                heads=n_heads,
            )
        )
    try:
        return GPTConfig(
            vocab_size=vocab_size,
            context_length=context_length,
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
        )
    except UserError as error:
        raise UserError(_("the sizes of {name}: {error}", name=name, error=error)) from None


def _note_name(tensor: str) -> str:
    """Return the note's name of a tensor."""
    for ours, note in _NOTE_NAMES.items():
        tensor = tensor.replace(ours, note)
    return tensor


def _sources(config: GPTConfig) -> Iterator[tuple[str, tuple[SourceTensor, ...]]]:
    """Yield each tensor of the model with its sources: the fused qkv has three per head."""
    # The note divides attention scores by √d_model; the standard, and model/gpt.py, by √head_dim.
    scale = np.float32((config.head_dim / config.d_model) ** 0.5)
    scaled = Layout(lambda array: convert(to_float32(array) * scale, array.dtype))
    head_shape = (config.head_dim, config.d_model)
    for tensor, shape in config.shapes():
        if "qkv" not in tensor:
            yield tensor, (SourceTensor(_note_name(tensor), shape),)
            continue
        attention = tensor.removesuffix("qkv.weight")
        # Only queries are scaled: a score is a query times a key.
        layouts = {"query": scaled, "key": AS_IS, "value": AS_IS}
        yield (
            tensor,
            tuple(
                SourceTensor(f"{attention}heads.{head}.{part}.weight", head_shape, layout)
                for part, layout in layouts.items()
                for head in range(config.n_heads)
            ),
        )
