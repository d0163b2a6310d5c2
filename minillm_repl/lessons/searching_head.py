"""A head that finds another token by its query and key: what lesson 4 shows."""

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minillm_repl.views.inspected_text import InspectedText
    from minillm_repl.views.qkv import Met

_SEARCHED_LAYERS = 4  # each head takes a pass


def find_searching_head(
    inspected: "InspectedText", *, otherwise: tuple[int, int]
) -> tuple[int, int]:
    """Return the layer and head whose last query takes most of another token, with a dot product
    above 0; if there is none, `otherwise`.
    """
    config = inspected.config
    best = (0.0, otherwise)
    for place in itertools.product(
        config.attention_layers[:_SEARCHED_LAYERS], range(config.n_heads)
    ):
        most = top_key(inspected, *place)
        if most.dot > 0 and most.position < len(inspected.ids) - 1:
            best = max(best, (most.weight, place), key=lambda each: each[0])
    return best[1]


def top_key(inspected: "InspectedText", layer: int, head: int) -> "Met":
    """Return the key that the last token's query takes most of."""
    from minillm_repl.views import qkv

    return max(qkv.compute(inspected, layer, head).met, key=lambda each: each.weight)
