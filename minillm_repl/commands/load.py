"""`:load`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.tables import headline
from minillm_repl.repl.model_loading import Loading
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.storage.paths import find, shipped


@command("load", ":load PATH|NAME", aliases=("열기",), completion="checkpoint")
def load(shell: Shell, argument: str) -> None:
    """Open another checkpoint.

    PATH is a .safetensors file, or a Hugging Face folder; NAME is one that `:models` lists. The
    model that is open stays open until the other is ready, and if it is not.
    """
    if not argument:
        raise UserError(
            _(
                ":load needs a file, a folder, or a name: {names}; :models lists more",
                names=", ".join(shipped()),
            )
        )
    session, path = shell.session, find(argument)
    session.agree_to_discard("load")
    model = shell.wait_for(Loading(session.opening, path), path)
    session.adopt(model, unsaved=False)
    decoder = model.decoder
    shell.screen.note(
        headline(model.name, model.family, model.checkpoint.config, decoder.name, decoder.context)
    )
    shell.remark(model)
