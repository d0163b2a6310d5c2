"""The circuits of heads, from the weights alone (Elhage et al., 2021).

A head reads the residual stream through W_Q, W_K and W_V, and writes into it through W_O. Its OV
circuit W_V·W_O says what it moves, its QK circuit W_Q·W_Kᵀ where from. The weights are taken as
TransformerLens prepares them: the scale of a norm is part of the matrix that reads after it, or
writes before it; a LayerNorm also takes the mean off. RoPE, biases and the norms of queries and
keys are left out.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from minillm_repl.views.inspected_text import no_grad

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minillm_repl.model.build import LanguageModel
    from minillm_repl.model.llama import CanonLayer, RMSNorm

_ROWS_AT_ONCE = 2**13  # of the vocabulary, whose weights are widened to float32


@dataclass(frozen=True)
class Matrices:
    """What the heads of a layer read and write, in float32. A head that shares keys has a copy."""

    q: "Tensor"  # (head, d_model, head_dim)
    k: "Tensor"
    v: "Tensor"
    o: "Tensor"  # (head, head_dim, d_model)


def matrices(model: "LanguageModel", layer: int) -> Matrices:
    """Return the matrices of the heads of a layer, with the norms around them."""
    import torch

    config, block = model.config, model.blocks[layer]
    width, sizes = config.head_dim, [config.n_heads, config.n_kv_heads, config.n_kv_heads]
    attention = f"blocks.{layer}.attention"
    qkv = cast("nn.Linear", model.get_submodule(f"{attention}.qkv")).weight[:].float()
    read = qkv * _reading_scale(block)  # ((h+g+g)*d, d_model)
    written = cast("nn.Linear", model.get_submodule(f"{attention}.proj")).weight[:].float()
    if config.norm_placement != "pre":
        written = written * cast("RMSNorm", block.post_norm1).scale()[:, None]
    if isinstance(_norm(block), torch.nn.LayerNorm):
        # It takes off the mean of what it reads: so nothing that is written there counts.
        read, written = read - read.mean(1, keepdim=True), written - written.mean(0)
    heads = torch.split(read.view(-1, width, config.d_model).mT, sizes)  # (h, g and g, d_model, d)
    q, k, v = (part.repeat_interleave(config.n_heads // len(part), 0) for part in heads)
    return Matrices(q, k, v, written.T.reshape(-1, width, config.d_model))


def _norm(block: "nn.Module") -> "nn.Module":
    """Return the norm before attention; an identity where a model normalises only what it adds."""
    return cast("nn.Module", getattr(block, "norm1", None) or block.ln1)


def _scale(norm: "nn.Module") -> "Tensor":
    """Return what each number is multiplied by after a norm: (d_model,), or 1."""
    import torch

    if isinstance(norm, torch.nn.LayerNorm):
        return norm.weight
    return cast("RMSNorm", norm).scale() if hasattr(norm, "scale") else torch.ones(())


def _reading_scale(block: "nn.Module") -> "Tensor":
    """Return what each number of the normalised stream is multiplied by: (d_model,)."""
    scale = _scale(_norm(block))
    canon = cast("CanonLayer | None", getattr(block, "canon1", None))
    # The last row of a Canon layer is for the token itself; the tokens before it are left out.
    return scale if canon is None else scale * (1 + canon.weight[-1])


@no_grad
def unembedded_embedding(model: "LanguageModel") -> "Tensor":
    """Return W_U·W_E (d_model, d_model): what the tokens' vectors are, read back as logits.

    The logits are less their mean over the vocabulary, which no probability shows.
    """
    import torch

    norm = model.norm_f
    head = model.token_embedding if model.lm_head is None else model.lm_head
    unembedding, embedding = head.weight, model.token_embedding.weight
    size, rows = embedding.shape[1], embedding.shape[0]
    device = norm.weight.device
    product = torch.zeros(size, size, dtype=torch.float64, device=device)
    sums = torch.zeros(2, size, dtype=torch.float64, device=device)
    for first in range(0, rows, _ROWS_AT_ONCE):
        out = unembedding[first : first + _ROWS_AT_ONCE].float()  # (rows, d_model)
        into = embedding[first : first + _ROWS_AT_ONCE].float()
        product += (out.T @ into).double()
        sums += torch.stack((out.double().sum(0), into.double().sum(0)))
    product -= torch.outer(sums[0] / rows, sums[1])
    product = product * _scale(norm)[:, None]
    # A LayerNorm takes the mean off before it scales.
    return product - product.mean(0) if isinstance(norm, torch.nn.LayerNorm) else product


@no_grad
def ov_eigenvalues(model: "LanguageModel", layer: int, product: "Tensor") -> "Tensor":
    """Return the eigenvalues of W_E·W_V·W_O·W_U of each head: (head, head_dim), complex.

    These are all that are not 0. `product` is `unembedded_embedding`. An eigenvalue above 0 means
    that the head raises the logit of the tokens that it attends to.
    """
    import torch

    parts = matrices(model, layer)
    # The eigenvalues of A·B are those of B·A, which is only (head_dim, head_dim).
    small = parts.o.double() @ product @ parts.v.double()
    values: Tensor = torch.linalg.eigvals(small.cpu())
    return values


def copying_scores(eigenvalues: "Tensor") -> "Tensor":
    """Return Σ Re λ / Σ |λ| of each head (head,): 1 if all are above 0, −1 if all are below."""
    total = eigenvalues.abs().sum(-1)
    return eigenvalues.real.sum(-1) / total.where(total > 0, total + 1)
