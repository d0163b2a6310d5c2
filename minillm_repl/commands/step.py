"""`:step`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import VERBOSE_ROWS
from minillm_repl.repl.shell import Shell


@command("step", ":step [TEXT]", aliases=("한걸음",), verbatim=True, group="Talk")
def step(shell: Shell, argument: str) -> None:
    """Write one token at a time, choosing each yourself.

    The table shows the likeliest next tokens, and ▶ the one that was drawn. Enter takes it; ↑ ↓
    choose another, and a digit takes that rank (0 is the tenth). Typing goes on with a text of your
    own (Tab first if it begins with a digit, f or q); Backspace takes the last token back; f lets
    the model write to the end; q leaves, with the text so far. The token at each place is drawn
    with that place's number of the seed, whatever was done before it: Enter again and again writes
    what the model would have written. Without TEXT it goes on from the text so far.
    """
    if not shell.screen.animated:
        raise UserError(
            _(":step needs a terminal: `:verbose` shows the same tables without asking")
        )
    session, model = shell.session, shell.model()
    tokenizer = model.checkpoint.tokenizer
    if not argument.strip():
        session.go_on([], "")
    elif session.chatting(model):
        shell.ask(model, argument)
    else:
        session.begin(shell.encode(model, argument))
    from minillm_repl.generate.interactive import Walk
    from minillm_repl.repl.stepper import Stepper

    top = session.settings.verbose or VERBOSE_ROWS
    walk = Walk(
        model.decoder,
        tokenizer,
        session.ids,
        session.settings,
        session.seed,
        end=session.ends(model),
        top=top,
    )
    try:
        with shell.screen.waiting(_("reading")):
            walk.look(shell.interrupted)  # a long text takes a while
        run_on = Stepper(walk, tokenizer, session.settings, shell.screen.out).run()
    finally:
        session.walk_to(walk.ids, tokenizer)
        if not walk.added and not argument.strip():
            session.undo()  # nothing was done
    if run_on:
        shell.respond(model)
        return
    shell.show_text(model)
    shell.screen.note(
        _n(
            "{n} token by hand · `:continue` goes on from here",
            "{n} tokens by hand · `:continue` goes on from here",
            len(walk.added),
        )
    )
