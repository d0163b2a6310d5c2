"""One head at one position, with all its numbers: its query, the keys that it meets, the values
that it takes.
"""

import torch

from minillm_repl.errors import UserError
from minillm_repl.insight.views.thinking import DotView, Met, QKVView
from minillm_repl.language import _
from minillm_repl.model.attention import attention_weights
from minillm_repl.views.inspected_text import InspectedText, check_layer


@torch.no_grad()
def qkv_view(subject: InspectedText, layer: int, head: int, position: int = -1) -> QKVView:
    """Return what a head computes at a position.

    Raises UserError if there is no such head or position.
    """
    config = subject.config
    check_layer(config, layer, head)
    index = subject.index_of(position)
    subject = subject.up_to(index)
    prefix = f"blocks.{layer}.attention."
    found = subject.run_with_cache(
        *(prefix + each for each in ("q", "k", "v", "z")), last_only=True
    )[1]
    # (head, time, head_size), k and v with kv_heads
    q, k, v = (found[prefix + each] for each in ("q", "k", "v"))
    window = config.sliding_windows[layer] if config.sliding_windows else 0
    weights = attention_weights(q[None], k[None], window)[0, head, -1]  # (time,)
    shared = head * config.n_kv_heads // config.n_heads
    query, keys, values = q[head, -1], k[shared], v[shared]
    dots = keys @ query  # (time,)
    return QKVView(
        layer,
        head,
        subject.position_of(index),
        subject.tokens,
        tuple(query.tolist()),
        tuple(
            Met(
                subject.position_of(place),
                tuple(keys[place].tolist()),
                tuple(values[place].tolist()),
                float(dots[place]),
                float(dots[place]) / config.head_dim**0.5,
                float(weights[place]),
            )
            for place in range(max(0, index + 1 - window) if window else 0, index + 1)
        ),
        tuple(found[prefix + "z"][-1, head].tolist()),
        **subject.window_fields,
    )


def dot_view(subject: InspectedText, layer: int, head: int, position: int, key: int) -> DotView:
    """Return how the query of a position and the key of another meet.

    Raises UserError if there is no such thing.
    """
    view = qkv_view(subject, layer, head, position)
    upto = subject.up_to(subject.index_of(position))
    key = upto.position_of(upto.index_of(key))
    met = {each.position: each for each in view.met}
    if key not in met:
        first = view.met[0].position
        raise UserError(
            _(
                "position {key} is not visible to this query, which attends to positions from "
                "{first} onwards",
                key=key,
                first=first,
            )
        )
    chosen = met[key]
    return DotView(
        layer, head, view.position, key, view.tokens, view.query, chosen.key,
        tuple(asks * answers for asks, answers in zip(view.query, chosen.key, strict=True)),
        chosen.dot, chosen.scaled, chosen.weight,
        tuple((each.position, each.scaled, each.weight) for each in view.met),
        **upto.window_fields,
    )  # fmt: skip
