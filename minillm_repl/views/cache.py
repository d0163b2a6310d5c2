"""`:cache`: the keys and values that the model keeps of a text, and where attention sinks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.hooks import compose
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, bar, short_label, title
from minillm_repl.render.tables import WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, Layer, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.attention_patterns import sliding_window, weights_by_query
from minillm_repl.views.base import Row, View, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.generate import Decoder
    from minillm_repl.repl.shell import Shell

_ROWS = 14  # layers or positions on a screen
_FIRST = 3  # positions of a long text that are shown, before the last ones
_NUMBER_BYTES = 4  # the cache is float32, whatever the weights are


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of a text. Norms are L2, means over KV heads and positions."""

    layer: int
    sees: int  # positions that the next token attends to: all, or the window
    nbytes: int  # of the text's keys and values, and of what convolutions keep
    keys: float  # norm of the keys; 0 where a layer has no attention
    values: float
    sink_keys: float  # the same at the sink alone
    sink_values: float
    sink_share: float  # of all attention of later tokens to the sink, a mean over heads, 0 to 1


@dataclass(frozen=True, kw_only=True)
class CacheView(View, Truncation):
    """The KV cache of a text, layer by layer. Layers and positions count from 0."""

    tokens: tuple[Token, ...]
    held: int  # tokens in the cache of the model that answers, now
    context: int  # tokens that fit
    taken: int  # bytes that the cache has room in, now
    full: int  # bytes, when the context is full
    dtype: str
    sink: int  # the position to which most attention of later tokens goes, in all layers
    layers: tuple[LayerCache, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each layer: what it keeps, and the norms at the sink and elsewhere."""
        sizes = _("KV"), _("sees"), "‖k‖", "‖v‖", _("‖k‖ sink"), _("‖v‖ sink"), _("to sink")
        table = plain_table(_("layer"), *sizes, "", right=range(8), wrap=(), narrow=width < WIDE)
        cells = max(0, min(20, width - 66 - 16 * (width >= WIDE)))
        count = len(self.layers)
        everything = count <= _ROWS or width >= UNLIMITED_WIDTH
        rows = range(count) if everything else _spread(count, _ROWS)
        for each in (self.layers[row] for row in rows):
            numbers = each.keys, each.values, each.sink_keys, each.sink_values
            table.add_row(
                Text(str(each.layer), TITLE), kib(each.nbytes), str(each.sees) if each.sees else "",
                *(f"{number:.2f}" if each.sees else "" for number in numbers),
                f"{each.sink_share:.0%}" if each.sees else "",
                Text(bar(each.sink_share, cells), MODEL),
            )  # fmt: skip
        token = self.tokens[self.index_of(self.sink)].label
        total = sum(each.nbytes for each in self.layers)
        about = _("{n} positions of this text, {size} in {dtype}",
                  n=len(self.tokens), size=kib(total), dtype=self.dtype)  # fmt: skip
        legend = [
            _("answering now: {held:,} of {context:,} positions are held, {taken} reserved; {full} "
              "when full", held=self.held, context=self.context, taken=kib(self.taken),
              full=kib(self.full)),
            _("‖k‖, ‖v‖: norms, means over positions and KV heads · sees: positions that the next "
              "token attends to · sink: {token} @{sink}, which gets most of all attention of later "
              "tokens · `:cache {layer}` shows the positions of a layer",
              token=token, sink=self.sink, layer=self.layers[-1].layer),
        ]  # fmt: skip
        if len(rows) < count:
            legend.insert(0, _("{n} of {all} layers; :scroll shows all", n=len(rows), all=count))
        return Group(title(_("KV cache"), about), table, *(Text(each, FIGURES) for each in legend))


@dataclass(frozen=True, kw_only=True)
class CacheLayerView(View, Truncation):
    """The keys and values of one layer, position by position."""

    table = "tokens", "keys", "values", "received"

    layer: int
    tokens: tuple[Token, ...]
    sees: int
    sink: int
    keys: Row  # L2 norm at each position, a mean over KV heads
    values: Row
    received: Row  # share of all attention of later tokens that goes there, a mean over heads

    def draw(self, width: int) -> RenderableType:
        """Return a row for each position, or for the first and the last ones of a long text."""
        table = plain_table(
            _("position"), _("token"), "‖k‖", "‖v‖", _("attention"), "", right=(0, 2, 3, 4), wrap=()
        )
        count = len(self.tokens)
        everything = count <= _ROWS or width >= UNLIMITED_WIDTH
        shown = [*range(_FIRST), *range(count - _ROWS + _FIRST, count)]
        cells = max(4, min(24, width - 56))
        for index in range(count) if everything else shown:
            share, position = self.received[index], self.position_of(index)
            table.add_row(
                str(position),
                short_label(self.tokens[index], 12),
                f"{self.keys[index]:.2f}",
                f"{self.values[index]:.2f}",
                f"{share:.1%}",
                Text.assemble((bar(share, cells), MODEL),
                              (" " + _("sink") if position == self.sink else "", FIGURES)),
            )  # fmt: skip
        notes = [
            _("‖k‖, ‖v‖: L2 norms, means over KV heads · attention: share of all attention of "
              "later tokens, a mean over heads"),
        ]  # fmt: skip
        if not everything:
            notes.insert(0, _("{n} of {all} positions; :scroll shows all", n=_ROWS, all=count))
        heading = title(
            _("KV cache of layer {layer}", layer=self.layer),
            _("the next token attends to {n} of {all} positions", n=self.sees, all=count),
        )
        return Group(heading, table, Text(" · ".join(notes), FIGURES))


def kib(size: int) -> str:
    """Return a size with its unit."""
    return f"{size / 2**20:,.2f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def _spread(count: int, most: int) -> list[int]:
    return [round(row * (count - 1) / (most - 1)) for row in range(most)]


def bytes_per_position(config: AnyConfig, layer: int) -> int:
    """Return what a layer keeps of one token: its keys and values, or what convolutions read."""
    if config.is_conv(layer):
        return config.d_model * _NUMBER_BYTES
    canon = 2 * config.d_model if config.has_canon_layers else 0
    return (2 * config.n_kv_heads * config.head_dim + canon) * _NUMBER_BYTES


@no_grad
def measure(inspected: InspectedText) -> "dict[int, Tensor]":
    """Return for each layer with attention the norms of keys and values at each position, and the
    share of all attention of later tokens that goes there: (3, time).
    """
    import torch

    time = len(inspected.ids)
    found: dict[int, Tensor] = {}
    queries: dict[str, Tensor] = {}

    def read(name: str, tensor: "Tensor") -> "Tensor":
        _blocks, layer, *rest = (*name.split("."), "")
        what = rest[1] if rest[:1] == ["attention"] else ""
        if what == "q":
            queries[layer] = tensor
        elif what == "k":
            later = tensor.new_zeros(time).double()
            q = queries.pop(layer)[0]  # (head, time, head_dim)
            for first, weight in weights_by_query(inspected, int(layer), q, tensor[0]):
                # The attention of a token to itself does not count: every row has that.
                sums = weight.tril(first - 1).sum(1).double().mean(0)  # (key,)
                later[: len(sums)] += sums / max(1, time - 1)
            keys = tensor[0].norm(dim=-1).mean(0)  # (time,)
            found[int(layer)] = torch.stack([keys, keys, later.to(keys)])
        elif what == "v":
            found[int(layer)][1] = tensor[0].norm(dim=-1).mean(0)
        return tensor

    inspected.model(inspected.input_ids, hook=compose(inspected.hook, read), last_only=True)
    return {layer: each.double().cpu() for layer, each in found.items()}


def find_sink(measured: "dict[int, Tensor]") -> int:
    """Return the index of the token to which most attention goes, in all layers together."""
    return int(sum(each[2] for each in measured.values()).argmax())  # type: ignore[union-attr]


def compute(inspected: InspectedText, decoder: "Decoder") -> CacheView:
    """Return what each layer keeps of a text, and what the cache of `decoder` takes now."""
    config, time, measured = inspected.config, len(inspected.ids), measure(inspected)
    sink, layers = find_sink(measured), []
    for layer in range(config.n_layers):
        nbytes = time * bytes_per_position(config, layer)
        if layer not in measured:
            layers.append(LayerCache(layer, 0, nbytes, 0.0, 0.0, 0.0, 0.0, 0.0))
            continue
        keys, values, received = measured[layer]
        means = float(keys.mean()), float(values.mean())
        at_sink = float(keys[sink]), float(values[sink]), float(received[sink])
        layers.append(LayerCache(layer, _sees(inspected, layer), nbytes, *means, *at_sink))
    return CacheView(
        tokens=inspected.tokens,
        held=len(decoder.ids),
        context=decoder.context_length,
        taken=decoder.cache_bytes,
        full=decoder.max_cache_bytes,
        dtype="float32",
        sink=inspected.position_of(sink),
        layers=tuple(layers),
        **inspected.window_fields,
    )


def _sees(inspected: InspectedText, layer: int) -> int:
    time = len(inspected.ids)
    return min(time, sliding_window(inspected, layer) or time)


def compute_layer(inspected: InspectedText, layer: int) -> CacheLayerView:
    """Return the keys and values of one layer. Raises UserError if it has no attention."""
    check_layer(inspected.config, layer, 0)
    measured = measure(inspected)

    def row(numbers: "Sequence[float] | Tensor") -> Row:
        return tuple(float(each) for each in numbers)

    keys, values, received = measured[layer]
    return CacheLayerView(
        layer=layer,
        tokens=inspected.tokens,
        sees=_sees(inspected, layer),
        sink=inspected.position_of(find_sink(measured)),
        keys=row(keys),
        values=row(values),
        received=row(received),
        **inspected.window_fields,
    )


@command(
    "cache",
    arguments=(Layer(), TextArgument()),
    json=True,
    aliases=("캐시",),
    group="Look inside",
    example=":cache 날씨가 좋",
)
def cache(shell: "Shell", asked: Arguments) -> None:
    """Show the KV cache: what the model keeps of a text.

    While a model writes, it keeps the keys and values of all tokens that it has read, in float32,
    so that a new token needs one pass of one token only. Each row is a layer: the memory of the
    keys and values of this text; how many positions the next token attends to (`sees`: all, or the
    sliding window of the layer); the L2 norms of keys and values, means over positions and KV
    heads; and the same norms at the attention sink. Keys are as they are kept: after RoPE.

    The sink is the position that gets most of all attention of later tokens, over all layers and
    heads. `to sink` is that share in this layer. A sink is mostly the first token, and its values
    are small: heads look there when they have nothing to add.

    :cache 2 shows the positions of layer 2: norms of key and value, and the attention that each
    gets. Below the table stands what the model that answers holds now. Its keys and values of
    positions outside a window are kept too, so that `:undo` can go back. A layer with a short
    convolution keeps what it reads instead. `--json FILE` writes all numbers.
    """
    inspected = inspect_text(shell, asked.text)
    if asked.layer is None:
        show(shell, compute(inspected, shell.require_model().decoder), asked.output)
    else:
        show(shell, compute_layer(inspected, asked.layer), asked.output)
