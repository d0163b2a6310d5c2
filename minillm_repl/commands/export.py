"""`:export`."""

from functools import partial

from rich.console import Console, RenderableType

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.render.drawing import UNLIMITED_WIDTH
from minillm_repl.render.export import write_view
from minillm_repl.repl.arguments import Arguments, Choice, Flag, Words
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path


@command(
    "export",
    arguments=(
        Words("file", "FILE.svg|.html|.txt", required=True, completion="file"),
        Choice("session", "lesson", name="whole"),
        Flag("--overwrite"),
    ),
    aliases=("내보내기",),
    example=":export lens.svg",
)
def export(shell: Shell, asked: Arguments) -> None:
    """Save the last view, or the whole session, as a picture.

    The end of the name sets the format: .svg and .html keep colours and open in any browser; .txt
    is plain text. The picture holds the whole view, however small the terminal is.

    `session` saves all that this session has shown, even without a view. `lesson` saves the lesson
    that is open, or was last open, with its pictures as they were.

    The command overwrites a file that no view wrote only with --overwrite. The same is true of
    --json FILE for all views.
    """
    path, whole = user_path(asked.file), asked.whole
    screen, view = shell.screen, shell.last_view
    from minillm_repl.render.export import FORMATS, whole_width

    if path.suffix.lower() not in FORMATS:
        endings = ", ".join(FORMATS)
        raise UsageError(
            _(
                ":export needs a file name that ends in {endings}; after it, only "
                "`session` or `lesson` may follow",
                endings=endings,
            )
        )
    since = shell.lesson_start_count if whole == "lesson" else 0
    if whole or view is None:
        width, drawing = screen.out.max_width(since), partial(screen.out.replay, since=since)
    else:
        picture = view(UNLIMITED_WIDTH)  # all of it, whatever had room on the terminal
        width, drawing = whole_width(picture), partial(_print, picture)

    model = shell.session.workspace.model
    title = safe_line(f"minillm-repl · {model.name}" if model else "minillm-repl")
    written = FORMATS[path.suffix.lower()](drawing, width, title)
    write_view(path, written.encode("utf-8", "replace"), overwrite=asked.overwrite)
    named = safe_line(str(path))
    screen.note(
        _("lesson saved to {path}", path=named)
        if whole == "lesson"
        else _("session saved to {path}", path=named)
        if whole or view is None
        else _("last view saved to {path}", path=named)
    )
    gone = screen.out.forgotten_count(since) if whole or view is None else 0
    if gone:
        screen.warn(
            _("the oldest {n:,} outputs are no longer kept, so the file lacks them", n=gone)
        )


def _print(picture: RenderableType, console: Console) -> None:
    console.print(picture)
