"""`:scroll`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.drawing import UNLIMITED_WIDTH
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell


@command("scroll", aliases=("스크롤",))
def scroll(shell: Shell, _asked: Arguments) -> None:
    """Scroll through the last view in full size.

    Arrow keys, Page Up, Page Down, Home and End (the ends of a row) move; q closes. Without a
    terminal, the view is printed at full width.
    """
    if shell.last_view is None:
        raise UserError(_("no view to scroll yet: try `:attn 0.0`"))
    view = shell.last_view(UNLIMITED_WIDTH)
    if not shell.screen.animated:
        shell.screen.out.print(view, soft_wrap=True, width=UNLIMITED_WIDTH)
        return
    from minillm_repl.repl.pager import Pager

    Pager(view, UNLIMITED_WIDTH, shell.screen.out, shell.last_pinned).run()
