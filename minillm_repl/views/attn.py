"""`:attn`: attention weights; alone, what the last token attends to in every head."""

from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, level, short_label, title
from minillm_repl.render.tables import TABLE_GAP, WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, Layer, TextArgument
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views import rollout
from minillm_repl.views.attention import HeadView, LayerView, compute_head, compute_layer
from minillm_repl.views.attention_patterns import (
    Pattern,
    last_weights,
    pattern_scores,
    patterns_of,
    visiting,
)
from minillm_repl.views.base import View, inspect_place, show
from minillm_repl.views.contributions import logit_direction
from minillm_repl.views.inspected_text import InspectedText, no_grad, topk_ids

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_KEYS = 5  # that are listed for the last token
_LABEL = 8  # cells of the token of a key
_ALL_HEADS = 32  # a model with more has a selection listed
_SELECTED_HEADS = 20  # of such a model, so that a screen has room for them
_MIN_WEIGHT = 0.005  # less rounds to 0%
_MIN_EXCESS = 0.05  # of a pattern's score over that of uniform attention


@dataclass(frozen=True)
class HeadFocus:
    """What the last token attends to, in one head."""

    layer: int
    head: int
    looked: tuple[tuple[int, float], ...]  # (position, weight), the largest weight first
    patterns: tuple[Pattern, ...]  # the highest score first
    adds: float  # to the logit of the most likely next token, directly


@dataclass(frozen=True)
class FocusView(View, Truncation):
    """What the last token attends to, in every head. Layers, heads and positions count from 0."""

    tokens: tuple[Token, ...]
    heads: tuple[HeadFocus, ...]
    answer: Token  # the token asked about, else the most likely next one

    def draw(self, width: int) -> RenderableType:
        """Return a row for each head: what it adds, the keys it attends to, and its pattern."""
        everything = len(self.heads) <= _ALL_HEADS or width >= UNLIMITED_WIDTH
        heads = self.heads if everything else self._strongest()
        answer = self.answer.label
        notes = [
            _("attends to: token @ position, weight"),
            _("adds: directly to the logit of {token}", token=answer),
            _("pattern: over the text up to there, and what uniform attention would score"),
        ]
        if len(heads) < len(self.heads):
            selection = _(
                "the {n} of {all} heads that add most to the logit of {token}, in either "
                "direction; :scroll shows all",
                n=len(heads),
                all=len(self.heads),
                token=answer,
            )
            notes.insert(0, selection)
        where = _("position {position}", position=self.position_of(len(self.tokens) - 1))
        return Group(
            title(_("attention from {token}", token=self.tokens[-1].label), where),
            self._table(heads, width),
            Text(" · ".join(notes), FIGURES),
        )

    def _table(self, heads: tuple[HeadFocus, ...], width: int) -> Table:
        headings = _("head"), _("adds"), _("attends to"), _("pattern on this text")
        n_patterns = 1 if width < WIDE else 2
        scores = [pattern_scores(_followed(head.patterns)[:n_patterns]) or "–" for head in heads]
        keys = [self._keys(head) for head in heads]
        # Keys of the same rank stand below each other, in as many columns as fit.
        by_rank = zip_longest(*keys, fillvalue=Text())
        cells = [max(key.cell_len for key in rank) + 2 for rank in by_rank]
        first = sum(max(6, cell_len(heading)) + TABLE_GAP for heading in headings[:2])
        room = width - first - TABLE_GAP - 2 - max(map(cell_len, scores))
        columns = max(1, sum(total <= room for total in accumulate(cells)))
        table = plain_table(*headings, right=(1,), wrap=(3,))
        for head, row, score in zip(heads, keys, scores, strict=True):
            for key, size in zip(row, cells, strict=False):
                key.pad_right(size - key.cell_len)
            name = Text(f"{head.layer}.{head.head}", TITLE)
            keys_cell = Text.assemble(*row[:columns])
            table.add_row(name, f"{head.adds:+.2f}", keys_cell, Text(score, FIGURES))
        return table

    def _keys(self, head: HeadFocus) -> list[Text]:
        """Return `말 @27 73% ▆` for each key whose weight does not round to nothing."""
        return [
            Text.assemble(
                short_label(self.tokens[self.index_of(position)], _LABEL),
                (f" @{position} ", FIGURES),
                f"{weight:.0%} {level(weight)}",
            )
            for position, weight in head.looked
            if weight >= _MIN_WEIGHT
        ]

    def _strongest(self) -> tuple[HeadFocus, ...]:
        """Return the heads that add most, the strongest first.

        A large weight is no reason to be listed: many heads put it on the first token, whose value
        is nearly zero, when they have nothing to add (an attention sink).
        """
        return tuple(sorted(self.heads, key=lambda head: -abs(head.adds))[:_SELECTED_HEADS])


def _followed(patterns: tuple[Pattern, ...]) -> list[Pattern]:
    """Return the patterns that score clearly more than uniform attention, clearest first."""
    excess = {each: each.score - each.chance for each in patterns}
    return sorted(
        (each for each in patterns if excess[each] >= _MIN_EXCESS), key=lambda each: -excess[each]
    )


