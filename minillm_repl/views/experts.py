"""`:experts`: which experts a mixture of experts sends each token to, and how evenly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import LlamaConfig
from minillm_repl.render.console import FIGURES, MODEL
from minillm_repl.render.drawing import bar, largest_first, level, numbered_label, title
from minillm_repl.render.drawing import label_width as width_of_labels
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Layer, TextArgument
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, inspect_place, show
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_BUSIEST = 3  # experts of a layer that are named with their load
_BAR = 20  # cells of a load


@dataclass(frozen=True)
class RoutedLayer:
    """Where the router of one layer sends the tokens of a text."""

    layer: int
    experts: tuple[tuple[int, ...], ...]  # (time, k): those of each token, the largest weight first
    weights: tuple[tuple[float, ...], ...]  # (time, k): what each output is multiplied by
    load: tuple[float, ...]  # (n_experts,): share of all choices; 1 / n_experts if all are even


@dataclass(frozen=True, kw_only=True)
class ExpertsView(View, Truncation):
    """The experts that each token goes to, in one layer or all. Layers and experts count from 0."""

    n_experts: int
    per_token: int  # experts that a token goes to
    tokens: tuple[Token, ...]
    layers: tuple[RoutedLayer, ...]  # none, where the model has no mixture of experts

    def draw(self, width: int) -> RenderableType:
        """Return the load in each layer; or, of one layer, the experts of each token."""
        if not self.layers:
            none = _("This model has none: each of its MLPs reads every token.")
            return Group(title(_("experts")), Text(none))
        if len(self.layers) == 1:
            return self._draw_one(self.layers[0], width)
        return self._draw_all(width)

    def _draw_all(self, width: int) -> RenderableType:
        token = _("of {token}", token=self.tokens[-1].label)
        table = plain_table(_("layer"), _("used"), _("load"), _("busiest"), token, wrap=(3, 4))
        room = max(8, width // 3 - 12)
        for routed in self.layers:
            used = sum(share > 0 for share in routed.load)
            busiest = largest_first(routed.load)[:_BUSIEST]
            names = "  ".join(f"{expert}: {routed.load[expert]:.0%}" for expert in busiest)
            last = zip(routed.experts[-1], routed.weights[-1], strict=True)
            table.add_row(
                str(routed.layer),
                f"{used}/{self.n_experts}",
                Text(_strip(routed.load, room), MODEL),
                names,
                "  ".join(f"{expert} {weight:.2f}" for expert, weight in last),
            )
        legend = _(
            "load: a bar for each expert, its share of all choices on this text; {even:.1%} each "
            "would be even · of {token}: its experts, each with the weight of its output · "
            "`:experts {layer}` shows the experts of each token",
            even=1 / self.n_experts,
            token=self.tokens[-1].label,
            layer=self.layers[0].layer,
        )
        return Group(self._title(_("experts")), table, Text(legend, FIGURES))

    def _draw_one(self, routed: RoutedLayer, width: int) -> RenderableType:
        last, names = self.position_of(len(self.tokens) - 1), width_of_labels(self.tokens)
        lines = []
        for index, token in enumerate(self.tokens):
            line = numbered_label(token, self.position_of(index), last, names)
            pairs = zip(routed.experts[index], routed.weights[index], strict=True)
            for expert, weight in pairs:
                part = f"  {expert} {weight:.2f}"
                if line.cell_len + len(part) > width:
                    break
                line.append(part)
            lines.append(line)
        order = [expert for expert in largest_first(routed.load) if routed.load[expert] > 0]
        table = plain_table(_("expert"), _("load"), "", right=(0, 1), wrap=())
        peak = max(routed.load)
        for expert in order:
            share = routed.load[expert]
            table.add_row(str(expert), f"{share:.1%}", Text(bar(share / peak, _BAR), MODEL))
        legend = _(
            "each token: its experts, each with the weight of its output · load: an expert's share "
            "of all choices; {even:.1%} each would be even; {idle} of {all} were not chosen",
            even=1 / self.n_experts,
            idle=self.n_experts - len(order),
            all=self.n_experts,
        )
        heading = self._title(_("experts of layer {layer}", layer=routed.layer))
        return Group(heading, Text("\n", no_wrap=True).join(lines), table, Text(legend, FIGURES))

    def _title(self, name: str) -> Text:
        more = _("each token goes to {chosen} of {all}", chosen=self.per_token, all=self.n_experts)
        return title(name, more)


def _strip(load: Sequence[float], room: int) -> str:
    """Return a level for each expert; where there is no room for all, one for several."""
    per_cell = -(-len(load) // room)
    cells = [sum(load[first : first + per_cell]) for first in range(0, len(load), per_cell)]
    peak = max(cells)
    return "".join(level(share / peak) if share > 0 else " " for share in cells)


@no_grad
def compute(inspected: InspectedText, layer: int | None = None) -> ExpertsView:
    """Return the experts of each token in a layer, or in all layers that have experts.

    Raises UserError if there is no such layer, or if it has no experts.
    """
    config = inspected.config
    routed = [each for each in range(config.n_layers) if config.is_routed(each)]
    if layer is not None:
        if routed:  # a model without experts has none in any layer
            check_layer(config, layer)
        if routed and layer not in routed:
            raise UserError(_("layer {layer} has one MLP, and no experts", layer=layer))
        routed = [layer] if routed else []
    layers: tuple[RoutedLayer, ...] = ()
    if routed:
        cache = inspected.run_with_cache("mlp.router", last_only=True)[1]
        layers = tuple(_routed_layer(inspected, each, cache) for each in routed)
    return ExpertsView(
        n_experts=config.n_experts,
        per_token=getattr(config, "n_experts_per_tok", 0),
        tokens=inspected.tokens,
        layers=layers,
        **inspected.window_fields,
    )


def _routed_layer(inspected: InspectedText, layer: int, cache: "dict[str, Tensor]") -> RoutedLayer:
    from minillm_repl.model.mlp import route

    config = inspected.config
    assert isinstance(config, LlamaConfig)
    weights, chosen = route(cache[f"blocks.{layer}.mlp.router"], config)  # each (time, k)
    counts = chosen.flatten().bincount(minlength=config.n_experts)  # (n_experts,)
    return RoutedLayer(
        layer=layer,
        experts=tuple(map(tuple, chosen.tolist())),
        weights=tuple(map(tuple, weights.tolist())),
        load=tuple((counts.double() / chosen.numel()).tolist()),
    )


@command(
    "experts",
    arguments=(Layer(), PlaceArgument(), TextArgument()),
    json=True,
    aliases=("전문가",),
    group="Look inside",
    example=":experts 1 날씨가 좋",
)
def experts(shell: "Shell", asked: Arguments) -> None:
    """Show which experts each token goes to.

    In a mixture of experts, a layer has many MLPs. A router gives each token to the few with the
    largest router logits, and what the layer adds is the sum of their outputs, each times its
    weight. The weights come from a softmax over the router logits; some models divide them by the
    sum of those chosen.

    Without LAYER, each row is a layer: how many of its experts this text uses, the load of each
    expert as a bar, the busiest ones, and the experts of the last token with their weights.
    :experts 1 shows layer 1: the experts of each token, and the load of each expert. A place is a
    position (@3, @-1) or a token (@날, where it was predicted); the text ends there.

    load: the share of all choices that an expert gets. If all experts had the same load, each would
    have 1 / their number.
    """
    inspected, _token = inspect_place(shell, asked.text, asked.place)
    show(shell, compute(inspected, asked.layer), asked.output)
