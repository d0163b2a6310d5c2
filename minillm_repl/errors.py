"""The one kind of error a user can cause."""


class UserError(Exception):
    """What the user can fix: one line that says what was wrong, the value, and what to do. Everything else is a bug."""
