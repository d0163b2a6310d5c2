"""What is going on: the model that is open, the text so far, the settings, the random numbers."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.model_loading import Change, Loading, Model, Opening
from minillm_repl.repl.recent_models import Recent
from minillm_repl.repl.settings import ANSWER, COMPLETION, Settings
from minillm_repl.repl.turn import Turn
from minillm_repl.settings import change
from minillm_repl.storage.paths import cached, shipped

if TYPE_CHECKING:  # numpy and numba are imported by the thread that loads, while the user types
    from minillm_repl.chat.template import Message
    from minillm_repl.checkpoint.checkpoint import Checkpoint
    from minillm_repl.generate.events import Finished, Step
    from minillm_repl.insight.views.changes import WatchView
    from minillm_repl.tokenizer.base import Tokenizer

_MOST_TURNS = 1_000  # that can be taken back: a visit of weeks must not fill the memory


@dataclass
class Session:
    """The state of a visit. Nothing here draws."""

    settings: Settings = field(default_factory=Settings)
    opening: Opening = field(default_factory=Opening)
    recent: Recent = field(default_factory=lambda: Recent(None))
    threads: int = 0  # for torch; 0 chooses by the model's size
    path: Path | None = None  # what was asked for; may not exist yet
    ids: list[int] = field(default_factory=list)
    # the conversation, where the model talks in turns
    said: "list[Message]" = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    chosen: bool = True  # somebody has named the model, or made it
    # the file at `path` is this visit's to write: it was named to be made, or saved to
    own: bool = False
    written: bool = False  # this visit has saved a model at `path`
    practice: bool = False  # any model that is trained here goes to `path`: a lesson's
    unsaved: bool = False  # the open model was trained and lies in no file
    learning: bool = False  # a model is being trained that nothing else holds yet
    # it is that of a run that was stopped, which going on with the run keeps
    resumable: bool = False
    speed: float = 0.0  # tokens per second, last time
    noted: tuple[str, ...] = ()  # what was told of the files of the open model
    turn_end: tuple[int, ...] = ()  # what the open model's chat template ends an answer with
    ways: list[list[int]] = field(default_factory=list)  # whole texts that `:branch` has found,
    ways_given: int = 0  # from that many tokens,
    ways_seed: int = 0  # the last with this seed
    watch: str = ""  # a prompt that is looked at while a model is trained
    watched: "WatchView | None" = None  # what was seen of it
    _loading: "Loading | None" = None
    _model: Model | None = None
    _warned: str = ""  # the wish that was last answered by "the weights are not saved"
    seed: int = 0  # of the last completion: with it, the same prompt gives the same text

    # -- settings

    def set(self, name: str, text: str, said: str | None = None) -> None:
        """Change a setting. Raises UserError, leaving everything as it was."""
        self.settings = change(self.settings, name, text, said=said)

    # -- the model

    def start_loading(self, changed: Callable[[], None] = lambda: None) -> None:
        """Begin to open `path` in the background, once, if it is there; `changed` is called from
        that thread.
        """
        if self.path is not None and not self.own and self.nothing_to_open:
            self._loading = Loading(self.opening, self.path, changed)

    @property
    def loading(self) -> bool:
        """Whether a model is being opened right now."""
        return self._loading is not None and not self._loading.done()

    @property
    def loading_future(self) -> "Loading | None":
        """The model that is being opened, or could not be; None when there is nothing to wait
        for.
        """
        return self._loading

    @property
    def model(self) -> Model | None:
        """The open model, if any; one that has finished loading in the background becomes the
        open one here.
        """
        if self._loading is not None and self._loading.done() and self._loading.exception() is None:
            self._model, self._loading = self._loading.result(), None
            # of a file in a Hugging Face folder, the folder
            self.path = self._model.checkpoint.path
            self.recent.add(self.path)
        return self._model

    @property
    def nothing_to_open(self) -> bool:
        """Whether no model is open and none is being opened."""
        return self.model is None and self._loading is None

    def models(self) -> list[tuple[str, str]]:
        """Return what can be opened: a name to open it by, and where it comes from."""
        hub = cached()
        recent = [path for path in self.recent.paths() if path not in hub.values()]
        return [
            *((name, _("shipped")) for name in shipped()),
            *((str(path), _("opened before")) for path in recent),
            *((name, _("Hugging Face cache")) for name in hub),
        ]

    def adopt(self, model: Model, *, unsaved: bool) -> None:
        """Make `model` the open one; the text so far belonged to the other."""
        self._model, self._loading, self.chosen = model, None, True
        if not unsaved:
            self.path, self.own, self.noted = model.checkpoint.path, False, ()
            self.recent.add(self.path)
        elif model.checkpoint.path is None and (self.written or not self.own) and not self.practice:
            # a new model does not go where another one lies
            self.path, self.own, self.written = None, False, False
        self.unsaved, self.resumable, self._warned = unsaved, False, ""
        self.clear()

    def change_thinking(self, change: Change) -> None:
        """Let the open model think with one more change, in place of one by the same command to
        the same part.
        """
        assert self._model is not None
        self._model = self._model.changed(
            (*self._model.without(change.command, change.part).changes, change)
        )

    def think_unchanged(self, command: str) -> bool:
        """Take back all changes of one command; tell whether there were any."""
        before = self._model.changes if self._model else ()
        others = tuple(each for each in before if each.command != command)
        if self._model and len(others) < len(before):
            self._model = self._model.changed(others)
        return len(others) < len(before)

    def forget_failed_load(self) -> None:
        """Drop a load that did not work out; a model opened before stays."""
        self._loading = None

    def saved(self, checkpoint: "Checkpoint") -> None:
        """Note that the open model now lies on disk as `checkpoint`."""
        assert self._model is not None
        self._model = replace(self._model, checkpoint=checkpoint)
        self.path, self.own, self.written = checkpoint.path, True, True
        self.recent.add(self.path)
        self.unsaved, self._warned = False, ""

    def agree_to_discard(self, wish: str) -> None:
        """Raise UserError the first time in a row that a wish would drop trained weights that
        lie in no file.
        """
        if self.unsaved and self._warned != wish:
            self._warned = wish
            raise UserError(
                _(
                    "the trained weights are not saved: `:save FILE` keeps them; once more goes "
                    "on without them"
                )
            )

    # -- the text

    def clear(self) -> None:
        """Forget the text and its turns."""
        self.ids, self.said, self.turns, self.ways = [], [], [], []

    def chatting(self, model: Model) -> bool:
        """Whether what is typed is said to the model, not to be completed.

        Raises UserError if it cannot chat.
        """
        chat = self.settings.chat
        if chat and model.checkpoint.chat is None:
            raise UserError(
                _(
                    "{model} has no chat template: `:chat off` lets it complete what you type",
                    model=model.name,
                )
            )
        return model.checkpoint.chat is not None and chat is not False

    @property
    def most_tokens(self) -> int:
        """How many tokens the model may add in the turn that has begun."""
        return self.settings.max_tokens or (
            ANSWER if self.turns and self.turns[-1].asked else COMPLETION
        )

    def ask(self, model: Model, text: str) -> int:
        """Start a turn in which the model answers; return how many of the oldest turns it no longer
        sees.

        Raises UserError if the chat template refuses, or the text is too long.
        """
        from minillm_repl.chat.history import fit
        from minillm_repl.chat.template import Message

        settings, context, template = self.settings, model.decoder.context, model.checkpoint.chat
        assert template is not None
        system = [Message("system", settings.system)] if settings.system else []
        earlier = [message for message in self.said if message.role != "system"]
        asked = [*system, *earlier, Message("user", text)]
        room = context - self.answer_room(context)
        given, kept = fit(template, model.checkpoint.tokenizer, asked, room, settings.special)
        self.turn_end = given.end
        self.begin(given.ids, asked=tuple(kept))
        return (len(asked) - len(kept)) // 2

    def answer_room(self, context: int) -> int:
        """Return how many tokens of a context a conversation leaves free for the answer."""
        return min(self.settings.max_tokens or ANSWER, context // 2)

    def go_on(self, more: list[int], text: str) -> None:
        """Start a turn in which the model goes on from where the text ended, or from `more` after
        it.

        Raises UserError if there is no text.
        """
        ids = self.ids + more
        if not ids:
            raise UserError(_("there is no text to continue: type a prompt first"))
        if self.said and self.said[-1].role == "assistant":
            self.begin(ids, asked=tuple(self.said[:-1]), begun=self.said[-1].content + text)
        else:
            self.begin(ids)

    def begin(
        self,
        given: list[int],
        *,
        asked: "tuple[Message, ...]" = (),
        begun: str = "",
        seed: int | None = None,
    ) -> None:
        """Start a turn: the model will continue `given`, with a seed, or with that of the
        settings, or any.
        """
        self.seed = self.fresh_seed() if seed is None else seed
        self._warned = ""
        before = tuple(self.ids), tuple(self.said)
        self.turns.append(Turn(*before, tuple(given), asked, begun, self.seed, self.settings.seed))
        del self.turns[:-_MOST_TURNS]
        self.ids, self.said = list(given), list(asked)

    def undo(self) -> Turn:
        """Take the last turn back, and return it. Raises UserError if there is none."""
        if not self.turns:
            raise UserError(_("there is nothing to take back"))
        turn = self.turns.pop()
        self.ids, self.said = list(turn.before), list(turn.said_before)
        return turn

    def begin_again(self) -> None:
        """Start the last turn once more, not with a seed that it was drawn with.

        Raises UserError if there is none.
        """
        if not self.turns:
            raise UserError(_("there is nothing to write again: type a prompt first"))
        turn = self.undo()
        self.begin(
            list(turn.given),
            asked=turn.asked,
            begun=turn.begun,
            seed=turn.next_seed(self.settings.seed),
        )

    def drawn_with(self, seed: int) -> None:
        """Note the last seed that was drawn for the present turn: another try takes the next
        one.
        """
        self.turns[-1] = replace(self.turns[-1], seed=seed)

    def generate(
        self,
        model: Model,
        interrupted: Callable[[], bool],
        top: int,
        progress: Callable[[int, int], object] = lambda _done, _of: None,
    ) -> "Iterator[Step | Finished]":
        """Continue the text, keeping `ids` at what has been shown, however the generation ends.

        `progress` hears how much of a long prompt is read.
        """
        from minillm_repl.generate.events import Finished
        from minillm_repl.generate.generate import generate, kept
        from minillm_repl.generate.sampling import numbers

        tokenizer, settings = model.checkpoint.tokenizer, self.settings
        start, before = len(self.ids), self.answer(tokenizer)
        walked = start - len(self.turns[-1].given)
        for event in generate(
            model.decoder,
            tokenizer,
            self.ids,
            settings,
            numbers(self.seed, walked),
            max_tokens=max(0, self.most_tokens - walked),
            stop=settings.stop,
            end=self.ends(model),
            slide=not self.turns[-1].asked,
            top=top,
            interrupted=interrupted,
            progress=progress,
        ):
            if isinstance(event, Finished):
                self.speed = event.tokens / event.seconds if event.seconds else 0.0
                self.ids[start:] = kept(tokenizer, self.ids[start:], event, settings.stop)
                self._said(before + event.text)
            else:
                self.ids.append(event.id)
            yield event

    def ends(self, model: Model) -> tuple[int, ...]:
        """Return the tokens that end what the model says: in a chat, what ends a turn too."""
        return model.checkpoint.end + (self.turn_end if self.turns and self.turns[-1].asked else ())

    def answer(self, tokenizer: "Tokenizer") -> str:
        """Return what the present turn has added to the text so far."""
        tokens = self.ids[len(self.turns[-1].given) :]
        return self.turns[-1].begun + b"".join(map(tokenizer.token_bytes, tokens)).decode(
            "utf-8", "replace"
        )

    def fresh_seed(self) -> int:
        """Return the seed that is set, or any."""
        return secrets.randbelow(2**32) if self.settings.seed is None else self.settings.seed

    def walk_to(self, ids: list[int], tokenizer: "Tokenizer") -> None:
        """Let the text be `ids`, which go on from what the present turn was given."""
        self.ids = ids
        self._said(self.answer(tokenizer))

    def _said(self, answer: str) -> None:
        from minillm_repl.chat.template import Message

        if self.turns[-1].asked:
            self.said = [*self.turns[-1].asked, Message("assistant", answer)]
