"""A session: the conversation, the workspace and the settings."""

from dataclasses import dataclass, field

from minillm_repl.repl.conversation import Conversation
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.settings import Settings
from minillm_repl.repl.workspace import Workspace
from minillm_repl.settings import change


@dataclass
class Session:
    """The state between two lines. Nothing here draws.

    A lesson has a session of its own, so that the learner's stays as it is.
    """

    settings: Settings = field(default_factory=Settings)
    workspace: Workspace = field(default_factory=Workspace)
    conversation: Conversation = field(default_factory=Conversation)

    def set(self, name: str, text: str, spelling: str | None = None) -> None:
        """Change a setting. Raises UserError, leaving everything as it was."""
        self.settings = change(self.settings, name, text, display_name=spelling)

    def adopt(self, model: LoadedModel, *, unsaved: bool) -> None:
        """Make `model` the open one; the text so far belonged to the other one."""
        self.workspace.adopt(model, unsaved=unsaved)
        self.conversation.clear()

    def confirm_discard(self, action: str) -> None:
        """Raise UserError if an action would discard unsaved weights, unless it is repeated with
        no turn in between.
        """
        self.workspace.confirm_discard((action, len(self.conversation.turns)))
