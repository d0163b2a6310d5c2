"""A session: the conversation, the settings and the workspace."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from minillm_repl.repl.conversation import Conversation
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.settings import DEFAULT, Settings, Source
from minillm_repl.repl.workspace import Workspace
from minillm_repl.settings import change, default_of, find

if TYPE_CHECKING:
    pass


class LineHandler(Protocol):
    """What gets each line that is typed while it goes on: a lesson."""

    @property
    def position_label(self) -> str:
        """Where one is in it, in a few words."""

    @property
    def hint(self) -> str:
        """What it waits for."""

    def handle_line(self, line: str) -> None:
        """Do what a line says. Raises UserError."""


@dataclass
class Session:
    """The state between two lines. Nothing here draws.

    A lesson has a session of its own, so that the learner's stays as it is.
    """

    chosen: Settings = field(default_factory=Settings)
    workspace: Workspace = field(default_factory=Workspace)
    conversation: Conversation = field(default_factory=Conversation)
    # Where the user has set values of `chosen`. The others are the model's, or the program's.
    sources: dict[str, Source] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The settings that count: the model's own where the user has chosen none."""
        # What the user has set goes before what the model's files recommend.
        own = {
            name.replace("-", "_"): value
            for name, value in self.recommended.items()
            if name not in self.sources
        }
        return replace(self.chosen, **own) if own else self.chosen

    @property
    def recommended(self) -> Mapping[str, Any]:
        """The settings that the files of the open model recommend."""
        model = self.workspace.model
        return model.checkpoint.recommended if model else {}

    def set(self, name: str, text: str, spelling: str | None = None) -> None:
        """Change a setting. Raises UserError, leaving everything as it was.

        `default` drops what the user chose.
        """
        full, _spec = find(self.chosen, name)
        if text.strip().lower() == DEFAULT:
            self.chosen = replace(
                self.chosen, **{full.replace("-", "_"): default_of(self.chosen, full)}
            )
            self.sources.pop(full, None)
            return
        self.chosen = change(self.chosen, name, text, display_name=spelling)
        self.sources[full] = "session"

    def source(self, name: str) -> Source:
        """Return where the value of a setting comes from."""
        usual: Source = "model" if name in self.recommended else "program"
        return self.sources.get(name, usual)

    def adopt(self, model: LoadedModel, *, unsaved: bool) -> None:
        """Make `model` the open one; the text so far belonged to the other one."""
        self.workspace.adopt(model, unsaved=unsaved)
        self.conversation.clear()

    def confirm_discard(self, action: str) -> None:
        """Raise UserError if an action would discard unsaved weights, unless it is repeated with
        no turn in between.
        """
        self.workspace.confirm_discard((action, len(self.conversation.turns)))
