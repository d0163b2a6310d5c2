"""What all views have in common: what they look at, how they are asked for, and where they go."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _, _n
from minillm_repl.render.console import WARNING
from minillm_repl.repl.arguments import check_not_argument
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.quoting import (
    TO_SCREEN,
    Output,
    parse_output,
    quoted_spans,
)
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import run_interruptibly
from minillm_repl.repl.view_files import check_overwritable, write_view
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path
from minillm_repl.tokenizer.lookup import count_prefix_spaces, find_token_ids
from minillm_repl.tokenizer.truncation import Truncation

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.insight.inspected_text import InspectedText

DrawView = Callable[[Any, int], RenderableType]
"""Draws a view into a width, in cells."""


@dataclass(frozen=True)
class Arguments:
    """What was asked for after the name of a view: words, perhaps a text in quotes, and where
    the numbers go.
    """

    words: str
    text: str = ""  # the text to look at; none means what was said last
    output: Output = TO_SCREEN

    @classmethod
    def parse(cls, argument: str) -> "Arguments":
        """Read what follows a command: `2.1 "a text" --json FILE`; quoted options do not count.

        Raises UserError for what is no option, for quotes with nothing in them, for a file that no
        view may replace.
        """
        rest, output = _parse_output(argument)
        start, end = (quoted_spans(rest) or [(0, 0)])[-1]
        if rest[start:end][:1] != '"' or end < len(rest) or end - start < 2 or rest[-1] != '"':
            return cls(rest.strip(), "", output)
        if end - start == 2:
            raise UsageError(_("the quotes contain no text"))
        return cls(rest[:start].strip(), rest[start + 1 : end - 1], output)

    @classmethod
    def parse_verbatim(cls, argument: str) -> "Arguments":
        """Read what follows a command with its text as it is: `--json FILE` counts only before it.

        Raises UserError as `of` does.
        """
        options = re.match(
            r"--json(?=\s|$)(\s+(\"[^\"]*\"|'[^']*'|\S+))?(\s+--overwrite(?=\s|$))?", argument
        )
        if not options:
            return cls("", argument)
        return cls("", argument[options.end() :].removeprefix(" "), _parse_output(options[0])[1])

    @property
    def full_text(self) -> str:
        """All that was said, as a text: what stands before the quotes belongs to it."""
        return (
            f'{self.words} "{self.text}"' if self.words and self.text else self.text or self.words
        )

    def check_empty(self) -> None:
        """Raise Misunderstood if there is anything but options."""
        if self.full_text:
            raise UsageError(_("unexpected argument {text!r}", text=safe_line(self.full_text)))

    def split_selector(self, pattern: str) -> tuple[re.Match[str] | None, str]:
        """Split the words into what matches `pattern` at their start, and a text, which may also
        stand in quotes.

        Raises Misunderstood for a text without quotes that begins like a layer, a head or a
        position.
        """
        found = re.match(rf"(?:{pattern})(?=\s|$)", self.words)
        rest = (self.words[found.end() :] if found else self.words).strip()
        check_not_argument(rest)
        return found, replace(self, words=rest).full_text

    def parse_token_pair(self, inspected: "InspectedText") -> tuple[int | None, int | None]:
        """Read the words as `TOKEN vs TOKEN`, either of which may be missing.

        Raises UserError if one is no token.
        """
        from minillm_repl.insight.inspected_text import most_likely_of

        word, vs, other = (each.strip() for each in f" {self.words} ".partition(" vs "))
        if vs and not other:
            raise UsageError(_("a token is missing after `vs`; write the token vs itself as #ID"))
        token, versus = (
            most_likely_of(inspected, find_token_ids(inspected.tokenizer, each)) if each else None
            for each in (word, other)
        )
        return token, versus


def _parse_output(argument: str) -> tuple[str, Output]:
    rest, output = parse_output(argument)
    if output.file and output.file != "-":
        check_overwritable(
            user_path(output.file), overwrite=output.overwrite
        )  # now, not after the work
    return rest, output


def inspect_text(shell: Shell, text: str = "") -> "InspectedText":
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
) -> "InspectedText":
    """Return a model and what it sees of `ids`, which `text` has become where that is known."""
    window = model.visible_window(ids)
    import_insight(shell)
    from minillm_repl.insight.inspected_text import InspectedText
    from minillm_repl.model.hooks import compose

    hook, tokenizer = compose(model.hook, _interrupt_hook(shell)), model.checkpoint.tokenizer
    prepended_bytes = count_prefix_spaces(tokenizer, ids, text)
    return InspectedText(
        model.language_model,
        tokenizer,
        window.ids,
        hook,
        window.dropped_ids,
        window.kept,
        prepended_bytes,
    )


def import_insight(shell: Shell) -> None:
    """Import torch, which takes a second or two; on Ctrl-C, UserError is raised."""
    with shell.screen.waiting(_("preparing to inspect the model")):
        run_interruptibly(
            partial(import_module, "minillm_repl.insight.inspected_text"), shell.interrupted
        )


def show_view(
    shell: Shell,
    view: Any,
    draw: DrawView,
    output: Output = TO_SCREEN,
    model: LoadedModel | None = None,
    pinned: tuple[int, int] = (0, 0),
) -> None:
    """Draw a view, or write its numbers to a file; `:export` and `:scroll` mean it from now on.

    `of` is the model that was looked at, if not the open one; what is changed in it is told above
    the view, and so is what the model does not see of the text. `pins` are the rows and columns of
    it that stay when it is scrolled.
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
    if getattr(view, "unseen", 0):
        notes.append(Text(unseen_note(view), WARNING))

    def drawn(width: int) -> RenderableType:
        return Group(*notes, draw(view, width)) if notes else draw(view, width)

    shell.last_view, shell.last_pinned = (
        drawn,
        (pinned[0] + len(notes), pinned[1]) if any(pinned) else pinned,
    )
    if not output.file:
        shell.screen.out.print(drawn(shell.screen.out.width))
        return
    from minillm_repl.render.json_lines import view_json

    text = view_json(view)
    if output.file == "-":
        shell.screen.out.file.write(text)
        return
    path = user_path(output.file)
    write_view(path, text.encode(), overwrite=output.overwrite)
    shell.screen.note(_("numbers saved to {path}", path=safe_line(str(path))))


def unseen_note(window: Truncation) -> str:
    """Return what to say of a text of which the model sees only a part."""
    return _n(
        "the text exceeds the context: the model does not see the token at position {first}",
        "the text exceeds the context: the model does not see the {n} tokens at positions "
        "{first} to {last}",
        window.unseen,
        first=window.kept,
        last=window.kept + window.unseen - 1,
    )


def _interrupt_hook(shell: Shell) -> Callable[[str, "Tensor"], "Tensor"]:
    """Return a tap that changes nothing, and ends the pass when Ctrl-C has been pressed."""

    def hook(_name: str, tensor: "Tensor") -> "Tensor":
        if shell.interrupted():
            raise UserError(_("stopped"))
        return tensor

    return hook
