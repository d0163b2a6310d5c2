"""`:watch`."""

import re

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Arguments, show_view
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
    """Watch the predictions for a prompt during training.

    Enter `:watch PROMPT`, then `:train`. Each time the losses are measured, and at the start and
    the end, the screen shows the most likely next tokens.

    :watch alone, afterwards, shows all measured steps. For each, it shows the probability of the
    final answer, the first layer at which the logit lens gives it, and what the last token attends
    to most.
    :watch step=N shows the logit lens and the attention at the measured step nearest to N.
    :watch off stops watching.
    """
    asked, session = Arguments.parse(argument), shell.session
    text = asked.full_text
    moment = re.fullmatch(r"step=(\d{1,9})", asked.words)
    if asked.words == "off":
        session.watch_prompt, session.watch_view = "", None
        shell.screen.note(_("no prompt is watched"))
    elif re.match(r"step\b|[a-z]+=", asked.words) and not moment:
        raise UsageError(
            _(
                "`:watch step=20` shows the measured step nearest to 20; put a prompt that "
                "begins like this in quotes"
            )
        )
    elif text and not moment:
        session.watch_prompt = text
        if session.model:
            shell.encode(session.model, text)  # says what it has never seen
        shell.screen.note(_("watching {text}: run `:train`, then `:watch`", text=safe_line(text)))
    elif session.watch_view is None:
        raise UserError(
            _(
                "nothing was watched yet: `:train` will watch {text}",
                text=safe_line(session.watch_prompt),
            )
            if session.watch_prompt
            else _("nothing was watched yet: enter `:watch PROMPT`, then `:train`")
        )
    elif moment:
        from minillm_repl.render.watching import moment_picture

        nearest = min(session.watch_view.moments, key=lambda each: abs(each.step - int(moment[1])))
        show_view(shell, nearest, moment_picture, asked.output)
    else:
        from minillm_repl.render.watching import watch_picture

        show_view(shell, session.watch_view, watch_picture, asked.output)
