"""What the commands of all views share: the text they read, their arguments, their output."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook, compose, no_hook
from minillm_repl.render.console import WARNING
from minillm_repl.render.export import write_view
from minillm_repl.repl.arguments import TextPair
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.quoting import TO_SCREEN, Output
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import run_interruptibly
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path
from minillm_repl.tokenizer.lookup import count_prefix_spaces, find_token_ids
from minillm_repl.views.base import View
from minillm_repl.views.inspected_text import InspectedText, most_likely_of

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = TextPair("vs", "[TOKEN] [vs TOKEN]")
"""A token that can come next, and another to compare it with; either may be missing."""


def find_tokens(inspected: InspectedText, typed: tuple[str, str]) -> tuple[int | None, int | None]:
    """Return the ids of the tokens of `TOKENS`. If several fit, the most likely one is meant.

    Raises UserError for a text that is not one token.
    """
    first, second = (
        most_likely_of(inspected, find_token_ids(inspected.tokenizer, text)) if text else None
        for text in typed
    )
    return first, second


def inspect_text(shell: Shell, text: str = "") -> InspectedText:
    """Return the open model and the text to look at: the one given, or else what was said last.

    Of a text longer than the context, what the model sees. Raises UserError if there is no text.
    """
    model = shell.require_model()
    return inspect_ids(shell, model, text_ids(shell, model, text), text or None)


def text_ids(shell: Shell, model: LoadedModel, text: str = "") -> list[int]:
    """Return the tokens of the text to look at: the one given, or else what was said last, whole.

    Raises UserError if there is none.
    """
    ids = shell.encode(model, text) if text else shell.session.conversation.ids
    if not ids:
        raise UserError(_("no text to inspect: type a prompt first, or give a text in quotes"))
    return ids


def inspect_ids(
    shell: Shell, model: LoadedModel, ids: Sequence[int], text: str | None = None
) -> InspectedText:
    """Return a model and what it sees of `ids`, which `text` has become where that is known."""
    import_torch(shell)
    return inspect_model(model, ids, text, _interrupt_hook(shell))


def inspect_model(
    model: LoadedModel, ids: Sequence[int], text: str | None = None, hook: Hook = no_hook
) -> InspectedText:
    """Return a model with its interventions, and then `hook`, and what it sees of `ids`."""
    window, tokenizer = model.visible_window(ids), model.checkpoint.tokenizer
    return InspectedText(
        model.language_model,
        tokenizer,
        window.ids,
        compose(model.hook, hook),
        window.dropped_ids,
        window.kept,
        count_prefix_spaces(tokenizer, ids, text),
    )


def import_torch(shell: Shell) -> None:
    """Import torch, which takes a second or two, unless Ctrl-C is pressed: then UserError is
    raised.
    """
    with shell.screen.waiting(_("preparing to inspect the model")):
        run_interruptibly(partial(import_module, "minillm_repl.model.build"), shell.interrupted)


def show(
    shell: Shell, view: View, output: Output = TO_SCREEN, model: LoadedModel | None = None
) -> None:
    """Draw a view, or write its numbers to a file. `:export` and `:scroll` then mean this view.

    `model` is the model that was inspected, if it is not the open one. A line above the view names
    the interventions that are active in it.
    """
    inspected_model = model or shell.session.workspace.model
    descriptions = (
        [change.description for change in inspected_model.interventions] if inspected_model else []
    )
    notes = (
        [Text(_("active interventions: {changes}", changes=" · ".join(descriptions)), WARNING)]
        if descriptions
        else []
    )

    def picture(width: int) -> RenderableType:
        return Group(*notes, view.picture(width))

    rows, columns = view.pinned
    shell.last_view, shell.last_shown = picture, view
    shell.last_pinned = (
        (rows + len(notes) + len(view.notes), columns) if rows or columns else (0, 0)
    )
    if not output.file:
        shell.screen.out.print(picture(shell.screen.out.width))
    elif output.file == "-":
        shell.screen.out.file.write(view.to_json())
    else:
        path = user_path(output.file)
        write_view(path, view.to_json().encode(), overwrite=output.overwrite)
        shell.screen.note(_("numbers saved to {path}", path=safe_line(str(path))))


def active_interventions(shell: Shell, command: str) -> list[str]:
    """Return the descriptions of the interventions that a command has made in the open model."""
    interventions = shell.require_model().interventions
    return [each.description for each in interventions if each.command == command]


def _interrupt_hook(shell: Shell) -> Callable[[str, "Tensor"], "Tensor"]:
    """Return a tap that changes nothing, and ends the pass when Ctrl-C has been pressed."""

    def hook(_name: str, tensor: "Tensor") -> "Tensor":
        if shell.interrupted():
            raise UserError(_("stopped"))
        return tensor

    return hook
