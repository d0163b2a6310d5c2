"""The study note's program, part by part: its code, and what it does with the open model."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.model.config import GPTConfig
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, title
from minillm_repl.render.tables import plain_table
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import decode
from minillm_repl.views.base import View

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.note import MiniLLM
    from minillm_repl.views.inspected_text import InspectedText

_PARTS = {  # the name of each part in model/note.py, and what it does, in the order of the note
    "tokenize": N_("turns a text into numbers"),
    "Head": N_("one head of attention"),
    "MultiHeadAttention": N_("several heads side by side"),
    "FeedForward": N_("a computation for each token by itself"),
    "Block": N_("attention and feed-forward, each added to what there was"),
    "MiniLLM": N_("the whole model: from numbers to scores"),
    "get_batch": N_("takes questions and answers from a text"),
    "loss": N_("measures how wrong the model is"),
    "train_step": N_("changes all weights once"),
    "generate": N_("writes on, token by token"),
}
_DOCSTRING = re.compile(r'^ *""".*"""\n\n?', re.MULTILINE)
_COMMENT = re.compile(r"^( *)# (.*)$", re.MULTILINE)
_SHAPE = re.compile(r"(?<=  # ).*\(b.*")
_SAME = 1e-4  # logits that differ by less are the same: each was rounded in another order
_RATE = 0.001  # the note's learning rate
_MAX_TOKENS = 20  # that `generate` writes


@dataclass(frozen=True, kw_only=True)
class NoteView(View):
    """One part of the note's program, and what came of it."""

    part: str
    number: int  # of the part, from 1
    of: int
    code: str  # with sizes in its comments
    has_weights: bool  # whether it ran with the weights of the open model
    results: tuple[tuple[str, str], ...]  # a name and a value

    def draw(self, width: int) -> RenderableType:
        """Return the code in colours, and below it the results."""
        from rich.syntax import Syntax  # Pygments takes 50 ms to import

        code = Syntax(
            "", "python", theme="ansi_dark", background_color="default", word_wrap=True
        ).highlight(self.code)
        code.rstrip()
        code.no_wrap = width >= UNLIMITED_WIDTH
        code.highlight_regex(_SHAPE, f"not dim {MODEL}")
        ran = (
            _("ran with the weights of the open model:")
            if self.has_weights
            else _("ran with random weights, as the open model is of another kind:")
        )
        lines = [Text.assemble((f"  {name}  ", FIGURES), value) for name, value in self.results]
        place = _("the note's program, {n} of {all}", n=self.number, all=self.of)
        return Group(title(self.part, place), code, Text(ran, FIGURES), *lines)


@dataclass(frozen=True)
class NotesView(View):
    """The parts of the note's program."""

    parts: tuple[str, ...]

    def draw(self, _width: int) -> RenderableType:
        """Return a row for each part."""
        table = plain_table(_("part"), _("description"))
        for each in self.parts:
            table.add_row(Text(each, TITLE), _(_PARTS[each]))
        hint = _("`:source note {part}` shows one and runs it", part="Head")
        return Group(title(_("the study note's program")), table, Text(hint, FIGURES))


def list_parts() -> NotesView:
    """Return the parts in the order of the note."""
    return NotesView(tuple(_PARTS))


def compute(inspected: "InspectedText", name: str) -> NoteView:
    """Run a part on the text with the weights of the open model, if it is of the note's kind.

    Raises UserError if there is no such part.
    """
    from minillm_repl.model import note

    found = {each.casefold(): each for each in _PARTS}.get(name.casefold())
    if found is None:
        raise UserError(
            _(
                "no part {name}; available: {parts}",
                name=safe_line(name[:40]),
                parts=", ".join(_PARTS),
            )
        )
    program, has_weights = note_program(inspected)
    ids = inspected.ids[-program.block_size :]
    return NoteView(
        part=found,
        number=[*_PARTS].index(found) + 1,
        of=len(_PARTS),
        code=_code(getattr(note, found), _sizes(program, len(ids))),
        has_weights=has_weights,
        results=tuple(_run(found, program, inspected, has_weights=has_weights)),
    )


