"""The bare state dict that a reader of the study note saves: tensors only, one small matrix per head."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from minillm_repl.checkpoint.header import Header
from minillm_repl.checkpoint.native import Checkpoint, Tensors, check_shapes
from minillm_repl.errors import UserError
from minillm_repl.model.config import GPTConfig
from minillm_repl.tokenizer.character import IdTokenizer

if TYPE_CHECKING:
    from minillm_repl.tokenizer.base import Tokenizer

_HEAD = re.compile(r"blocks\.(\d{1,4})\.attention\.heads\.(\d{1,4})\.query\.weight")
_RENAMED = {"ff.up": "ff.net.0", "ff.down": "ff.net.2"}


def recognises(header: Header) -> bool:
    """Tell whether the tensor names are those of the note's program."""
    return "blocks.0.attention.heads.0.query.weight" in header.tensors


def checkpoint(header: Header, tensors: Callable[[], Tensors], vocabulary: "Tokenizer | None", name: str) -> Checkpoint:
    """Make a checkpoint of it: sizes from the shapes, heads fused, the note's attention scale folded into the queries.

    Without a vocabulary, tokens are shown as numbers. Raises UserError if the tensors are not the note's.
    """
    config = _sizes(header, name)
    if vocabulary is not None and vocabulary.size != config.vocab:
        raise UserError(
            f"{name} was trained on {config.vocab} different characters, but the vocabulary text has {vocabulary.size}"
        )
    check_shapes(header, _expected(config), name)
    return Checkpoint(config, vocabulary or IdTokenizer(config.vocab), _converted(config, tensors()))


def _sizes(header: Header, name: str) -> GPTConfig:
    places = [match for match in map(_HEAD.fullmatch, header.tensors) if match]
    shapes = [header.tensors.get(f"{table}_embedding.weight", ("", ()))[1] for table in ("token", "position")]
    if any(len(shape) != 2 for shape in shapes):
        raise UserError(f"{name} lacks a token_embedding.weight and a position_embedding.weight with two dimensions")
    (vocab, width), (context, _) = shapes
    layers, heads = (1 + max(int(match[group]) for match in places) for group in (1, 2))
    try:
        return GPTConfig(vocab, context, width, layers, heads)
    except UserError as error:
        raise UserError(f"the sizes of {name}: {error}") from None


def _theirs(tensor: str) -> str:
    """Return the note's name of one of our tensors."""
    for ours, note in _RENAMED.items():
        tensor = tensor.replace(ours, note)
    return tensor


def _expected(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    expected = {_theirs(tensor): shape for tensor, shape in config.shapes() if "qkv" not in tensor}
    for layer in range(config.layers):
        for head in range(config.heads):
            prefix = f"blocks.{layer}.attention.heads.{head}."
            expected[prefix + "tril"] = config.context, config.context
            for part in ("query", "key", "value"):
                expected[f"{prefix}{part}.weight"] = config.head_size, config.width
    return expected


def _converted(config: GPTConfig, tensors: Tensors) -> Tensors:
    # The note divides the dot products by √width, where the standard, and our model, divides by √head_size.
    scale = np.float32((config.head_size / config.width) ** 0.5)
    converted = {name: tensors[_theirs(name)] for name, _ in config.shapes() if "qkv" not in name}
    for layer in range(config.layers):
        heads = [f"blocks.{layer}.attention.heads.{head}." for head in range(config.heads)]
        q, k, v = (
            np.concatenate([tensors[f"{head}{part}.weight"] for head in heads]) for part in ("query", "key", "value")
        )
        converted[f"blocks.{layer}.attention.qkv.weight"] = np.concatenate([q * scale, k, v])
    return converted
