"""`:watch`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Option, TextArgument
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.settings import integer
from minillm_repl.views.inspecting import show_view


@command(
    "watch",
    arguments=Forms(
        (TextArgument("PROMPT"),),
        (Option("step", integer(0), metavar="N", required=True),),
        ("off",),
    ),
    json=True,
    aliases=("지켜보기",),
    group="Train",
)
def watch(shell: Shell, asked: Arguments) -> None:
    """Watch the predictions for a prompt during training.

    Enter `:watch PROMPT`, then `:train`. Each time the losses are measured, and at the start and
    the end, the screen shows the most likely next tokens.

    :watch alone, afterwards, shows all measured steps. For each, it shows the probability of the
    final answer, the first layer at which the logit lens gives it, and what the last token attends
    to most.
    :watch step=N shows the logit lens and the attention at the measured step nearest to N.
    :watch off stops watching.
    """
    session, text = shell.session, asked.text
    if asked.keyword == "off":
        session.workspace.watch_prompt, session.workspace.watch_view = "", None
        shell.screen.note(_("no prompt is watched"))
    elif text:
        session.workspace.watch_prompt = text
        if session.workspace.model:
            shell.encode(session.workspace.model, text)  # says what it has never seen
        shell.screen.note(_("watching {text}: run `:train`, then `:watch`", text=safe_line(text)))
    elif session.workspace.watch_view is None:
        raise UserError(
            _(
                "nothing was watched yet: `:train` will watch {text}",
                text=safe_line(session.workspace.watch_prompt),
            )
            if session.workspace.watch_prompt
            else _("nothing was watched yet: enter `:watch PROMPT`, then `:train`")
        )
    elif asked.step is not None:
        from minillm_repl.render.watching import moment_picture

        nearest = min(
            session.workspace.watch_view.moments, key=lambda each: abs(each.step - asked.step)
        )
        show_view(shell, nearest, moment_picture, asked.output)
    else:
        from minillm_repl.render.watching import watch_picture

        show_view(shell, session.workspace.watch_view, watch_picture, asked.output)
