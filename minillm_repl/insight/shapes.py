"""The whole way from ids to probabilities, as shapes of the tensors that are really made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from minillm_repl.insight.views.thinking import ShapeRow, ShapesView, sizes
from minillm_repl.model.attention import attention_weights
from minillm_repl.tokenizer.base import Token, decode
from minillm_repl.views.base import Likely
from minillm_repl.views.inspected_text import InspectedText, topk_ids

Draw = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Turns logits (vocab,) into the probabilities of being drawn."""

_FIRST, _TOP = 12, 3  # numbers of a row, tokens
# in the order of the computation; t tokens, w width, h heads, d head size, f feed-forward, v
# vocabulary
_DIMS = {
    "token_embedding": "tw",
    "position_embedding": "tw",
    "embedding": "tw",
    "attention.input": "tw",
    "attention.q": "htd",
    "attention.k": "htd",
    "attention.v": "htd",
    "attention.weights": "htt",
    "attention.z": "thd",
    "attention.out": "tw",
    "residual.mid": "tw",
    "mlp.input": "tw",
    "mlp.hidden": "tf",
    "mlp.out": "tw",
    "residual": "tw",
    "final": "tw",
    "logits": "tv",
    "probabilities": "v",
}


@torch.no_grad()
def shapes_view(subject: InspectedText, draw: Draw, sampling: str = "") -> ShapesView:
    """Return what is made on the way from the ids to the probabilities; `sampling` names the
    samplers in `draw`.
    """
    made = _made(subject)
    probabilities = torch.from_numpy(draw(made["logits"][-1].cpu().numpy()))
    drawn = [token for token in topk_ids(probabilities, _TOP) if probabilities[token] > 0]
    return ShapesView(
        text=decode(subject.tokenizer, list(subject.ids)),
        tokens=subject.tokens,
        rows=_rows(made),
        sampling=sampling,
        candidates=int((probabilities > 0).sum()),
        drawn=tuple(
            Likely(Token.from_id(subject.tokenizer, each), float(probabilities[each]))
            for each in drawn
        ),
        **subject.window_fields,
    )


@torch.no_grad()
def sizes_on(subject: InspectedText) -> dict[str, int]:
    """Return how large each dimension is on this text."""
    return sizes(_rows(_made(subject)))


def _made(subject: InspectedText) -> dict[str, Tensor]:
    """Return everything that one pass makes: all of block 0, and what the last one ends with."""
    model, block = subject.model, subject.model.blocks[0]
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, *tensors: Any) -> None:
            tensor = tensors[-1] if isinstance(tensors[-1], Tensor) else tensors[-1][0]
            # positions have no batch dimension
            made[name] = tensor[0] if tensor.ndim > 2 else tensor

        return hook

    hooks = [
        model.token_embedding.register_forward_hook(keep("token_embedding")),
        block.get_submodule("attention").register_forward_pre_hook(
            keep("blocks.0.attention.input")
        ),
        block.get_submodule("mlp").register_forward_pre_hook(keep("blocks.0.mlp.input")),
    ]
    positions = getattr(model, "position_embedding", None)
    if positions is not None:
        hooks.append(positions.register_forward_hook(keep("position_embedding")))
    first = [
        f"blocks.0.{name}" for name in _DIMS if name.startswith(("attention", "residual", "mlp"))
    ]
    try:
        logits, found = subject.run_with_cache(
            "embedding", *first, f"blocks.{len(model.blocks) - 1}.residual", "final"
        )
    finally:
        for hook in hooks:
            hook.remove()
    q, k = found["blocks.0.attention.q"], found["blocks.0.attention.k"]
    window = (subject.config.sliding_windows or (0,))[0]
    weights = attention_weights(q[None], k[None], window)[0]
    probabilities = logits[-1].double().softmax(-1)
    return {
        **made,
        **found,
        "blocks.0.attention.weights": weights,
        "logits": logits,
        "probabilities": probabilities,
    }


def _rows(made: dict[str, Tensor]) -> tuple[ShapeRow, ...]:
    order = [
        name if "." not in name and name != "residual" else f"blocks.0.{name}" for name in _DIMS
    ]
    end = order.index("final")
    # of the last block
    order[end:end] = [name for name in made if name.endswith(".residual") and name not in order]
    grouped = made["blocks.0.attention.k"].shape != made["blocks.0.attention.q"].shape
    return tuple(_row(name, made[name], grouped=grouped) for name in order if name in made)


def _row(name: str, tensor: Tensor, *, grouped: bool) -> ShapeRow:
    dims = tuple(_DIMS[".".join(name.split(".")[2:]) if name.startswith("blocks.") else name])
    if grouped and name.endswith((".k", ".v")):
        dims = ("g", *dims[1:])  # one key and value serves several queries
    last = tensor[tuple(-1 if dim == "t" else 0 for dim in dims[:-1])]
    return ShapeRow(name, dims, tuple(tensor.shape), tuple(last[:_FIRST].tolist()))
