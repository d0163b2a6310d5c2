"""The one kind of error a user can cause."""

from minillm_repl.language import N_, _

_TRANSLATED_OS_ERRORS = {  # what Unix says most
    N_("File name too long"), N_("Is a directory"), N_("No space left on device"),
    N_("No such file or directory"), N_("Not a directory"), N_("Operation not permitted"),
    N_("Permission denied"), N_("Read-only file system"),
    N_("Too many levels of symbolic links"),
}  # fmt: skip


class UserError(Exception):
    """What the user can fix: one line that says what was wrong, the value, and what to do.

    Everything else is a bug.
    """


class UsageError(UserError):
    """A command was asked for in a way that it does not know: its usage is told as well."""


def os_error_text(error: OSError) -> str:
    """Return what the system says went wrong, in the language spoken if known there."""
    return _(error.strerror) if error.strerror in _TRANSLATED_OS_ERRORS else str(error.strerror)
