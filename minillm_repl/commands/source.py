"""`:source`."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.views.inspecting import import_torch, inspect_text, show_view

if TYPE_CHECKING:
    from minillm_repl.model.build import LanguageModel

_OF_MODEL = {  # where it is in every model
    "attention": "blocks.0.attention",
    "feed-forward": "blocks.0.mlp",
    "norm": "norm_f",
    "block": "blocks.0",
    "model": "",
}
_ELSEWHERE = {
    "attend": "minillm_repl.model.attention:attend",
    "rotary": "minillm_repl.model.rope",
    "sampling": "minillm_repl.generate.sampling",
    "generate": "minillm_repl.generate.generate:generate",
    "loss": "minillm_repl.training.trainer:Trainer.summed_loss",
    "train": "minillm_repl.training.trainer:Trainer.step",
}


@command(
    "source",
    arguments=(Words("part", "PART", *_OF_MODEL, *_ELSEWHERE),),
    json=True,
    group="Look inside",
    example=":source attention",
)
def source(shell: Shell, asked: Arguments) -> None:
    """Show the program's source code for a part of the model.

    This code runs when the open model is inspected or trained. In a chat, a compiled decoder may
    run instead: it computes the same, but faster. `:model` shows which one runs. Without PART, the
    view lists the parts.

    The comments at the ends of lines are tensor shapes. If there is a text, sizes replace the
    letters: b batch, t time (tokens), w width (d_model), h heads, g KV heads, d d_head, v
    vocabulary.
    """
    model = shell.require_model()
    import_torch(shell)
    from minillm_repl.insight.shapes import sizes_on
    from minillm_repl.insight.source import source_view
    from minillm_repl.insight.views.source import SourcesView
    from minillm_repl.render.source import source_picture, sources_picture

    parts = _parts(model.language_model)
    if not asked.part:
        view = SourcesView(tuple(source_view(name, thing) for name, thing in parts.items()))
        show_view(shell, view, sources_picture, asked.output)
        return
    name = asked.part.lower()
    if name not in parts:
        there = ", ".join(parts)
        raise UserError(
            _("no part {name}; available: {parts}", name=safe_line(name[:40]), parts=there)
        )
    sizes = (
        sizes_on(inspect_text(shell))
        if name in _OF_MODEL and shell.session.conversation.ids
        else None
    )
    show_view(shell, source_view(name, parts[name], sizes), source_picture, asked.output)


def _parts(model: "LanguageModel") -> dict[str, Any]:
    """Return the parts of this program that the open model uses, by name."""
    parts: dict[str, Any] = {
        name: type(model.get_submodule(path)) for name, path in _OF_MODEL.items()
    }
    parts |= {name: resolve_name(path) for name, path in _ELSEWHERE.items()}
    if not parts["norm"].__module__.startswith("minillm_repl."):  # torch's own
        del parts["norm"]
    if model.config.rope is None:
        del parts["rotary"]
    return parts
