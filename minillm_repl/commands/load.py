"""`:load`."""

from minillm_repl.checkpoint.names import find, shipped
from minillm_repl.errors import UserError
from minillm_repl.render.tables import headline
from minillm_repl.repl.registry import command
from minillm_repl.repl.session import in_background, open_model
from minillm_repl.repl.shell import Shell


@command("load", ":load PATH|NAME", completion="checkpoint")
def load(shell: Shell, argument: str) -> None:
    """Open another checkpoint.

    NAME is one that ships with the program; `:load` alone lists them.
    The model that is open stays open until the other is ready, and if it is not.
    """
    if not argument:
        raise UserError(f":load needs a file, or a name: {', '.join(shipped())}")
    session, path = shell.session, find(argument)
    session.agree_to_discard("load")
    loading = in_background(lambda: open_model(path, session.vocabulary, session.device))
    model = shell.wait_for(loading, path)
    session.adopt(model, unsaved=False)
    shell.screen.note(headline(model.name, model.checkpoint.config, model.decoder.name))
