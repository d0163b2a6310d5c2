"""Named places in a forward pass where an activation can be read or replaced.

A hook gets the name of the place and the tensor there. The pass goes on with the tensor that it
returns: the same one, or another. The names for layer `i`, with their shapes (b batch, t time,
h head):

    positions               (t,)                 of the tokens of this pass; only to be read
    embedding               (b, t, d_model)      token embedding, plus position where it is learned
    blocks.i.attention.q    (b, h, t, head_dim)  as it enters the dot product: after norm and RoPE
    blocks.i.attention.k|v  (b, h, t, head_dim)  the same; h counts n_kv_heads here
    blocks.i.attention.pattern  (b, h, t, seen)  the attention weights; only for a `PatternHook`
    blocks.i.attention.z    (b, t, h, head_dim)  weighted sum of values, before W_O
    blocks.i.attention.normed  (b, t, d_model)   what a Canon layer reads: the normalised stream
    blocks.i.attention.mixed   (b, t, d_model)   what attention reads where there is a Canon layer
    blocks.i.attention.out  (b, t, d_model)      what attention adds to the residual stream
    blocks.i.conv.gated|mixed  (b, t, d_model)   in a layer with a short convolution (LFM2), which
                                                 has no q, k, v and z: what it reads after the first
                                                 gate, and the mix; attention.out is what it adds
    blocks.i.residual.mid   (b, t, d_model)      between attention and MLP; absent where the two
                                                 work side by side (GPT-NeoX)
    blocks.i.mlp.normed|mixed  (b, t, d_model)   the same, of the MLP
    blocks.i.mlp.in         (b, t, d_model)      what the MLP reads: after norm and Canon layer
    blocks.i.mlp.hidden     (b, t, d_mlp)        after the activation, and the gate in a Llama;
                                                 absent in a mixture of experts, which has
    blocks.i.mlp.router     (b, t, n_experts)    the logits that choose the experts of a token
    blocks.i.mlp.out        (b, t, d_model)      what the MLP adds to the residual stream
    blocks.i.residual       (b, t, d_model)      the residual stream after the block
    final                   (b, t, d_model)      after the last norm, before the unembedding
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Views name hooks before torch is imported.
    from torch import Tensor

Hook = Callable[[str, "Tensor"], "Tensor"]


@dataclass(frozen=True)
class PatternHook:
    """A hook that reads or replaces attention weights too.

    Fused attention never makes the weights, so they are computed only where `wants` says so.
    """

    hook: Hook
    wants: Callable[[str], bool]  # by the name of the place: `blocks.0.attention.pattern`

    def __call__(self, name: str, tensor: "Tensor") -> "Tensor":
        """Read or replace an activation, as any hook does."""
        return self.hook(name, tensor)


def wants_pattern(hook: Hook, name: str) -> bool:
    """Tell whether a hook reads or replaces the attention weights of this name."""
    return isinstance(hook, PatternHook) and hook.wants(name)


def no_hook(_name: str, tensor: "Tensor") -> "Tensor":
    """Read nothing, change nothing."""
    return tensor


def caching(
    cache: dict[str, "Tensor"], names_filter: Callable[[str], bool] = lambda _name: True
) -> Hook:
    """Return a hook that keeps the activations of wanted names in `cache`, and changes nothing."""

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if names_filter(name):
            cache[name] = tensor
        return tensor

    return hook


def compose(*hooks: Hook) -> Hook:
    """Return a hook that calls several, one after the other."""

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        for each in hooks:
            tensor = each(name, tensor)
        return tensor

    readers = [each for each in hooks if isinstance(each, PatternHook)]
    if readers:
        return PatternHook(hook, lambda name: any(each.wants(name) for each in readers))
    return hook
