"""`:ablate`: what changes if a head or a layer is ablated, alone or each head in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook, compose
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE
from minillm_repl.render.drawing import signed_bar, signed_shade, title
from minillm_repl.repl.arguments import Arguments, Choice, Layer, TextArgument
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views import effect
from minillm_repl.views.base import (
    View,
    active_interventions,
    inspect_ids,
    inspect_text,
    show,
    text_ids,
)
from minillm_repl.views.inspected_text import InspectedText, check_finite, check_layer, no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_ROWS = 12  # heads that have a bar
_MAX_LOGITS = 2**24  # that one pass makes: 64 MiB
_HOW = Choice("zero", "mean", name="how"), TextArgument(quoted=True)


@dataclass(frozen=True)
class HeadEffect:
    """What ablating one head does to the loss on a text."""

    layer: int
    head: int
    change: float  # nats per token: above 0, the loss is higher without the head


@dataclass(frozen=True)
class ScanView(View, Truncation):
    """All heads, by the loss on a text with each one ablated."""

    tokens: tuple[Token, ...]
    loss: float  # nats per token, with all heads
    how: str  # `zero` or `mean`
    heads: tuple[HeadEffect, ...]  # the largest change first

    def draw(self, width: int) -> RenderableType:
        """Return the heads with the largest effects as bars, and all heads as a map."""
        strongest = sorted(self.heads, key=lambda head: -abs(head.change))[:_ROWS]
        strongest.sort(key=lambda head: -head.change)
        max_abs = max(abs(head.change) for head in strongest)
        names = [f"{head.layer}.{head.head}" for head in strongest]
        name_width = max(5, *map(len, names))
        bars = max(16, min(60, width - 15 - name_width))
        lines = Text(no_wrap=True)
        for head, name in zip(strongest, names, strict=True):
            lines.append(f"{name:<{name_width}} ", TITLE)
            lines.append_text(signed_bar(head.change, max_abs, bars))
            lines.append(f" {head.change:+.4f}\n")
        lines.rstrip()
        note = (
            _("loss with the head zero-ablated − loss, nats per token")
            if self.how == "zero"
            else _("loss with the head mean-ablated (over this text) − loss, nats per token")
        )
        if len(self.heads) > _ROWS:
            counts = {"n": _ROWS, "all": len(self.heads)}
            note = _("top {n} of {all} heads by effect; {change}", change=note, **counts)
        loss = _("loss with all heads: {loss:.4f} nats per token", loss=self.loss)
        heading = title(_("head ablation scan"), loss)
        return Group(heading, Text(note, FIGURES), lines, self._map(max_abs))

    def _map(self, max_abs: float) -> Text:
        """Return layers as rows and heads as columns: the darker, the larger the effect."""
        changes = {(head.layer, head.head): head.change for head in self.heads}
        columns = 1 + max(head for _layer, head in changes)
        lines = Text.assemble((_("layer  head 0 →") + "\n", FIGURES), no_wrap=True)
        for layer in sorted({layer for layer, _head in changes}):  # those with attention
            lines.append(f"{layer:>5}  ", FIGURES)
            for head in range(columns):
                share = changes[layer, head] / max_abs if max_abs else 0.0
                lines.append(signed_shade(share), POSITIVE if share > 0 else NEGATIVE)
            lines.append("\n")
        legend = _(
            "darker: closer to {most:.4f} · -: the loss is lower with the head ablated",
            most=max_abs,
        )
        return lines.append(legend, FIGURES)


def ablation_hook(
    inspected: InspectedText, layer: int, head: int | None = None, how: str = "zero"
) -> Hook:
    """Return a hook that ablates a head before the output projection, or all that a layer adds.

    `how` is `zero`, or `mean`: the mean over the positions of the inspected text. Raises UserError
    if there is no such layer or head.
    """
    check_layer(inspected.config, layer, head)
    block = f"blocks.{layer}."
    parts = ("attention.out", "mlp.out") if head is None else ("attention.z",)
    names = [block + part for part in parts]
    cache = inspected.run_with_cache(*names, last_only=True)[1] if how == "mean" else {}
    # (d_model,), or (head, head_dim) for z
    means = {name: activation.mean(0) for name, activation in cache.items()}

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name not in names:
            return tensor
        instead = means[name].expand_as(tensor) if name in means else tensor.new_zeros(tensor.shape)
        if head is None:
            return instead
        ablated = tensor.clone()  # (batch, time, head, head_dim)
        ablated[:, :, head] = instead[:, :, head]
        return ablated

    return hook


@no_grad
def compute_scan(
    inspected: InspectedText,
    how: str = "zero",
    progress: Callable[[float], None] = lambda _share: None,
) -> ScanView:
    """Return the change of the mean loss on a text with each head ablated alone.

    `how` is as in `ablation_hook`. `progress` is called with the share that is done, 0 to 1.
    Raises UserError for a text of one token.
    """
    import torch

    if len(inspected.ids) < 2:
        raise UserError(_("a text of one token has no loss; put a longer text in quotes"))
    logits, cache = inspected.run_with_cache("attention.z")  # (time, vocab); (time, head, head_dim)
    loss = _losses(inspected, logits[None])[0]
    effects = []
    for layer in inspected.config.attention_layers:
        name = f"blocks.{layer}.attention.z"
        z = cache[name]
        instead = z.mean(0) if how == "mean" else torch.zeros_like(z[0])  # (head, head_dim)
        losses = _ablated_losses(
            inspected, name, instead, max_rows=_MAX_LOGITS // logits[1:].numel()
        )
        effects += [HeadEffect(layer, head, each - loss) for head, each in enumerate(losses)]
        progress((layer + 1) / inspected.config.n_layers)
    effects.sort(key=lambda effect: -effect.change)
    return ScanView(inspected.tokens, loss, how, tuple(effects), **inspected.window_fields)


def _ablated_losses(
    inspected: InspectedText, name: str, instead: "Tensor", max_rows: int
) -> list[float]:
    """Return the loss with each head of a layer replaced: a batch has one head a row."""
    import torch

    losses: list[float] = []
    n_heads, size = len(instead), max(1, max_rows)
    for start in range(0, n_heads, size):
        heads = torch.arange(start, min(start + size, n_heads))  # (row,)

        def hook(at: str, tensor: "Tensor", heads: "Tensor" = heads) -> "Tensor":
            if at != name:
                return tensor
            ablated = tensor.clone()  # (row, time, head, head_dim)
            ablated[torch.arange(len(heads)), :, heads] = instead[heads, None]
            return ablated

        rows = inspected.input_ids.expand(len(heads), -1)  # (row, time)
        logits = inspected.model(rows, hook=compose(inspected.hook, hook))
        losses += _losses(inspected, check_finite(logits))
    return losses


def _losses(inspected: InspectedText, logits: "Tensor") -> list[float]:
    """Return the mean loss in nats per token, for each row of logits (row, time, vocab)."""
    from torch.nn.functional import cross_entropy

    targets = inspected.input_ids[0, 1:]  # (time − 1,)
    return [float(cross_entropy(row[:-1].double(), targets)) for row in logits]


@command(
    "ablate",
    arguments=Forms((Layer(head="optional", required=True), *_HOW), ("scan", *_HOW), ("off",), ()),
    json=True,
    aliases=("끄기",),
    group="Interventions",
    example=":ablate scan",
)
def ablate(shell: "Shell", asked: Arguments) -> None:
    """Ablate a head or a layer until turned off.

    :ablate 2.1 ablates head 1 of layer 2: its output before the output projection is replaced, now
    and while text is generated.
    :ablate 2 ablates everything that layer 2 adds to the residual stream.
    :ablate scan ablates each head alone, with zero, and ranks the heads. `scan mean` uses the mean
    over this text.
    :ablate off removes all ablations.

    `zero` replaces the output with zeros. `mean` replaces it with its mean over all positions of
    the text so far, or of a text in quotes. The mean includes the effect of earlier interventions,
    and differs from text to text. Interventions add up: each acts at its own place, and later
    layers see the result.

    The table shows the effect on the next token. KL is KL(now ‖ before) = Σ now · ln(now / before),
    in nats. The scan ranks by loss with the head ablated − loss, in nats per token. Above 0, the
    head is useful for this text.

    Layers and heads count from 0. The model that is saved or trained does not change.
    """
    if asked.keyword == "scan":
        _scan(shell, asked)
    elif asked.keyword == "off":
        removed = shell.session.workspace.remove_interventions("ablate")
        shell.screen.note(_("all ablations removed") if removed else _state(shell))
    elif asked.layer is None:
        shell.screen.note(_state(shell))
    else:
        _ablate(shell, asked)


def _scan(shell: "Shell", asked: Arguments) -> None:
    inspected = inspect_text(shell, asked.text)
    with shell.screen.waiting(_("ablating each head")) as update:
        view = compute_scan(
            inspected,
            asked.how or "zero",
            lambda share: update(_("ablating each head  {share:.0%}", share=share)),
        )
    show(shell, view, asked.output)


def _ablate(shell: "Shell", asked: Arguments) -> None:
    layer, head, how = asked.layer, asked.head, asked.how or "zero"
    place = f"{layer}" if head is None else f"{layer}.{head}"
    describe = partial(_describe, place, how, is_head=head is not None)
    # The effect is measured against the model without an earlier ablation of the same place.
    model = shell.require_model().without_interventions("ablate", place)
    inspected = inspect_ids(shell, model, text_ids(shell, model, asked.text))
    hook = ablation_hook(inspected, layer, head, how)
    show(shell, effect.compute(inspected, describe(), hook), asked.output, model)
    shell.session.workspace.add_intervention(Intervention("ablate", describe, hook, place))
    shell.screen.note(_("`:ablate off` undoes it"))


def _describe(place: str, how: str, *, is_head: bool) -> str:
    if how == "mean":
        return (
            _("head {place} mean-ablated", place=place)
            if is_head
            else _("layer {place} mean-ablated", place=place)
        )
    return (
        _("head {place} ablated", place=place)
        if is_head
        else _("layer {place} ablated", place=place)
    )


def _state(shell: "Shell") -> str:
    """Return which ablations are active."""
    ablations = " · ".join(active_interventions(shell, "ablate"))
    return ablations or _("nothing is ablated: `:ablate 0.0` ablates head 0 of layer 0")
