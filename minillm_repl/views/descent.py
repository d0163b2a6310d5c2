"""`:descent`: one step of plain gradient descent on a copy of the weights, number by number."""

from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.checkpoint import WeightMap
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE, WARNING
from minillm_repl.render.drawing import digits, is_same, short_label, title
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Option, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.settings import number
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText, check_finite

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_BYTES_PER_PARAMETER = 12  # a weight, its gradient and its new value, in float32


@dataclass(frozen=True, kw_only=True)
class Target:
    """The actual next token at a position, and its probability."""

    position: int  # of the token before it
    before: float  # its probability
    after: float  # its probability after the step
    nats_before: float  # −ln of these: the loss
    nats_after: float


@dataclass(frozen=True, kw_only=True)
class DescentView(View, Truncation):
    """One step of gradient descent on one text: weight − rate × gradient, for every weight."""

    tokens: tuple[Token, ...]
    rate: float
    targets: tuple[Target, ...]
    loss_before: float  # nats: the mean over the targets
    loss_after: float
    weight: str  # the tensor that holds the weight with the largest |gradient|
    index: tuple[int, ...]  # of that weight in the tensor
    value: float
    gradient: float  # the change of the loss per unit of the weight
    new_value: float

    def draw(self, _width: int) -> RenderableType:
        """Return a row for each target, the mean, and the step of one weight in full."""
        rate = f"{self.rate:g}"
        name = f"{self.weight}[{', '.join(map(str, self.index))}]"
        about = _("weight − {rate} × gradient, for every weight", rate=rate)
        legend = _("x: input token · y: target token · mean −ln p: cross-entropy loss (nats)")
        parts: list[RenderableType] = [
            title(_("one gradient descent step"), about),
            self._table(),
            Text(legend, FIGURES),
        ]
        if self.loss_after > self.loss_before:
            warning = _(
                "the loss increased: the gradient points down only nearby, and rate {rate} steps "
                "past that. Use a smaller rate. The model itself is unchanged",
                rate=rate,
            )
            parts.append(Text.assemble(("! ", WARNING), warning))
        return Group(
            *parts,
            Text(),
            Text(_("the weight with the largest gradient: {name}", name=name)),
            Text(self._step(), TITLE),
            Text(_("value − rate × gradient = new value, on a copy"), FIGURES),
        )

    def _table(self) -> Table:
        places = digits(3, self._means_agree)
        table = plain_table(
            "#", "x", "y", "p(y|x)", "−ln p", _("after step"), "", right=(0, 3, 4, 5), wrap=(1, 2)
        )
        for each in self.targets:
            index = self.index_of(each.position)
            table.add_row(
                str(each.position),
                short_label(self.tokens[index]),
                short_label(self.tokens[index + 1]),
                f"{each.before:.4f}" if each.before >= 0.001 else f"{each.before:.1e}",
                f"{each.nats_before:.{places}f}",
                f"{each.nats_after:.{places}f}",
                _arrow(each.nats_before, each.nats_after, places),
            )
        table.add_section()
        means = (Text(f"{loss:.3f}", TITLE) for loss in (self.loss_before, self.loss_after))
        table.add_row("", "", "", _("mean"), *means, _arrow(self.loss_before, self.loss_after, 3))
        return table

    def _means_agree(self, places: int) -> bool:
        """Tell whether the losses, rounded to `places` digits, have the means that are shown."""
        before = [round(each.nats_before, places) for each in self.targets]
        after = [round(each.nats_after, places) for each in self.targets]
        return all(
            is_same(sum(nats) / len(nats), mean, 3)
            for nats, mean in ((before, self.loss_before), (after, self.loss_after))
        )

    def _step(self) -> str:
        """Return `0.512300 − 0.1 × (-0.204500) = 0.532750`, with digits that agree."""

        def agrees(places: int) -> bool:
            new = round(self.value, places) - self.rate * round(self.gradient, places)
            return is_same(new, self.new_value, 6)

        places = digits(6, agrees)
        gradient = f"{self.gradient:.{places}f}"
        gradient = f"({gradient})" if self.gradient < 0 else gradient
        return f"{self.value:.{places}f} − {self.rate:g} × {gradient} = {self.new_value:.6f}"


def _arrow(before: float, after: float, places: int) -> Text:
    if round(after, places) == round(before, places):
        return Text("=", FIGURES)
    return Text("↓", POSITIVE) if after < before else Text("↑", NEGATIVE)


