"""`:prompt`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.tables import tokens_flow, tokens_line
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.tokenizer.base import Token, decode
from minillm_repl.views.base import unseen_note


@command("prompt", aliases=("프롬프트",), group="Talk")
def prompt(shell: Shell, _asked: Arguments) -> None:
    """Show the exact input of the last generation.

    The view shows every token with its id. In a chat, it shows the whole conversation as the
    model's chat template formats it, with the special tokens.

    The model no longer sees the text between ⟦ and ⟧: the text is longer than the context. ␣ is a
    space, ⏎ a newline, and <EA B0> bytes that are only part of a character.
    """
    if not shell.session.conversation.turns:
        raise UserError(_("no prompt to show: type one first"))
    tokenizer, given = (
        shell.require_model().checkpoint.tokenizer,
        list(shell.session.conversation.turns[-1].prompt_ids),
    )
    text = decode(tokenizer, given)
    seen = shell.require_model().visible_window(shell.session.conversation.ids)
    tokens = [Token.from_id(tokenizer, each) for each in given]
    shell.screen.out.print(tokens_flow(tokens, seen.kept, seen.unseen), soft_wrap=False)
    shell.screen.out.print(tokens_line(len(given), len(text), len(text.encode("utf-8", "replace"))))
    if seen.unseen:
        shell.screen.note(unseen_note(seen))
