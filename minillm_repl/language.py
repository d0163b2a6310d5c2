"""The language of the interface: GNU gettext, whose key is the English text.

`_("{name} is not there", name=name)` is the text in the language that is spoken, with the values
put in, so that a translation can place them where its grammar wants them. `python -m
tests.messages` collects the texts of the source into `locale/ko/LC_MESSAGES/minillm.po`, where they
are translated, and compiles it.
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
    language: Language = "en"
    translations: gettext.NullTranslations = gettext.NullTranslations()


def set_language(language: Language) -> None:
    """Let every text that is made from now on be in `language`."""
    _State.language = language
    _State.translations = (
        gettext.NullTranslations()
        if language == "en"
        else gettext.translation("minillm", _LOCALE, [language])
    )


def current_language() -> Language:
    """Return the language that is spoken now."""
    return _State.language


def language_from_locale(environment: Mapping[str, str]) -> Language:
    """Return the language that a locale's variables ask for, in the order that POSIX reads them."""
    locale_name = next(
        (environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)),
        "",
    )
    return "ko" if locale_name.lower().startswith("ko") else "en"


def _(message: str, /, **values: Any) -> str:
    """Return a text in the language spoken; `{name}` stands for a value, as in `str.format`."""
    text = _State.translations.gettext(message)
    return _format(text, values) if values else text


def _n(singular: str, plural: str, n: int, /, **values: Any) -> str:
    """Return `one` or `many`, as the grammar of the language wants it for the number `n`, which
    `{n}` stands for.
    """
    return _format(_State.translations.ngettext(singular, plural, n), {"n": n, **values})


def _format(text: str, values: Mapping[str, Any]) -> str:
    return (fill_particles(text, values) if _State.language == "ko" else text).format(**values)


def N_(message: str) -> str:  # noqa: N802 - gettext's own name for it
    """Mark a text made before the language is known; whoever shows it translates it with `_`."""
    return message
