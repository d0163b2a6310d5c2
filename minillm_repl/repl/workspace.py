"""The workspace: the open model, where it may be written, and which models were opened last."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.model_loading import Intervention, LoadedModel, ModelFuture, ModelLoader
from minillm_repl.storage.atomic import write_atomically
from minillm_repl.storage.paths import cached_models, exists, is_shipped, shipped_names
from minillm_repl.storage.stores import OLLAMA, stored_models

if TYPE_CHECKING:
    from minillm_repl.checkpoint import Checkpoint

_MAX_RECENT = 20  # paths


class RecentModels:
    """The checkpoints that were opened last, the newest first; they are kept in a file of the
    user's, or not at all.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def paths(self) -> list[Path]:
        """Return those that still exist."""
        if self._file is None or not self._file.is_file():
            return []
        try:
            lines = os.fsdecode(self._file.read_bytes()).split("\n")[:_MAX_RECENT]
        except OSError:
            return []
        return [Path(line) for line in lines if line and exists(Path(line))]

    def add(self, path: Path | None) -> None:
        """Put a path first.

        A folder that cannot be written must not keep anyone from opening a model.
        """
        if self._file is None or path is None or is_shipped(path) or "\n" in str(path):
            return
        path = Path(os.path.abspath(path))  # noqa: PTH100 - links stay as the user knows them
        others = (other for other in self.paths() if other != path)
        lines = [str(each) for each in (path, *others)][:_MAX_RECENT]
        text = "".join(f"{line}\n" for line in lines)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # private, because paths tell what somebody works on
            write_atomically(self._file, os.fsencode(text), private=True)
        except (OSError, UserError):
            return


@dataclass(frozen=True)
class ReadOnly:
    """The model came from `path`. Only `:save` writes there."""

    path: Path


@dataclass(frozen=True)
class Writable:
    """`path` is this session's to write: a model that is trained is saved there."""

    path: Path
    holds_ours: bool = False  # this session has saved a model there
    is_practice: bool = False  # a lesson's: a new model replaces that of the lesson before
    is_folder: bool = False  # a folder for the `transformers` library, or `peft`, not a file


@dataclass(frozen=True)
class Unnamed:
    """The model has no file yet: it was trained, and no path was given."""

    path: None = None


Destination = ReadOnly | Writable | Unnamed
"""Where the open model lies, and whether this session may write it there."""


