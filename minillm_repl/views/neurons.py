"""`:neurons`: the neurons of an MLP, which are active on a text, and on which tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL
from minillm_repl.render.drawing import (
    bar,
    label_width,
    largest_first,
    numbered_label,
    short_label,
    signed_axis,
    signed_bar,
    title,
    token_strip,
)
from minillm_repl.render.tables import TABLE_GAP, plain_table
from minillm_repl.repl.arguments import Arguments, Layer, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import Row, View, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad, topk_ids

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.llama import RMSNorm
    from minillm_repl.repl.shell import Shell

_NEURONS = 12  # of a layer that are listed
_TOKENS = 12  # that a neuron fires on, at most
_TOKENS_OF_ONE = 10  # the same, for one neuron by itself
_WRITTEN = 8  # tokens that a neuron promotes, and as many that it suppresses
_BAR, _PROMOTED = 6, 12  # cells


@dataclass(frozen=True)
class Neuron:
    """One dimension of the hidden layer of an MLP, at every token."""

    index: int
    activations: Row  # (time,): after the activation function, and the gate where there is one
    # What it writes at its largest |activation|: the tokens whose logits that raises most directly.
    promotes: tuple[Token, ...]
    suppresses: tuple[Token, ...]  # the same, lowers most


@dataclass(frozen=True)
class NeuronsView(View, Truncation):
    """The most active neurons of a layer, or one. Layers and neurons count from 0."""

    layer: int
    size: int  # how many the layer has
    tokens: tuple[Token, ...]
    neurons: tuple[Neuron, ...]  # the strongest first

    def draw(self, width: int) -> RenderableType:
        """Return a row for each neuron, or the whole text for a single one."""
        is_single = len(self.neurons) == 1
        return self._draw_one(self.neurons[0], width) if is_single else self._draw_all(width)

    def _draw_all(self, width: int) -> RenderableType:
        table = plain_table(
            _("neuron"), _("max"), "", _("promotes"), _("fires on: token @ position"),
            right=(0, 1), wrap=(),
        )  # fmt: skip
        promoted = [_labels(each.promotes, max(_PROMOTED, width // 5)) for each in self.neurons]
        taken = max(label.cell_len for label in promoted) + _BAR + 4 * TABLE_GAP
        peak = max(abs(value) for each in self.neurons for value in each.activations) or 1.0
        names = [f"{self.layer}.{each.index}" for each in self.neurons]
        room = width - taken - max(6, *map(len, names)) - len(f"{peak:+.2f}") - 2
        for each, promotes in zip(self.neurons, promoted, strict=True):
            order = largest_first(each.activations)
            top = each.activations[order[0]]
            table.add_row(
                f"{self.layer}.{each.index}",
                f"{top:+.2f}",
                Text(bar(abs(top) / peak, _BAR), MODEL),
                promotes,
                self._fires_on(each, order[:_TOKENS], room),
            )
        count = _(
            "top {n} of {all:,} by activation on this text", n=len(self.neurons), all=self.size
        )
        hint = _(
            "promotes: the tokens whose logits the neuron raises at its max (through W_down and "
            "the unembedding) · :neurons {layer}.{neuron} shows one neuron over the whole text",
            layer=self.layer,
            neuron=self.neurons[0].index,
        )
        heading = title(_("neurons of layer {layer}", layer=self.layer), count)
        return Group(heading, table, Text(hint, FIGURES))

    def _fires_on(self, neuron: Neuron, order: list[int], width: int) -> Text:
        """Return as many tokens with their activations as fit in `width` cells."""
        fires = Text()
        for index in order:
            part = Text.assemble(
                short_label(self.tokens[index], 8),
                (f" @{self.position_of(index)}", FIGURES),
                f" {neuron.activations[index]:+.2f}  ",
            )
            if fires and fires.cell_len + part.cell_len > width:
                break
            fires.append_text(part)
        return fires

    def _draw_one(self, neuron: Neuron, width: int) -> RenderableType:
        """Return the text with the level of the activation at each token, and the largest ones."""
        values = neuron.activations
        peak = max(map(abs, values)) or 1.0
        names, bars = label_width(self.tokens), max(16, min(60, width - 40))
        last = self.position_of(len(self.tokens) - 1)
        lines = []
        for index in largest_first(values)[:_TOKENS_OF_ONE]:
            line = numbered_label(self.tokens[index], self.position_of(index), last, names)
            line.append_text(signed_bar(values[index], peak, bars))
            lines.append(line.append(f" {values[index]:+.3f}"))
        return Group(
            title(
                _("neuron {layer}.{neuron}", layer=self.layer, neuron=neuron.index),
                _("after its activation function; at most {most:.3f}", most=peak),
            ),
            token_strip(self.tokens, [abs(value) / peak for value in values], width),
            Text(),
            Text.assemble(" " * (names + 8), signed_axis(peak, bars)),
            Text("\n", no_wrap=True).join(lines),
            Text.assemble(
                (_("promotes") + "  ", FIGURES), _labels(neuron.promotes, width), "\n",
                (_("suppresses") + "  ", FIGURES), _labels(neuron.suppresses, width),
            ),
        )  # fmt: skip


def _labels(tokens: tuple[Token, ...], width: int) -> Text:
    """Return as many labels of tokens as fit in `width` cells; the first is always there."""
    labels = Text()
    for token in tokens:
        label = short_label(token)
        if labels and labels.cell_len + 1 + label.cell_len > width:
            break
        labels.append(" " if labels else "").append_text(label)
    return labels


@no_grad
def compute(inspected: InspectedText, layer: int, neuron: int | None = None) -> NeuronsView:
    """Return the neurons of a layer with the largest |activation| on the text, or one neuron.

    Raises UserError if there is no such layer or neuron.
    """
    check_layer(inspected.config, layer)
    if inspected.config.is_routed(layer):
        raise UserError(
            _(
                "layer {layer} is a mixture of experts, whose neurons are not shown; "
                "`:experts {layer}` shows which experts the tokens go to",
                layer=layer,
            )
        )
    name = f"blocks.{layer}.mlp.hidden"
    hidden = inspected.run_with_cache(name, last_only=True)[1][name]  # (time, d_mlp)
    size = hidden.shape[-1]
    if neuron is not None and not neuron < size:
        raise UserError(
            _(
                "no neuron {neuron}: neurons are numbered from 0 to {last}",
                neuron=neuron,
                last=size - 1,
            )
        )
    peaks = hidden.abs().amax(0)  # (d_mlp,)
    strongest = peaks.argsort(descending=True, stable=True)[:_NEURONS].tolist()
    indices = strongest if neuron is None else [neuron]
    written = _written_tokens(inspected, layer, hidden, indices)
    return NeuronsView(
        layer=layer,
        size=size,
        tokens=inspected.tokens,
        neurons=tuple(
            Neuron(index, tuple(hidden[:, index].tolist()), *tokens)
            for index, tokens in zip(indices, written, strict=True)
        ),
        **inspected.window_fields,
    )


def _written_tokens(
    inspected: InspectedText, layer: int, hidden: "Tensor", indices: list[int]
) -> list[tuple[tuple[Token, ...], tuple[Token, ...]]]:
    """Return the tokens that each neuron promotes, and those that it suppresses.

    `hidden` is (time, d_mlp). A neuron writes its column of the down-projection, times its largest
    |activation|. The unembedding of that says which logits it moves directly (Geva et al., 2022).
    The scale of the final norm does not change the order.
    """
    import torch

    model, tokenizer = inspected.model, inspected.tokenizer
    columns = hidden[:, indices]  # (time, neuron)
    peaks = columns.gather(0, columns.abs().argmax(0, keepdim=True))[0]  # (neuron,)
    # Each row has one neuron alone; the last row has none, so that its output is the bias.
    alone = torch.zeros(len(indices) + 1, hidden.shape[-1], device=hidden.device)
    alone[range(len(indices)), indices] = peaks
    written = model.get_submodule(f"blocks.{layer}.mlp.down")(alone)  # (neuron + 1, d_model)
    written = written[:-1] - written[-1]
    if model.config.norm_placement != "pre":  # whose statistics do not change the order either
        norm = cast("RMSNorm", model.get_submodule(f"blocks.{layer}.post_norm2"))
        written = written * norm.scale()
    logits = model.unembed(written) - model.unembed(torch.zeros_like(written[:1]))
    logits = logits[:, : tokenizer.vocab_size]  # (neuron, vocab)

    def top(row: "Tensor") -> tuple[Token, ...]:
        return tuple(Token.from_id(tokenizer, token) for token in topk_ids(row, _WRITTEN))

    return [(top(row), top(-row)) for row in logits]


@command(
    "neurons",
    arguments=(Layer("optional", part="neuron", required=True), TextArgument()),
    json=True,
    aliases=("뉴런",),
    group="Look inside",
    example=":neurons 0.17 날씨가 좋",
)
def neurons(shell: "Shell", asked: Arguments) -> None:
    """Show which tokens activate the neurons of an MLP.

    A neuron is one dimension of the hidden layer of an MLP. Its value is taken after the activation
    function, and after the gate if the model has one.
    :neurons 2 lists the neurons of layer 2 with the largest |activation| on this text, each with
    the tokens it fired on.
    :neurons 2.17 shows neuron 17 over the whole text.

    promotes: the tokens whose logits the neuron raises most, directly, at its largest |activation|:
    its column of the down-projection, through the unembedding (Geva et al., 2022). suppresses: the
    tokens whose logits it lowers most. For early layers these tokens say little, because later
    layers read what the neuron writes.

    Layers and neurons count from 0.
    """
    inspected = inspect_text(shell, asked.text)
    show(shell, compute(inspected, asked.layer, asked.neuron), asked.output)
