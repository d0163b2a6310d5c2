"""`:grad`: which input tokens a prediction depends on, as gradients."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.model.hooks import compose
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
from minillm_repl.views.inspected_text import InspectedText, check_finite, topk_ids

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_TOKENS = 12  # that have a bar


@dataclass(frozen=True, kw_only=True)
class GradView(View, Truncation):
    """The gradient of a logit, or of a difference of two, with respect to each input vector."""

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
    import torch

    entered: list[Tensor] = []

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name != "embedding":
            return tensor
        entered.append(tensor.detach().requires_grad_())
        return entered[0]

    with torch.enable_grad():
        hooks = compose(inspected.hook, hook)
        logits = check_finite(
            inspected.model(inspected.input_ids, hook=hooks, last_only=True)[0, -1]
        )  # (vocab,)
        token = topk_ids(logits.detach(), 1)[0] if token is None else token
        logit = logits[token] if versus is None else logits[token] - logits[versus]
        (gradients,) = torch.autograd.grad(logit, entered)
    vectors, gradient = entered[0].detach()[0], gradients[0]  # (time, d_model) each
    return GradView(
        tokens=inspected.tokens,
        token=Token.from_id(inspected.tokenizer, token),
        versus=None if versus is None else Token.from_id(inspected.tokenizer, versus),
        logit=float(logit.detach()),
        times=tuple((gradient * vectors).sum(-1).tolist()),
        norms=tuple(gradient.norm(dim=-1).tolist()),
        **inspected.window_fields,
    )


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
