"""What Tab offers: commands, and what each takes; layers, places and tokens of the open model."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Layer, Option, TextPair
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import Command, Registry, normalise_name
from minillm_repl.repl.session import Session
from minillm_repl.safetext import safe_line, strip_joiners
from minillm_repl.storage.paths import SUFFIX
from minillm_repl.storage.stores import GGUF_SUFFIX

if TYPE_CHECKING:
    from minillm_repl.tokenizer import Token

_MAX_TOKENS = 40  # that are offered: nobody reads a longer menu
_SHORTEST_FUZZY = 2  # letters: one is in too many names
_LONGEST_FUZZY = 40  # letters: a long path has any letters in any order

Offer = tuple[str, str]
"""What is offered, and what it is."""


def fuzzy(typed: str, words: Iterable[str]) -> list[str]:
    """Return the words that have the letters of `typed` in their order, the nearest first.

    Those that begin so stand first, then those that contain it, then those with letters between.
    """
    ranks = {word: _distance(typed.lower(), word.lower()) for word in words}
    near = (word for word, rank in ranks.items() if rank is not None)
    return sorted(near, key=lambda word: (ranks[word], word))


def _distance(typed: str, word: str) -> tuple[int, int] | None:
    """Return how far a word is from what is typed; None if it does not have its letters."""
    if word.startswith(typed):
        return 0, 0
    if len(typed) < _SHORTEST_FUZZY:
        return None
    if typed in word:
        return 1, word.index(typed)
    if len(word) > _LONGEST_FUZZY:
        return None
    place = start = word.find(typed[0])
    for letter in typed[1:]:
        place = word.find(letter, place + 1) if place >= 0 else -1
    return (2, place - start) if place >= 0 else None


class LineCompleter(Completer):
    """Completes commands after a colon or a slash, and what each command takes."""

    def __init__(self, registry: Registry, session: Session) -> None:
        self._registry, self._session = registry, session
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield completions for the text before the cursor; none for a prompt."""
        text = document.text_before_cursor
        if not text.startswith((":", "/")) or "\n" in text:
            yield from self._mentioned_files(text, complete_event)
            return  # what comes next is the model's to say
        name, space, argument = text[1:].partition(" ")
        if not space:
            yield from self._commands(text[0], name)
        elif self._registry.has(name):
            name = self._registry.expand(name).partition(" ")[0]  # the command of an alias
            yield from self._arguments(self._registry.get(name), argument, complete_event)

    def _commands(self, mark: str, typed: str) -> Iterator[Completion]:
        names = {name: _(each.summary) for name, each in self._names(typed)}
        names |= {name: f":{line}" for name, line in self._registry.user_aliases.items()}
        typed_name = normalise_name(typed)
        near = fuzzy(typed_name, names)
        if mark == "/":  # a path begins so too
            near = [name for name in near if name.startswith(typed_name)]
        for name in near:
            yield Completion(
                name, -len(typed), display=mark + name, display_meta=safe_line(names[name])
            )

    def _names(self, typed: str) -> Iterator[tuple[str, Command]]:
        """Yield the spellings of all commands; the Korean ones only once Hangul is typed."""
        for each in self._registry:
            korean = () if typed.isascii() else each.korean_names
            yield from ((spelling, each) for spelling in (each.name, *korean))

    def _arguments(
        self, command: Command, argument: str, event: CompleteEvent
    ) -> Iterable[Completion]:
        # Words complete the last word; a file name may have spaces, so it is all that follows.
        before, _space, last = argument.rpartition(" ")
        words, completion = list(command.words), command.forms.completion
        match completion:
            case "command":
                words += [spelling for spelling, _each in self._names(argument)]
            case "checkpoint":
                words += [name for name, _source in self._session.workspace.models()]
        is_file = completion in ("file", "checkpoint")
        files = [*self._files(Document(argument), event, completion == "checkpoint")] * is_file
        typed = normalise_name(last)
        for word in fuzzy(typed, dict.fromkeys(words)):
            # A file that begins so is nearer than a name that only has the letters.
            if word != last and (not files or word.startswith(typed)):
                yield Completion(word, -len(last))
        with suppress(UserError):  # a model on a server does not tell its sizes
            for word, what in self._of_model(command, before, last, event):
                yield Completion(
                    word, -len(last), display=strip_joiners(safe_line(word)), display_meta=what
                )
        yield from files

    def _files(
        self, document: Document, event: CompleteEvent, checkpoints: bool
    ) -> Iterable[Completion]:
        for completion in self._paths.get_completions(document, event):
            name = completion.display_text
            if not checkpoints or name.endswith(("/", SUFFIX, GGUF_SUFFIX)):
                yield Completion(
                    completion.text,
                    completion.start_position,
                    display=strip_joiners(safe_line(name)),
                )

    def _mentioned_files(self, text: str, event: CompleteEvent) -> Iterable[Completion]:
        """Yield the files that begin as the `@FILE` at the end of a prompt."""
        mention = re.search(r"(?<!\S)@(\S*)$", text)
        if mention and event.completion_requested:
            yield from self._files(Document(mention[1]), event, checkpoints=False)

    def _of_model(
        self, command: Command, before: str, last: str, event: CompleteEvent
    ) -> Iterator[Offer]:
        """Yield what the open model has: its layers and heads, the places of the text, tokens."""
        model = self._session.workspace.model
        if model is None:  # nobody waits for one that is loading
            return
        for part in command.forms.parts:
            match part:
                case Layer() if not before.strip():
                    yield from _layers(part, last, model.checkpoint.config)
                case Option(name="layer") if last.startswith("layer="):
                    layers = range(model.checkpoint.config.n_layers)
                    yield from ((f"layer={layer}", "") for layer in layers)
                case Option(name="key") if last.startswith("key="):
                    yield from ((f"key={at}", token.label) for at, token in enumerate(self._text()))
                case PlaceArgument() if last.startswith("@"):
                    yield from _places(last[1:], self._text())
                case TextPair() if command.name in ("why", "grad") and event.completion_requested:
                    yield from self._vocabulary(last)
                case _ if command.name == "near" and event.completion_requested:
                    yield from self._vocabulary(last)

    def _text(self) -> list["Token"]:
        from minillm_repl.tokenizer import Token

        model = self._session.workspace.model
        ids = self._session.conversation.ids
        return [Token.from_id(model.checkpoint.tokenizer, each) for each in ids] if model else []

    def _vocabulary(self, typed: str) -> Iterator[Offer]:
        """Yield the tokens that begin so, with a space before them or without."""
        model = self._session.workspace.model
        if model is None or not typed or typed[0] in "@\"'#":
            return
        tokenizer, begins = model.checkpoint.tokenizer, typed.encode("utf-8", "replace")
        texts = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
        found = (
            text.removeprefix(b" ").decode("utf-8", "replace")
            for text in texts
            if text.startswith((begins, b" " + begins))
        )
        whole = (text for text in found if text.isprintable() and " " not in text)
        words = dict.fromkeys(islice(whole, 2 * _MAX_TOKENS))  # two may differ by their space only
        yield from ((word, _("token")) for word in islice(words, _MAX_TOKENS))


