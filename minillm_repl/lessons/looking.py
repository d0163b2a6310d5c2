"""What lessons find in a model: a head that searches, one that inducts, what a lens saw."""

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minillm_repl.views.inspected_text import InspectedText
    from minillm_repl.views.lens import LensView
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


def strongest_induction(inspected: "InspectedText") -> tuple[int, int, float, float]:
    """Return the layer and head with the largest induction score, that score, and the score of
    attention spread evenly: as `:heads` measures them, on random tokens given twice.

    Raises UserError where the context or the vocabulary is too small.
    """
    from minillm_repl.training.head_probe import baselines, make_probe, measure

    probe = make_probe(inspected.tokenizer, inspected.config)
    scores = measure(inspected.model, probe, inspected.hook)[..., 0]  # (layer, head)
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return layer, head, float(scores[layer, head]), baselines(probe)[1][0]


def lens_below(view: "LensView", n_layers: int) -> str:
    """Return the token that the logit lens has on top before the last layer."""
    places = (len(view.rows) - 1) // n_layers  # of each layer: one where its parts are parallel
    return view.rows[-1 - places].top[0].token.label
