"""Direct logit attribution: what each part of the model adds to a logit by itself."""

import torch
from torch import Tensor

from minillm_repl.insight.inspected_text import InspectedText, rank, topk_ids
from minillm_repl.insight.views.thinking import Part, ResidualView, StreamRow, WhyView
from minillm_repl.model.build import LanguageModel
from minillm_repl.tokenizer.base import Token


@torch.no_grad()
def why_view(
    subject: InspectedText, token: int | None = None, versus: int | None = None
) -> WhyView:
    """Return what each part adds to the next token's logit (the likeliest's), or two's difference.

    Every part writes into the residual stream, and the logit is a dot product with what the stream
    ends as: so with the last norm's scale held at its value, the parts add up to the logit. They
    are worked out in float64.
    """
    names = "embedding", "attention.z", "attention.out", "mlp.out", "residual"
    logits, found = subject.run_with_cache(*names, last_only=True)
    found = {name: tensor[-1].double() for name, tensor in found.items()}  # of the last position
    final = logits[0].double()
    token = topk_ids(final, 1)[0] if token is None else token
    direction, constant = reading(subject.model, found[_last(subject)], token)
    logit = float(final[token])
    if versus is not None:
        other, other_constant = reading(subject.model, found[_last(subject)], versus)
        direction, constant, logit = (
            direction - other,
            constant - other_constant,
            logit - float(final[versus]),
        )
    values = [(name, float(vector @ direction)) for name, vector in written(subject, found).items()]
    parts = [*values, ("bias", constant)]
    return WhyView(
        tokens=subject.tokens,
        token=Token.from_id(subject.tokenizer, token),
        versus=None if versus is None else Token.from_id(subject.tokenizer, versus),
        logit=logit,
        prob=float(final.softmax(-1)[token]),
        rank=rank(final, token),
        parts=tuple(Part(name, value) for name, value in parts),
        **subject.window_fields,
    )


@torch.no_grad()
def residual_view(subject: InspectedText) -> ResidualView:
    """Return the norms of the residual stream at the last position, and of blocks' additions."""
    _, found = subject.run_with_cache(
        "embedding", "attention.out", "residual.mid", "mlp.out", "residual", last_only=True
    )
    parallel = subject.config.parallel_residual
    read = stream = torch.zeros_like(found["embedding"][-1])
    rows = []
    for name, added in found.items():
        if ".residual" in name:
            continue
        vector = added[-1]
        if not (parallel and name.endswith("mlp.out")):  # there it reads what attention has read
            read = stream
        total = stream + vector
        after = name.replace("attention.out", "residual.mid").replace("mlp.out", "residual")
        stream = found[after][-1] if name != "embedding" and after in found else total
        outside = _differs(stream, total)
        rows.append(_row(_place(name), vector, total if outside else stream, read))
        if outside:
            rows.append(
                _row(f"added after layer {name.split('.')[1]}", stream - total, stream, total)
            )
    return ResidualView(
        subject.position_of(len(subject.ids) - 1),
        subject.tokens,
        tuple(rows),
        **subject.window_fields,
    )


def _row(place: str, added: Tensor, stream: Tensor, read: Tensor) -> StreamRow:
    aligned = torch.nn.functional.cosine_similarity(added, read, dim=0)
    return StreamRow(place, float(added.norm()), float(stream.norm()), float(aligned))


def written(subject: InspectedText, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what each part writes to the stream at a position: (width,) each, in model order.

    `found` are the activations there, in float64.

    The heads of a layer and the bias of its output projection add up to what its attention writes.
    Where that has been changed it is one part, and so is what has been added to the stream from
    outside.
    """
    parts = {"embedding": found["embedding"]}
    stream = parts["embedding"]
    for layer in range(subject.config.n_layers):
        block = f"blocks.{layer}."
        heads = _heads(subject, layer, found[block + "attention.z"])
        attention, forward = found[block + "attention.out"], found[block + "mlp.out"]
        changed = _differs(attention, sum(heads.values(), torch.zeros_like(attention)))
        parts |= {f"attention {layer}": attention} if changed else heads
        parts[f"feed-forward {layer}"] = forward
        expected, stream = stream + attention + forward, found[block + "residual"]
        if _differs(stream, expected):
            parts[f"added after layer {layer}"] = stream - expected
    return parts


def _heads(subject: InspectedText, layer: int, z: Tensor) -> dict[str, Tensor]:
    """Return what each head of a layer writes, z (head, head_size) through its columns of the
    projection; its bias.
    """
    projection = subject.model.get_submodule(f"blocks.{layer}.attention.proj")
    assert isinstance(projection, torch.nn.Linear)
    columns = projection.weight[:].double().view(-1, *z.shape)  # (width, head, head_size)
    parts = {f"head {layer}.{head}": columns[:, head] @ z[head] for head in range(len(z))}
    if isinstance(projection.bias, Tensor):
        parts[f"attention bias {layer}"] = projection.bias.double()
    return parts


def _differs(there: Tensor, expected: Tensor) -> bool:
    """Tell whether two vectors differ by more than the rounding of float32."""
    return float((there - expected).norm()) > 1e-5 * float(there.norm() + expected.norm())


def reading(model: LanguageModel, stream: Tensor, token: int) -> tuple[Tensor, float]:
    """Return how a logit is read off the stream (width,): as stream · direction + constant.

    The last norm's scale is held at what it is for this stream. In float64.
    """
    norm, stream = model.norm_f, stream.double()
    head = model.token_embedding if model.lm_head is None else model.lm_head
    own = head.weight[token].double()
    row, constant = own * norm.weight, 0.0
    if isinstance(norm, torch.nn.LayerNorm):
        direction = (row - row.mean()) / (stream.var(correction=0) + norm.eps).sqrt()
        constant = float(own @ norm.bias.double())
    else:
        direction = row / (stream.square().mean() + norm.eps).sqrt()
    bias = getattr(head, "bias", None)
    return direction, constant if bias is None else constant + float(bias[token])


def _last(subject: InspectedText) -> str:
    return f"blocks.{subject.config.n_layers - 1}.residual"


def _place(name: str) -> str:
    if name == "embedding":
        return name
    _, layer, what, _ = name.split(".")
    return f"{layer} {'attention' if what == 'attention' else 'feed-forward'}"
