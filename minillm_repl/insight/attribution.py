"""Direct logit attribution: what each part of the model adds to a logit by itself."""

import torch
from torch import Tensor

from minillm_repl.insight.subject import Subject, likeliest, rank
from minillm_repl.insight.views.thinking import Part, ResidualView, StreamRow, WhyView
from minillm_repl.model.build import LanguageModel
from minillm_repl.tokenizer.base import Token


@torch.no_grad()
def why_view(subject: Subject, token: int | None = None, versus: int | None = None) -> WhyView:
    """Return what each part adds to the next token's logit, or to the difference of two; by default the likeliest's.

    Every part writes into the residual stream, and the logit is a dot product with what the stream ends as: so with
    the last norm's scale held at its value, the parts add up to the logit. What rounding leaves is its own part where
    the model computes with fewer than 32 bits.
    """
    names = "embedding", "attention.z", "attention.out", "ff.out", "residual"
    logits, found = subject.record(*names, last=True)
    final = logits[0].double()
    token = likeliest(final, 1)[0] if token is None else token
    direction, constant = reading(subject.model, found[_last(subject)][-1], token)
    logit = float(final[token])
    if versus is not None:
        other, other_constant = reading(subject.model, found[_last(subject)][-1], versus)
        direction, constant, logit = direction - other, constant - other_constant, logit - float(final[versus])
    values = [(name, float(vector.to(direction) @ direction)) for name, vector in written(subject, found).items()]
    parts = [*values, ("bias", constant)]
    if found["embedding"].element_size() < 4:
        parts.append(("rounding", logit - sum(value for _, value in parts)))
    return WhyView(
        tokens=subject.tokens,
        token=Token.of(subject.tokenizer, token),
        versus=None if versus is None else Token.of(subject.tokenizer, versus),
        logit=logit,
        prob=float(final.softmax(-1)[token]),
        rank=rank(final, token),
        parts=tuple(Part(name, value) for name, value in parts),
        **subject.where,
    )


@torch.no_grad()
def residual_view(subject: Subject) -> ResidualView:
    """Return the norms of the residual stream at the last position, and of what each block adds to it."""
    _, found = subject.record("embedding", "attention.out", "residual.mid", "ff.out", "residual", last=True)
    stream = torch.zeros_like(found["embedding"][-1])
    rows = []
    for name, added in found.items():
        if ".residual" in name:
            continue
        vector = added[-1]
        after = name.replace("attention.out", "residual.mid").replace("ff.out", "residual")
        aligned = torch.nn.functional.cosine_similarity(vector.float(), stream.float(), dim=0)
        stream = found[after][-1] if name != "embedding" and after in found else stream + vector
        rows.append(StreamRow(_place(name), float(vector.float().norm()), float(stream.float().norm()), float(aligned)))
    return ResidualView(subject.position(len(subject.ids) - 1), subject.tokens, tuple(rows), **subject.where)


def written(subject: Subject, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what each part writes into the stream at the last position: (width,) each, in the model's order.

    The heads of a layer and the bias of its output projection add up to what its attention writes. Where that has been
    changed it is one part, and so is what has been added to the stream from outside.
    """
    parts = {"embedding": found["embedding"][-1]}
    stream = parts["embedding"]
    for layer in range(subject.config.layers):
        block = f"blocks.{layer}."
        heads = _heads(subject, layer, found[block + "attention.z"][-1])
        attention, forward = found[block + "attention.out"][-1], found[block + "ff.out"][-1]
        changed = _differs(attention, sum(heads.values(), torch.zeros_like(attention)))
        parts |= {f"attention {layer}": attention} if changed else heads
        parts[f"feed-forward {layer}"] = forward
        expected, stream = stream + attention + forward, found[block + "residual"][-1]
        if _differs(stream, expected):
            parts[f"added after layer {layer}"] = stream - expected
    return parts


def _heads(subject: Subject, layer: int, z: Tensor) -> dict[str, Tensor]:
    """Return what each head of a layer writes, z (head, head_size) through its columns of the projection; its bias."""
    projection = subject.model.get_submodule(f"blocks.{layer}.attention.proj")
    assert isinstance(projection, torch.nn.Linear)
    columns = projection.weight.view(-1, *z.shape)  # (width, head, head_size)
    parts = {f"head {layer}.{head}": columns[:, head] @ z[head] for head in range(len(z))}
    if isinstance(projection.bias, Tensor):
        parts[f"attention bias {layer}"] = projection.bias
    return parts


def _differs(there: Tensor, expected: Tensor) -> bool:
    """Tell whether two vectors differ by more than rounding."""
    tolerance = 1e-3 if there.element_size() >= 4 else 5e-2
    return float((there - expected).norm()) > tolerance * float(there.norm() + expected.norm())


def reading(model: LanguageModel, stream: Tensor, token: int) -> tuple[Tensor, float]:
    """Return how a token's logit is read off the stream (width,): the logit is stream · direction + constant.

    The last norm's scale is held at what it is for this stream. In float32 at least.
    """
    norm = model.norm_f
    kind = torch.promote_types(stream.dtype, torch.float32)
    head = model.token_embedding if model.lm_head is None else model.lm_head
    row, exact = head.weight[token].to(kind) * norm.weight.to(kind), stream.to(kind)
    constant = torch.zeros((), dtype=kind, device=stream.device)
    if isinstance(norm, torch.nn.LayerNorm):
        direction = (row - row.mean()) / (exact.var(correction=0) + norm.eps).sqrt()
        constant = constant + head.weight[token].to(kind) @ norm.bias.to(kind)
    else:
        direction = row / (exact.square().mean() + norm.eps).sqrt()
    bias = getattr(head, "bias", None)
    return direction, float(constant if bias is None else constant + bias[token])


def _last(subject: Subject) -> str:
    return f"blocks.{subject.config.layers - 1}.residual"


def _place(name: str) -> str:
    if name == "embedding":
        return name
    _, layer, what, _ = name.split(".")
    return f"{layer} {'attention' if what == 'attention' else 'feed-forward'}"