def note_program(inspected: "InspectedText") -> tuple["MiniLLM", bool]:
    """Return the note's model, and whether it has the open model's weights.

    A model of another kind lends its sizes alone.
    """
    import torch

    from minillm_repl.model.note import MiniLLM

    config = inspected.config
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        program = MiniLLM(
            config.vocab_size,
            config.context_length,
            config.n_heads * (config.d_model // config.n_heads),
            config.n_heads,
            config.n_layers,
        )
    if not _is_of_note(config):
        return program.eval(), False
    ours = inspected.model.state_dict()
    program.load_state_dict(dict(_note_weights(ours, config)))
    return program.eval(), True


def _is_of_note(config: Any) -> bool:
    """Return whether a model differs from the note's in nothing but its sizes and weights."""
    if not isinstance(config, GPTConfig):
        return False
    kind = (config.activation, config.norm_eps, config.qkv_bias, config.lm_head_bias)
    others = config.rope is None and not config.tie_word_embeddings
    return (
        kind == ("gelu", 1e-5, False, True)
        and others
        and not config.parallel_residual
        and config.d_mlp == 4 * config.d_model
        and config.n_heads * config.head_dim == config.d_model
    )


def _note_weights(ours: Mapping[str, "Tensor"], config: Any) -> Any:
    """Yield the note's tensors. It has three matrices a head, and divides scores by √d_model."""
    scale = (config.d_model / config.head_dim) ** 0.5
    for name, tensor in ours.items():
        if not name.endswith("qkv.weight"):
            renamed = name.replace("mlp.up", "ff.net.0").replace("mlp.down", "ff.net.2")
            yield renamed.replace("norm_f", "ln_f"), tensor.float()
            continue
        parts = tensor.float().reshape(3, config.n_heads, config.head_dim, -1)
        for head in range(config.n_heads):
            for part, factor, weights in zip(
                ("query", "key", "value"), (scale, 1, 1), parts, strict=True
            ):
                before = name.removesuffix("qkv.weight")
                yield f"{before}heads.{head}.{part}.weight", weights[head] * factor


def _code(thing: Any, sizes: Mapping[str, int]) -> str:
    code = _DOCSTRING.sub("", dedent(inspect.getsource(thing))).rstrip()
    code = _COMMENT.sub(lambda found: f"{found[1]}# {_(found[2])}", code)
    return _SHAPE.sub(lambda shape: _sized(shape[0], sizes), code)


def _sized(shape: str, sizes: Mapping[str, int]) -> str:
    return re.sub(r"\b[btwdv]\b", lambda letter: str(sizes[letter[0]]), shape)


def _sizes(program: "MiniLLM", tokens: int) -> dict[str, int]:
    vocab, width = program.token_embedding.weight.shape
    heads = len(program.blocks[0].attention.heads)  # type: ignore[arg-type, union-attr]
    return {"b": 1, "t": tokens, "w": width, "d": width // heads, "v": vocab}


def _run(
    part: str, program: "MiniLLM", inspected: "InspectedText", *, has_weights: bool
) -> list[tuple[str, str]]:
    """Return what a part does with the text."""
    import torch

    ids = torch.tensor([inspected.ids[-program.block_size :]])
    if part == "MiniLLM":
        return _run_whole(program, inspected, ids, has_weights=has_weights)
    if part in ("tokenize", "generate"):
        return _run_on_text(part, program, inspected, ids)
    if part in ("get_batch", "loss", "train_step"):
        return _run_training(part, program, ids)
    return _shapes(part, program, ids)


def _run_on_text(
    part: str, program: "MiniLLM", inspected: "InspectedText", ids: "Tensor"
) -> list[tuple[str, str]]:
    import torch

    from minillm_repl.model import note

    if part == "tokenize":
        chars, numbers = note.tokenize(decode(inspected.tokenizer, ids[0].tolist()))
        return [("chars", safe_line("".join(chars))), ("ids", " ".join(map(str, numbers)))]
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        written = note.generate(program, ids, _MAX_TOKENS)
    return [("ids", safe_line(decode(inspected.tokenizer, written[0].tolist())))]


def _run_training(part: str, program: "MiniLLM", ids: "Tensor") -> list[tuple[str, str]]:
    import torch

    from minillm_repl.model import note

    if ids.shape[1] < 2:
        return [("–", _("it needs a text of two tokens or more"))]
    x, y = ids[:, :-1], ids[:, 1:]
    if part == "get_batch":
        pieces = zip("xy", note.get_batch(ids[0], ids.shape[1] - 1, 1), strict=True)
        return [(name, " ".join(map(str, each[0].tolist()))) for name, each in pieces]
    optimizer = torch.optim.AdamW(program.parameters(), lr=_RATE)
    before = float(note.loss(program, x, y).detach())
    if part == "loss":
        return [("loss", f"{before:.4f}")]
    note.train_step(program, optimizer, x, y)
    after = float(note.loss(program, x, y).detach())
    return [("loss", f"{before:.4f} → {after:.4f}")]


def _run_whole(
    program: "MiniLLM", inspected: "InspectedText", ids: "Tensor", *, has_weights: bool
) -> list[tuple[str, str]]:
    import torch

    with torch.no_grad():
        logits = program(ids)
        results = [*_shapes("MiniLLM", program, ids)]
        if has_weights:
            apart = float((logits[0] - inspected.model(ids)[0]).abs().max())
            same = _("yes, to {n:.7f}", n=apart) if apart < _SAME else f"{apart:.7f}"
            results.append((_("the logits of the open model"), same))
    return results


def _shapes(part: str, program: "MiniLLM", ids: "Tensor") -> list[tuple[str, str]]:
    """Return the shapes that go into the first module of a kind, and come out of it."""
    import torch

    seen: list[tuple[str, str]] = []

    def listen(_module: Any, given: Any, out: Any) -> None:
        if not seen:
            seen.extend(
                (name, str(tuple(each.shape))) for name, each in (("in", given[0]), ("out", out))
            )

    module = next(each for each in program.modules() if type(each).__name__ == part)
    hook = module.register_forward_hook(listen)
    with torch.no_grad():
        program(ids)
    hook.remove()
    return seen
