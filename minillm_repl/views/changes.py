"""`:changes`: what is changed in the open model, and how each change is turned off."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import title
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import LoadedModel
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.views.base import View, show

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell


@dataclass(frozen=True)
class Change:
    """Something that makes the model compute something else than its file says."""

    kind: str  # the command that made it: `ablate`, `steer`, …, or `adapter`
    place: str  # of the model that is changed; empty where that is in the description
    description: str
    off: str  # the command that turns it off, with all others of its kind


@dataclass(frozen=True)
class ChangesView(View):
    """All changes of a model, in the order in which they were made."""

    model: str
    changes: tuple[Change, ...]

    def draw(self, _width: int) -> RenderableType:
        """Return a row for each change."""
        count = len(self.changes)
        heading = title(
            _("changes of {model}", model=self.model),
            _n("{n} change", "{n} changes", count) if count else _("none: it is as in its file"),
        )
        if not count:
            hint = _("`:ablate`, `:steer`, `:knockout`, `:circuit run` and `:features` change it")
            return Group(heading, Text(hint, FIGURES))
        table = plain_table(_("change"), _("turned off by"), wrap=(0,))
        for each in self.changes:
            table.add_row(each.description, Text(each.off, TITLE))
        legend = _(
            "they act together, each at its own place, and later layers see the result · "
            "`:changes off` turns all off"
        )
        return Group(heading, table, Text(legend, FIGURES))


def compute(model: LoadedModel) -> ChangesView:
    """Return what is changed in a model: its interventions, and before them its adapter."""
    changes = [
        Change(each.command, each.component, each.description, f":{each.command} off")
        for each in model.interventions
    ]
    if model.checkpoint.adapter is not None:
        about = _("adapter: {about}", about=safe_line(model.checkpoint.adapter.description))
        changes.insert(0, Change("adapter", "", about, ":adapter off"))
    return ChangesView(safe_line(model.name), tuple(changes))


@command(
    "changes",
    arguments=Forms(("off",), ()),
    json=True,
    aliases=("바뀐것",),
    group="Interventions",
    example=":changes",
)
def changes(shell: "Shell", asked: Arguments) -> None:
    """List what is changed in the model, or turn all of it off.

    These change what the open model computes, until they are turned off: `:ablate`, `:steer` (by a
    text or a direction), `:knockout`, `:circuit run`, `:features steer` and `:features ablate`, and
    the adapter that was opened or trained. The list says how to turn each of them off.
    :changes off turns all of them off; `:adapter on` brings the adapter back.

    Changes act together, each at its own place. A change that adds nothing, such as `strength=0`,
    is not made, so that every number stays the same to the last bit. Changes are kept with the
    session, also after `:save`; the model that is saved or trained is without them, but with its
    adapter. With `--json FILE` the list is written to a file.
    """
    model = shell.require_model()
    if asked.keyword != "off":
        # As a view of the plain model: a line above would name the changes once more.
        show(shell, compute(model), asked.output, model.with_interventions(()))
        return
    found = compute(model).changes
    # First what can fail: the model without the adapter is read from its file.
    if model.checkpoint.adapter is not None and shell.registry.has("adapter"):
        adapter = shell.registry.get("adapter")
        adapter.run(shell, adapter.parse("off"))
    shell.session.workspace.remove_interventions()
    count = len(found)
    shell.screen.note(
        _n("{n} change turned off", "{n} changes turned off", count)
        if count
        else _("nothing is changed: the model is as in its file")
    )
