"""`:watch`."""

import re

from minillm_repl.errors import Misunderstood, UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, show
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line


@command(
    "watch",
    ":watch [PROMPT|off|step=N]",
    aliases=("지켜보기",),
    words=("off", "step="),
    group="Train",
)
def watch(shell: Shell, argument: str) -> None:
    """Watch a prompt while the model learns what comes after it.

    :watch PROMPT, then :train: each time that the losses are measured, the first and the last time
    too, the likeliest next tokens are shown. Afterwards :watch shows all moments: the probability
    of what was the answer in the end, since which layer the logit lens says it, and where the last
    token looked most.
    :watch step=N shows the logit lens and the attention of the moment nearest to that step. :watch
    off ends it.
    """
    asked, session = Asked.of(argument), shell.session
    text = asked.whole
    moment = re.fullmatch(r"step=(\d{1,9})", asked.words)
    if asked.words == "off":
        session.watch, session.watched = "", None
        shell.screen.note(_("no prompt is watched"))
    elif re.match(r"step\b|[a-z]+=", asked.words) and not moment:
        raise Misunderstood(
            _(
                "`:watch step=20` shows the moment nearest to step 20; a prompt that begins so "
                "needs quotes"
            )
        )
    elif text and not moment:
        session.watch = text
        if session.model:
            shell.encode(session.model, text)  # says what it has never seen
        shell.screen.note(
            _("{text} will be watched: `:train`, then `:watch`", text=safe_line(text))
        )
    elif session.watched is None:
        raise UserError(
            _(
                "nothing has been watched yet: {text} will be watched: `:train`",
                text=safe_line(session.watch),
            )
            if session.watch
            else _("nothing has been watched yet: `:watch PROMPT`, then `:train`")
        )
    elif moment:
        from minillm_repl.render.watching import moment_picture

        nearest = min(session.watched.moments, key=lambda each: abs(each.step - int(moment[1])))
        show(shell, nearest, moment_picture, asked.output)
    else:
        from minillm_repl.render.watching import watch_picture

        show(shell, session.watched, watch_picture, asked.output)
