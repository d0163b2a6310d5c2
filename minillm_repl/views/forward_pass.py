"""The tensors of one forward pass, as `:shapes` and `:source` show them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from minillm_repl.views.inspected_text import InspectedText

if TYPE_CHECKING:
    from torch import Tensor, nn


def trace(inspected: InspectedText, names: Iterable[str]) -> "dict[str, Tensor]":
    """Return the tensors of one pass: all of the first block with attention (in most models, block
    0), the end of the last block, and the rest.

    `names` are those that are shown, without their block. The tensors have no batch dimension.
    """
    from minillm_repl.model.attention import attention_weights

    model, number = inspected.model, inspected.config.attention_layers[0]
    block, prefix = model.blocks[number], f"blocks.{number}."
    tensors: dict[str, Tensor] = {}

    def keep(name: str) -> "Callable[..., None]":
        def hook(_module: "nn.Module", *passed: Any) -> None:
            output = passed[-1][0] if isinstance(passed[-1], tuple) else passed[-1]
            # Position embeddings have no batch dimension.
            tensors[name] = output[0] if output.ndim > 2 else output

        return hook

    attention, mlp = block.get_submodule("attention"), block.get_submodule("mlp")
    handles = [
        model.token_embedding.register_forward_hook(keep("token_embedding")),
        attention.register_forward_pre_hook(keep(prefix + "attention.input")),
        mlp.register_forward_pre_hook(keep(prefix + "mlp.input")),
    ]
    positions = getattr(model, "position_embedding", None)
    if positions is not None:
        handles.append(positions.register_forward_hook(keep("position_embedding")))
    inside = [name for name in names if name.startswith(("attention", "residual", "mlp"))]
    last = f"blocks.{len(model.blocks) - 1}.residual"
    try:
        logits, cache = inspected.run_with_cache(
            "embedding", *(prefix + name for name in inside), last, "final"
        )  # (time, vocab)
    finally:
        for handle in handles:
            handle.remove()
    if model.config.has_canon_layers:  # what is normalised and what is read are two tensors
        del tensors[prefix + "attention.input"], tensors[prefix + "mlp.input"]
    q, k = cache[prefix + "attention.q"], cache[prefix + "attention.k"]
    windows = inspected.config.sliding_windows
    window = windows[number] if windows else 0
    weights = attention_weights(q[None], k[None], inspected.config, window)
    return {
        **tensors,
        **cache,
        prefix + "attention.weights": weights[0],
        "logits": logits,
        "probabilities": logits[-1].double().softmax(-1),
    }
