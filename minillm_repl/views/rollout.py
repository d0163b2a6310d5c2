"""`:attn rollout`: attention multiplied through the layers (Abnar & Zuidema, 2020)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, bar, short_label, title
from minillm_repl.render.tables import plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.attention_patterns import visiting, weights_by_query
from minillm_repl.views.base import Row, View
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad

_ROWS = 12  # tokens on a screen
_MAX_TOKENS = 2_048  # of a text: the matrices of more take gigabytes, and minutes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RolloutView(View, Truncation):
    """How much of the last token comes from each token, by attention alone."""

    tokens: tuple[Token, ...]
    layer: int  # the last one that counts
    shares: Row  # of each token, 0 to 1: they sum to 1
    by_layer: tuple[Row, ...]  # the same after each layer up to that one
    attention: Row  # of the last token in that layer alone, a mean over heads
    canon: bool  # whether layers mix tokens by something else too

    def draw(self, width: int) -> RenderableType:
        """Return a row for each of the tokens with the largest shares."""
        order = sorted(range(len(self.shares)), key=lambda index: -self.shares[index])
        shown = order if width >= UNLIMITED_WIDTH else order[:_ROWS]
        table = plain_table(
            _("token"), _("position"), _("rollout"), "", _("attention"), right=(1, 2, 4), wrap=()
        )
        cells = max(4, min(30, width - 56))
        for index in shown:
            table.add_row(
                short_label(self.tokens[index], 16),
                Text(str(self.position_of(index)), TITLE),
                f"{self.shares[index]:.1%}",
                Text(bar(self.shares[index] / (self.shares[order[0]] or 1.0), cells), MODEL),
                f"{self.attention[index]:.1%}",
            )
        last = len(self.tokens) - 1
        heading = title(
            _("attention rollout to {token} @{position}, layers 0 to {layer}",
              token=self.tokens[last].label, position=self.position_of(last), layer=self.layer),
            _("{n} of {all} tokens", n=len(shown), all=len(order)),
        )  # fmt: skip
        notes = [
            _("rollout: the product over layers of (mean attention + identity) / 2, which sums to "
              "100% · attention: the mean over heads in layer {layer} alone", layer=self.layer),
        ]  # fmt: skip
        if self.canon:
            notes.append(_("Canon layers mix neighbours too, and are not counted"))
        return Group(heading, table, Text(" · ".join(notes), FIGURES))


@no_grad
def compute(inspected: InspectedText, layer: int | None = None) -> RolloutView:
    """Return the rollout of the last token up to a layer, or up to the last one.

    Raises UserError if there is no such layer, or if layers mix tokens without attention.
    """
    import torch

    config = inspected.config
    layer = config.n_layers - 1 if layer is None else layer
    check_layer(config, layer)
    if config.attention_layers != tuple(range(config.n_layers)):
        raise UserError(
            _("rollout multiplies the attention of all layers, and this model has layers without")
        )
    time = len(inspected.ids)
    if time > _MAX_TOKENS:
        raise UserError(
            _("rollout multiplies matrices of tokens × tokens: give a text of at most {n:,} tokens",
              n=_MAX_TOKENS)
        )  # fmt: skip
    rows, mean = list[Row](), torch.zeros(time, time, dtype=torch.float64)
    rolled = torch.eye(time, dtype=torch.float64)

    def visit(index: int, q: "Tensor", k: "Tensor") -> None:
        if index > layer:
            return
        mean.zero_()
        for start, weight in weights_by_query(inspected, index, q, k):  # (head, query, key)
            _heads, queries, keys = weight.shape
            mean[start : start + queries, :keys] = weight.double().cpu().mean(0)
        rolled.copy_((mean @ rolled + rolled) / 2)  # (A + 1) / 2, times what is below
        rows.append(tuple(rolled[-1].tolist()))

    inspected.with_hook(visiting(inspected, visit)).logits(last_only=True)
    return RolloutView(
        tokens=inspected.tokens,
        layer=layer,
        shares=rows[-1],
        by_layer=tuple(rows),
        attention=tuple(mean[-1].tolist()),
        canon=config.has_canon_layers,
        **inspected.window_fields,
    )
