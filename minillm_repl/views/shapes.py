"""`:shapes`: the forward pass from the text to the next token, as the shapes of its tensors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import active_samplers
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Token, decode
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import Row, View, inspect_text, show
from minillm_repl.views.forward_pass import trace
from minillm_repl.views.inspected_text import InspectedText, Likely, no_grad, topk_ids
from minillm_repl.views.sampler import next_situation

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.generate.sampling import Probabilities, Scores
    from minillm_repl.repl.shell import Shell

_VALUES, _TOP = 12, 3  # values of a row, tokens that can be sampled
_NUMBER = 7  # cells of one value
_MIN_DIMENSIONS_WIDTH = 60  # cells: below, there is no column for the dimensions
_TENSORS = {  # in the order of the forward pass: the dimensions, and the name on the screen
    "token_embedding": ("tw", N_("token embeddings")),
    "position_embedding": ("tw", N_("position embeddings")),
    "embedding": ("tw", N_("token + position")),
    "attention.normed": ("tw", N_("normalized")),
    "attention.mixed": ("tw", N_("with the 3 tokens before (Canon)")),
    "attention.input": ("tw", N_("normalized")),
    "attention.q": ("htd", N_("queries q")),
    "attention.k": ("htd", N_("keys k")),
    "attention.v": ("htd", N_("values v")),
    "attention.weights": ("htt", N_("attention weights")),
    "attention.z": ("thd", N_("weighted sum of v")),
    "attention.out": ("tw", N_("output projection W_O")),
    "residual.mid": ("tw", N_("residual + update")),
    "mlp.normed": ("tw", N_("normalized")),
    "mlp.mixed": ("tw", N_("with the 3 tokens before (Canon)")),
    "mlp.input": ("tw", N_("normalized")),
    "mlp.router": ("te", N_("router logits")),
    "mlp.hidden": ("tf", N_("MLP hidden layer")),
    "mlp.out": ("tw", N_("MLP down-projection")),
    "residual": ("tw", N_("residual + update")),
    "final": ("tw", N_("final norm")),
    "logits": ("tv", N_("logits")),
    "probabilities": ("v", N_("softmax (last token)")),
}
_POST_NORM_NAMES = {  # in a model that normalises what attention and MLP add
    "attention.out": N_("W_O, then norm"),
    "mlp.out": N_("down-projection, norm"),
}
_DIMENSIONS = {
    "t": N_("tokens"),
    "w": N_("d_model"),
    "h": N_("heads"),
    "g": N_("KV heads"),
    "d": N_("head dim"),
    "f": N_("MLP width"),
    "e": N_("experts"),
    "v": N_("vocabulary"),
}


@dataclass(frozen=True)
class ShapeRow:
    """One tensor of the forward pass."""

    name: str  # as in model/hooks.py; or the module that made it, or `input` of the one it enters
    dims: tuple[str, ...]  # t tokens, w d_model, h heads, g KV heads, d head_dim, f d_mlp, v vocab
    shape: tuple[int, ...]
    numbers: Row  # the first at the last token; where there are several heads, of head 0


@dataclass(frozen=True, kw_only=True)
class ShapesView(View, Truncation):
    """The forward pass on a text, as the shapes of its tensors."""

    text: str
    tokens: tuple[Token, ...]
    rows: tuple[ShapeRow, ...]  # the first block with attention, and the end of the last
    sampling: str  # the samplers that are active
    candidates: int  # tokens that can be sampled
    drawn: tuple[Likely, ...]  # the most likely of them, with the probability of being sampled
    norm_placement: str = "pre"  # as in the config: pre, post or both

    def draw(self, width: int) -> RenderableType:
        """Return a row for each tensor, from the text to the tokens that can be sampled."""
        letters = (
            f"{letter} {_(_DIMENSIONS[letter])} {size:,}"
            for letter, size in sizes(self.rows).items()
        )
        notes = [
            _("Values: the first few at the last token, {token}; head 0 where there are several "
              "heads.",
              token=self.tokens[-1].label),
        ]  # fmt: skip
        if self.sampling:
            notes.append(_("Samplers: {sampling}.", sampling=self.sampling))
        if not self._learns_positions:
            positions = _(
                "Positions: rotary position embedding (RoPE), applied to queries and keys."
            )
            notes.insert(0, positions)
        return Group(
            title(_("forward pass"), _("from the text to the next token")),
            self._table(width),
            Text(" · ".join(letters), TITLE),
            Text(" ".join(notes), FIGURES),
        )

    @property
    def _learns_positions(self) -> bool:
        return any(row.name == "position_embedding" for row in self.rows)

    def _table(self, width: int) -> Table:
        has_dimensions = width >= _MIN_DIMENSIONS_WIDTH
        dimensions = [_("dimensions")] if has_dimensions else []
        shape = 1 + len(dimensions)  # the column
        table = plain_table(
            "", *dimensions, _("shape"), _("values"), right=(shape,), wrap=(0, shape + 1)
        )
        table.columns[-1].min_width = _NUMBER

        def add(name: str, dims: str, shape: str, values: Text) -> None:
            values.no_wrap, values.overflow = True, "ellipsis"
            table.add_row(name, *([Text(dims, FIGURES)] if has_dimensions else []), shape, values)

        count = str(len(self.tokens))
        labels = Text(" ").join(short_label(token) for token in self.tokens)
        add(_("text"), "", str(len(self.text)), Text(safe_line(self.text)))
        add(_("tokens"), "t", count, labels)
        add(_("ids"), "t", count, Text(" ".join(str(token.id) for token in self.tokens)))
        fitting = max(1, (width - (54 if has_dimensions else 42)) // _NUMBER)
        for row in self.rows:
            if row.name == "embedding" and row.numbers == self.rows[0].numbers:
                continue  # it is the token embedding
            if row.name.endswith((".attention.input", ".attention.normed")):
                add(_("block {number}", number=int(row.name.split(".")[1])), "", "", Text())
            shape_text = " × ".join(f"{size:,}" for size in row.shape)
            add(
                self._screen_name(row), " × ".join(row.dims), shape_text, _draw_values(row, fitting)
            )
        drawn = self._candidates(fitting * _NUMBER if width < UNLIMITED_WIDTH else width)
        add(_("can be sampled"), "", f"{self.candidates:,}", drawn)
        return table

    @property
    def _block(self) -> str:
        """The number of the block that is shown in full: the first with attention."""
        inside = next(row.name for row in self.rows if row.name.endswith(".attention.q"))
        return inside.split(".")[1]

    def _candidates(self, room: int) -> Text:
        """Return the first candidates that have room whole: no share is cut."""
        parts = [
            Text.assemble(short_label(each.token), f" {percent(each.prob)}") for each in self.drawn
        ]
        count = len(parts)
        while count > 1 and sum(part.cell_len + 2 for part in parts[:count]) > room:
            count -= 1
        shown = parts[:count] + ([Text("…")] if count < self.candidates else [])
        return Text("  ").join(shown)

    def _screen_name(self, row: ShapeRow) -> str:
        """Return the name of a row on the screen: what is inside the block is indented."""
        if row.name == "embedding" and not self._learns_positions:
            return _("scaled embeddings")
        if not row.name.startswith("blocks."):
            return _(_TENSORS[row.name][1])
        block, _dot, name = row.name.removeprefix("blocks.").partition(".")
        if block != self._block:
            same = _("block 1: the same")
            several = _("blocks 1 to {last}: the same", last=block)
            return (
                _("the other blocks") if self._block != "0" else same if block == "1" else several
            )
        label = _(_TENSORS[name][1])
        if name.endswith(".input") and self.norm_placement == "post":
            label = _("residual stream")
        elif name == "mlp.out" and any(row.name.endswith("mlp.router") for row in self.rows):
            label = _("weighted sum of the chosen experts")
        elif name in _POST_NORM_NAMES and self.norm_placement != "pre":
            label = _(_POST_NORM_NAMES[name])
        return f"  {label}"


def _draw_values(row: ShapeRow, fitting: int) -> Text:
    """Return the first values of a row, probabilities as percentages."""
    values = row.numbers[:fitting]
    if row.name.endswith(("weights", "probabilities")):
        cells = [f"{percent(value):>{_NUMBER}}" for value in values]
    else:
        places = 0 if any(abs(value) >= 100 for value in values) else 2
        cells = [f"{value:+{_NUMBER}.{places}f}" for value in values]
    return Text("".join(cells) + (" …" if row.shape[-1] > fitting else ""), FIGURES)


def sizes(rows: Iterable[ShapeRow]) -> dict[str, int]:
    """Return the size of each dimension, by its letter."""
    return {dim: size for row in rows for dim, size in zip(row.dims, row.shape, strict=True)}


@no_grad
def compute(
    inspected: InspectedText,
    sample: "Callable[[Scores], Probabilities] | None" = None,
    sampling: str = "",
) -> ShapesView:
    """Return the tensors of the forward pass.

    `sample` turns logits (vocab,) into the probabilities of being sampled, and `sampling` names its
    samplers. Without it, the probabilities are the model's softmax.
    """
    import torch

    tensors = trace(inspected, _TENSORS)
    probabilities = tensors["probabilities"]  # (vocab,)
    if sample is not None:
        probabilities = torch.from_numpy(sample(tensors["logits"][-1].cpu().numpy()))
    top = [token for token in topk_ids(probabilities, _TOP) if probabilities[token] > 0]
    return ShapesView(
        text=decode(inspected.tokenizer, list(inspected.ids)),
        tokens=inspected.tokens,
        rows=_rows(tensors),
        sampling=sampling,
        candidates=int((probabilities > 0).sum()),
        drawn=tuple(
            Likely(Token.from_id(inspected.tokenizer, token), float(probabilities[token]))
            for token in top
        ),
        norm_placement=inspected.config.norm_placement,
        **inspected.window_fields,
    )


@no_grad
def compute_sizes(inspected: InspectedText) -> dict[str, int]:
    """Return the size of each dimension on this text, by its letter."""
    return sizes(_rows(trace(inspected, _TENSORS)))


def _rows(tensors: "dict[str, Tensor]") -> tuple[ShapeRow, ...]:
    queries = next(name for name in tensors if name.endswith(".attention.q"))
    block = queries.removesuffix("attention.q")  # `blocks.0.`
    order = [block + name if "." in name or name == "residual" else name for name in _TENSORS]
    end = order.index("final")
    order[end:end] = [name for name in tensors if name.endswith(".residual") and name not in order]
    grouped = tensors[block + "attention.k"].shape != tensors[queries].shape
    return tuple(_row(name, tensors[name], grouped=grouped) for name in order if name in tensors)


def _row(name: str, tensor: "Tensor", *, grouped: bool) -> ShapeRow:
    inside = ".".join(name.split(".")[2:]) if name.startswith("blocks.") else name
    dims = tuple(_TENSORS[inside][0])
    if grouped and name.endswith((".k", ".v")):
        dims = ("g", *dims[1:])  # several queries share a key and a value
    last = tensor[tuple(-1 if dim == "t" else 0 for dim in dims[:-1])]
    return ShapeRow(name, dims, tuple(tensor.shape), tuple(last[:_VALUES].tolist()))


@command(
    "shapes",
    arguments=(TextArgument(free=True),),
    json=True,
    group="Look inside",
    example=":shapes 날씨가 좋",
)
def shapes(shell: "Shell", asked: Arguments) -> None:
    """Trace the forward pass, with tensor shapes.

    Each row is one tensor of the forward pass, with its shape for this text and the first values at
    the last token. The rows are text, tokens, ids, token embeddings, the parts of block 0, the
    output of the last block, logits, probabilities, and the tokens that the active samplers keep.

    Queries and keys are as they enter the dot product: after normalization and RoPE, if the model
    has them.
    """
    inspected, settings = inspect_text(shell, asked.text), shell.session.settings
    situation = next_situation(shell, inspected.ids, asked.text)
    from minillm_repl.generate.sampling import process_logits, softmax

    def sample(logits: "Scores") -> "Probabilities":
        return softmax(process_logits(logits, settings, inspected.ids, situation))[0]

    show(shell, compute(inspected, sample, ", ".join(active_samplers(settings))), asked.output)
