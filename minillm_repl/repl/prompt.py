"""The prompt line at a terminal: its keys, its toolbar and its placeholder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, get_app_session, run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import (
    Condition,
    completion_is_selected,
    has_completions,
    is_searching,
    to_filter,
)
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.input.typeahead import clear_typeahead, get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.search import stop_search
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from minillm_repl.language import _
from minillm_repl.repl.care import is_crisis
from minillm_repl.repl.completion import LineCompleter
from minillm_repl.repl.editing import (
    SafeClusterProcessor,
    cluster_key_bindings,
    open_history,
    use_drawn_heights,
)
from minillm_repl.repl.job_control import typeahead
from minillm_repl.repl.keyboard import (
    EscapeWatch,
    color_depth,
    has_high_contrast,
    keyboard,
    suspend,
)
from minillm_repl.repl.loop import (
    CONTINUATION_PROMPT,
    is_multiline_open,
    run_loop,
    unwrap_multiline,
)
from minillm_repl.repl.settings import active_samplers
from minillm_repl.repl.shell import PROMPT, Shell
from minillm_repl.repl.signals import exit_on_termination
from minillm_repl.safetext import safe_line, strip_joiners
from minillm_repl.storage.paths import checkpoint_title

_EXAMPLES = ("날씨", "Once upon a time")  # of what to type; the first that the model knows is shown
_STYLE = Style.from_dict(
    {
        "placeholder": "dim",
        "auto-suggestion": "fg:default dim",
        "bottom-toolbar": "noreverse dim",
        "prompt": "bold",
    }
)
# nothing dim, for `--color contrast`
_CONTRAST_STYLE = Style.from_dict(
    {"auto-suggestion": "fg:default", "bottom-toolbar": "noreverse", "prompt": "bold"}
)


def run_interactive(shell: Shell, history: Path | None) -> int:
    """Talk to a person at a terminal; return the exit code."""
    screen = shell.screen
    with (
        exit_on_termination(),
        keyboard() as bracketed_paste,
        typeahead(bracketed_paste.disable, bracketed_paste.resume) as set_typeahead,
    ):
        # What the program answers in a model's place is nobody else's to read.
        kept = open_history(history, partial(is_crisis, shell))
        shell.typed_lines = kept.get_strings
        prompt = PromptReader(shell, kept, lambda: screen.note(_("Ctrl-D or :quit quits")))
        shell.escape_pressed = EscapeWatch(get_app_session().input)
        shell.drop_typed_ahead = partial(clear_typeahead, get_app_session().input)
        return run_loop(shell, prompt, prompt.redraw, set_typeahead)


def key_bindings(show_exit_hint: Callable[[], None]) -> KeyBindings:
    """Return the keys that differ from prompt_toolkit's own: Enter sends; Alt-Enter and Ctrl-J
    break the line.
    """
    keys = KeyBindings()

    # A completion that is selected is taken by Enter, not sent.
    @keys.add("enter", filter=~completion_is_selected & ~is_searching)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if _ends_with_backslash(buffer):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        elif is_multiline_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("enter", filter=completion_is_selected & ~is_searching)
    def _take(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None

    # Terminals send Alt-Enter as Escape and Enter.
    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    # The menu opens by itself below the line: ↓ goes into it, ↑ stays with the history.
    @keys.add("up", filter=has_completions & ~completion_is_selected)
    def _earlier(event: KeyPressEvent) -> None:
        event.current_buffer.cancel_completion()
        event.current_buffer.auto_up(count=event.arg)

    keys.add("c-z")(suspend)

    # As a key while a line is read; as a signal from `kill -INT`.
    @keys.add("c-c", filter=is_searching)
    @keys.add(Keys.SIGINT, filter=is_searching)
    def _leave_search(_event: KeyPressEvent) -> None:
        stop_search()

    @keys.add("c-c", filter=~is_searching)
    @keys.add(Keys.SIGINT, filter=~is_searching)
    def _clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            run_in_terminal(show_exit_hint)

    return keys


def _ends_with_backslash(buffer: Buffer) -> bool:
    """Tell whether Enter follows a backslash at the end of the text; of two, they are text."""
    text = buffer.text
    return buffer.document.is_cursor_at_the_end and (len(text) - len(text.rstrip("\\"))) % 2 == 1


def _opens_menu() -> bool:
    return get_app().current_buffer.text.startswith((":", "/"))


class PromptReader:
    """Reads lines at a terminal."""

    def __init__(self, shell: Shell, history: History, show_exit_hint: Callable[[], None]) -> None:
        self._shell = shell
        self._prompt: PromptSession[str] = PromptSession(
            [("class:prompt", PROMPT)],
            multiline=True,
            prompt_continuation=lambda _width, _line, wraps: "" if wraps else CONTINUATION_PROMPT,
            history=history,
            complete_while_typing=Condition(_opens_menu),
            completer=LineCompleter(shell.registry, shell.session),
            auto_suggest=AutoSuggestFromHistory(),
            key_bindings=merge_key_bindings([cluster_key_bindings(), key_bindings(show_exit_hint)]),
            bottom_toolbar=self._toolbar,
            placeholder=self._placeholder,
            input_processors=[SafeClusterProcessor()],
            style=_CONTRAST_STYLE if has_high_contrast(shell.screen.out) else _STYLE,
            color_depth=color_depth(shell.screen.out),
            enable_open_in_editor=True,
            # the loop writes the line again, with the completion running on from it
            erase_when_done=True,
            reserve_space_for_menu=6,  # rows; 8 is usual, and leaves a small terminal little text
        )
        use_drawn_heights(self._prompt.layout)
        # ↑ goes to lines that begin as what is typed. PromptSession's own option for it would turn
        # the menu off.
        self._prompt.default_buffer.enable_history_search = to_filter(True)
        # A model that was loaded meanwhile becomes the open one before it is named.
        self._prompt.app.before_render += lambda _app: shell.session.workspace.finish_loading()

    def read(self, on_ready: Callable[[], None] | None = None) -> str:
        """Return the next line. Raises EOFError for Ctrl-D.

        `on_ready` is called when the prompt can take keys.
        """
        app = self._prompt.app

        # Once: the prompt line is drawn again with every key.
        def drawn(_app: object) -> None:
            app.after_render.remove_handler(drawn)
            if on_ready:
                on_ready()

        app.after_render += drawn
        begun, self._shell.next_line = self._shell.next_line, ""
        return unwrap_multiline(self._prompt.prompt(default=begun))

    def was_interrupted(self) -> bool:
        """Tell whether Ctrl-C was pressed right after the line that was read; other keys wait.

        While a line is read the terminal sends Ctrl-C as a key, so one right after Enter is no
        signal.
        """
        keyboard = self._prompt.app.input
        keys = [*get_typeahead(keyboard), *keyboard.read_keys()]
        # Keys before the last Ctrl-C are dropped, as a terminal does with a signal.
        interrupt_indices = [place for place, key in enumerate(keys) if key.key == Keys.ControlC]
        store_typeahead(keyboard, keys[interrupt_indices[-1] + 1 :] if interrupt_indices else keys)
        return bool(interrupt_indices)

    def redraw(self) -> None:
        """Draw the toolbar and the placeholder again. Any thread may call it."""
        self._prompt.app.invalidate()

    def _placeholder(self) -> FormattedText:
        if is_searching():
            return FormattedText()  # the line shows what the search has found
        if self._shell.line_handler is not None:
            hint = self._shell.line_handler.hint
        elif self._is_chatting():
            hint = _("type a message, or :help")
        elif example := next(filter(self._has_tokens_for, _EXAMPLES), None):
            hint = _("type the start of a text, such as {example}, or :help", example=example)
        else:
            hint = _("type the start of a text, or :help")
        return FormattedText([("class:placeholder", hint)])

    def _has_tokens_for(self, text: str) -> bool:
        """Tell whether the model has tokens for a text, not only for its characters' bytes."""
        model = self._shell.session.workspace.model
        tokenizer = model.checkpoint.tokenizer if model else None
        return (
            tokenizer is not None
            and not tokenizer.find_unknown(text)
            and len(tokenizer.encode(text, add_special=False)) <= len(text)
        )

    def _is_chatting(self) -> bool:
        model = self._shell.session.workspace.model
        return (
            model is not None
            and model.checkpoint.chat_template is not None
            and self._shell.session.settings.chat is not False
        )

    def _toolbar(self) -> FormattedText:
        """Return the facts that fit: model, interventions, samplers, verbose, context, speed."""
        session, model = self._shell.session, self._shell.session.workspace.model
        verbose = session.settings.verbose
        name = (
            _("{model} (chat)", model=self._model_name())
            if self._is_chatting()
            else self._model_name()
        )
        changes = [change.description for change in model.interventions] if model else []
        where = [self._shell.line_handler.position_label] if self._shell.line_handler else []
        facts = [
            *where,
            name,
            *changes,
            " ".join(active_samplers(session.settings)),
            *([f"verbose {verbose}"] if verbose else []),
        ]
        if model:
            context = model.decoder.context_length
            facts.append(
                _(
                    "{used:,}/{all:,} tokens",
                    used=min(len(session.conversation.ids), context),
                    all=context,
                )
            )
            if model.server is None:  # a server keeps the cache of its model
                facts.append(_("{size:,.1f} MiB cache", size=model.decoder.cache_bytes / 2**20))
        if session.conversation.speed:
            facts.append(_("{speed:,.0f} tokens/s", speed=session.conversation.speed))
        width = get_app().output.get_size().columns - 1  # the last column would wrap
        # The most important facts come first: those at the end go where there is no room.
        while get_cwidth(strip_joiners(safe_line(" · ".join(facts)))) > width and len(facts) > 1:
            facts.pop()
        return FormattedText([("", strip_joiners(safe_line(" · ".join(facts))))])

    def _model_name(self) -> str:
        session, model = self._shell.session, self._shell.session.workspace.model
        loading = session.workspace.loading
        if loading is not None and session.workspace.path is not None:
            named = checkpoint_title(session.workspace.path)
            if not session.workspace.is_loading:
                return _("could not open {name}", name=named)
            share = f" {loading.fraction_read:.0%}" if 0 < loading.fraction_read < 1 else ""
            return _("loading {name}", name=named) + share
        if model is None:
            return _("no model")
        return (
            _("{model} (not saved)", model=model.name) if session.workspace.unsaved else model.name
        )
