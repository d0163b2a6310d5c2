"""What all views share: a view draws itself, and its command reads a text and shows it."""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, cast

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.model.hooks import Hook, compose, no_hook
from minillm_repl.render.console import FIGURES, WARNING
from minillm_repl.render.csv_table import csv_text
from minillm_repl.render.export import write_view
from minillm_repl.render.json_lines import json_value
from minillm_repl.repl.arguments import TextPair
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.places import Place
from minillm_repl.repl.quoting import TO_SCREEN, Output
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import run_interruptibly
from minillm_repl.safetext import safe, safe_line
from minillm_repl.storage.paths import user_path
from minillm_repl.tokenizer.lookup import count_prefix_spaces, find_token_ids
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.finding import find_predicted, occurrences
from minillm_repl.views.inspected_text import InspectedText, most_likely_of
from minillm_repl.views.watching import PassWatcher

Row = tuple[float, ...]
_NOTEBOOK_WIDTH = 100  # cells: a notebook does not tell how wide it is


class View:
    """The result of a computation: a frozen dataclass that rich, JSON and notebooks can show."""

    table: ClassVar[tuple[str, ...]] = ()
    """The fields that stand side by side in its CSV; by default, the lists of objects."""

    def draw(self, width: int) -> RenderableType:
        """Return the picture of this view, at most `width` cells wide."""
        raise NotImplementedError

    @property
    def pinned(self) -> tuple[int, int]:
        """How many rows and columns of the picture stay in place while the rest is scrolled."""
        return 0, 0

    @property
    def notes(self) -> list[Text]:
        """The lines above the picture: a warning, if the model sees only a part of the text."""
        if isinstance(self, Truncation) and self.unseen:
            return [Text(unseen_note(self), WARNING)]
        return []

    def picture(self, width: int) -> RenderableType:
        """Return the notes and the picture below them."""
        return Group(*self.notes, self.draw(width)) if self.notes else self.draw(width)

    def to_dict(self) -> dict[str, Any]:
        """Return the view's name and fields as JSON-ready data: `LensView` is `lens`.

        A number that is not finite becomes null.
        """
        name = type(self).__name__.removesuffix("View").lower()
        fields: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"view": name, **json_value(fields)}

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON; docs/format.md describes it."""
        return json.dumps(self.to_dict(), allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Return the view's table as CSV; docs/format.md describes it. Raises UserError if the view
        is no table.
        """
        text = csv_text(self.to_dict(), self.table)
        if not text:
            raise UserError(_("this view is no table: `--json FILE` has its numbers"))
        return text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.picture(options.max_width)

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        """Return the picture for a notebook, as HTML and as plain text."""
        from minillm_repl.render.export import notebook_html, plain_text

        return {
            "text/html": notebook_html(self, _NOTEBOOK_WIDTH),
            "text/plain": plain_text(self, _NOTEBOOK_WIDTH),
        }


def unseen_note(window: Truncation) -> str:
    """Return the warning that the model sees only a part of a text."""
    return _n(
        "the text exceeds the context: the model does not see the token at position {first}",
        "the text exceeds the context: the model does not see the {n} tokens at positions "
        "{first} to {last}",
        window.unseen,
        first=window.kept,
        last=window.kept + window.unseen - 1,
    )


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


def find_place(inspected: InspectedText, place: Place) -> tuple[int, int | None]:
    """Return the position of a place, and the token that is asked about there.

    That is the token that follows in the text; None, the most likely one, at the end of the text
    and where no place is given. Raises UserError for a place that is not in the text.
    """
    ids = inspected.all_ids
    if not place:
        return -1, None
    if place.token:
        position = find_predicted(inspected, place.token, place.number) - 1
    else:
        assert place.position is not None
        position = inspected.position_of(inspected.index_of(place.position))
    return position, ids[position + 1] if position + 1 < len(ids) else None


def inspect_place(shell: Shell, text: str, place: Place) -> tuple[InspectedText, int | None]:
    """Return the text up to a place, and the token asked about there, as `find_place` does."""
    inspected = inspect_text(shell, text)
    position, token = find_place(inspected, place)
    return inspected.up_to(inspected.index_of(position)), token


def inspect_tokens(
    shell: Shell, typed: tuple[str, str], text: str, place: Place
) -> tuple[InspectedText, int | None, int | None]:
    """Return the text up to a place, the token asked about, and the one to compare it with.

    Without a place and a text, a token that was predicted in what was said is meant there.
    """
    inspected = inspect_text(shell, text)
    token = typed[0]
    if token and not place and not text and occurrences(inspected, token):
        place = Place(token=token)
    position, following = find_place(inspected, place)
    inspected = inspected.up_to(inspected.index_of(position))
    # A word of several tokens is meant at its first, which follows there.
    is_found = bool(token) and place.token == token
    first, second = find_tokens(inspected, ("" if is_found else token, typed[1]))
    return inspected, following if first is None else first, second


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
    if model.server is None:  # else there is nothing to look into, and that is told at once
        import_torch(shell)
    watcher = PassWatcher(shell, model.checkpoint.config, len(ids))
    return inspect_model(model, ids, text, watcher)


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


def inspect_on_server(
    model: LoadedModel, ids: Sequence[int], text: str | None = None
) -> InspectedText:
    """Return what a model on a server sees of `ids`; there is no language model to look into."""
    window, tokenizer = model.visible_window(ids), model.checkpoint.tokenizer
    return InspectedText(
        cast(Any, None),
        tokenizer,
        window.ids,
        no_hook,
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
    shell.screen.end_working()
    inspected_model = model or shell.session.workspace.model
    descriptions = (
        [change.description for change in inspected_model.interventions] if inspected_model else []
    )
    notes = (
        [Text(_("active interventions: {changes}", changes=" · ".join(descriptions)), WARNING)]
        if descriptions
        else []
    )
    if inspected_model and inspected_model.server:
        notes.append(Text(inspected_model.server.numbers, FIGURES))

    def picture(width: int) -> RenderableType:
        return Group(*notes, view.picture(width))

    # `:scroll` keeps the lines above the view in place too.
    rows, columns = view.pinned
    shell.last_view, shell.last_shown = picture, view
    shell.last_pinned = (
        (rows + len(notes) + len(view.notes), columns) if rows or columns else (0, 0)
    )
    if not output.file:
        shell.screen.out.print(picture(shell.screen.out.width))
        return
    text = view.to_csv() if output.is_csv else view.to_json()
    if output.file == "-":
        out = shell.screen.out  # a pipe gets the text as it is
        out.file.write(safe(text) if out.is_terminal else text)
    else:
        path = user_path(output.file)
        write_view(path, text.encode(), overwrite=output.overwrite)
        shell.screen.note(_("numbers saved to {path}", path=safe_line(str(path))))


def active_interventions(shell: Shell, command: str) -> list[str]:
    """Return the descriptions of the interventions that a command has made in the open model."""
    interventions = shell.require_model().interventions
    return [each.description for each in interventions if each.command == command]
