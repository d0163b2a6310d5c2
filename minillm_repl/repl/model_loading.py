"""Opening a checkpoint, at once or while the user types."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_repl.checkpoint.families import family_title
from minillm_repl.errors import UserError
from minillm_repl.generate import NO_RULES, TokenRules
from minillm_repl.language import _
from minillm_repl.repl.settings import Settings, check_recommended
from minillm_repl.repl.signals import complete_in_thread
from minillm_repl.storage.paths import checkpoint_title, server_url

if TYPE_CHECKING:  # numpy is imported by the thread that loads, while the user types
    from numpy.typing import NDArray

    from minillm_repl.checkpoint import Checkpoint, Progress
    from minillm_repl.generate import Decoder
    from minillm_repl.generate.constraint import FormatSource
    from minillm_repl.generate.rules import RuleMaker
    from minillm_repl.model.build import LanguageModel
    from minillm_repl.model.hooks import Hook
    from minillm_repl.model.quantised import BlockMatrix, QuantisedMatrix
    from minillm_repl.repl.remote_model import ServerModel
    from minillm_repl.tokenizer.truncation import TruncatedText


@dataclass(frozen=True)
class Intervention:
    """A change of what a model computes, from when it is asked for until it is turned off."""

    command: str  # that turns it off: `ablate`
    # what the user is told of it, in the language of the moment: `without head 2.1`
    describe: Callable[[], str]
    hook: "Hook"
    component: str = (
        ""  # of the model that it is done to: a later change of the same takes its place
    )
    reads_whole_text: bool = False  # the hook needs all of a text in each pass, and no KV cache
    # What makes it again, where the line that was typed does not: it meant something seen before.
    lines: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What the user is told of it, in the present language."""
        return self.describe()


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint, the decoder that runs it, and the interventions on it."""

    checkpoint: "Checkpoint"
    decoder: "Decoder"
    interventions: tuple[Intervention, ...] = ()
    base_decoder: "Decoder | None" = None  # the decoder without them
    adapted: "LoadedModel | None" = None  # where an adapter is switched off: the model with it
    server: "ServerModel | None" = None  # where it runs on one

    @property
    def name(self) -> str:
        """What to call it."""
        if self.server is not None:
            return self.server.name
        return checkpoint_title(self.checkpoint.path) if self.checkpoint.path else _("new model")

    @property
    def family(self) -> str:
        """What it is of; of a model on a server, the engine and its address."""
        if self.server is not None:
            return self.server.source
        return family_title(self.checkpoint.config, self.checkpoint.model_type)

    @property
    def headline(self) -> str:
        """What it is, in one line."""
        if self.server is not None:
            return self.server.headline
        from minillm_repl.render.tables import headline

        config, decoder = self.checkpoint.config, self.decoder
        return headline(self.name, self.family, config, decoder.name, decoder.context_length)

    @property
    def language_model(self) -> "LanguageModel":
        """The model in torch, which looks and changes inside: the weights are those that answer."""
        return self.decoder.model

    @property
    def embedding(self) -> "NDArray[Any] | QuantisedMatrix | BlockMatrix":
        """The table of the tokens' vectors that answers: (vocabulary, width)."""
        found: NDArray[Any] | QuantisedMatrix | BlockMatrix
        found = getattr(self.base_decoder or self.decoder, "tensors", self.checkpoint.tensors)[
            "token_embedding.weight"
        ]
        return found

    def token_rules(
        self,
        settings: Settings,
        eos_token_ids: Sequence[int] = (),
        form: "FormatSource | None" = None,
    ) -> "TokenRules":
        """Return what the settings say of tokens, as ids of this model; `form` is another format.

        Raises UserError.
        """
        if self.server is not None and not getattr(self.decoder, "samples_here", False):
            if settings.ban or settings.bias or settings.format:
                raise UserError(
                    _(
                        "{source} samples by itself: :format, :ban and :bias need a model that "
                        "runs here; `off` turns them off",
                        source=self.server.source,
                    )
                )
            return NO_RULES
        return self._rule_maker.make(
            ban=settings.ban,
            bias=settings.bias,
            has_dry=settings.dry > 0,
            answer_format=form or settings.format,
            eos_token_ids=eos_token_ids,
        )

    @cached_property
    def _rule_maker(self) -> "RuleMaker":
        from minillm_repl.generate.rules import RuleMaker

        return RuleMaker(self.checkpoint.tokenizer)

    @property
    def hook(self) -> "Hook":
        """What is done to each activation on the way."""
        from minillm_repl.model.hooks import compose

        return compose(*(change.hook for change in self.interventions))

    def visible_window(self, ids: Sequence[int]) -> "TruncatedText":
        """Return what it sees of a text."""
        from minillm_repl.tokenizer.truncation import truncate

        return truncate(ids, self.decoder.context_length, self.decoder.bos_token_id)

    def without_interventions(self, command: str, component: str | None = None) -> "LoadedModel":
        """Return the model without the changes of a command, or those of one part alone."""
        return self.with_interventions(
            tuple(
                each
                for each in self.interventions
                if each.command != command or component not in (None, each.component)
            )
        )

    def with_interventions(self, interventions: tuple[Intervention, ...]) -> "LoadedModel":
        """Return the model with these changes, and no others, from now on."""
        base_decoder = self.base_decoder or self.decoder
        if not interventions:
            return replace(self, decoder=base_decoder, interventions=(), base_decoder=None)
        from minillm_repl.generate.backends.torch import TorchDecoder

        model = replace(self, interventions=interventions, base_decoder=base_decoder)
        has_cache = not any(each.reads_whole_text for each in interventions)
        decoder = TorchDecoder(self.language_model, model.hook, has_cache=has_cache)
        decoder.context_length, decoder.bos_token_id = (
            base_decoder.context_length,
            base_decoder.bos_token_id,
        )
        return replace(model, decoder=decoder)


