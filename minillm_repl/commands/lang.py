"""`:lang`."""

from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, _, speak, spoken
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line


@command("lang", ":lang [ko|en]", aliases=("언어",), completion="words", words=LANGUAGES)
def lang(shell: Shell, argument: str) -> None:
    """Speak Korean or English from now on.

    Only the program's own words change. `--lang`, MINILLM_LANG or the configuration file choose for
    every visit.
    """
    chosen = next((each for each in LANGUAGES if each == argument.lower()), None)
    if argument and chosen is None:
        raise UserError(_(":lang takes ko or en, not {value!r}", value=safe_line(argument)))
    if chosen is None:
        shell.screen.out.print(Text(f"lang {spoken()}"))
        return
    speak(chosen)
    shell.screen.note(_("English from now on"))
