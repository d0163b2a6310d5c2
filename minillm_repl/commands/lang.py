"""`:lang`."""

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, _, current_language, set_language
from minillm_repl.repl.arguments import Arguments, Words
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line


@command("lang", arguments=(Words("language", "ko|en", *LANGUAGES),), aliases=("언어",))
def lang(shell: Shell, asked: Arguments) -> None:
    """Set the language: Korean or English.

    Only the program's own messages change. To set the language for every session, use `--lang`,
    MINILLM_LANG or the configuration file.
    """
    chosen = next((each for each in LANGUAGES if each == asked.language.lower()), None)
    if asked.language and chosen is None:
        raise UserError(_(":lang takes ko or en, not {value!r}", value=safe_line(asked.language)))
    if chosen is None:
        shell.screen.out.print(Text(f"lang {current_language()}"))
        return
    set_language(chosen)
    shell.screen.note(_("English from now on"))
