"""Figures of the open model that need no forward pass: its sizes, and how it was trained."""

from collections.abc import Sequence
from math import log, log2

from minillm_repl.checkpoint.record import TrainingRecord
from minillm_repl.language import _, current_language
from minillm_repl.lessons.parse import practice_file
from minillm_repl.model.config import AnyConfig, LlamaConfig
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.tokenizer import CharacterTokenizer

NO_VALUE = "–"


def model_value(model: LoadedModel, ids: Sequence[int], name: str) -> str | None:
    """Return a value of the model, or of a text's length; None for any other name."""
    config, checkpoint = model.checkpoint.config, model.checkpoint
    sizes = {
        "layers": config.n_layers,
        "last_layer": config.n_layers - 1,
        "heads": config.n_heads,
        "last_head": config.n_heads - 1,
        "all_heads": config.n_layers * config.n_heads,
        "width": config.d_model,
        "head_size": config.head_dim,
        "ff_width": _d_mlp(config),
        "context": model.decoder.context_length,
        "vocabulary": config.vocab_size,
        "parameters": config.n_params,
        "tokens": len(ids),
        "numbers": len(ids) * config.d_model,
    }
    if name in sizes:
        return f"{sizes[name]:,}"
    of_characters = isinstance(checkpoint.tokenizer, CharacterTokenizer)
    language = current_language()
    words = {
        "model": model.name,
        "family": model.family,
        "unit": _("character") if of_characters else _("piece"),
        "units": _("characters") if of_characters else _("pieces"),
        # The uniform baseline, in bits and in nats.
        "bits_of_ignorance": f"{log2(config.vocab_size):.2f}",
        "ignorance": f"{log(config.vocab_size):.3f}",
        "practice": f'"{practice_file(language)}"',
        "skewed": f'"{practice_file(language, "skewed")}"',
        "ids": " ".join(map(str, ids)),
        "trained": f"{checkpoint.record.steps:,}" if checkpoint.record else NO_VALUE,
    }
    return words.get(name)


def trained_loss(record: TrainingRecord | None, when: str, earlier: float | None) -> str | None:
    """Return a training loss in nats: before the first step (`0`), at a step, at the `last` one, or
    the last one of the `earlier` training; None for any other word.
    """
    if when == "earlier" or record is None or record.run is None:
        loss = earlier if when == "earlier" else None
    elif when in ("0", "last"):
        loss = record.run.first_loss if when == "0" else record.run.last_loss
    elif when.isdecimal():  # of one batch; the curve is thinned: the nearest step that it has
        near = min(record.curve, key=lambda each: abs(each[0] - int(when)), default=(0, None))
        loss = near[1]
    else:
        return None
    return NO_VALUE if loss is None else f"{loss:.4f}"


def _d_mlp(config: AnyConfig) -> int:
    """Return the width of the first MLP; of a mixture, that of each expert."""
    if isinstance(config, LlamaConfig) and config.is_routed(0):
        return config.d_expert
    return config.d_mlp
