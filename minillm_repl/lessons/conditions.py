"""The conditions of `when` in a lesson: what kind of model and text is open."""

import re

from minillm_repl.checkpoint import Checkpoint
from minillm_repl.tokenizer import CharacterTokenizer

_MIN_DEEP_LAYERS = 6  # layers, from which on a lesson speaks of a deep model
_MAX_TINY = 1_000_000  # parameters: of a model on which nothing takes long
_HANGUL = re.compile("[가-힣]")


def find_conditions(checkpoint: Checkpoint, text: str, *, has_trained: bool) -> dict[str, bool]:
    """Return which conditions hold, by name; docs/lessons.md explains them."""
    config = checkpoint.config
    gated = config.has_gated_mlp
    learned = config.rope is None
    return {
        "learned_positions": learned,
        "rotary": not learned,
        "characters": isinstance(checkpoint.tokenizer, CharacterTokenizer),
        "several_layers": config.n_layers > 1,
        "deep": config.n_layers >= _MIN_DEEP_LAYERS,
        "tiny": config.n_params < _MAX_TINY,
        "several_heads": config.n_heads > 1,
        "chat": checkpoint.chat_template is not None,
        "practising": has_trained,
        "gated": gated,
        # GPT models have LayerNorm and a plain MLP, Llama models RMSNorm and a gated one.
        "layer_norm": not gated,
        "tied": config.tie_word_embeddings,
        "canon": config.has_canon_layers,
        "routed": config.is_routed(0),  # its first block has a mixture of experts
        "hangul": bool(_HANGUL.search(text)),
    }
