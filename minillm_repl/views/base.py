"""What all views share: they draw themselves, write themselves as JSON, and know a notebook."""

import dataclasses
import json
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from minillm_repl.language import _n
from minillm_repl.render.console import WARNING
from minillm_repl.tokenizer.base import Token
from minillm_repl.tokenizer.truncation import Truncation

Row = tuple[float, ...]
_NOTEBOOK_WIDTH = 100  # cells: a notebook does not tell how wide it is


@dataclass(frozen=True)
class Likely:
    """A token that can come next, and its probability under the model's own softmax."""

    token: Token
    prob: float


class View:
    """The result of a computation: a frozen dataclass that rich, JSON and notebooks can show."""

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
        return {"view": name, **_finite(fields)}

    def to_json(self) -> str:
        """Return `to_dict` as one line of JSON; docs/format.md describes it."""
        return json.dumps(self.to_dict(), allow_nan=False) + "\n"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.picture(options.max_width)

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        """Return the picture for a notebook, as HTML and as plain text."""
        from minillm_repl.render.export import notebook_html, plain_text

        return {
            "text/html": notebook_html(self, _NOTEBOOK_WIDTH),
            "text/plain": plain_text(self, _NOTEBOOK_WIDTH),
        }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


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
