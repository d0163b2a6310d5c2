"""`:ablate scan`: each part of the model is taken away alone, and what that does is measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook
from minillm_repl.tokenizer import Token
from minillm_repl.views.ablate_view import KINDS, By, Kind, PartEffect, ScanView
from minillm_repl.views.ablation import (
    WRITES,
    How,
    Instead,
    Piece,
    hook_names,
    means,
    rows_at,
)
from minillm_repl.views.inspected_text import (
    InspectedText,
    check_finite,
    kl_divergence,
    no_grad,
    place_name,
    topk_ids,
)
from minillm_repl.views.partial_pass import can_begin_inside, from_layer
from minillm_repl.views.patching import Progress

if TYPE_CHECKING:
    from torch import Tensor

_MAX_LOGITS = 2**22  # numbers of the logits that are in memory at once
_MAX_WORK = 2**33  # products of a weight and an input in a pass: Ctrl-C waits for one


@dataclass(frozen=True)
class Whole:
    """What the whole model says of a text, and how a pass without a part is compared with it."""

    inspected: InspectedText
    by: By
    logits: "Tensor"  # (vocab,), after the last token
    pair: tuple[int, int]  # of the logit difference
    instead: Sequence[Instead] = field(default_factory=tuple)

    def measure(self, text: InspectedText, rows: int, hook: Hook) -> list[float]:
        """Return the loss, the logit difference or the KL of each row of a pass with a hook."""
        last = f"blocks.{self.inspected.config.n_layers - 1}.residual"
        final: list[Tensor] = []

        def keep(name: str, tensor: "Tensor") -> "Tensor":
            if name == last and self.by == "loss":
                final.append(tensor)
            return tensor

        inspected = text.with_hook(hook).with_hook(keep)
        ids = text.input_ids.expand(rows, -1)  # (row, time)
        logits = check_finite(inspected.model(ids, hook=inspected.hook, last_only=True)[:, -1])
        if self.by == "loss":
            return [loss(self.inspected, each) for each in final[0]]
        if self.by == "logits":
            first, second = self.pair
            return (logits[:, first].double() - logits[:, second].double()).tolist()
        before = self.logits.double().log_softmax(-1)
        return [kl_divergence(row.double().log_softmax(-1), before) for row in logits]


def loss(inspected: InspectedText, final: "Tensor") -> float:
    """Return the mean loss in nats per token of a last residual stream (time, d_model).

    The logits are made of a few positions at a time.
    """
    from torch.nn.functional import cross_entropy

    targets, total = inspected.input_ids[0, 1:], 0.0  # (time − 1,)
    size = max(1, _MAX_LOGITS // inspected.config.vocab_size)
    for start in range(0, len(targets), size):
        wanted = targets[start : start + size]
        logits = check_finite(inspected.model.unembed(final[start : start + len(wanted)]))
        total += float(cross_entropy(logits.double(), wanted, reduction="sum"))
    return total / len(targets)


@no_grad
def compute_scan(
    inspected: InspectedText,
    how: How = "zero",
    progress: Progress = lambda _share: None,
    *,
    what: str = "heads",
    by: By = "loss",
    pair: tuple[int | None, int | None] = (None, None),
    reference: Sequence[InspectedText] = (),
    source: str = "",
    interrupted: Callable[[], bool] = bool,
) -> ScanView:
    """Return what ablating each part alone does: the change of the mean loss on a text, or of the
    logit difference after it, or KL(ablated ‖ whole) there.

    `how` and `reference` are as in `ablation_hook`; of several texts to resample from, the mean
    counts. `pair` has the tokens of the logit difference, by default the two most likely.
    `progress` is called with the share that is done, 0 to 1. After Ctrl-C, what is done is
    returned. Raises UserError for a text of one token, if that has no loss.
    """
    if by == "loss" and len(inspected.ids) < 2:
        raise UserError(_("a text of one token has no loss; put a longer text in quotes"))
    logits, streams = inspected.run_with_cache("embedding", "residual", last_only=True)
    first, second = (each for each in topk_ids(logits[0], 2))
    answer = first if pair[0] is None else pair[0]
    other = (second if answer == first else first) if pair[1] is None else pair[1]
    instead = _instead(inspected, how, reference)
    whole = Whole(inspected, by, logits[0], (answer, other), instead)
    before = _before(whole, streams)
    into = list(streams.values())  # what each layer reads
    inside = inspected.config.n_layers > 1 and can_begin_inside(inspected, into[-2], logits[0])
    cells = _cells(inspected, what)
    parts = sum(map(len, cells.values()))
    effects: list[PartEffect] = []
    try:
        for each in _effects(whole, cells, before or 0.0, into if inside else []):
            effects.append(each)
            progress(len(effects) / parts)
    except UserError:
        if not (effects and interrupted()):
            raise
    effects.sort(key=lambda each: -each.change)
    tokens = [Token.from_id(inspected.tokenizer, each) for each in (answer, other)]
    return ScanView(
        tokens=inspected.tokens,
        what=what,
        how=how,
        source=source,
        texts=len(reference),
        by=by,
        before=before,
        answer=tokens[0] if by == "logits" else None,
        other=tokens[1] if by == "logits" else None,
        effects=tuple(effects),
        parts=parts,
        **inspected.window_fields,
    )


def _effects(
    whole: Whole, cells: "dict[int, list[Piece]]", before: float, into: "list[Tensor]"
) -> Iterator[PartEffect]:
    """Yield the effect of each part, some in one pass; `into` has what each layer reads, if the
    passes can begin at their layer.
    """
    inspected, config = whole.inspected, whole.inspected.config
    for layer, pieces in cells.items():
        text = from_layer(inspected, layer, into[layer]) if into and layer else inspected
        layers = config.n_layers - (layer if into else 0)  # that a pass goes through
        work = config.n_params * len(inspected.ids) * layers // config.n_layers
        size = max(1, _MAX_WORK // work)
        for start in range(0, len(pieces), size):
            some = pieces[start : start + size]
            changes = _changes(whole, text, layer, some)
            for piece, change in zip(some, changes, strict=True):
                yield _effect(inspected, layer, piece, change - before)


def _before(whole: Whole, streams: "dict[str, Tensor]") -> float | None:
    if whole.by == "kl":
        return None
    if whole.by == "loss":
        return loss(whole.inspected, list(streams.values())[-1])
    return float(whole.logits[whole.pair[0]].double() - whole.logits[whole.pair[1]].double())


def _instead(
    inspected: InspectedText, how: How, reference: Sequence[InspectedText]
) -> tuple[Instead, ...]:
    """Return what stands in the place of all activations, once for each text to resample from."""
    if how == "resample":
        return tuple(each.run_with_cache(*WRITES, last_only=True)[1] for each in reference)
    if how == "mean":
        return (means(reference or [inspected], WRITES, skip=int(bool(reference))),)
    return ({},)


def _cells(inspected: InspectedText, what: str) -> dict[int, list[Piece]]:
    """Return the parts that are ablated, by layer."""
    config = inspected.config
    found: dict[int, list[Piece]] = {}
    for layer in range(config.n_layers):
        heads = range(config.n_heads) if layer in config.attention_layers else range(0)
        pieces: dict[Kind, list[Piece]] = {
            "head": list(heads), "attention": ["attention"], "feed-forward": ["mlp"],
            "layer": [None],
        }  # fmt: skip
        found[layer] = [piece for kind in KINDS[what] for piece in pieces[kind]]
    return found


def _effect(inspected: InspectedText, layer: int, piece: Piece, change: float) -> PartEffect:
    if isinstance(piece, int):
        return PartEffect(f"head {layer}.{piece}", "head", layer, piece, change)
    if piece is None:
        return PartEffect(f"{layer} block", "layer", layer, None, change)
    kind: Kind = "attention" if piece == "attention" else "feed-forward"
    name = place_name(inspected, f"blocks.{layer}.{piece}.out")
    return PartEffect(name, kind, layer, None, change)


def _changes(whole: Whole, text: InspectedText, layer: int, pieces: Sequence[Piece]) -> list[float]:
    """Return the measure with each part ablated: a batch has one part a row.

    It is the mean over all that stands in the place of the parts.
    """
    sums = [0.0] * len(pieces)
    for instead in whole.instead:
        found = whole.measure(text, len(pieces), batch_hook(instead, layer, pieces))
        sums = [each + value for each, value in zip(sums, found, strict=True)]
    return [each / len(whole.instead) for each in sums]


def batch_hook(instead: Instead, layer: int, pieces: Sequence[Piece]) -> Hook:
    """Return a hook that ablates another part of a layer in each row of a batch."""
    state: dict[str, Tensor] = {}
    rows = {name: [row for row, piece in enumerate(pieces) if name in hook_names(layer, piece)]
            for name in (f"blocks.{layer}.{end}" for end in WRITES)}  # fmt: skip

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name == "positions":
            state[name] = tensor
        if not rows.get(name):
            return tensor
        there = rows_at(instead, name, state["positions"], tensor)  # (time, ...)
        ablated = tensor.clone()  # (row, time, ...)
        for row in rows[name]:
            piece = pieces[row]
            which = (slice(None), piece) if isinstance(piece, int) else (slice(None),)
            ablated[(row, *which)] = there[which]
        return ablated

    return hook
