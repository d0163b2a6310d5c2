"""The first lines of a session: what is open, and how to go on."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from minillm_repl.checkpoint.families import family_title
from minillm_repl.checkpoint.load_save import read_config, read_model_type
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.tables import headline
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import (
    checkpoint_title,
    is_shipped,
    server_url,
    shipped_names,
)


def greet(shell: Shell, out: Console) -> None:
    """Say what is open and how to go on. Raises UserError if the file named is no checkpoint."""
    workspace = shell.session.workspace
    path = workspace.path
    assert path is not None
    name = safe_line(server_url(path) or str(path))
    if server_url(path):
        about, hint = name, _(":help lists the commands · Ctrl-D quits")
    elif workspace.writable_path is not None:
        about = _("{name} does not exist yet", name=name)
        hint = _(
            "`:train CORPUS` trains one on a text · `:load NAME` opens {names} · :help",
            names=", ".join(shipped_names()),
        )
    else:
        config = read_config(path)  # not the weights: these are loaded while the user types
        family, context = (
            family_title(config, read_model_type(path)) if config else "",
            workspace.loader.context_length,
        )
        about = (
            headline(checkpoint_title(path), family, config, context=context) if config else name
        )
        hint = _(":help lists the commands · :verbose shows the model's candidates · Ctrl-D quits")
    out.print(Text.assemble(("minillm-repl", TITLE), f"  {about}"))
    out.print(Text(hint, FIGURES))
    for line in _speaks(path, named=workspace.user_selected):
        out.print(Text(line, FIGURES))


def _speaks(path: Path, *, named: bool) -> list[str]:
    """Return what the shipped models need said, before somebody says the wrong thing to them."""
    name = path.stem if is_shipped(path) else ""
    lines = []
    if name == "story":
        lines.append(
            _("This model continues English tales: Once upon a time · `:load pebble` answers")
        )
    elif name == "hangul":
        lines.append(_("This model talks in Korean only. Try: 심심해 · English: `:load pebble`"))
    elif name == "pebble":
        lines.append(_("This model talks in English only. Try: I'm bored · Korean: `:load hangul`"))
    if not named:
        lines.append(_("Smallest model: `:load nalssi` · :models lists what else opens"))
    return lines