@dataclass(frozen=True, kw_only=True)
class ModelLoader:
    """How checkpoints are opened: what was decided when the program was started."""

    device: str = "auto"
    dtype: str = "auto"
    context_length: int = 0  # tokens; 0 is all that the model allows
    vocabulary: Path | None = None  # for a checkpoint without one
    base: Path | None = None  # the model of an adapter that names none that is here
    allow_nonfinite: bool = (
        False  # whether weights that are no finite numbers are opened all the same
    )
    threads: int = 0  # for chatting on the processor; 0 chooses
    quantization: str = "off"  # how weights are made smaller, for chatting only
    kernels: str = "auto"  # a variant of the C library, or off for torch
    server_model: str = ""  # the name of the model at the address of a server; empty: its first
    server_key: str = field(default="", repr=False)

    def load(self, path: Path, progress: "Progress" = lambda _share: None) -> LoadedModel:
        """Load a checkpoint and make it ready to run. Raises UserError."""
        url = server_url(path)
        if url:
            from minillm_repl.repl.remote_model import open_remote

            url, _space, name = url.partition(" ")  # `:load URL NAME`
            name = name.strip() or self.server_model
            checkpoint, decoder, about = open_remote(url, name, self.server_key)
            return LoadedModel(checkpoint, decoder, server=about)
        from minillm_repl.checkpoint.load_save import load, read_vocabulary
        from minillm_repl.storage.encoding import DetectedEncoding

        written = DetectedEncoding()
        vocabulary = read_vocabulary(self.vocabulary, written) if self.vocabulary else None
        checkpoint = load(
            path,
            vocabulary,
            self.dtype,
            progress,
            allow_nonfinite=self.allow_nonfinite,
            base=self.base,
        )
        notes = written.notes(self.vocabulary) if self.vocabulary else ()
        return self.prepare(replace(checkpoint, notes=(*checkpoint.notes, *notes)))

    def prepare(self, checkpoint: "Checkpoint") -> LoadedModel:
        """Make a checkpoint ready to run. Raises UserError if the device is not there."""
        from minillm_repl.generate.backends import make_decoder

        recommended, notes = check_recommended(checkpoint.recommended)
        if notes:
            notes = (*checkpoint.notes, *notes)
            checkpoint = replace(checkpoint, recommended=recommended, notes=notes)
        decoder = make_decoder(
            checkpoint,
            self.device,
            self.context_length,
            threads=self.threads,
            quant=self.quantization,
            kernels=self.kernels,
        )
        return LoadedModel(checkpoint, decoder)


class ModelFuture(Future[LoadedModel]):
    """A checkpoint that is opened in a thread. The thread does not keep the program from ending.

    `fraction_read` is how much of the weights is read. `on_progress` is called from that thread
    each time it has grown by a hundredth, and at the end.
    """

    def __init__(
        self, loader: ModelLoader, path: Path, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.fraction_read = 0.0
        self._on_progress = on_progress
        self.add_done_callback(lambda _model: on_progress())
        complete_in_thread(self, partial(loader.load, path, self._report_progress))

    def _report_progress(self, fraction: float) -> None:
        if fraction >= self.fraction_read + 0.01:  # a percentage shows no less
            self.fraction_read = fraction
            self._on_progress()
