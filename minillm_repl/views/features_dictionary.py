"""A sparse autoencoder as data: its features, what they read and what they write.

Sparse autoencoders write a residual stream as a sum of a few of many directions, the features
(Bricken et al., 2023; TopK: Gao et al., 2024). x ≈ f · W_dec + b_dec, where
f = activation((x − b_dec) · W_enc + b_enc). A transcoder reads the input of an MLP, and writes what
the MLP adds (Dunefsky et al., 2024): y ≈ f · W_dec + b_dec, with f = activation(x · W_enc + b_enc).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minillm_repl.errors import UserError
from minillm_repl.language import _

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How good a dictionary is, on text that it was not trained on."""

    loss: float  # nats per token: of the model,
    loss_with: float  # with the stream replaced by what the features make of it,
    loss_without: float  # and by 0
    explained: float  # share of the variance of the stream, at most 1
    l0: float  # features that are active at a token, the mean
    dead: int  # features that no token of the text activated
    tokens: int  # that these were measured on

    @property
    def recovered(self) -> float:
        """The share of the loss that is recovered: 1 is all, 0 as good as a stream of zeros."""
        span = self.loss_without - self.loss
        return (self.loss_without - self.loss_with) / span if span else 0.0


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Where each feature was most active in the text that it was trained on."""

    ids: "NDArray[Any]"  # (features, texts, time): tokens, −1 where there is none
    marked: "NDArray[Any]"  # (features, texts): which of them activated the feature
    values: "NDArray[Any]"  # (features, texts): how much; 0 for none
    density: "NDArray[Any]"  # (features,): the share of tokens at which it is active


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """The features of the residual stream after a layer, or of its MLP."""

    layer: int
    k: int  # features that may be active at a token; 0: no limit
    encoder: "Tensor"  # (d_model, features)
    decoder: "Tensor"  # (features, d_model)
    encoder_bias: "Tensor"  # (features,)
    decoder_bias: "Tensor"  # (d_model,)
    threshold: "Tensor | None" = None  # (features,): JumpReLU; a lower activation is 0
    subtracts_bias: bool = True  # whether the encoder reads x − b_dec
    is_transcoder: bool = False  # from the input of the layer's MLP to what it adds
    steps: int = 0  # of training
    source: str = ""  # the text that it was trained on
    figures: Figures | None = None
    examples: Examples | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of the folder that it came from

    @property
    def size(self) -> int:
        """The number of features."""
        return len(self.encoder_bias)

    @property
    def kind(self) -> str:
        """What it is, as `kind=` says it."""
        return "transcoder" if self.is_transcoder else "sae"

    @property
    def reads(self) -> str:
        """The name of the hook whose activation it encodes."""
        return f"blocks.{self.layer}.{'mlp.in' if self.is_transcoder else 'residual'}"

    @property
    def writes(self) -> str:
        """The name of the hook whose activation it makes."""
        return f"blocks.{self.layer}.{'mlp.out' if self.is_transcoder else 'residual'}"

    def encode(self, stream: "Tensor") -> "Tensor":
        """Return the activations of the features: (..., d_model) -> (..., features), 0 or more."""
        import torch

        x = stream - self.decoder_bias if self.subtracts_bias else stream
        before = x @ self.encoder + self.encoder_bias  # (..., features)
        if self.threshold is not None:
            return before.relu() * (before > self.threshold)
        if not self.k or self.k >= self.size:
            return before.relu()
        top = before.topk(self.k, dim=-1)
        return torch.zeros_like(before).scatter(-1, top.indices, top.values.relu())

    def decode(self, activations: "Tensor") -> "Tensor":
        """Return the stream that activations stand for: (..., features) -> (..., d_model)."""
        return activations @ self.decoder + self.decoder_bias

    def feature(self, number: int) -> int:
        """Return a number of a feature. Raises UserError if there is none."""
        if not 0 <= number < self.size:
            last = self.size - 1
            raise UserError(_("no feature {n}: features are numbered from 0 to {last}",
                              n=number, last=last))  # fmt: skip
        return number


def features_title(layer: int, kind: str) -> str:
    """Return the title of the features of a layer, or of a transcoder of its MLP."""
    if kind == "transcoder":
        return _("transcoder of the MLP of layer {layer}", layer=layer)
    return _("features of layer {layer}", layer=layer)