@dataclass(kw_only=True)
class Workspace:
    """The open model and its place. Nothing here draws, and no property does work.

    A model is opened in the background: `start_loading` begins that, `finish_loading` makes a model
    that is ready the open one.
    """

    loader: ModelLoader = field(default_factory=ModelLoader)
    recent_models: RecentModels = field(default_factory=lambda: RecentModels(None))
    destination: Destination = Unnamed()
    model: LoadedModel | None = None
    loading: ModelFuture | None = None  # what is being opened, or could not be
    user_selected: bool = True  # the user has named the model, or made it
    unsaved: bool = False  # the open model was trained and lies in no file
    is_training: bool = False  # a model is being trained that nothing else holds yet
    resumable: bool = False  # the open model is that of a stopped run, which `resume` keeps
    shown_notes: tuple[str, ...] = ()  # of the open model's files, those the user has been told
    watch_prompt: str = ""  # a prompt that is watched during training
    watch_view: Any = None  # the `WatchView` of what was measured
    watched: tuple[str, ...] = ()  # the probes that are measured during training: `heads`
    directions: dict[str, Any] = field(default_factory=dict)  # by name: a `Direction` each
    _warned_wish: object = None  # the wish that was last answered by "unsaved trained weights"

    @property
    def path(self) -> Path | None:
        """The place of the open model, or of the one that was asked for; it may not exist yet."""
        return self.destination.path

    @property
    def writable_path(self) -> Path | None:
        """Where a trained model is saved without being asked for."""
        return self.destination.path if isinstance(self.destination, Writable) else None

    @property
    def is_folder(self) -> bool:
        """Whether a trained model is saved as a folder there."""
        return isinstance(self.destination, Writable) and self.destination.is_folder

    @property
    def holds_ours(self) -> bool:
        """Whether this session has saved a model where the open one lies."""
        return isinstance(self.destination, Writable) and self.destination.holds_ours

    def models(self) -> list[tuple[str, str]]:
        """Return what can be opened: the name that opens it, and where it comes from."""
        hub, stores = cached_models(), stored_models()
        known = {*hub.values(), *stores.values()}
        recent = [path for path in self.recent_models.paths() if path not in known]
        return [
            *((name, _("built in")) for name in shipped_names()),
            *((str(path), _("opened recently")) for path in recent),
            *((name, _("Hugging Face cache")) for name in hub),
            *((name, "ollama" if name.startswith(OLLAMA) else "LM Studio") for name in stores),
        ]

    @property
    def _can_hold_new_model(self) -> bool:
        place = self.destination
        return isinstance(place, Writable) and (place.is_practice or not place.holds_ours)

    # -- opening a model

    def start_loading(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Begin to open the model in the background, unless one is open or the path is to be made.

        `on_progress` is called from the thread that loads.
        """
        if isinstance(self.destination, ReadOnly) and self.has_no_model:
            self.loading = ModelFuture(self.loader, self.destination.path, on_progress)

    @property
    def is_loading(self) -> bool:
        """Whether a model is being opened right now."""
        return self.loading is not None and not self.loading.done()

    @property
    def has_no_model(self) -> bool:
        """Whether no model is open and none is being opened."""
        return self.model is None and self.loading is None

    def finish_loading(self) -> None:
        """Make a model that has been loaded the open one; do not wait for one that has not."""
        loading = self.loading
        if loading is not None and loading.done() and loading.exception() is None:
            self.model, self.loading = loading.result(), None
            path = self.model.checkpoint.path  # of a file in a Hugging Face folder, the folder
            if isinstance(self.destination, Writable) and path is not None:
                self.destination = replace(self.destination, path=path)
            else:
                self._read_from(self.model)

    def forget_failed_load(self) -> None:
        """Drop a load that failed; a model that was opened before stays."""
        self.loading = None

    def _read_from(self, model: LoadedModel) -> None:
        path = model.checkpoint.path
        self.destination = Unnamed() if path is None else ReadOnly(path)
        self.recent_models.add(path)

    # -- the open model

    def save_run_to(self, path: Path | None) -> None:
        """Let the model of a resumed run go where it went before; None is no file of the user's."""
        practice = isinstance(self.destination, Writable) and self.destination.is_practice
        self.destination = (
            Unnamed()
            if path is None
            else Writable(path, is_practice=practice, is_folder=self.is_folder)
        )

    def adopt(self, model: LoadedModel, *, unsaved: bool) -> None:
        """Make `model` the open one; `unsaved` is one that was trained."""
        self.model, self.loading, self.user_selected = model, None, True
        if not unsaved:
            self._read_from(model)
            self.shown_notes = ()
        # A model that was trained further keeps its place; a new one takes only an empty one.
        elif model.checkpoint.path is None and not self._can_hold_new_model:
            self.destination = Unnamed()
        self.unsaved, self.resumable, self._warned_wish = unsaved, False, None

    def mark_saved(self, checkpoint: "Checkpoint") -> None:
        """Record that the open model lies on disk as `checkpoint`."""
        assert self.model is not None
        assert checkpoint.path is not None
        self.model = replace(self.model, checkpoint=checkpoint)
        writable = self.destination if isinstance(self.destination, Writable) else None
        self.destination = Writable(
            checkpoint.path,
            holds_ours=True,
            is_practice=writable is not None and writable.is_practice,
            is_folder=writable is not None and writable.is_folder,
        )
        self.recent_models.add(checkpoint.path)
        self.unsaved, self._warned_wish = False, None

    def confirm_discard(self, wish: object) -> None:
        """Raise UserError the first time that a wish would discard trained weights that lie in
        no file; the same wish again is granted.
        """
        if self.unsaved and self._warned_wish != wish:
            self._warned_wish = wish
            raise UserError(
                _(
                    "unsaved trained weights: `:save FILE` keeps them; repeat the command "
                    "to discard them"
                )
            )

    # -- what is changed in it

    def add_intervention(self, intervention: Intervention) -> None:
        """Add an intervention; it replaces one of the same command on the same component."""
        assert self.model is not None
        others = self.model.without_interventions(intervention.command, intervention.component)
        self.model = self.model.with_interventions((*others.interventions, intervention))

    def remove_interventions(self, command: str = "") -> bool:
        """Remove all interventions of a command, or of all; tell whether there were any."""
        before = self.model.interventions if self.model else ()
        others = tuple(each for each in before if command and each.command != command)
        if self.model and len(others) < len(before):
            self.model = self.model.with_interventions(others)
        return len(others) < len(before)
