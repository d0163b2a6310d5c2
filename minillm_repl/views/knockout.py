"""`:knockout`: attention from one position to another is cut (Geva et al., 2023)."""

import re
from functools import partial
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import PatternHook
from minillm_repl.repl.arguments import Argument, Arguments, Layer, TextArgument, Values
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention
from minillm_repl.repl.places import Place, parse_place
from minillm_repl.repl.registry import command
from minillm_repl.views import effect
from minillm_repl.views.base import (
    active_interventions,
    inspect_ids,
    show,
    text_ids,
)
from minillm_repl.views.finding import find_predicted
from minillm_repl.views.inspected_text import InspectedText, check_layer

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_WAY = re.compile(r"@(\S+?)(?:->|→)@(\S+)(?=\s|$)")


class _Way(Argument):
    """From one place to another: `@5->@3`."""

    def __init__(self) -> None:
        super().__init__("@QUERY->@KEY", {"query": Place(), "key": Place()}, required=True)

    def take(self, text: str) -> tuple[Values, str]:
        """Read `@5->@3`."""
        found = _WAY.match(text)
        if found is None:
            return self.missing(text)
        places = {"query": parse_place(found[1]), "key": parse_place(found[2])}
        return places, text[found.end() :]


def knockout_hook(layer: int, head: int | None, query: int, key: int) -> PatternHook:
    """Return a hook that cuts the attention of a head, or of all of a layer, from `query` to `key`.

    The weight becomes 0, as a score of −∞ makes it, and the others of the row sum to 1 again. A
    query that sees nothing else gets 0 from the head.
    """
    name = f"blocks.{layer}.attention.pattern"

    def hook(at: str, pattern: "Tensor") -> "Tensor":
        if at != name:
            return pattern
        n_queries, n_keys = pattern.shape[-2:]
        row = query - (n_keys - n_queries)  # the queries are the last of the positions
        if not 0 <= row < n_queries:
            return pattern
        heads = slice(None) if head is None else slice(head, head + 1)
        weights = pattern[:, heads, row].clone()  # (batch, head, key)
        is_seen = weights[..., key, None] != 0  # else the row stays as it is, to the last bit
        weights[..., key] = 0
        scaled = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        cut = pattern.clone()
        cut[:, heads, row] = scaled.where(is_seen, weights)
        return cut

    return PatternHook(hook, lambda at: at == name)


@command(
    "knockout",
    arguments=Forms(
        (Layer(head="optional", required=True), _Way(), TextArgument(quoted=True)), ("off",), ()
    ),
    json=True,
    aliases=("차단",),
    group="Interventions",
    example=':knockout 1.2 @-1->@0 "날씨가 좋"',
)
def knockout(shell: "Shell", asked: Arguments) -> None:
    """Cut attention from one position to another.

    :knockout 2.1 @5->@3 lets position 5 no longer attend to position 3 in head 1 of layer 2, now
    and while text is generated. The weight becomes 0, and the others of the row sum to 1 again.
    :knockout 2 @5->@3 does so in all heads of layer 2.
    :knockout off removes all of them.

    The query comes first, the key second; the key is not after the query. A token (`@날`) is its
    own position. Knockouts add up, each at its own place, and later layers see the result.

    The table shows the effect on the next token, after the text so far or the text in quotes. KL is
    KL(now ‖ before) = Σ now · ln(now / before), in nats. `--json FILE` writes the numbers. Layers,
    heads and positions count from 0.
    """
    if asked.keyword == "off":
        removed = shell.session.workspace.remove_interventions("knockout")
        shell.screen.note(_("all knockouts removed") if removed else _state(shell))
    elif asked.layer is None:
        shell.screen.note(_state(shell))
    else:
        _knock_out(shell, asked)


def _knock_out(shell: "Shell", asked: Arguments) -> None:
    model = shell.require_model()
    inspected = inspect_ids(shell, model, text_ids(shell, model, asked.text), asked.text or None)
    check_layer(inspected.config, asked.layer, asked.head)
    if asked.layer not in inspected.config.attention_layers:
        raise UserError(_("layer {layer} has no attention", layer=asked.layer))
    query, key = _index(inspected, asked.query), _index(inspected, asked.key)
    if key > query:
        raise UserError(
            _("position {query} does not see position {key}, which is later", query=query, key=key)
        )
    part = f"{asked.layer}" if asked.head is None else f"{asked.layer}.{asked.head}"
    place = f"{part} @{query}->@{key}"
    model = model.without_interventions("knockout", place)
    inspected = inspect_ids(shell, model, text_ids(shell, model, asked.text), asked.text or None)
    hook = knockout_hook(asked.layer, asked.head, query, key)
    describe = partial(_describe, place)
    show(shell, effect.compute(inspected, describe(), hook), asked.output, model)
    shell.session.workspace.add_intervention(Intervention("knockout", describe, hook, place))
    shell.screen.note(_("`:knockout off` undoes it"))


def _index(inspected: InspectedText, place: Place) -> int:
    if place.position is not None:
        return inspected.index_of(place.position)
    return inspected.index_of(find_predicted(inspected, place.token, place.number))


def _describe(place: str) -> str:
    return _("attention {place} cut", place=place)


def _state(shell: "Shell") -> str:
    """Return which knockouts are active."""
    active = " · ".join(active_interventions(shell, "knockout"))
    return active or _("nothing is cut: `:knockout 0.0 @-1->@0` cuts one weight of a head")
