"""`:source`: the program's own code, with the sizes of a text in its comments."""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

import minillm_repl
from minillm_repl.errors import UserError
from minillm_repl.language import N_, _, current_language
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, title
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.views import note
from minillm_repl.views.base import View, import_torch, inspect_text, show
from minillm_repl.views.shapes import compute_sizes

if TYPE_CHECKING:
    from minillm_repl.model.build import LanguageModel
    from minillm_repl.repl.shell import Shell

_ROOT = Path(minillm_repl.__file__).parent
# A comment at the end of a line that names a shape; b is its first dimension.
_SHAPE = re.compile(r"  # .*\(b, .*")
_ANY_SHAPE = re.compile(r"# \(\w+, [^)]*\)( -> \([^)]*\))?$")
_SIZED_SHAPE = r"(?<=  # ).*\(\d+, .*"
_OF_MODEL = {  # where each part is in a model
    "attention": "blocks.0.attention",
    "feed-forward": "blocks.0.mlp",
    "norm": "norm_f",
    "canon": "blocks.0.canon1",
    "block": "blocks.0",
    "model": "",
}
_ELSEWHERE = {
    "attend": "minillm_repl.model.attention:attend",
    "rotary": "minillm_repl.model.rope",
    "sampling": "minillm_repl.generate.sampling",
    "penalties": "minillm_repl.generate.penalties",
    "generate": "minillm_repl.generate.generate:generate",
    "loss": "minillm_repl.training.trainer:Trainer.loss",
    "train": "minillm_repl.training.trainer:Trainer.step",
}
_SUMMARIES = {  # for who does not read the docstrings, which are English
    "attention": N_("tokens exchange information"),
    "feed-forward": N_("each token by itself: wider, bent, back"),
    "norm": N_("brings vectors to an even size"),
    "canon": N_("mixes in the three tokens before"),
    "block": N_("attention and feed-forward, added to the stream"),
    "model": N_("embedding, blocks, logits"),
    "attend": N_("dot products, softmax, weighted sum"),
    "rotary": N_("rotates queries and keys by their position"),
    "sampling": N_("from logits to one drawn token"),
    "penalties": N_("makes tokens that were there less likely"),
    "generate": N_("writes on, token by token"),
    "loss": N_("how wrong a prediction is"),
    "train": N_("one step of training"),
}


@dataclass(frozen=True, kw_only=True)
class SourceView(View):
    """One part of the program, as it is written."""

    part: str  # its name in `:source`
    file: str  # in this package
    line: int  # where it begins, from 1
    summary: str  # the first line of its docstring
    code: str
    sized: bool = False  # whether the shapes in its comments are those of a text

    def draw(self, width: int) -> RenderableType:
        """Return the code in colours; the shapes in its comments stand out."""
        from rich.syntax import Syntax  # Pygments takes 50 ms to import

        code = Syntax(
            "", "python", theme="ansi_dark", background_color="default", word_wrap=True
        ).highlight(without_prose(self.code) if current_language() == "ko" else self.code)
        code.rstrip()
        code.no_wrap = width >= UNLIMITED_WIDTH
        if self.sized:
            code.highlight_regex(_SIZED_SHAPE, f"not dim {MODEL}")
        note = [Text(_("# (…): tensor shapes for the text so far"), FIGURES)] if self.sized else []
        place = _("{file}, line {line}", file=f"minillm_repl/{self.file}", line=self.line)
        return Group(title(self.part, place), code, *note)


@dataclass(frozen=True)
class SourcesView(View):
    """All parts that can be shown."""

    parts: tuple[SourceView, ...]

    def draw(self, _width: int) -> RenderableType:
        """Return a row for each part."""
        table = plain_table(
            _("part"), _("description"), _("file"), _("lines"), right=(3,), wrap=(1, 3)
        )
        for each in self.parts:
            said = (
                _(_SUMMARIES.get(each.part, each.summary))
                if current_language() == "ko"
                else each.summary
            )
            summary = Text(said, no_wrap=True, overflow="ellipsis")
            lines = str(each.code.count("\n") + 1)
            table.add_row(Text(each.part, TITLE), summary, Text(each.file, FIGURES), lines)
        hint = _("`:source {part}` shows one of them", part=self.parts[-1].part)
        return Group(
            title(_("source code of the program"), _("in {folder}", folder="minillm_repl/")),
            table,
            Text(hint, FIGURES),
        )


