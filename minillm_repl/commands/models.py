"""`:models`."""

from minillm_repl.render.tables import models_table
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("models", aliases=("모델목록",))
def models(shell: Shell, _argument: str) -> None:
    """List what can be opened by name.

    What ships with the program, what was opened before, and what is in Hugging Face's cache: `:load
    NAME` opens one. Nothing is downloaded: what other programs have put into the cache is only
    looked at.
    """
    shell.screen.out.print(models_table(shell.session.models()))