def compute(
    inspected: InspectedText,
    layer: int | None = None,
    head: int | None = None,
    token: int | None = None,
) -> FocusView | LayerView | HeadView:
    """Return the attention of the last token in every head, of one layer, or of one head.

    Raises UserError if there is no such layer or head.
    """
    if layer is None:
        return compute_focus(inspected, token)
    if head is None:
        return compute_layer(inspected, layer)
    return compute_head(inspected, layer, head)


@no_grad
def compute_focus(inspected: InspectedText, token: int | None = None) -> FocusView:
    """Return what the last token attends to, in every head of every layer.

    What a head adds is for `token`; without it, for the most likely next one.
    """
    found: dict[int, tuple[Tensor, list[tuple[Pattern, ...]]]] = {}

    def visit(layer: int, q: "Tensor", k: "Tensor") -> None:
        row = last_weights(inspected, layer, q, k, 1)[:, 0]  # (head, time)
        found[layer] = row, patterns_of(inspected, layer, q, k)

    reading = inspected.with_hook(visiting(inspected, visit))
    logits, cache = reading.run_with_cache("attention.z", "residual", last_only=True, rows=1)
    answer, added = _added_by_heads(inspected, token, logits[0], cache)
    heads = []
    for layer, (rows, patterns) in found.items():
        for head, row in enumerate(rows):  # (time,)
            top = row.argsort(descending=True, stable=True)[:_KEYS].tolist()
            looked = tuple((inspected.position_of(index), float(row[index])) for index in top)
            heads.append(HeadFocus(layer, head, looked, patterns[head], added[layer][head]))
    answer_token = Token.from_id(inspected.tokenizer, answer)
    return FocusView(inspected.tokens, tuple(heads), answer_token, **inspected.window_fields)


def _added_by_heads(
    inspected: InspectedText, token: int | None, logits: "Tensor", cache: "dict[str, Tensor]"
) -> tuple[int, dict[int, list[float]]]:
    """Return the token asked about, else the most likely next one, and what each head adds to its
    logit: [layer][head].

    `logits` (vocab,) and `cache` are of the last position.
    """
    import torch

    last_residual = cache[f"blocks.{inspected.config.n_layers - 1}.residual"][-1]  # (d_model,)
    answer = topk_ids(logits, 1)[0] if token is None else token
    direction = logit_direction(inspected.model, last_residual, answer)[0]  # (d_model,)
    added = {}
    for layer in inspected.config.attention_layers:
        z = cache[f"blocks.{layer}.attention.z"][-1]  # (head, head_dim)
        # One row has one head alone; the last row has none, so that its output is the bias.
        alone = torch.cat([torch.diag_embed(z.T).permute(1, 2, 0), torch.zeros_like(z)[None]])
        projection = inspected.model.get_submodule(f"blocks.{layer}.attention.proj")
        written = projection(alone.flatten(1))  # (head + 1, d_model)
        added[layer] = ((written[:-1] - written[-1]).double() @ direction).tolist()
    return answer, added


@command(
    "attn",
    arguments=Forms(
        (Layer("optional"), PlaceArgument(), TextArgument()),
        ("rollout", Layer(), PlaceArgument(), TextArgument()),
    ),
    json=True,
    aliases=("attention", "어텐션"),
    group="Look inside",
    example=":attn 2.1 날씨가 좋",
)
def attn(shell: "Shell", asked: Arguments) -> None:
    """Show attention weights.

    :attn 2.1 shows head 1 of layer 2. Rows are queries, columns are keys, and each row sums to
    100%.
    :attn 2 shows all heads of layer 2 as small maps.
    :attn alone shows what the last token attends to, in every head.

    A weight is softmax(q·k / √d_head): the share of the column's value that goes into the row.
    Many heads put most of their weight on the first token when they have nothing to add (an
    attention sink). A weight is therefore no effect: `adds` is what the head adds directly to the
    logit of the most likely next token, as in `:why`; at a place inside the text, of the token that
    follows. A place is a position (@3, @-1) or a token (@날, where it was predicted).

    The score of a pattern is the share of attention that follows the pattern, as a mean over the
    positions where the pattern is possible. The number in brackets is the uniform baseline: the
    score of attention spread evenly over all visible positions.
        itself: all positions except 0
        previous token: positions from 2 on (before position 1 is the first token)
        first token: positions from 1 on
        same token: an earlier token that is the same
        induction on this text: the token after such an earlier token

    The last two need three such positions. All are of this text alone: a text that happens to
    repeat itself is weak evidence of induction. `:heads` tests all heads on random tokens, given
    twice. Layers and heads count from 0.

    :attn rollout shows how much of the last token, or of a place, comes from each token if
    attention were all that there is (Abnar & Zuidema, 2020): the product over the layers of
    (mean attention over heads + identity) / 2. :attn rollout 3 stops after layer 3. It leaves out
    what values, output projections and MLPs do: `:why by=position` is what counts for a logit.
    """
    inspected, token = inspect_place(shell, asked.text, asked.place)
    if asked.keyword == "rollout":
        show(shell, rollout.compute(inspected, asked.layer), asked.output)
        return
    show(shell, compute(inspected, asked.layer, asked.head, token), asked.output)
