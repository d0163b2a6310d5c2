"""`:patch`."""

from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, ChoiceOption, TextPair
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import inspect_text, show_view


@command(
    "patch",
    arguments=(
        TextPair("->", "A -> B", also="→", required=2),
        ChoiceOption("what", "residual", "attention", "feed-forward"),
    ),
    json=True,
    aliases=("바꿔넣기",),
    group="Interventions",
)
def patch(shell: Shell, asked: Arguments) -> None:
    """Patch activations from prompt A into prompt B.

    The command runs prompt B many times. Each run replaces one activation, at one position after
    one layer, with the activation of prompt A. A cell shows the fraction of A's answer that this
    restores: (patched − B) / (A − B). Each term is a logit difference: the logit of A's top token
    minus the logit of B's top token, after the patched prompt, B and A. 0% is no effect and 100% is
    the same as A; values below 0% and above 100% are possible.

    If both prompts have the same answer, the two tokens are those that add most to KL(A ‖ B) and
    KL(B ‖ A). If A − B is below 0.001, the view shows nothing: the numbers would be rounding
    errors.

    The activation is the residual stream. With what=attention or what=feed-forward, it is what that
    part adds to the residual stream. The prompts need the same number of tokens; they are paired by
    position. Positions and layers count from 0.
    """
    first, second = (inspect_text(shell, text) for text in asked.texts)
    from minillm_repl.insight.patching import patch_view
    from minillm_repl.render.intervention import patch_picture

    with shell.screen.waiting(_("patching")) as update:
        view = patch_view(
            first, second, asked.what, lambda share: update(_("patching  {share:.0%}", share=share))
        )
    show_view(shell, view, patch_picture, asked.output)
