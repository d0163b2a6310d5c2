"""`:scroll`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.drawing import WHOLE
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("scroll", aliases=("스크롤",))
def scroll(shell: Shell, _argument: str) -> None:
    """Look at all of the last view, however large it is.

    Arrows, Page Up and Page Down, Home and End (the ends of a row) move; q leaves. Without a
    terminal it is printed as wide as it is.
    """
    if shell.last_view is None:
        raise UserError(_("there is no view to scroll yet: `:attn 0.0` would be one"))
    view = shell.last_view(WHOLE)
    if not shell.screen.animated:
        shell.screen.out.print(view, soft_wrap=True, width=WHOLE)
        return
    from minillm_repl.repl.pager import Pager

    Pager(view, WHOLE, shell.screen.out, shell.last_pins).run()
