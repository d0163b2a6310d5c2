"""`:models`."""

from minillm_repl.render.tables import models_table
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("models", aliases=("모델목록",))
def models(shell: Shell, _asked: Arguments) -> None:
    """List the models that can be opened by name.

    The list shows the shipped models, recently opened models, and models in the Hugging Face cache;
    `:load NAME` opens one.

    Nothing is downloaded. The command only lists what other programs have put into the cache.
    """
    shell.screen.out.print(models_table(shell.session.workspace.models()))
