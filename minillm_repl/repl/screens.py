"""The table of candidates of `:step`, drawn in place with prompt_toolkit."""

from collections.abc import Callable
from dataclasses import replace

from prompt_toolkit.application import Application
from prompt_toolkit.filters import Condition, Filter
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from rich.console import Console
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.generate import Step
from minillm_repl.generate.interactive import InteractiveDecoder
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE, WARNING
from minillm_repl.render.generation import step_table, step_title
from minillm_repl.render.listing import SOURCE_ROWS, rank_text
from minillm_repl.repl.keyboard import color_depth, render_ansi, suspend
from minillm_repl.repl.settings import Settings, samplers_heading
from minillm_repl.safetext import expand_to_graphemes, graphemes, safe_line, strip_joiners
from minillm_repl.tokenizer import Tokenizer, decode, label

# rows beside the candidates: two of title, two of heading, two below, and one that stays free
_OTHER_ROWS = 7


class Stepper:
    """One walk on a terminal.

    Raises UserError, also while it runs, if the logits are not numbers.
    """

    def __init__(
        self,
        decoder: InteractiveDecoder,
        tokenizer: Tokenizer,
        settings: Settings,
        console: Console,
    ) -> None:
        self._decoder, self._tokenizer = decoder, tokenizer
        self._settings, self._console = settings, console
        self._prompt_text = decode(tokenizer, decoder.ids)
        self._typed: str | None = None  # what is being typed
        self._warning = ""
        self._refresh_step()
        self._app: Application[bool] = Application(
            Layout(Window(FormattedTextControl(self._render, focusable=True, show_cursor=False))),
            key_bindings=self._keys(),
            color_depth=color_depth(console),
            erase_when_done=True,  # the whole text takes the place of the table
        )

    def run(self) -> bool:
        """Let the user choose until they leave; return whether the model is to write the rest."""
        return self._app.run()

    def _refresh_step(self) -> None:
        self._step = self._decoder.next_step()
        chosen = (row for row, each in enumerate(self._step.top) if each.chosen)
        self._row = self._sampled_row = next(chosen, 0)
        if not self._step.top:
            raise UserError(_("the server tells no probabilities to choose from"))

    # -- what is shown

    def _render(self) -> ANSI:
        """Return the text so far, the candidates and the keys, for the terminal's present size."""
        size = self._app.output.get_size()
        step = self._selected_step()
        heading, rule, *rows = step_table(
            self._step,
            samplers_heading(self._settings),
            size.columns,
            self._tokenizer.vocab_size,
            self._row,
        ).split("\n")
        source_rows = SOURCE_ROWS if step.listing else 0
        room = max(1, size.rows - _OTHER_ROWS - source_rows)
        first = max(0, self._row - room + 1)
        text = self._text([*self._decoder.new_ids, step.id])
        shown = [
            step_title(step, self._prompt_text, text, size.columns),
            heading,
            rule,
            *rows[first : first + room],
        ]
        return render_ansi(
            [*shown, self._message(), self._help_line()], size.columns, self._console
        )

    def _selected_step(self) -> Step:
        """Return the step as it is if Enter is pressed: the token that it takes need not be the
        one that was drawn.
        """
        if self._row == self._sampled_row:
            return self._step
        taken = self._step.top[self._row]
        top = tuple(replace(each, chosen=each is taken) for each in self._step.top)
        return replace(
            self._step, id=taken.id, model_prob=taken.model_prob, rank=self._row + 1, top=top
        )

    def _message(self) -> Text:
        if self._warning or self._row == self._sampled_row:
            return Text(self._warning, WARNING)
        return Text(
            _(
                "sampled: {token}, rank {rank}",
                token=label(self._tokenizer, self._step.id),
                rank=rank_text(self._step.rank, len(self._step.top) - 1),
            ),
            FIGURES,
        )

    def _help_line(self) -> Text:
        if self._typed is None:
            keys = _("Enter takes ▶ · ↑ ↓ 1-9 others · type your own · ⌫ back · f finish · q leave")
            return Text(keys, FIGURES)
        what, keys = _("your text: "), _("Enter adds it · Esc cancels")
        return Text.assemble(
            (what, TITLE), (strip_joiners(safe_line(self._typed)), MODEL), "▏ ", (keys, FIGURES)
        )

    def _text(self, ids: list[int]) -> str:
        return b"".join(map(self._tokenizer.token_bytes, ids)).decode("utf-8", "replace")

    # -- what keys do

    def _keys(self) -> KeyBindings:
        keys, typing = KeyBindings(), Condition(lambda: self._typed is not None)

        def bind(
            *names: str, act: Callable[[KeyPressEvent], None], when: Filter | bool = True
        ) -> None:
            for name in names:
                keys.add(name, filter=when)(self._guarded(act))

        bind("<any>", act=lambda event: self._type(event.data))  # what is no key below
        bind(Keys.BracketedPaste, act=lambda event: self._type(event.data))
        for row, digit in enumerate("1234567890"):  # 0 is the tenth, as on the keyboard
            bind(digit, act=self._row_selector(row), when=~typing)
        bind("c-z", act=suspend)
        bind("f", act=lambda _event: self._app.exit(result=True), when=~typing)
        bind(
            "q",
            "c-c",
            "c-d",
            "escape",
            act=lambda _event: self._app.exit(result=False),
            when=~typing,
        )
        bind("c-c", "escape", act=lambda _event: self._stop_typing(), when=typing)
        bind("up", act=lambda _event: self._move(-1), when=~typing)
        bind("down", act=lambda _event: self._move(1), when=~typing)
        # Tab begins a text, in which f, q and digits are letters.
        bind("tab", act=lambda _event: self._type(""), when=~typing)
        bind("enter", act=lambda _event: self._select_row(self._row), when=~typing)
        bind("enter", act=lambda _event: self._add_typed(), when=typing)
        bind("backspace", act=lambda _event: self._back(), when=~typing)
        bind("backspace", act=lambda _event: self._erase(), when=typing)
        return keys

    def _guarded(self, act: Callable[[KeyPressEvent], None]) -> Callable[[KeyPressEvent], None]:
        """Return what a key does; an error of the user's or the model's leaves the table."""

        def pressed(event: KeyPressEvent) -> None:
            self._warning = ""
            try:
                act(event)
            except UserError as error:
                self._app.exit(exception=error)

        return pressed

    def _row_selector(self, row: int) -> Callable[[KeyPressEvent], None]:
        return lambda _event: self._select_row(row)

    def _select_row(self, row: int) -> None:
        if row >= len(self._step.top):
            self._warning = _("only {n} candidates here", n=len(self._step.top))
        elif self._decoder.append(self._step.top[row].id):
            self._refresh_step()
        else:
            self._app.exit(result=False)  # this token ends the text

    def _move(self, by: int) -> None:
        self._row = min(max(self._row + by, 0), len(self._step.top) - 1)

    def _back(self) -> None:
        if self._decoder.undo():
            self._refresh_step()
        else:
            self._warning = _("nothing left to take back")

    def _type(self, text: str) -> None:
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as terminals paste
        self._typed = (self._typed or "") + "".join(
            each for each in text if each.isprintable() or each == "\n"
        )

    def _erase(self) -> None:
        self._typed = "".join([*graphemes(self._typed)][:-1]) if self._typed else None

    def _stop_typing(self) -> None:
        self._typed = None

    def _add_typed(self) -> None:
        typed, self._typed = self._typed or "", None
        unknown = self._tokenizer.find_unknown(typed)
        if unknown:
            self._warning = _(
                "not in the vocabulary: {shown}",
                shown=safe_line(", ".join(expand_to_graphemes(unknown[:20], typed))),
            )
        ids = self._tokenizer.encode(typed, add_special=False, parse_special=self._settings.special)
        if ids and self._decoder.append(*ids):
            self._refresh_step()