def compute(part: str, thing: Any, sizes: Mapping[str, int] | None = None) -> SourceView:
    """Return the code of a class, a function or a module.

    With `sizes` (those of `shapes.compute_sizes`), the sizes replace the letters in its comments.
    Raises UserError if the code is not there.
    """
    try:
        lines, line = inspect.getsourcelines(thing)
        file = Path(inspect.getsourcefile(thing) or "").relative_to(_ROOT)
    except (OSError, ValueError):
        raise UserError(_("this program was installed without its source code")) from None
    code = dedent("".join(lines)).rstrip()
    if sizes is not None:
        code = _SHAPE.sub(lambda comment: _with_sizes(comment[0], sizes), code)
    return SourceView(
        part=part,
        file=file.as_posix(),
        line=max(line, 1),
        summary=(inspect.getdoc(thing) or "").partition("\n")[0],
        code=code,
        sized=sizes is not None,
    )


def without_prose(code: str) -> str:
    """Return code without its docstrings and comments, but with the shapes at the ends of lines."""
    lines = code.splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            drop |= set(range(first.lineno - 1, first.end_lineno or first.lineno))
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        place, column = token.start[0] - 1, token.start[1]
        if token.type == tokenize.COMMENT and not _ANY_SHAPE.match(token.string):
            lines[place] = lines[place][:column].rstrip()
            drop |= set() if lines[place] else {place}
    kept = "\n".join(line for place, line in enumerate(lines) if place not in drop)
    return re.sub(r"\n{3,}", "\n\n", kept).strip("\n")


def _with_sizes(comment: str, sizes: Mapping[str, int]) -> str:
    named = {
        "b": 1,
        "past": 0,
        "g": sizes["h"],  # unless the model has fewer KV heads
        **({"d_mlp": sizes["f"], "hidden": sizes["f"]} if "f" in sizes else {}),
        **sizes,
    }
    return re.sub(r"\w+", lambda word: str(named.get(word[0], word[0])), comment)


def _parts(model: "LanguageModel") -> dict[str, Any]:
    """Return the parts of this program that the open model uses, by name."""
    first = model.config.attention_layers[0]  # in most models, 0
    paths = {name: path.replace(".0", f".{first}") for name, path in _OF_MODEL.items()}
    if not model.config.has_canon_layers:
        del paths["canon"]
    parts: dict[str, Any] = {name: type(model.get_submodule(path)) for name, path in paths.items()}
    parts |= {name: resolve_name(path) for name, path in _ELSEWHERE.items()}
    if not parts["norm"].__module__.startswith("minillm_repl."):  # it is torch's own
        del parts["norm"]
    if model.config.rope is None:
        del parts["rotary"]
    return parts


@command(
    "source",
    arguments=(Words("part", "PART|note PART", *_OF_MODEL, *_ELSEWHERE, "note"),),
    json=True,
    group="Look inside",
    example=":source attention",
)
def source(shell: "Shell", asked: Arguments) -> None:
    """Show the program's source code for a part of the model.

    This code runs when the open model is inspected or trained. In a chat, the C kernels may
    run instead: they compute the same, but faster. `:model` shows which one runs. Without PART, the
    view lists the parts.

    The comments at the ends of lines are tensor shapes. If there is a text, sizes replace the
    letters: b batch, t time (tokens), w width (d_model), h heads, g KV heads, d d_head, v
    vocabulary.

    :source note lists the parts of the study note's program, one page that has all of a GPT.
    :source note Head shows one and runs it on the text, with the weights of the open model if that
    is of the note's kind.
    """
    model = shell.require_model()
    import_torch(shell)
    if asked.part.lower().split(maxsplit=1)[:1] == ["note"]:
        part = asked.part[len("note") :].strip()
        program = note.compute(inspect_text(shell), part) if part else note.list_parts()
        show(shell, program, asked.output)
        return
    parts = _parts(model.language_model)
    if not asked.part:
        view = SourcesView(tuple(compute(name, thing) for name, thing in parts.items()))
        show(shell, view, asked.output)
        return
    name = asked.part.lower()
    if name not in parts:
        there = ", ".join(parts)
        raise UserError(
            _("no part {name}; available: {parts}", name=safe_line(name[:40]), parts=there)
        )
    has_text = bool(shell.session.conversation.ids)
    sizes = compute_sizes(inspect_text(shell)) if name in _OF_MODEL and has_text else None
    show(shell, compute(name, parts[name], sizes), asked.output)
