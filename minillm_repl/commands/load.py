"""`:load`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.tables import headline
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.model_loading import ModelFuture
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.storage.paths import find_checkpoint, shipped_names


@command(
    "load", arguments=(Words("path", "PATH|NAME", completion="checkpoint"),), aliases=("열기",)
)
def load(shell: Shell, asked: Arguments) -> None:
    """Open another checkpoint.

    PATH is a .safetensors file or a Hugging Face folder. NAME is a name from `:models`.

    The open model stays open until the new one is ready. It also stays open if the new one cannot
    be opened.
    """
    if not asked.path:
        raise UserError(
            _(
                ":load needs a file, a folder, or a name: {names}; `:models` lists more",
                names=", ".join(shipped_names()),
            )
        )
    session, path = shell.session, find_checkpoint(asked.path)
    session.confirm_discard("load")
    model = shell.wait_for_model(ModelFuture(session.workspace.loader, path), path)
    session.adopt(model, unsaved=False)
    decoder = model.decoder
    shell.screen.note(
        headline(
            model.name, model.family, model.checkpoint.config, decoder.name, decoder.context_length
        )
    )
    shell.show_notes_once(model)
