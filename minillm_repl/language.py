"""The language of the interface: GNU gettext, whose key is the English text.

`_("{name} does not exist", name=name)` is the text in the current language with the values filled
in. A translation puts the values in the order of its grammar. `python -m tests.messages` collects
the texts in `locale/ko/LC_MESSAGES/minillm.po` and compiles their translations.
"""

import gettext
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from minillm_repl.korean import fill_particles

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
_LOCALE = Path(__file__).parent / "locale"


class _State:
    """The current language of the process: gettext has one per process."""

    language: Language = "en"
    translations: gettext.NullTranslations = gettext.NullTranslations()


def set_language(language: Language) -> None:
    """Change the language of all later texts."""
    _State.language = language
    if language == "en":  # the texts of the source
        _State.translations = gettext.NullTranslations()
    else:
        _State.translations = gettext.translation("minillm", _LOCALE, [language])


def current_language() -> Language:
    """Return the current language."""
    return _State.language


def language_from_locale(environment: Mapping[str, str]) -> Language:
    """Return the language of the locale variables, read in the order of POSIX."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environment.get(name):
            return "ko" if environment[name].lower().startswith("ko") else "en"
    return "en"


def _(message: str, /, **values: Any) -> str:
    """Return a text in the current language; values replace `{name}` as in `str.format`."""
    # Without values, braces in a text stay as they are.
    text = _State.translations.gettext(message)
    return _format(text, values) if values else text


def _n(singular: str, plural: str, n: int, /, **values: Any) -> str:
    """Return the singular or plural text for the number `n`, which replaces `{n}`."""
    return _format(_State.translations.ngettext(singular, plural, n), {"n": n, **values})


def _format(text: str, values: Mapping[str, Any]) -> str:
    if _State.language == "ko":
        text = fill_particles(text, values)
    return text.format(**values)


def N_(message: str) -> str:  # noqa: N802 - gettext's own name for it
    """Mark a text of a constant for translation; `_` translates it where it is shown."""
    return message
