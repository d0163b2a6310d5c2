"""Ablation: what changes when a part of the model is silenced."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usual name
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.insight.views.changes import HeadEffect, ScanView
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook, compose
from minillm_repl.views.inspected_text import InspectedText, check_finite, check_layer

_AT_ONCE = 2**24  # logits that are made at once: 64 MiB


def silencing(
    subject: InspectedText, layer: int, head: int | None = None, how: str = "zero"
) -> Hook:
    """Return a tap that silences a head before the output projection, or all that a block adds.

    `how` is what stands there instead: `zero`, or the `mean` over the positions of the subject's
    text. Raises UserError if there is no such layer or head.
    """
    check_layer(subject.config, layer, head)
    block = f"blocks.{layer}."
    names = (
        [block + "attention.out", block + "mlp.out"] if head is None else [block + "attention.z"]
    )
    found = subject.run_with_cache(*names, last_only=True)[1] if how == "mean" else {}
    # (width,) or (head, head_size)
    instead = {name: found[name].mean(0) if found else None for name in names}

    def tap(name: str, tensor: Tensor) -> Tensor:
        if name not in instead:
            return tensor
        value = instead[name]
        changed = torch.zeros_like(tensor) if value is None else value.expand_as(tensor)
        return changed if head is None else _with_head(tensor, head, changed)

    return tap


@torch.no_grad()
def scan_view(
    subject: InspectedText, how: str = "zero", told: Callable[[float], None] = lambda _: None
) -> ScanView:
    """Return each head's worth to the text: the change of its mean loss with that head silenced.

    `how` is as in `silencing`; `told` hears how much is done, 0 to 1. Raises UserError for a text
    of one token.
    """
    if len(subject.ids) < 2:
        raise UserError(_("a text of one token has no loss; put a longer text in quotes"))
    logits, found = subject.run_with_cache("attention.z")
    loss = _losses(subject, logits[None])[0]
    effects = []
    for layer in range(subject.config.n_layers):
        name = f"blocks.{layer}.attention.z"
        # (head, head_size)
        instead = found[name].mean(0) if how == "mean" else torch.zeros_like(found[name][0])
        changes = [
            each - loss for each in _each_silenced(subject, name, instead, logits[:-1].numel())
        ]
        effects += [HeadEffect(layer, head, change) for head, change in enumerate(changes)]
        told((layer + 1) / subject.config.n_layers)
    effects.sort(key=lambda effect: -effect.change)
    return ScanView(subject.tokens, loss, how, tuple(effects), **subject.window_fields)


def _each_silenced(subject: InspectedText, name: str, instead: Tensor, logits: int) -> list[float]:
    """Return the losses with each head of a layer replaced, as many at once as memory allows:
    one to a row.
    """
    losses: list[float] = []
    size = max(1, _AT_ONCE // logits)
    for start in range(0, len(instead), size):
        heads = torch.arange(start, min(start + size, len(instead)))

        def tap(at: str, tensor: Tensor, heads: Tensor = heads) -> Tensor:
            if at != name:
                return tensor
            changed = tensor.clone()  # (row, time, head, head_size)
            changed[torch.arange(len(heads)), :, heads] = instead[heads, None]
            return changed

        rows = subject.input_ids.expand(len(heads), -1)
        losses += _losses(
            subject, check_finite(subject.model(rows, hook=compose(subject.hook, tap)))
        )
    return losses


def _losses(subject: InspectedText, logits: Tensor) -> list[float]:
    """Return the mean loss of the text after its first token, in nats, for each row of logits
    (row, time, vocab).
    """
    targets = subject.input_ids[0, 1:]
    return [float(F.cross_entropy(row[:-1].double(), targets)) for row in logits]


def _with_head(z: Tensor, head: int, instead: Tensor) -> Tensor:
    changed = z.clone()
    changed[:, :, head] = instead[:, :, head]
    return changed
