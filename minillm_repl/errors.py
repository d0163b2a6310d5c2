"""Errors that a user can cause."""

from minillm_repl.language import N_, _

_TRANSLATED_OS_ERRORS = {  # the common messages of Unix
    N_("File name too long"), N_("Is a directory"), N_("No space left on device"),
    N_("No such file or directory"), N_("Not a directory"), N_("Operation not permitted"),
    N_("Permission denied"), N_("Read-only file system"),
    N_("Too many levels of symbolic links"),
}  # fmt: skip


class UserError(Exception):
    """An error that the user can fix: one line with the cause, the value and the remedy.

    Every other exception is a bug.
    """


class UsageError(UserError):
    """Wrong arguments of a command; its usage is shown too."""


def os_error_text(error: OSError) -> str:
    """Return the system's message, translated if it is a common one."""
    return _(error.strerror) if error.strerror in _TRANSLATED_OS_ERRORS else str(error.strerror)
