"""`:qkv`: one attention head at one position, with its query, its keys and its values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, bar, label_width, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import WIDE, plain_table
from minillm_repl.repl.arguments import (
    Arguments,
    Layer,
    Option,
    TextArgument,
    position,
)
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.settings import integer
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import Row, View, find_place, inspect_text, show
from minillm_repl.views.dot_product import DotView, Scoring
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_NUMBER = 7  # cells of one number of a vector
_FEW = 2  # numbers: keys with fewer are left out, so that the values have room
_TOP = 10  # keys that have a row of their own


@dataclass(frozen=True, kw_only=True)
class Met:
    """A key that the query attends to."""

    position: int
    key: Row  # (head_dim,)
    value: Row  # (head_dim,)
    dot: float  # query · key
    scaled: float  # that divided by √head_dim, or what the model makes of it instead
    weight: float  # the softmax of that over all keys


@dataclass(frozen=True, kw_only=True)
class QKVView(View, Truncation):
    """One head at one position. Layers, heads and positions count from 0."""

    layer: int
    head: int
    position: int
    tokens: tuple[Token, ...]  # up to the position
    query: Row  # (head_dim,)
    met: tuple[Met, ...]
    mixed: Row  # (head_dim,): the sum of the values, each times its weight
    scoring: Scoring
    top: int = _TOP  # keys that the picture lists; all of them where a view is drawn whole

    def draw(self, width: int) -> RenderableType:
        """Return the query, a row for each key, and the weighted sum of the values."""
        whole = width >= UNLIMITED_WIDTH
        by_weight = sorted(self.met, key=lambda each: -each.weight)
        listed = by_weight if whole or len(by_weight) <= self.top + 1 else by_weight[: self.top]
        shown, has_keys = self._numbers(width)
        bars = 6 if width >= WIDE else 0
        score = self.scoring.label(len(self.query), "√d")
        table = plain_table(
            "#", _("token"), *([_("key")] if has_keys else []), "q·k", score, _("softmax"), "",
            _("value"), right=(0, *range(2 + has_keys, 5 + has_keys)), wrap=(),
        )  # fmt: skip
        for each in listed:
            table.add_row(
                str(each.position),
                short_label(self.tokens[self.index_of(each.position)]),
                *([_vector(each.key, shown)] if has_keys else []),
                f"{each.dot:.2f}",
                f"{each.scaled:.2f}",
                Text(percent(each.weight), TITLE if each is by_weight[0] else ""),
                Text(bar(each.weight, bars), MODEL),
                _vector(each.value, shown),
            )
        blank = [""] * (3 + has_keys)
        if rest := by_weight[len(listed) :]:
            more = Text(_("{count} more", count=len(rest)), FIGURES)
            table.add_row("", more, *blank[1:], percent(sum(each.weight for each in rest)), "", "")
        table.add_section()
        table.add_row("", *blank, "100.0%", "", _vector(self.mixed, shown))
        return Group(self._title(), self._query(width), table, Text(self._legend(shown), FIGURES))

    def _numbers(self, width: int) -> tuple[int, bool]:
        """Return how many numbers of a vector fit, and whether the keys have room beside them."""
        room = width - 46 - (6 if width >= WIDE else 0) - label_width(self.tokens)
        fitting = room // (2 * _NUMBER)
        has_keys = fitting >= min(_FEW, len(self.query))
        return max(1, min(len(self.query), fitting if has_keys else room // _NUMBER)), has_keys

    def _query(self, width: int) -> Text:
        """Return the line of the query vector, as many numbers as fit."""
        shown = max(1, min(len(self.query), (width - cell_len(_("query")) - 4) // _NUMBER))
        more = " …" if shown < len(self.query) else ""
        return Text.assemble((_("query") + " ", FIGURES), _vector(self.query, shown), more)

    def _legend(self, shown: int) -> str:
        size = len(self.query)
        notes = [
            _(
                "keys by weight · softmax(q·k / √d) weights the values; last row: their weighted "
                "sum, the head's output before W_O"
            )
        ]
        if self.scoring.softcap:
            cap = self.scoring.softcap
            notes.append(_("tanh: a score s is capped, {cap:g} · tanh(s / {cap:g})", cap=cap))
        if shown < size:
            notes.append(_("vectors: the first {n} of {all} numbers", n=shown, all=size))
        if len(self.met) > self.top + 1:
            notes.append(_("`top=N` lists more keys"))
        return " · ".join(notes)

    def _title(self) -> Text:
        return title(
            _("layer {layer} head {head}", layer=self.layer, head=self.head),
            _(
                "query: {token} at position {position} · head_dim = {size}",
                token=self.tokens[-1].label,
                position=self.position,
                size=len(self.query),
            ),
        )


def _vector(numbers: Sequence[float], shown: int) -> Text:
    """Return the first numbers of a vector, in columns of equal width."""
    cells = (f"{each:+{_NUMBER}.{2 if abs(each) < 100 else 0}f}" for each in numbers[:shown])
    return Text("".join(cells))


@no_grad
def compute(
    inspected: InspectedText, layer: int, head: int, position: int = -1, top: int = _TOP
) -> QKVView:
    """Return what a head computes at a position; the picture lists the `top` keys by weight.

    Raises UserError if there is no such head or position.
    """
    from minillm_repl.model.attention import attention_weights

    config = inspected.config
    check_layer(config, layer, head)
    index = inspected.index_of(position)
    inspected = inspected.up_to(index)
    prefix = f"blocks.{layer}.attention."
    hooks = [prefix + name for name in ("q", "k", "v", "z")]
    cache = inspected.run_with_cache(*hooks, last_only=True)[1]
    # q (head, time, head_dim); k and v have n_kv_heads; z (time, head, head_dim)
    q, k, v, z = (cache[name] for name in hooks)
    window = config.sliding_windows[layer] if config.sliding_windows else 0
    weights = attention_weights(q[None, :, -1:], k[None], config, window)[0, head, -1]  # (time,)
    kv_head = head * config.n_kv_heads // config.n_heads  # several queries share a key and a value
    query, keys, values = q[head, -1], k[kv_head], v[kv_head]
    dots = keys @ query  # (time,)
    scoring = Scoring(config.attention_scale, config.attention_softcap)

    def met(place: int) -> Met:
        return Met(
            position=inspected.position_of(place),
            key=tuple(keys[place].tolist()),
            value=tuple(values[place].tolist()),
            dot=float(dots[place]),
            scaled=scoring.of(float(dots[place])),
            weight=float(weights[place]),
        )

    first = max(0, index + 1 - window) if window else 0
    return QKVView(
        layer=layer,
        head=head,
        position=inspected.position_of(index),
        tokens=inspected.tokens,
        query=tuple(query.tolist()),
        met=tuple(met(place) for place in range(first, index + 1)),
        mixed=tuple(z[-1, head].tolist()),
        scoring=scoring,
        top=top,
        **inspected.window_fields,
    )


def compute_dot(
    inspected: InspectedText, layer: int, head: int, position: int, key: int
) -> DotView:
    """Return the dot product of the query at one position and the key at another.

    Raises UserError if there is no such head or position, or if the query does not see the key.
    """
    view = compute(inspected, layer, head, position)
    inspected = inspected.up_to(inspected.index_of(position))
    key = inspected.position_of(inspected.index_of(key))
    by_position = {each.position: each for each in view.met}
    if key not in by_position:
        raise UserError(
            _(
                "position {key} is not visible to this query, which attends to positions from "
                "{first} onwards",
                key=key,
                first=view.met[0].position,
            )
        )
    met = by_position[key]
    return DotView(
        layer=layer,
        head=head,
        position=view.position,
        met=key,
        tokens=view.tokens,
        query=view.query,
        key=met.key,
        products=tuple(q * k for q, k in zip(view.query, met.key, strict=True)),
        dot=met.dot,
        scaled=met.scaled,
        weight=met.weight,
        all_scaled=tuple((each.position, each.scaled, each.weight) for each in view.met),
        scoring=view.scoring,
        **inspected.window_fields,
    )


@command(
    "qkv",
    arguments=(
        Layer("required", required=True),
        PlaceArgument(bare=True),
        Option("key", position, None, "P"),
        Option("top", integer(1), _TOP, "N"),
        TextArgument(),
    ),
    json=True,
    group="Look inside",
    example=":qkv 0.1 1 key=0 날씨가 좋",
)
def qkv(shell: "Shell", asked: Arguments) -> None:
    """Show one attention head: query, keys, values and output.

    The query of one position meets the key of each position up to its own. Their dot product q·k is
    divided by √d (d is the head dimension); some models multiply by another number, and some cap
    the score. A softmax over all positions gives the weights. The output of the head is the sum of
    the values, each times its weight.

    The keys are listed by weight: the ten largest, or top=N of them. Export and :scroll have all.

    q and k are as they enter the dot product: after normalization and RoPE, if the model has them.

    With key=P, the view shows only the key of position P, number by number: each q × k, their sum,
    ÷ √d, and its softmax weight. P counts
    from 0, or from the end if negative. Layers and heads count from 0.

    The place is a position (@3, @-1) or a token (@날, where it was predicted); the default is the
    last position.

    Library analogy: the query is what you look for. A key is the title on the spine of a book; the
    value is its content. The better the title fits, the more of that book goes into the output.
    """
    inspected = inspect_text(shell, asked.text)
    position, _token = find_place(inspected, asked.place)
    place = asked.layer, asked.head, position
    if asked.key is None:
        show(shell, compute(inspected, *place, asked.top), asked.output)
    else:
        show(shell, compute_dot(inspected, *place, asked.key), asked.output)
