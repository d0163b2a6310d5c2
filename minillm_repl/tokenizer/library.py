"""The `tokenizers` library: its errors, and what is changed in each tokenizer that it makes."""

from collections.abc import Iterator
from contextlib import contextmanager

import tokenizers

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn what the library raises into a UserError: Exceptions, and panics, which are none."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            _("the tokenizers library failed: {error:.200}", error=safe_line(str(error)))
        ) from None


def make_tokenizer(description: str) -> tokenizers.Tokenizer:
    """Make a tokenizer from its description (JSON), which neither cuts a text nor pads it."""
    library = tokenizers.Tokenizer.from_str(description)
    library.no_truncation()  # what is typed is read whole,
    library.no_padding()  # and nothing else
    return library


def replace_surrogates(text: str) -> str:
    """Return the text with `?` for bytes that were no UTF-8 where they were typed, which the
    library cannot take.
    """
    return text.encode("utf-8", "replace").decode()
