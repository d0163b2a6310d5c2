"""`:prompt`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.tables import tokens_flow, tokens_line
from minillm_repl.repl.inspecting import not_seen
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.base import Token, decode


@command("prompt", aliases=("프롬프트",), group="Talk")
def prompt(shell: Shell, _argument: str) -> None:
    """Show exactly what the model was given last.

    Every token is there, with its id. In a chat that is the whole conversation as the model's chat
    template wrote it, special tokens included. What stands between ⟦ and ⟧ the model no longer
    sees: the text has outgrown its context. ␣ is a space, ⏎ a newline, <EA B0> bytes that are only
    a part of a character.
    """
    if not shell.session.turns:
        raise UserError(_("there is no prompt to show: type one first"))
    tokenizer, given = shell.model().checkpoint.tokenizer, list(shell.session.turns[-1].given)
    text = decode(tokenizer, given)
    seen = shell.model().seen(shell.session.ids)
    tokens = [Token.of(tokenizer, each) for each in given]
    shell.screen.out.print(tokens_flow(tokens, seen.kept, seen.unseen), soft_wrap=False)
    shell.screen.out.print(tokens_line(len(given), len(text), len(text.encode("utf-8", "replace"))))
    if seen.unseen:
        shell.screen.note(not_seen(seen))
