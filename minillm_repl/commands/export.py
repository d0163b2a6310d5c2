"""`:export`."""

import re
from functools import partial

from rich.console import Console, RenderableType

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.render.drawing import WHOLE
from minillm_repl.repl.argument_parsing import take_overwrite
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.view_files import write_view
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path


@command(
    "export",
    ":export FILE.svg|.html|.txt [session|lesson] [--overwrite]",
    aliases=("내보내기",),
    completion="file",
    words=("session", "lesson", "--overwrite"),
)
def export(shell: Shell, argument: str) -> None:
    """Save the last view, or the whole session, as a picture.

    The end of the name says how: .svg and .html keep colours and open in any browser, .txt is plain
    text. The view is there whole, however small the terminal is. With `session` it is all that this
    visit has shown; without a view so far, too. With `lesson` it is the lesson that is open, or was
    last, with its pictures as they were. A file that no view has made is replaced only with
    --overwrite; so it is with --json FILE of all views.
    """
    said, overwrite = take_overwrite(argument)
    name, whole = re.fullmatch(r"(.*?)(?:\s+(session|lesson))?", said.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    path, screen, view = user_path(name), shell.screen, shell.last_view
    from minillm_repl.render.export import FORMATS, whole_width

    if not name or path.suffix.lower() not in FORMATS:
        endings = ", ".join(FORMATS)
        raise Misunderstood(
            _(
                ":export needs a file whose name ends in {endings}, and after it nothing, "
                "`session` or `lesson`",
                endings=endings,
            )
        )
    since = shell.lesson_began if whole == "lesson" else 0
    if whole or view is None:
        width, drawing = screen.out.widest(since), partial(screen.out.replay, since=since)
    else:
        picture = view(WHOLE)  # all of it, whatever had room on the terminal
        width, drawing = whole_width(picture), partial(_print, picture)

    model = shell.session.model
    title = safe_line(f"minillm-repl · {model.name}" if model else "minillm-repl")
    written = FORMATS[path.suffix.lower()](drawing, width, title)
    write_view(path, written.encode("utf-8", "replace"), overwrite=overwrite)
    named = safe_line(str(path))
    screen.note(
        _("the lesson is in {path}", path=named)
        if whole == "lesson"
        else _("the session so far is in {path}", path=named)
        if whole or view is None
        else _("the last view is in {path}", path=named)
    )
    gone = screen.out.gone(since) if whole or view is None else 0
    if gone:
        screen.warn(
            _("{n:,} things that were shown before are no longer kept, and not in it", n=gone)
        )


def _print(picture: RenderableType, console: Console) -> None:
    console.print(picture)
