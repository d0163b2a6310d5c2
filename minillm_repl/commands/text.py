"""The text so far, from `:read` and `:prompt` to `:clear` and `:step`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.render.tables import positions_flow, tokens_flow, tokens_line
from minillm_repl.repl.answering import respond
from minillm_repl.repl.arguments import Arguments, TextArgument, Words
from minillm_repl.repl.conversation import is_chatting
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.reading import read_file
from minillm_repl.repl.registry import command
from minillm_repl.repl.settings import verbose_rows
from minillm_repl.repl.shell import Shell
from minillm_repl.storage.paths import user_path
from minillm_repl.tokenizer import Token, decode
from minillm_repl.views.base import unseen_note


@command(
    "read",
    arguments=(Words("file", "[FILE|off]", completion="file"),),
    aliases=("읽기",),
    group="Talk",
    example=":read notes.txt",
)
def read(shell: Shell, asked: Arguments) -> None:
    """Put the text of a file before the next prompt.

    The prompt stands on a line of its own after it. Several files stand in the order in which they
    were read. `:read off` drops them, and so does `:clear`.

    `@FILE` in a prompt puts the text there: `Summarise @notes.txt`. A name with spaces stands in
    quotes: `@"my notes.txt"`. A word that names no file stays as it is. In a pipe or a script, only
    `:read` reads files.

    The text may be in UTF-8, UTF-16, UTF-32 or CP949, and have up to 4 MiB.
    """
    attached = shell.session.conversation.attached
    if asked.file == "off":
        attached.clear()
    elif asked.file:
        model, found = shell.require_model(), read_file(user_path(asked.file))
        shell.tell_file(model, found)
        attached.append(found.text)
    shell.screen.note(
        _n(
            "{n} file stands before the next prompt; `:read off` drops it",
            "{n} files stand before the next prompt; `:read off` drops them",
            len(attached),
        )
        if attached
        else _("no file stands before the next prompt")
    )


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
    # Of the whole text: by now the answer may have pushed the prompt's start out of sight.
    seen = shell.require_model().visible_window(shell.session.conversation.ids)
    tokens = [Token.from_id(tokenizer, each) for each in given]
    shell.screen.out.print(tokens_flow(tokens, seen.kept, seen.unseen), soft_wrap=False)
    shell.screen.out.print(tokens_line(len(given), len(text), len(text.encode("utf-8", "replace"))))
    if seen.unseen:
        shell.screen.note(unseen_note(seen))


@command(
    "text",
    arguments=Forms((TextArgument(),), ("chat", TextArgument(required=True))),
    aliases=("글",),
    group="Look inside",
    example=":text 날씨가 좋다. 하늘이 맑다.",
)
def text_(shell: Shell, asked: Arguments) -> None:
    """Set the text that the views look at, without generating.

    The text takes the place of what was said, until you type the next prompt. `:undo` brings back
    what was there before. Without TEXT, the command shows the text so far.

    `:text chat TEXT` makes it the first message of a conversation, in the model's chat template.

    The number before each token is its position: `:why @3` looks at what comes after position 3. A
    token stands for the position where it was predicted: `:lens @맑`.
    """
    model, conversation = shell.require_model(), shell.session.conversation
    if asked.keyword == "chat":
        is_chatting(model, setting=True)  # or an error
        shell.start_chat_turn(model, asked.text, is_first=True)
    elif asked.text:
        conversation.start_turn(shell.encode(model, asked.text), shell.session.settings)
    if not conversation.ids:
        raise UserError(_("no text to inspect: type a prompt first, or give a text in quotes"))
    tokenizer, seen = model.checkpoint.tokenizer, model.visible_window(conversation.ids)
    tokens = [Token.from_id(tokenizer, each) for each in conversation.ids]
    shell.screen.out.print(positions_flow(tokens, seen.kept, seen.unseen), soft_wrap=False)
    if seen.unseen:
        shell.screen.note(unseen_note(seen))


@command(
    "continue",
    arguments=(TextArgument(verbatim=True),),
    aliases=("c", "계속"),
    group="Talk",
    example=":continue 하늘이",
)
def continue_(shell: Shell, asked: Arguments) -> None:
    """Continue the text, or append TEXT and continue."""
    model = shell.require_model()
    fresh = not shell.session.conversation.ids  # some models can begin with their start token alone
    more = shell.encode(model, asked.text, start=fresh) if asked.text or fresh else []
    shell.session.conversation.continue_text(more, asked.text, shell.session.settings)
    respond(shell, model)


@command("regen", aliases=("r", "retry", "다시"), group="Talk")
def regen(shell: Shell, _asked: Arguments) -> None:
    """Sample another completion of the last prompt.

    After `:continue` it retries the continued part, after `:branch take N` the branch. With a fixed
    seed, each try uses the next seed. `:undo` removes the try and its prompt.
    """
    model = shell.require_model()
    shell.session.conversation.retry_turn(shell.session.settings)
    # The prompt is read afresh: so the text depends on nothing but prompt, seed and settings, and
    # is the same to the last bit in a session that was opened again.
    model.decoder.trim(0)
    respond(shell, model)
    if shell.session.settings.temp == 0:
        shell.screen.note(_("at temp 0 every try gives the same text"))


@command("undo", aliases=("u", "되돌리기"), group="Talk")
def undo(shell: Shell, _asked: Arguments) -> None:
    """Remove the last prompt and its completion."""
    model = shell.require_model()
    shell.session.conversation.undo()
    shell.show_text(model)


@command("clear", aliases=("new", "reset", "지우기"), group="Talk")
def clear(shell: Shell, _asked: Arguments) -> None:
    """Clear the context."""
    shell.session.conversation.clear()
    shell.screen.note(_("context cleared"))


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
    if not asked.text.strip():
        session.conversation.continue_text([], "", session.settings)
    elif is_chatting(model, session.settings.chat):
        shell.start_chat_turn(model, asked.text)
    else:
        session.conversation.start_turn(shell.encode(model, asked.text), session.settings)
    from minillm_repl.generate.interactive import InteractiveDecoder
    from minillm_repl.repl.screens import Stepper  # prompt_toolkit: a pipe never needs it

    tokenizer = model.checkpoint.tokenizer
    eos_token_ids = session.conversation.eos_token_ids(model)
    decoder = InteractiveDecoder(
        model.decoder,
        tokenizer,
        session.conversation.ids,
        session.settings,
        session.conversation.seed,
        eos_token_ids=eos_token_ids,
        n_candidates=verbose_rows(session.settings),
        rules=model.token_rules(session.settings, eos_token_ids),
        answer_start=session.conversation.turns[-1].answer_start,
    )
    try:
        with shell.screen.waiting(_("reading")):
            decoder.next_step(shell.interrupted)  # a long text takes a while
        run_on = Stepper(decoder, tokenizer, session.settings, shell.screen.out).run()
    finally:
        # Also after an error: what was chosen by hand stays.
        session.conversation.set_text(decoder.ids, tokenizer)
        if not decoder.new_ids and not asked.text.strip():
            session.conversation.undo()  # nothing was done
    if run_on:
        respond(shell, model)
        return
    shell.show_text(model)
    shell.screen.note(
        _n(
            "{n} token chosen by hand · `:continue` continues from here",
            "{n} tokens chosen by hand · `:continue` continues from here",
            len(decoder.new_ids),
        )
    )
