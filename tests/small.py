"""Models of random weights, for tests that must not import torch."""

import numpy as np

from minillm_repl.chat.loss_mask import encode_with_loss_mask
from minillm_repl.checkpoint import Checkpoint
from minillm_repl.model.config import GPTConfig
from minillm_repl.tokenizer import CharacterTokenizer


def random_checkpoint(
    vocab=11, context=8, width=12, layers=2, heads=3, seed=0, characters=None, zeros=False
):
    """A model of random weights, large enough to matter; the sizes divide by nothing convenient."""
    characters = characters or [chr(0xAC00 + place) for place in range(vocab)]
    config = GPTConfig(
        vocab_size=len(characters),
        context_length=context,
        d_model=width,
        n_layers=layers,
        n_heads=heads,
    )
    rng = np.random.default_rng(seed)
    tensors = {
        name: np.zeros(shape, np.float32) if zeros else rng.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in config.shapes()
    }
    return Checkpoint(config=config, tokenizer=CharacterTokenizer(characters), tensors=tensors)


def flat_examples(template, tokenizer, conversations, first=1):
    """The examples of all conversations, one after the other."""
    found = encode_with_loss_mask(template, tokenizer, conversations, first)
    return [example for examples in found for example in examples]
