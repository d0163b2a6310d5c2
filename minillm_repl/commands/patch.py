"""`:patch`."""

from dataclasses import dataclass

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.repl.argument_parsing import masked, parted, with_options
from minillm_repl.repl.inspecting import Asked, show, subject
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import one_of, setting


@dataclass(frozen=True)
class Patching:
    """What is carried over."""

    what: str = setting(
        "residual", one_of("residual", "attention", "feed-forward"), "which activation"
    )


@command(
    "patch",
    ":patch A -> B [what=residual|attention|feed-forward]",
    aliases=("바꿔넣기",),
    words=("what=residual", "what=attention"),
    group="Change what it thinks",
)
def patch(shell: Shell, argument: str) -> None:
    """Carry single activations of one prompt over to another.

    Prompt B is run again and again, each time with one activation of prompt A in its place: at one
    position, after one layer. A cell tells how much of A's answer that alone brings: (patched − B)
    / (A − B), each of these being the logit of A's likeliest next token less that of B's, after the
    patched prompt, B and A. 0 % changes nothing, 100 % is as after A; below 0 and above 100 % are
    possible. Where both prompts have the same answer, the two tokens are those that add most to
    KL(A ‖ B) and KL(B ‖ A). If A − B is below a thousandth, nothing is shown: it would be rounding.
    The activation is the residual stream; with what=attention or what=feed-forward, what that part
    adds to it. The prompts must have as many tokens as each other, and pair by position. Positions
    and layers count from 0.
    """
    asked = Asked.of(argument)
    said, how = with_options(asked.whole, Patching())
    a, _arrow, b = parted(said, "→" if "→" in masked(said) else "->")
    a, b = (each.strip().strip('"') for each in (a, b))
    if not (a and b):
        raise Misunderstood(_("two prompts are needed: `:patch A -> B`"))
    first, second = subject(shell, a), subject(shell, b)
    from minillm_repl.insight.patching import patch_view
    from minillm_repl.render.intervention import patch_picture

    with shell.screen.waiting(_("patching")) as update:
        view = patch_view(
            first, second, how.what, lambda share: update(_("patching  {share:.0%}", share=share))
        )
    show(shell, view, patch_picture, asked.output)
