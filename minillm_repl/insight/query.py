"""One head at one position, with all its numbers: the query, the keys that it meets, the values that it takes along."""

import torch

from minillm_repl.insight.subject import Subject, check_layer, check_position
from minillm_repl.insight.views.thinking import Met, QKVView
from minillm_repl.model.attention import attention_weights


@torch.no_grad()
def qkv_view(subject: Subject, layer: int, head: int, position: int = -1) -> QKVView:
    """Return what a head computes at a position. Raises UserError if there is no such head or position."""
    config = subject.config
    check_layer(config, layer, head)
    position = check_position(subject.ids, position)
    subject = subject.upto(position)
    prefix = f"blocks.{layer}.attention."
    _, found = subject.record(*(prefix + each for each in ("q", "k", "v", "z")), last=True)
    q, k, v = (found[prefix + each] for each in ("q", "k", "v"))  # (head, time, head_size), k and v with kv_heads
    window = getattr(config, "windows", ())[layer] if getattr(config, "windows", ()) else 0
    weights = attention_weights(q[None], k[None], window)[0, head, -1].float()  # (time,)
    shared = head * config.kv_heads // config.heads
    query, keys, values = q[head, -1].float(), k[shared].float(), v[shared].float()
    dots = keys @ query  # (time,)
    return QKVView(
        layer, head, position, subject.tokens, tuple(query.tolist()),
        tuple(
            Met(
                place, tuple(keys[place].tolist()), tuple(values[place].tolist()), float(dots[place]),
                float(dots[place]) / config.head_size**0.5, float(weights[place]),
            )
            for place in range(max(0, position + 1 - window) if window else 0, position + 1)
        ),
        tuple(found[prefix + "z"][-1, head].float().tolist()),
    )  # fmt: skip
