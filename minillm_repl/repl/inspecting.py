"""What all views have in common: what they look at, how they are asked for, and where they go."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import Misunderstood, UserError
from minillm_repl.language import _, _n
from minillm_repl.render.console import WARNING
from minillm_repl.repl.argument_parsing import SCREEN, Output, check_no_place, quoted, take_output
from minillm_repl.repl.model_loading import Model
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.signals import patiently
from minillm_repl.repl.view_files import check_ours, write_view
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path
from minillm_repl.tokenizer.lookup import find_token, put_before
from minillm_repl.tokenizer.window import OnText

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.insight.inspected_text import Subject

Draw = Callable[[Any, int], RenderableType]
"""Draws a view into a width, in cells."""


@dataclass(frozen=True)
class Asked:
    """What was asked for after the name of a view: words, perhaps a text in quotes, and where
    the numbers go.
    """

    words: str
    text: str = ""  # the text to look at; none means what was said last
    output: Output = SCREEN

    @classmethod
    def of(cls, argument: str) -> "Asked":
        """Read what follows a command: `2.1 "a text" --json FILE`; options count only outside
        quotes.

        Raises UserError for what is no option, for quotes with nothing in them, for a file that no
        view may replace.
        """
        rest, output = _output(argument)
        start, end = (quoted(rest) or [(0, 0)])[-1]
        if rest[start:end][:1] != '"' or end < len(rest) or end - start < 2 or rest[-1] != '"':
            return cls(rest.strip(), "", output)
        if end - start == 2:
            raise Misunderstood(_("there is no text between the quotes"))
        return cls(rest[:start].strip(), rest[start + 1 : end - 1], output)

    @classmethod
    def verbatim(cls, argument: str) -> "Asked":
        """Read what follows a command whose text is taken as it is: `--json FILE` counts only
        before it.

        Raises UserError as `of` does.
        """
        options = re.match(
            r"--json(?=\s|$)(\s+(\"[^\"]*\"|'[^']*'|\S+))?(\s+--overwrite(?=\s|$))?", argument
        )
        if not options:
            return cls("", argument)
        return cls("", argument[options.end() :].removeprefix(" "), _output(options[0])[1])

    @property
    def whole(self) -> str:
        """All that was said, as a text: what stands before the quotes belongs to it."""
        return (
            f'{self.words} "{self.text}"' if self.words and self.text else self.text or self.words
        )

    def nothing(self) -> None:
        """Raise Misunderstood if there is anything but options."""
        if self.whole:
            raise Misunderstood(
                _("nothing comes after this, not {text!r}", text=safe_line(self.whole))
            )

    def selector(self, pattern: str) -> tuple[re.Match[str] | None, str]:
        """Split the words into what matches `pattern` at their start, and a text, which may also
        stand in quotes.

        Raises Misunderstood for a text without quotes that begins like a layer, a head or a
        position.
        """
        found = re.match(rf"(?:{pattern})(?=\s|$)", self.words)
        rest = (self.words[found.end() :] if found else self.words).strip()
        check_no_place(rest)
        return found, replace(self, words=rest).whole

    def tokens(self, looked: "Subject") -> tuple[int | None, int | None]:
        """Read the words as `TOKEN vs TOKEN`, either of which may be missing.

        Raises UserError if one is no token.
        """
        from minillm_repl.insight.inspected_text import likelier

        word, vs, other = (each.strip() for each in f" {self.words} ".partition(" vs "))
        if vs and not other:
            raise Misunderstood(
                _("a token is missing after `vs`; the token vs itself is written as #ID")
            )
        token, versus = (
            likelier(looked, find_token(looked.tokenizer, each)) if each else None
            for each in (word, other)
        )
        return token, versus


def _output(argument: str) -> tuple[str, Output]:
    rest, output = take_output(argument)
    if output.file and output.file != "-":
        check_ours(user_path(output.file), overwrite=output.overwrite)  # now, not after the work
    return rest, output


def subject(shell: Shell, text: str = "") -> "Subject":
    """Return the open model and the text to look at: the one given, or else what was said last.

    Of a text longer than the context, what the model sees. Raises UserError if there is no text.
    """
    model = shell.model()
    return looking_at(shell, model, text_ids(shell, model, text), text or None)


def text_ids(shell: Shell, model: Model, text: str = "") -> list[int]:
    """Return the tokens of the text to look at: the one given, or else what was said last, whole.

    Raises UserError if there is none.
    """
    ids = shell.encode(model, text) if text else shell.session.ids
    if not ids:
        raise UserError(
            _("there is no text to look at: type a prompt first, or give one in quotes")
        )
    return ids


def looking_at(
    shell: Shell, model: Model, ids: Sequence[int], text: str | None = None
) -> "Subject":
    """Return a model and what it sees of `ids`, which `text` has become where that is known."""
    seen = model.seen(ids)
    get_ready(shell)
    from minillm_repl.insight.inspected_text import Subject
    from minillm_repl.model.hooks import in_turn

    tap, tokenizer = in_turn(model.tap, _stopping(shell)), model.checkpoint.tokenizer
    lead = put_before(tokenizer, ids, text)
    return Subject(model.torch, tokenizer, seen.ids, tap, seen.gap, seen.kept, lead)


def get_ready(shell: Shell) -> None:
    """Import torch, which takes a second or two, unless Ctrl-C is pressed: then UserError is
    raised.
    """
    with shell.screen.waiting(_("getting ready to look inside")):
        patiently(partial(import_module, "minillm_repl.insight.inspected_text"), shell.interrupted)


def show(
    shell: Shell,
    view: Any,
    draw: Draw,
    output: Output = SCREEN,
    of: Model | None = None,
    pins: tuple[int, int] = (0, 0),
) -> None:
    """Draw a view, or write its numbers to a file; it is what `:export` and `:scroll` mean from now
    on.

    `of` is the model that was looked at, if not the open one; what is changed in it is told above
    the view, and so is what the model does not see of the text. `pins` are the rows and columns of
    it that stay when it is scrolled.
    """
    looked = of or shell.session.model
    told = [change.told for change in looked.changes] if looked else []
    first = (
        [Text(_("the model is changed: {changes}", changes=" · ".join(told)), WARNING)]
        if told
        else []
    )
    if getattr(view, "unseen", 0):
        first.append(Text(not_seen(view), WARNING))

    def drawn(width: int) -> RenderableType:
        return Group(*first, draw(view, width)) if first else draw(view, width)

    shell.last_view, shell.last_pins = drawn, (pins[0] + len(first), pins[1]) if any(pins) else pins
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
    shell.screen.note(_("the numbers are in {path}", path=safe_line(str(path))))


def not_seen(part: OnText) -> str:
    """Return what to say of a text of which the model sees only a part."""
    return _n(
        "the text is longer than the context: the model does not see the token at position {first}",
        "the text is longer than the context: the model does not see the {n} tokens at "
        "positions {first} to {last}",
        part.unseen,
        first=part.kept,
        last=part.kept + part.unseen - 1,
    )


def _stopping(shell: Shell) -> Callable[[str, "Tensor"], "Tensor"]:
    """Return a tap that changes nothing, and ends the pass when Ctrl-C has been pressed."""

    def tap(_name: str, tensor: "Tensor") -> "Tensor":
        if shell.interrupted():
            raise UserError(_("stopped"))
        return tensor

    return tap
