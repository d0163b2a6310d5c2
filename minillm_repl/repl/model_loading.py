"""Opening a checkpoint, at once or while the user types."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_repl.checkpoint.families.find import family_title
from minillm_repl.language import _
from minillm_repl.storage.paths import title

if TYPE_CHECKING:  # numpy and numba are imported by the thread that loads, while the user types
    from numpy.typing import NDArray

    from minillm_repl.checkpoint.checkpoint import Checkpoint
    from minillm_repl.checkpoint.weight_map import Progress
    from minillm_repl.generate.decoder import Decoder
    from minillm_repl.model.build import LanguageModel
    from minillm_repl.model.hooks import Tap
    from minillm_repl.model.quantised import Quantised
    from minillm_repl.tokenizer.window import Window


@dataclass(frozen=True)
class Change:
    """Something that is done to what a model thinks, from when it is asked for until it is
    turned off.
    """

    command: str  # that turns it off: `ablate`
    # what the user is told of it, in the language of the moment: `without head 2.1`
    tell: Callable[[], str]
    tap: "Tap"
    part: str = ""  # of the model that it is done to: a later change of the same takes its place

    @property
    def told(self) -> str:
        """What the user is told of it."""
        return self.tell()


@dataclass(frozen=True)
class Model:
    """A checkpoint, the decoder that runs it, and what is being changed while it runs."""

    checkpoint: "Checkpoint"
    decoder: "Decoder"
    changes: tuple[Change, ...] = ()
    plain: "Decoder | None" = None  # the decoder without them

    @property
    def name(self) -> str:
        """What to call it."""
        return title(self.checkpoint.path) if self.checkpoint.path else _("new model")

    @property
    def family(self) -> str:
        """What it is of."""
        return family_title(self.checkpoint.config, native=self.checkpoint.recipe is None)

    @property
    def torch(self) -> "LanguageModel":
        """The model in torch, which looks and changes inside: the weights are those that answer."""
        return self.decoder.model

    @property
    def embedding(self) -> "NDArray[Any] | Quantised":
        """The table of the tokens' vectors that answers: (vocabulary, width)."""
        found: NDArray[Any] | Quantised
        found = getattr(self.plain or self.decoder, "tensors", self.checkpoint.tensors)[
            "token_embedding.weight"
        ]
        return found

    @property
    def tap(self) -> "Tap":
        """What is done to each activation on the way."""
        from minillm_repl.model.hooks import in_turn

        return in_turn(*(change.tap for change in self.changes))

    def seen(self, ids: Sequence[int]) -> "Window":
        """Return what it sees of a text."""
        from minillm_repl.tokenizer.window import window

        return window(ids, self.decoder.context, self.decoder.start)

    def without(self, command: str, part: str | None = None) -> "Model":
        """Return the model without the changes of a command, or those of one part alone."""
        return self.changed(
            tuple(
                each
                for each in self.changes
                if each.command != command or part not in (None, each.part)
            )
        )

    def changed(self, changes: tuple[Change, ...]) -> "Model":
        """Return the model with these changes, and no others, from now on."""
        plain = self.plain or self.decoder
        if not changes:
            return Model(self.checkpoint, plain)
        from minillm_repl.generate.backends.torch import TorchDecoder

        model = Model(self.checkpoint, plain, changes, plain)
        decoder = TorchDecoder(self.torch, model.tap)
        decoder.context, decoder.start = plain.context, plain.start
        return replace(model, decoder=decoder)


@dataclass(frozen=True)
class Opening:
    """How checkpoints are opened: what was decided when the program was started."""

    device: str = "auto"
    dtype: str = "auto"
    context: int = 0  # tokens; 0 is all that the model allows
    vocabulary: Path | None = None  # for a checkpoint without one
    nonfinite: bool = False  # whether weights that are no finite numbers are opened all the same
    threads: int = 0  # for chatting on the processor; 0 chooses
    quant: str = "off"  # how weights are made smaller, for chatting only

    def open(self, path: Path, progress: "Progress" = lambda _: None) -> Model:
        """Load a checkpoint and make it ready to run. Raises UserError."""
        from minillm_repl.checkpoint.load import load, read_vocabulary
        from minillm_repl.storage.encoding import Written

        written = Written()
        vocabulary = read_vocabulary(self.vocabulary, written) if self.vocabulary else None
        checkpoint = load(path, vocabulary, self.dtype, progress, nonfinite=self.nonfinite)
        notes = written.notes(self.vocabulary) if self.vocabulary else ()
        return self.ready(replace(checkpoint, notes=(*checkpoint.notes, *notes)))

    def ready(self, checkpoint: "Checkpoint") -> Model:
        """Make a checkpoint ready to run. Raises UserError if the device is not there."""
        from minillm_repl.generate.decoder import make_decoder

        decoder = make_decoder(
            checkpoint, self.device, self.context, threads=self.threads, quant=self.quant
        )
        return Model(checkpoint, decoder)


class Loading(Future[Model]):
    """A checkpoint being opened in a thread that does not keep the program from leaving.

    `share` is how much of its weights has been read; `changed` is called, from that thread, when it
    has grown by a hundredth, and at the end.
    """

    def __init__(
        self, opening: Opening, path: Path, changed: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.share = 0.0
        self._changed = changed
        self.add_done_callback(lambda _: changed())
        threading.Thread(
            target=self._work, args=(opening, path), daemon=True, name="loading"
        ).start()

    def _work(self, opening: Opening, path: Path) -> None:
        try:
            self.set_result(opening.open(path, self._progress))
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, not lost
            self.set_exception(error)

    def _progress(self, share: float) -> None:
        if share >= self.share + 0.01:
            self.share = share
            self._changed()