def compute(
    inspected: InspectedText, rate: float, weight_map: WeightMap | None = None
) -> DescentView:
    """Return the losses before and after one step; the model stays as it is.

    The step is computed in float32, also for weights in 8 or 4 bits. With the weight map of the
    model's file, the weight has its name and index there. Raises UserError for a text of one token,
    for too little memory, and for losses that are not finite.
    """
    import torch

    from minillm_repl.model.build import float32_weights
    from minillm_repl.storage.files import check_memory

    if len(inspected.ids) < 2:
        raise UserError(_("a text of one token has no next token; put a longer text in quotes"))
    check_memory(_BYTES_PER_PARAMETER * inspected.config.n_params, _("gradient descent step"))
    weights = {
        name: weight.requires_grad_() for name, weight in float32_weights(inspected.model).items()
    }
    with torch.enable_grad():
        before = check_finite(_losses(inspected, weights))  # (time − 1,)
        gradients = torch.autograd.grad(
            before.mean(), list(weights.values()), allow_unused=True, materialize_grads=True
        )
    gradient_of = dict(zip(weights, gradients, strict=True))
    with torch.no_grad():
        stepped = {name: weights[name] - rate * gradient_of[name] for name in weights}
        after = _losses(inspected, stepped)
    before, after = before.detach().abs(), after.abs()  # −0 becomes 0
    if not after.isfinite().all():
        raise UserError(
            _("the loss is not finite with rate={rate}; use a smaller rate", rate=f"{rate:g}")
        )
    name, index, value, gradient = _steepest(weights, gradient_of)
    if weight_map:
        from minillm_repl.checkpoint import locate_in_file

        shape = tuple(weights[name].shape)
        name, index = locate_in_file(weight_map, name, shape, index)
    return DescentView(
        tokens=inspected.tokens,
        rate=rate,
        targets=_targets(inspected, before.tolist(), after.tolist()),
        loss_before=float(before.mean()),
        loss_after=float(after.mean()),
        weight=name,
        index=index,
        value=value,
        gradient=gradient,
        new_value=value - rate * gradient,
        **inspected.window_fields,
    )


def _targets(
    inspected: InspectedText, before: list[float], after: list[float]
) -> tuple[Target, ...]:
    """Return a target for each position but the last, from its losses before and after, in nats."""
    return tuple(
        Target(
            position=inspected.position_of(index),
            before=exp(-old),
            after=exp(-new),
            nats_before=old,
            nats_after=new,
        )
        for index, (old, new) in enumerate(zip(before, after, strict=True))
    )


def _steepest(
    weights: "dict[str, Tensor]", gradient_of: "dict[str, Tensor]"
) -> tuple[str, tuple[int, ...], float, float]:
    """Return the weight with the largest |gradient|: its tensor, index, value and gradient."""
    import torch

    name = max(gradient_of, key=lambda name: float(gradient_of[name].abs().max()))
    gradients = gradient_of[name]
    place = gradients.abs().argmax()  # in the flattened tensor
    index = tuple(int(each) for each in torch.unravel_index(place, gradients.shape))
    value = float(weights[name].detach().flatten()[place])
    return name, index, value, float(gradients.flatten()[place])


def _losses(inspected: InspectedText, weights: "dict[str, Tensor]") -> "Tensor":
    """Return −ln p of each token but the first (time − 1,), by the model with these weights."""
    import torch

    from minillm_repl.model.build import build_on_meta

    ids, model = inspected.input_ids, build_on_meta(inspected.config)
    logits = torch.func.functional_call(model, weights, (ids[:, :-1],), {"hook": inspected.hook})[
        0
    ]  # (time − 1, vocab)
    return torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="none")


@command(
    "descent",
    arguments=(Option("rate", number(0, 1000), 0.1), TextArgument()),
    json=True,
    group="Train",
    example=":descent rate=0.5 날씨가 좋다.",
)
def descent(shell: "Shell", asked: Arguments) -> None:
    """Take one step of gradient descent on a copy, by hand.

    At each position, the model gives the actual next token a probability p. The loss there is −ln
    p; training lowers the mean loss. The gradient of a weight is the change of the mean loss per
    unit of the weight. The step subtracts rate × gradient from every weight; the column `after`
    shows the new loss.

    Below is the weight with the largest |gradient|, with its tensor name in the model file. Indices
    count from 0.

    `:train` does this many times with a better optimizer. The open model and the interventions do
    not change.
    """
    inspected = inspect_text(shell, asked.text)
    weight_map = shell.require_model().checkpoint.weight_map
    show(shell, compute(inspected, asked.rate, weight_map), asked.output)
