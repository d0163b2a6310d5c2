"""`:ablate`."""

from functools import partial

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Choice, Layer, TextArgument
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.views.inspecting import inspect_ids, show_view, text_ids

_HOW = Choice("zero", "mean", name="how"), TextArgument(quoted=True)


@command(
    "ablate",
    arguments=Forms((Layer(head="optional"), *_HOW), ("scan", *_HOW), ("off",)),
    json=True,
    aliases=("끄기",),
    group="Interventions",
)
def ablate(shell: Shell, asked: Arguments) -> None:
    """Ablate a head or a layer until turned off.

    :ablate 2.1 ablates head 1 of layer 2: its output before the output projection is replaced, now
    and while text is generated.
    :ablate 2 ablates everything that layer 2 adds to the residual stream.
    :ablate scan ablates each head alone, with zero, and ranks the heads. `scan mean` uses the mean
    over this text.
    :ablate off removes all ablations.

    `zero` replaces the output with zeros. `mean` replaces it with its mean over all positions of
    the text so far, or of a text in quotes. The mean includes the effect of earlier interventions,
    and differs from text to text. Interventions add up: each acts at its own place, and later
    layers see the result.

    The table shows the effect on the next token. KL is KL(now ‖ before) = Σ now · ln(now / before),
    in nats. The scan ranks by loss with the head ablated − loss, in nats per token. Above 0, the
    head is useful for this text.

    Layers and heads count from 0. The model that is saved or trained does not change.
    """
    if asked.keyword == "off":
        removed = shell.session.workspace.remove_interventions("ablate")
        shell.screen.note(_("all ablations removed") if removed else _state(shell))
        return
    if asked.layer is None and not asked.keyword:
        if asked.how or asked.text:
            raise UsageError(_(":ablate takes a layer (2), a head (2.1), scan or off"))
        shell.screen.note(_state(shell))
        return
    how = asked.how or "zero"
    part = str(asked.layer) if asked.head is None else f"{asked.layer}.{asked.head}"
    part = asked.keyword or part
    tell = partial(_told, part, how, head=asked.head is not None)
    model = shell.require_model().without_interventions("ablate", part)  # measured is what it adds
    looked = inspect_ids(shell, model, text_ids(shell, model, asked.text))
    from minillm_repl.insight.ablation import scan_view, silencing
    from minillm_repl.insight.intervention_effect import effect_view
    from minillm_repl.render.intervention import effect_picture, scan_picture

    if asked.keyword == "scan":
        with shell.screen.waiting(_("ablating each head")) as update:
            view = scan_view(
                looked,
                how,
                lambda share: update(_("ablating each head  {share:.0%}", share=share)),
            )
        show_view(shell, view, scan_picture, asked.output)
        return
    tap = silencing(looked, asked.layer, asked.head, how)
    effect = effect_view(looked, tell(), tap)
    show_view(shell, effect, effect_picture, asked.output, model)
    shell.session.workspace.add_intervention(Intervention("ablate", tell, tap, part))
    shell.screen.note(_("`:ablate off` undoes it"))


def _told(place: str, how: str, *, head: bool) -> str:
    if how == "mean":
        return (
            _("head {place} mean-ablated", place=place)
            if head
            else _("layer {place} mean-ablated", place=place)
        )
    return (
        _("head {place} ablated", place=place) if head else _("layer {place} ablated", place=place)
    )


def _state(shell: Shell) -> str:
    changes = [
        change.description
        for change in shell.require_model().interventions
        if change.command == "ablate"
    ]
    return (
        " · ".join(changes)
        if changes
        else _("nothing is ablated: `:ablate 0.0` ablates head 0 of layer 0")
    )
