"""What each part of a model writes into the residual stream, and how the stream gives a logit."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.views.inspected_text import InspectedText, differs, no_grad, topk_ids

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel
    from minillm_repl.model.llama import RMSNorm


def written(inspected: InspectedText, cache: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return what each part writes into the residual stream at one position: (d_model,) each.

    `cache` has the activations there, in float64. The order is the model's.

    The heads of a layer and the bias of its output projection sum to what its attention writes.
    Where an intervention has changed that, attention is one part. What an intervention has added to
    the stream is a part too.
    """
    import torch

    parts = {"embedding": cache["embedding"]}
    stream = parts["embedding"]
    for layer in range(inspected.config.n_layers):
        block = f"blocks.{layer}."
        attention, mlp = cache[block + "attention.out"], cache[block + "mlp.out"]
        if inspected.config.is_conv(layer):
            parts[f"convolution {layer}"] = attention
        else:
            heads = _heads(inspected.model, layer, cache[block + "attention.z"])
            heads = _through_end_of_attention(inspected.model, layer, heads)
            changed = differs(attention, sum(heads.values(), torch.zeros_like(attention)))
            parts |= {f"attention {layer}": attention} if changed else heads
        parts[f"feed-forward {layer}"] = mlp
        expected, stream = stream + attention + mlp, cache[block + "residual"]
        if differs(stream, expected):
            parts[f"added after layer {layer}"] = stream - expected
    return parts


def _heads(model: "LanguageModel", layer: int, z: "Tensor") -> "dict[str, Tensor]":
    """Return what each head of a layer writes, and the bias of the projection: (d_model,) each.

    A head's output z[head] (head_dim,) goes through its own columns of the output projection.
    """
    import torch

    projection = model.get_submodule(f"blocks.{layer}.attention.proj")
    assert isinstance(projection, torch.nn.Linear)
    columns = projection.weight[:].double().view(-1, *z.shape)  # (d_model, head, head_dim)
    parts = {f"head {layer}.{head}": columns[:, head] @ z[head] for head in range(len(z))}
    if isinstance(projection.bias, torch.Tensor):
        parts[f"attention bias {layer}"] = projection.bias.double()
    return parts


def _through_end_of_attention(
    model: "LanguageModel", layer: int, heads: "dict[str, Tensor]"
) -> "dict[str, Tensor]":
    """Return what the heads of a layer add to the stream, of what they write: (d_model,) each.

    Between the two, some models have a norm, whose scale is held at its value, or a multiplier.
    """
    import torch

    factor = _end_of_attention(model, layer, torch.stack(list(heads.values())).sum(0))
    return {name: vector * factor for name, vector in heads.items()}


def _end_of_attention(model: "LanguageModel", layer: int, total: "Tensor") -> "Tensor":
    """Return what attention's output `total` (d_model,) is multiplied by on its way to the stream.

    The result is (d_model,), or one number.
    """
    import torch

    factor = torch.tensor(model.config.residual_multiplier, dtype=torch.float64)
    if model.config.norm_placement != "pre":
        norm = cast("RMSNorm", model.get_submodule(f"blocks.{layer}.post_norm1"))
        factor = factor * norm.scale().double() / (total.square().mean() + norm.eps).sqrt()
    return factor


@dataclass
class HeadReads:
    """What the last position reads of each position with all its heads.

    Its hook keeps of a pass the values, and the weights of the last query: of a long text, all
    queries and keys would take gigabytes.
    """

    inspected: InspectedText
    weights: "dict[int, Tensor]" = field(default_factory=dict)  # by layer: (head, time)
    values: "dict[int, Tensor]" = field(default_factory=dict)  # by layer: (kv head, time, head_dim)

    def hook(self, name: str, tensor: "Tensor") -> "Tensor":
        """Keep the values and the weights; change nothing."""
        from minillm_repl.model.attention import attention_weights

        _blocks, number, part, *which = (*name.split("."), "", "")
        if part != "attention" or which[0] not in ("q", "k", "v"):
            return tensor
        layer, config = int(number), self.inspected.config
        if which[0] == "q":
            self.weights[layer] = tensor[:, :, -1:].clone()  # the last query
        elif which[0] == "k":
            window = config.sliding_windows[layer] if config.sliding_windows else 0
            found = attention_weights(self.weights[layer], tensor, config, window)
            self.weights[layer] = found[0, :, -1]
        else:
            self.values[layer] = tensor[0]
        return tensor

    def from_positions(self, cache: "dict[str, Tensor]", direction: "Tensor") -> "Tensor":
        """Return what is read of each position along `direction` (d_model,): (time,), in float64.

        `cache` has z (head, head_dim) of each layer at the last position. A head moves each value
        times its attention weight, through its columns of W_O.
        """
        import torch

        model = self.inspected.model
        time = len(self.inspected.ids)
        total = torch.zeros(time, dtype=torch.float64, device=direction.device)
        for layer, weights in self.weights.items():
            name = f"blocks.{layer}.attention."
            weight, value = weights.double(), self.values[layer].double()
            value = value.repeat_interleave(len(weight) // len(value), 0)  # (head, time, head_dim)
            projection = cast("torch.nn.Linear", model.get_submodule(name + "proj"))
            columns = projection.weight[:].double()  # (d_model, head · head_dim)
            written = columns @ cache[name + "z"].flatten()
            if isinstance(projection.bias, torch.Tensor):
                written = written + projection.bias.double()
            towards = (direction * _end_of_attention(model, layer, written)) @ columns
            towards = towards.view(len(weight), -1)  # (head, head_dim)
            total += torch.einsum("ht,htd,hd->t", weight, value, towards)
        return total


def logit_direction(model: "LanguageModel", stream: "Tensor", token: int) -> "tuple[Tensor, float]":
    """Return the direction and the constant of a logit: logit = stream · direction + constant.

    `stream` is (d_model,). The scale of the last norm is held at its value for this stream. The
    result is in float64.
    """
    import torch

    norm, stream = model.norm_f, stream.double()
    head = model.token_embedding if model.lm_head is None else model.lm_head
    unembedding = head.weight[token].double()  # (d_model,); of a tied model, the embedding
    constant = 0.0
    if isinstance(norm, torch.nn.LayerNorm):  # it takes the mean off first
        row = unembedding * norm.weight
        direction = (row - row.mean()) / (stream.var(correction=0) + norm.eps).sqrt()
        constant = float(unembedding @ norm.bias.double())
    else:  # RMS norm: x / √(mean(x²) + ε)
        direction = unembedding * norm.scale() / (stream.square().mean() + norm.eps).sqrt()
    bias = getattr(head, "bias", None)
    constant += 0.0 if bias is None else float(bias[token])
    return direction / model.config.logits_scaling, constant / model.config.logits_scaling


@no_grad
def promoted_tokens(
    model: "LanguageModel", tokenizer: Tokenizer, directions: "Tensor", count: int
) -> list[tuple[tuple[Token, ...], tuple[Token, ...]]]:
    """Return the tokens whose logits each direction (n, d_model) raises most, and
    lowers most, `count` of each.

    The scale of the final norm does not change the order.
    """
    import torch

    logits = model.unembed(directions) - model.unembed(torch.zeros_like(directions[:1]))
    logits = logits[:, : tokenizer.vocab_size]  # (n, vocab)

    def top(row: "Tensor") -> tuple[Token, ...]:
        return tuple(Token.from_id(tokenizer, token) for token in topk_ids(row, count))

    return [(top(row), top(-row)) for row in logits]
