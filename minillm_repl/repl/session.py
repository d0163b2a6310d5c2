"""What is going on: the model that is open, the text so far, the settings, the random numbers."""

import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.repl.settings import Settings
from minillm_repl.settings import change

if TYPE_CHECKING:  # numpy and numba are imported by the thread that loads, while the user types
    from minillm_repl.checkpoint.native import Checkpoint
    from minillm_repl.engine.decoder import Decoder
    from minillm_repl.engine.events import Finished, Step
    from minillm_repl.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Model:
    """A checkpoint and the decoder that runs it."""

    checkpoint: "Checkpoint"
    decoder: "Decoder"

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.checkpoint.path.stem if self.checkpoint.path else "new model"


@dataclass(frozen=True)
class Turn:
    """One prompt, continuation or second try: the text before it, and the text that the model was given."""

    before: tuple[int, ...]
    given: tuple[int, ...]


@dataclass
class Session:
    """The state of a visit. Nothing here draws."""

    settings: Settings = field(default_factory=Settings)
    device: str = "auto"
    threads: int = 0  # for torch; 0 chooses by the model's size
    vocabulary: Path | None = None  # for a checkpoint without one
    path: Path | None = None  # what was asked for; may not exist yet
    ids: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    own: bool = False  # the file at `path` is this visit's to write: it was named to be made, or saved to
    written: bool = False  # this visit has saved a model at `path`
    unsaved: bool = False  # the open model was trained and lies in no file
    speed: float = 0.0  # tokens per second, last time
    told_outgrown: bool = False
    _loading: "Future[Model] | None" = None
    _model: Model | None = None
    _warned: str = ""  # the wish that was last answered by "the weights are not saved"
    seed: int = 0  # of the last completion: with it, the same prompt gives the same text

    # -- settings

    def set(self, name: str, text: str, said: str | None = None) -> None:
        """Change a setting. Raises UserError, leaving everything as it was."""
        self.settings = change(self.settings, name, text, said=said)

    # -- the model

    def start_loading(self, done: Callable[[], None] = lambda: None) -> None:
        """Begin to open `path` in the background, once, if it is there; `done` is called from that thread."""
        if self.path is not None and not self.own and self.nothing_to_open:
            path = self.path
            self._loading = in_background(lambda: open_model(path, self.vocabulary, self.device))
            self._loading.add_done_callback(lambda _: done())

    @property
    def loading(self) -> bool:
        """Whether a model is being opened right now."""
        return self._loading is not None and not self._loading.done()

    @property
    def loading_future(self) -> "Future[Model] | None":
        """The model that is being opened, or could not be; None when there is nothing to wait for."""
        return self._loading

    @property
    def model(self) -> Model | None:
        """The open model, if any; one that has finished loading in the background becomes the open one here."""
        if self._loading is not None and self._loading.done() and self._loading.exception() is None:
            self._model, self._loading = self._loading.result(), None
        return self._model

    @property
    def nothing_to_open(self) -> bool:
        """Whether no model is open and none is being opened."""
        return self.model is None and self._loading is None

    def adopt(self, model: Model, *, unsaved: bool) -> None:
        """Make `model` the open one; the text so far belonged to the other."""
        self._model, self._loading = model, None
        if not unsaved:
            self.path, self.own = model.checkpoint.path, False
        elif model.checkpoint.path is None and (self.written or not self.own):
            self.path, self.own, self.written = None, False, False  # a new model does not go where another one lies
        self.unsaved, self._warned = unsaved, ""
        self.told_outgrown = False
        self.clear()

    def forget_failed_load(self) -> None:
        """Drop a load that did not work out; a model opened before stays."""
        self._loading = None

    def saved(self, checkpoint: "Checkpoint") -> None:
        """Note that the open model now lies on disk as `checkpoint`."""
        assert self._model is not None
        self._model = Model(checkpoint, self._model.decoder)
        self.path, self.own, self.written = checkpoint.path, True, True
        self.unsaved, self._warned = False, ""

    def agree_to_discard(self, wish: str) -> None:
        """Raise UserError the first time in a row that a wish would drop trained weights that lie in no file."""
        if self.unsaved and self._warned != wish:
            self._warned = wish
            raise UserError(
                "the trained weights are not saved: `:save FILE` keeps them; once more goes on without them"
            )

    # -- the text

    def clear(self) -> None:
        """Forget the text and its turns."""
        self.ids, self.turns = [], []

    def begin(self, given: list[int], *, another: bool = False) -> None:
        """Start a turn: the model will continue `given`. With `another`, not as it did with a seed that is set."""
        fixed = self.settings.seed
        if fixed is None:
            self.seed = secrets.randbelow(2**32)
        else:
            self.seed = (self.seed + 1) % 2**63 if another else fixed
        self._warned = ""
        self.turns.append(Turn(tuple(self.ids), tuple(given)))
        self.ids = list(given)

    def undo(self) -> Turn:
        """Take the last turn back, and return it. Raises UserError if there is none."""
        if not self.turns:
            raise UserError("there is nothing to take back: no prompt has been given yet")
        turn = self.turns.pop()
        self.ids = list(turn.before)
        return turn

    def generate(self, model: Model, interrupted: Callable[[], bool], top: int) -> "Iterator[Step | Finished]":
        """Continue the text, keeping `ids` at what has been shown, however the generation ends."""
        import numpy as np

        from minillm_repl.engine.events import Finished
        from minillm_repl.engine.generate import generate

        tokenizer, settings = model.checkpoint.tokenizer, self.settings
        start = len(self.ids)
        for event in generate(
            model.decoder,
            tokenizer,
            self.ids,
            settings,
            np.random.default_rng(self.seed),
            max_tokens=settings.max_tokens,
            stop=settings.stop,
            top=top,
            interrupted=interrupted,
        ):
            if isinstance(event, Finished):
                self.speed = event.tokens / event.seconds if event.seconds else 0.0
                shown = len(event.text.encode())
                while event.reason == "stop" and len(self.ids) > start and self._bytes_since(start, tokenizer) > shown:
                    self.ids.pop()  # what belonged to the stop string was not shown, and is not gone on from
            else:
                self.ids.append(event.id)
            yield event

    def _bytes_since(self, start: int, tokenizer: "Tokenizer") -> int:
        return sum(len(tokenizer.token_bytes(token)) for token in self.ids[start:])


def in_background(job: Callable[[], Model]) -> "Future[Model]":
    """Run `job` in a thread that does not keep the program from leaving."""
    future: Future[Model] = Future()

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, not lost
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="loading").start()
    return future


def open_model(path: Path, vocabulary: Path | None, device: str) -> Model:
    """Load a checkpoint and make it ready to run. Raises UserError."""
    from minillm_repl.checkpoint.load import load, read_vocabulary
    from minillm_repl.engine.decoder import make_decoder

    checkpoint = load(path, read_vocabulary(vocabulary) if vocabulary else None)
    return Model(checkpoint, make_decoder(checkpoint, device))
