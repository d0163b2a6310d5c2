"""`:step`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import DEFAULT_VERBOSE_ROWS
from minillm_repl.repl.shell import Shell


@command(
    "step",
    arguments=(TextArgument(verbatim=True),),
    aliases=("한걸음",),
    group="Talk",
    example=":step 날씨가",
)
def step(shell: Shell, asked: Arguments) -> None:
    """Generate one token at a time, and choose each one yourself.

    The table shows the most likely next tokens; ▶ marks the sampled one.

    Enter takes it. ↑ ↓ select another token, and a digit takes that rank (0 is the tenth). You can
    type your own text instead (press Tab first if it begins with a digit, f or q). Backspace
    removes the last token. f lets the model finish; q quits and keeps the text so far.

    Each position has its own random number from the seed, whatever you did before. So if you only
    press Enter, you get the text that the model would write. Without TEXT, it continues the text so
    far.
    """
    if not shell.screen.animated:
        raise UserError(
            _(":step needs a terminal; `:verbose` shows the same tables without a key press")
        )
    session, model = shell.session, shell.require_model()
    tokenizer = model.checkpoint.tokenizer
    if not asked.text.strip():
        session.conversation.continue_text([], "", session.settings)
    elif model.is_chatting(session.settings.chat):
        shell.start_chat_turn(model, asked.text)
    else:
        session.conversation.start_turn(shell.encode(model, asked.text), session.settings)
    from minillm_repl.generate.interactive import InteractiveDecoder
    from minillm_repl.repl.stepper import Stepper

    top = session.settings.verbose or DEFAULT_VERBOSE_ROWS
    decoder = InteractiveDecoder(
        model.decoder,
        tokenizer,
        session.conversation.ids,
        session.settings,
        session.conversation.seed,
        eos_token_ids=session.conversation.eos_token_ids(model),
        n_candidates=top,
    )
    try:
        with shell.screen.waiting(_("reading")):
            decoder.next_step(shell.interrupted)  # a long text takes a while
        run_on = Stepper(decoder, tokenizer, session.settings, shell.screen.out).run()
    finally:
        session.conversation.set_text(decoder.ids, tokenizer)
        if not decoder.new_ids and not asked.text.strip():
            session.conversation.undo()  # nothing was done
    if run_on:
        shell.respond(model)
        return
    shell.show_text(model)
    shell.screen.note(
        _n(
            "{n} token chosen by hand · `:continue` continues from here",
            "{n} tokens chosen by hand · `:continue` continues from here",
            len(decoder.new_ids),
        )
    )
