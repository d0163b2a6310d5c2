"""`:why`: direct logit attribution, what each part of the model adds to a logit by itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import (
    component_name,
    fit_to_width,
    format_logit,
    signed_bar,
    title,
)
from minillm_repl.render.generation import percent
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import TOKENS, View, find_tokens, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText, differs, no_grad, rank, topk_ids

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel
    from minillm_repl.repl.shell import Shell

_ROWS = 14  # parts that have a row of their own; the others share one


@dataclass(frozen=True)
class Part:
    """What one part of the model adds to a logit, or to the difference of two."""

    name: str  # `embedding`, `head 2.1`, `feed-forward 2`, `bias`
    value: float


@dataclass(frozen=True, kw_only=True)
class WhyView(View, Truncation):
    """Direct logit attribution: the parts sum to the logit, or to the difference of two."""

    tokens: tuple[Token, ...]
    token: Token
    versus: Token | None
    logit: float  # of the token, or how far it is above that of the other
    prob: float  # of the token
    rank: int
    parts: tuple[Part, ...]  # in the order in which the model works

    def draw(self, width: int) -> RenderableType:
        """Return the strongest parts as bars, strongest first, the others as one, and the total."""
        shown, others = _strongest(self.parts)
        names = [component_name(part.name) for part in shown]
        total_name = _("total")
        name_width = max(map(cell_len, (*names, total_name)))
        max_abs = max(abs(part.value) for part in shown)
        bars = min(60, max(16, width - name_width - 14))
        lines = Text(no_wrap=True)
        for part, name in zip(shown, names, strict=True):
            lines.append(f"{fit_to_width(name, name_width)}  ")
            lines.append_text(signed_bar(part.value, max_abs, bars))
            lines.append(f" {part.value:+9.3f}\n")
        total = sum(part.value for part in self.parts)
        lines.append(
            f"{fit_to_width(total_name, name_width)}  {'':{bars + 1}} {total:+9.3f}", TITLE
        )
        about = _(
            "direct logit attribution for the token after {token} (position {position})",
            token=self.tokens[-1].label,
            position=self.position_of(len(self.tokens) - 1),
        )
        picture = [self._title(), Text(about, FIGURES), lines]
        if others:
            rest = _(
                "others: the remaining {n} components, each smaller than those shown", n=others
            )
            picture.append(Text(rest, FIGURES))
        return Group(*picture)

    def _title(self) -> Text:
        question = (
            _("why {token} rather than {versus}", token=self.token.label, versus=self.versus.label)
            if self.versus
            else _("why {token}", token=self.token.label)
        )
        logit = format_logit(self.logit, is_difference=self.versus is not None)
        chance = _("p {chance} · rank {rank:,}", chance=percent(self.prob), rank=self.rank)
        return title(question, f"{logit} · {chance}")


def _strongest(parts: tuple[Part, ...]) -> tuple[list[Part], int]:
    """Return the strongest parts, strongest first, then the rest as one; and how many that are."""
    order = sorted(parts, key=lambda part: -abs(part.value))
    rest = order[_ROWS:]
    if len(rest) < 2:
        return order, 0
    return [*order[:_ROWS], Part("others", sum(part.value for part in rest))], len(rest)


@no_grad
def compute(
    inspected: InspectedText, token: int | None = None, versus: int | None = None
) -> WhyView:
    """Return what each part adds to the next token's logit, or to the difference of two.

    The default token is the most likely one. Every part writes into the residual stream, and the
    logit is a dot product with its end: with the scale of the last norm held at its value, the
    parts sum to the logit. They are computed in float64.
    """
    logits, cache = inspected.run_with_cache(
        "embedding", "attention.z", "attention.out", "mlp.out", "residual", last_only=True
    )
    cache = {name: tensor[-1].double() for name, tensor in cache.items()}  # of the last position
    final = logits[0].double()  # (vocab,)
    token = topk_ids(final, 1)[0] if token is None else token
    last_residual = cache[f"blocks.{inspected.config.n_layers - 1}.residual"]  # (d_model,)
    direction, constant = logit_direction(inspected.model, last_residual, token)
    logit = float(final[token])
    if versus is not None:
        other_direction, other_constant = logit_direction(inspected.model, last_residual, versus)
        direction = direction - other_direction
        constant -= other_constant
        logit -= float(final[versus])
    parts = [
        Part(name, float(vector @ direction)) for name, vector in written(inspected, cache).items()
    ]
    return WhyView(
        tokens=inspected.tokens,
        token=Token.from_id(inspected.tokenizer, token),
        versus=None if versus is None else Token.from_id(inspected.tokenizer, versus),
        logit=logit,
        prob=float(final.softmax(-1)[token]),
        rank=rank(final, token),
        parts=(*parts, Part("bias", constant)),
        **inspected.window_fields,
    )


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
        heads = _heads(inspected.model, layer, cache[block + "attention.z"])
        attention, mlp = cache[block + "attention.out"], cache[block + "mlp.out"]
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


def logit_direction(model: "LanguageModel", stream: "Tensor", token: int) -> "tuple[Tensor, float]":
    """Return the direction and the constant of a logit: logit = stream · direction + constant.

    `stream` is (d_model,). The scale of the last norm is held at its value for this stream. The
    result is in float64.
    """
    import torch

    norm, stream = model.norm_f, stream.double()
    head = model.token_embedding if model.lm_head is None else model.lm_head
    unembedding = head.weight[token].double()  # (d_model,)
    row, constant = unembedding * norm.weight, 0.0
    if isinstance(norm, torch.nn.LayerNorm):  # it takes the mean off first
        direction = (row - row.mean()) / (stream.var(correction=0) + norm.eps).sqrt()
        constant = float(unembedding @ norm.bias.double())
    else:  # RMS norm: x / √(mean(x²) + ε)
        direction = row / (stream.square().mean() + norm.eps).sqrt()
    bias = getattr(head, "bias", None)
    return direction, constant if bias is None else constant + float(bias[token])


@command(
    "why",
    arguments=(TOKENS, TextArgument(quoted=True)),
    json=True,
    aliases=("이유", "왜"),
    group="Look inside",
    example=':why 다 vs 고 "날씨가 좋"',
)
def why(shell: "Shell", asked: Arguments) -> None:
    """Show what each head and MLP adds to the next token's logit.

    This is direct logit attribution. The embedding, every head, every MLP and the biases write into
    the residual stream. Each bar is what one of them adds directly to the token's logit. The bars
    sum to the logit. The scale of the final norm is held at its value. Indirect effects, through
    later components, are not in the bar.

    Without TOKEN, the target is the most likely token. With `vs`, it is the difference of two
    logits: why this token and not the other.

    Write a token as it is shown (␣ is a space), or as #ID. If it is not clear whether a space
    belongs to the token, the command takes the more likely one.
    """
    inspected = inspect_text(shell, asked.text)
    show(shell, compute(inspected, *find_tokens(inspected, asked.texts)), asked.output)
