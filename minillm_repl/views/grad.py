"""`:grad`: which input tokens a prediction depends on, as gradients."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES
from minillm_repl.render.drawing import (
    format_logit,
    label_width,
    largest_first,
    numbered_label,
    signed_bar,
    title,
    token_strip,
)
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import TOKENS, Row, View, inspect_tokens, show
from minillm_repl.views.inspected_text import InspectedText, check_finite, look_back, topk_ids
from minillm_repl.views.partial_pass import (
    before_layer,
    can_begin_inside,
    stream_after,
    streams_before,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_MAX_NUMBERS = 2**23  # of the stream in all layers; a gradient keeps some 20 times as many
_TOKENS = 12  # that have a bar


@dataclass(frozen=True, kw_only=True)
class GradView(View, Truncation):
    """The gradient of a logit, or of a difference of two, with respect to each input vector."""

    table = "tokens", "times", "norms"

    tokens: tuple[Token, ...]
    token: Token
    versus: Token | None
    logit: float  # of the token, or how far it is above that of the other
    times: Row  # (time,): gradient · vector, the logit lost to first order if the vector were 0
    norms: Row  # (time,): the L2 norm of the gradient

    def draw(self, width: int) -> RenderableType:
        """Return the text with a level for each norm, and a bar for each gradient · vector."""
        max_norm, max_abs = max(self.norms), max(map(abs, self.times)) or 1.0
        names, bars = label_width(self.tokens), max(16, min(60, width - 44))
        last = self.position_of(len(self.tokens) - 1)
        lines = []
        for index in largest_first(self.times)[:_TOKENS]:
            line = numbered_label(self.tokens[index], self.position_of(index), last, names)
            line.append_text(signed_bar(self.times[index], max_abs, bars))
            lines.append(line.append(f" {self.times[index]:+8.3f} {self.norms[index]:8.3f}"))
        levels = _("levels: gradient norm, at most {most:.3f}", most=max_norm)
        legend = _(
            "bars: gradient · embedding (right raises the logit, left lowers it) · last "
            "column: gradient norm"
        )
        return Group(
            self._title(),
            token_strip(self.tokens, [norm / (max_norm or 1.0) for norm in self.norms], width),
            Text(levels, FIGURES),
            Text(),
            Text("\n", no_wrap=True).join(lines),
            Text(legend, FIGURES),
        )

    def _title(self) -> Text:
        question = (
            _(
                "input attribution for {token} rather than {versus}",
                token=self.token.label,
                versus=self.versus.label,
            )
            if self.versus
            else _("input attribution for {token}", token=self.token.label)
        )
        logit = format_logit(self.logit, is_difference=self.versus is not None)
        return title(
            question, _("{logit}, after {token}", logit=logit, token=self.tokens[-1].label)
        )


def compute(
    inspected: InspectedText, token: int | None = None, versus: int | None = None
) -> GradView:
    """Return the gradient of the next token's logit, or of the difference of two.

    The default token is the most likely one. An input vector is what enters the first layer: the
    embedding of the token, and that of its position where the model learns one.
    """
    numbers = len(inspected.ids) * inspected.config.d_model * inspected.config.n_layers
    compute_gradient = _by_layer if numbers > _MAX_NUMBERS else _at_once
    logits, vectors, gradient = compute_gradient(inspected, token, versus)
    token = topk_ids(logits, 1)[0] if token is None else token
    logit = logits[token] if versus is None else logits[token] - logits[versus]
    return GradView(
        tokens=inspected.tokens,
        token=Token.from_id(inspected.tokenizer, token),
        versus=None if versus is None else Token.from_id(inspected.tokenizer, versus),
        logit=float(logit),
        times=tuple((gradient * vectors).sum(-1).tolist()),
        norms=tuple(gradient.norm(dim=-1).tolist()),
        **inspected.window_fields,
    )


def _target(logits: "Tensor", token: int | None, versus: int | None) -> "Tensor":
    """Return the logit that is asked about, or the difference of two."""
    token = topk_ids(logits.detach(), 1)[0] if token is None else token
    return logits[token] if versus is None else logits[token] - logits[versus]


def _at_once(
    inspected: InspectedText, token: int | None, versus: int | None
) -> "tuple[Tensor, Tensor, Tensor]":
    """Return the last logits (vocab,), the input vectors and their gradients: (time, d_model)."""
    import torch

    entered: list[Tensor] = []

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name != "embedding":
            return look_back(inspected, tensor)
        entered.append(tensor.detach().requires_grad_())
        return entered[0]

    with torch.enable_grad():
        text = inspected.with_hook(hook)
        logits = check_finite(text.model(text.input_ids, hook=text.hook, last_only=True)[0, -1])
        (gradients,) = torch.autograd.grad(_target(logits, token, versus), entered)
    return logits.detach(), entered[0].detach()[0], gradients[0]


def _by_layer(
    inspected: InspectedText, token: int | None, versus: int | None
) -> "tuple[Tensor, Tensor, Tensor]":
    """Do what `_at_once` does with the activations of one layer in memory.

    Of 30 layers, the stream before every sixth is kept; from there the others are computed again,
    and the gradient goes back through one layer after the other.
    """
    import torch

    layers = inspected.config.n_layers
    size = math.isqrt(layers - 1) + 1
    starts = range(0, layers, size)
    names = [before_layer(layer) for layer in (*starts, layers - 1, layers)]
    logits, cache = inspected.run_with_cache(*names, last_only=True)
    if not can_begin_inside(inspected, cache[before_layer(layers - 1)], logits[0]):
        return _at_once(inspected, token, versus)
    vectors, last = cache["embedding"], cache.pop(before_layer(layers))
    with torch.enable_grad():
        row = last[-1:].detach().requires_grad_()
        found = inspected.model.unembed(row, inspected.hook)[0]
        (gradients,) = torch.autograd.grad(_target(found, token, versus), row)
    gradient = torch.zeros_like(last)
    gradient[-1] = gradients[0]
    for start in reversed(starts):
        inside = streams_before(
            inspected, start, cache[before_layer(start)], range(start, min(start + size, layers))
        )
        for layer in reversed(inside):
            with torch.enable_grad():
                entered = inside[layer].detach().requires_grad_()
                left = stream_after(inspected, layer, entered)
                (gradient,) = torch.autograd.grad(left, entered, gradient)
    return logits[0], vectors, gradient


@command(
    "grad",
    arguments=(TOKENS, PlaceArgument(), TextArgument(quoted=True)),
    json=True,
    aliases=("saliency", "기울기"),
    group="Look inside",
    example=':grad 다 "날씨가 좋"',
)
def grad(shell: "Shell", asked: Arguments) -> None:
    """Attribute the next token to the input: gradient × embedding.

    The view shows the gradient of TOKEN's logit with respect to the embedding of each input token.
    The embedding is the input of the first layer, with learned position embeddings added.

    levels: the L2 norm of the gradient, which is the sensitivity to that token. bars: gradient ·
    embedding, which is to first order the logit that would be lost if the embedding were zero.

    Without TOKEN, the target is the most likely token. With `vs`, it is the difference of two
    logits. Write a token and a place as in `:why`. A gradient describes small changes only;
    `:ablate` and `:patch` make large ones.
    """
    question = inspect_tokens(shell, asked.texts, asked.text, asked.place)
    show(shell, compute(*question), asked.output)
