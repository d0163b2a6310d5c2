"""Draws the whole way through the model: what is made, of which shape, and its first numbers."""

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.insight.views.thinking import ShapeRow, ShapesView, sizes
from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.safetext import safe_line

_NUMBER = 7  # cells of one number
_SAID = {
    "token_embedding": N_("token embeddings"),
    "position_embedding": N_("position embeddings"),
    "embedding": N_("token + position"),
    "attention.input": N_("normalized"),
    "attention.q": N_("queries q"),
    "attention.k": N_("keys k"),
    "attention.v": N_("values v"),
    "attention.weights": N_("attention weights"),
    "attention.z": N_("weighted sum of v"),
    "attention.out": N_("output projection W_O"),
    "residual.mid": N_("residual + update"),
    "mlp.input": N_("normalized"),
    "mlp.hidden": N_("MLP hidden layer"),
    "mlp.out": N_("MLP down-projection"),
    "residual": N_("residual + update"),
    "final": N_("final norm"),
    "logits": N_("logits"),
    "probabilities": N_("softmax (last token)"),
}
_DIMS = {
    "t": N_("tokens"),
    "w": N_("d_model"),
    "h": N_("heads"),
    "g": N_("KV heads"),
    "d": N_("head dim"),
    "f": N_("MLP width"),
    "v": N_("vocabulary"),
}


def shapes_picture(view: ShapesView, width: int) -> RenderableType:
    """Return a row for each thing that is made on the way, from the text to what can be drawn."""
    table = plain_table("", *([_("dimensions")] if width >= 60 else []), _("shape"), _("values"))
    for column in table.columns[1:-1]:
        column.no_wrap = True
    table.columns[-1].min_width = _NUMBER
    table.columns[-2].justify = "right"
    rooms = max(1, (width - (54 if width >= 60 else 42)) // _NUMBER)
    learned = any(row.name == "position_embedding" for row in view.rows)

    def add(name: str, dims: str, shape: str, numbers: Text) -> None:
        cells = [Text(dims, FIGURES)] if width >= 60 else []
        numbers.no_wrap, numbers.overflow = True, "ellipsis"
        table.add_row(name, *cells, shape, numbers)

    count = str(len(view.tokens))
    add(_("text"), "", str(len(view.text)), Text(safe_line(view.text)))
    add(_("tokens"), "t", count, Text(" ").join(short_label(token) for token in view.tokens))
    add(_("ids"), "t", count, Text(" ".join(str(token.id) for token in view.tokens)))
    for row in view.rows:
        if row.name == "embedding" and not learned:
            continue  # nothing was added to what the embedding gave
        if row.name == "blocks.0.attention.input":
            add(_("block {number}", number=0), "", "", Text())
        add(
            _named(row),
            " × ".join(row.dims),
            " × ".join(f"{size:,}" for size in row.shape),
            _numbers(row, rooms),
        )
    drawn = Text("  ").join(
        Text.assemble(short_label(each.token), f" {percent(each.prob)}") for each in view.drawn
    )
    add(_("can be sampled"), "", f"{view.candidates:,}", drawn)
    letters = " · ".join(
        f"{dim} {_(_DIMS[dim])} {size:,}" for dim, size in sizes(view.rows).items()
    )
    notes = [
        _("Values: the first few at the last token, {token}; head 0 where there are several "
            "heads.",
          token=view.tokens[-1].label),
        _("Samplers: {sampling}.", sampling=view.sampling),
    ]  # fmt: skip
    if not learned:
        notes.insert(
            0, _("Positions: rotary position embedding (RoPE), applied to queries and keys.")
        )
    return Group(
        title(_("forward pass"), _("from the text to the next token")),
        table,
        Text(letters, TITLE),
        Text(" ".join(notes), FIGURES),
    )


def _named(row: ShapeRow) -> str:
    """Return what a row is called: what is inside block 0 stands a little to the right."""
    block, _dot, name = row.name.removeprefix("blocks.").partition(".")
    if not row.name.startswith("blocks."):
        return _(_SAID[row.name])
    if block == "0":
        return f"  {_(_SAID[name])}"
    return _("block 1: the same") if block == "1" else _("blocks 1 to {last}: the same", last=block)


def _numbers(row: ShapeRow, rooms: int) -> Text:
    shares = row.name.endswith(("weights", "probabilities"))
    few = any(abs(number) >= 100 for number in row.numbers[:rooms])
    shown = "".join(
        f"{percent(number):>{_NUMBER}}" if shares else f"{number:+{_NUMBER}.{0 if few else 2}f}"
        for number in row.numbers[:rooms]
    )
    return Text(shown + (" …" if row.shape[-1] > rooms else ""), FIGURES)
