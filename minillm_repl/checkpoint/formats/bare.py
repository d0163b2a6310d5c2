"""The bare state dict that a reader of the study note saves: tensors only, a matrix per head."""

import re
from collections.abc import Iterator

import numpy as np

from minillm_repl.checkpoint.checkpoint import Checkpoint
from minillm_repl.checkpoint.formats.header import Header
from minillm_repl.checkpoint.weight_map import AS_IS, Layout, ReadOptions, SourceTensor, WeightMap
from minillm_repl.checkpoint.weights import locate_tensors, read_weights
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import GPTConfig
from minillm_repl.tokenizer.base import Tokenizer
from minillm_repl.tokenizer.character import IdTokenizer

_QUERY_NAME = re.compile(r"blocks\.(\d{1,4})\.attention\.heads\.(\d{1,4})\.query\.weight")
_NOTE_NAMES = {"mlp.up": "ff.net.0", "mlp.down": "ff.net.2"}


def is_note_state_dict(header: Header) -> bool:
    """Tell whether the tensor names are those of the note's program."""
    return "blocks.0.attention.heads.0.query.weight" in header.tensors


def read_checkpoint(
    header: Header, vocabulary: Tokenizer | None, name: str, options: ReadOptions
) -> Checkpoint:
    """Make a checkpoint of it: sizes from the shapes, heads fused, the note's attention scale
    folded into the queries.

    Without a vocabulary, tokens are shown as numbers. Raises UserError if the tensors are not the
    note's.
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
        config, vocabulary or IdTokenizer(config.vocab_size), tensors, path=header.path
    )


def _infer_config(header: Header, name: str) -> GPTConfig:
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
    (vocab, width), (context, _width) = shapes
    layers, heads = (1 + max(int(match[group]) for match in matches) for group in (1, 2))
    if len(matches) != layers * heads:  # one name can claim a thousand layers of a thousand heads
        raise UserError(
            _(
                "{name} has queries for {count:,} heads instead of {layers:,} layers × "
                "{heads:,} heads",
                name=name,
                count=len(matches),
                layers=layers,
                heads=heads,
            )
        )
    try:
        return GPTConfig(vocab, context, width, layers, heads)
    except UserError as error:
        raise UserError(_("the sizes of {name}: {error}", name=name, error=error)) from None


def _note_name(tensor: str) -> str:
    """Return the note's name of one of our tensors."""
    for ours, note in _NOTE_NAMES.items():
        tensor = tensor.replace(ours, note)
    return tensor


def _sources(config: GPTConfig) -> Iterator[tuple[str, tuple[SourceTensor, ...]]]:
    # The note divides the dot products by √width, where the standard, and our model, divides by
    # √head_size.
    scale = np.float32((config.head_dim / config.d_model) ** 0.5)
    scaled = Layout(lambda array: array * scale)
    one_head = config.head_dim, config.d_model
    for tensor, shape in config.shapes():
        if "qkv" not in tensor:
            yield tensor, (SourceTensor(_note_name(tensor), shape),)
            continue
        attention = tensor.removesuffix("qkv.weight")
        yield (
            tensor,
            tuple(
                SourceTensor(
                    f"{attention}heads.{head}.{part}.weight",
                    one_head,
                    scaled if part == "query" else AS_IS,
                )
                for part in ("query", "key", "value")
                for head in range(config.n_heads)
            ),
        )
