"""Named places in a forward pass where an activation can be read or replaced.

A tap is called with the name of the place and the tensor there, and returns the tensor to go on
with: itself to read, another to override. The names, for layer `i`, with their shapes:

  embedding                 (batch, time, width)            the token, and its position where
                                                            that is learned
  blocks.i.attention.q|k|v  (batch, head, time, head_size)  as they enter the dot products:
                                                            normalised and turned where the family
                                                            does that; k and v have kv_heads
  blocks.i.attention.z      (batch, time, head, head_size)  each head's mix of values, before the
                                                            projection
  blocks.i.attention.out    (batch, time, width)            what attention adds to the residual
                                                            stream
  blocks.i.residual.mid     (batch, time, width)            the residual stream between attention
                                                            and feed-forward; none where the two
                                                            work side by side (GPT-NeoX)
  blocks.i.ff.hidden        (batch, time, hidden)           after the activation, and its gate in
                                                            a Llama
  blocks.i.ff.out           (batch, time, width)            what the feed-forward adds
  blocks.i.residual         (batch, time, width)            the residual stream after the block
  final                     (batch, time, width)            after the last norm, before the head
"""

from collections.abc import Callable

from torch import Tensor

Hook = Callable[[str, Tensor], Tensor]


def no_hook(_name: str, tensor: Tensor) -> Tensor:
    """Read nothing, change nothing."""
    return tensor


def caching(cache: dict[str, Tensor], names_filter: Callable[[str], bool] = lambda _: True) -> Hook:
    """Return a tap that keeps the activations that are wanted in `into`, and changes nothing."""

    def hook(name: str, tensor: Tensor) -> Tensor:
        if names_filter(name):
            cache[name] = tensor
        return tensor

    return hook


def compose(*hooks: Hook) -> Hook:
    """Return a tap that hands what it gets through several, the first first."""

    def hook(name: str, tensor: Tensor) -> Tensor:
        for each in hooks:
            tensor = each(name, tensor)
        return tensor

    return hook