def _layers(part: Layer, typed: str, config: object) -> Iterator[Offer]:
    """Yield layers, and after a layer and a point its heads."""
    layer, point, _rest = typed.upper().removeprefix("L").partition(".")
    n_layers, n_heads = getattr(config, "n_layers", 0), getattr(config, "n_heads", 0)
    if not point:
        yield from (
            (str(each), _("layer")) for each in range(n_layers) if f"{each}".startswith(typed)
        )
    elif "head" in part.defaults and layer.isdecimal() and int(layer) < n_layers:
        heads = (f"{layer}.{head}" for head in range(n_heads))
        yield from ((each, _("head")) for each in heads if each.startswith(typed))


def _places(typed: str, tokens: list["Token"]) -> Iterator[Offer]:
    """Yield the positions of a text, and the tokens that were predicted in it."""
    if not typed or typed.lstrip("-").isdecimal():
        positions = [at for at in range(len(tokens)) if str(at).startswith(typed)]
        yield from ((f"@{at}", tokens[at].label) for at in positions[-_MAX_TOKENS:])
        return
    # A token stands for where it was predicted, so the first of a text stands for nothing.
    words = dict[str, int]()
    for at, token in enumerate(tokens[1:]):
        word = token.text.strip()
        if word.isprintable() and not set(word) & set(" \"':"):
            words[word] = at
    for word in fuzzy(typed, words)[:_MAX_TOKENS]:
        yield f"@{word}", _("predicted at @{position}", position=words[word])
