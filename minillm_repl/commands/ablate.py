"""`:ablate`."""

from functools import partial

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.repl.inspecting import Asked, looking_at, show, text_ids
from minillm_repl.repl.model_loading import Change
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell

_WHAT = r"(off|scan|(\d{1,9})(?:\.(\d{1,9}))?)(?:\s+(zero|mean))?"


@command(
    "ablate",
    ":ablate LAYER[.HEAD] [zero|mean]|scan|off",
    aliases=("끄기",),
    words=("off", "scan"),
    group="Change what it thinks",
)
def ablate(shell: Shell, argument: str) -> None:
    """Silence a head or a layer, and go on without it.

    :ablate 2.1 silences head 1 of layer 2: what it mixed is replaced, before the output projection,
    from now on, while one goes on writing. :ablate 2 silences all that layer 2 adds to the residual
    stream. With zero there is nothing instead; with mean there is its own mean over all positions
    of the text so far, or of one in quotes, as the model with all earlier changes makes it. Other
    texts have other means. Changes add up: each works at its place, and what comes later in the
    model sees what was changed before. :ablate off brings everything back. The table shows what it
    does to the next token; KL is KL(now ‖ before) = Σ now · ln(now / before), in nats.
    :ablate scan silences each head in turn, alone, by zero or with `scan mean` by its mean over
    this text, and ranks them by loss without − loss with, the mean over the text's tokens in nats:
    above 0 the head is of use to this text. Layers and heads count from 0. What is saved or trained
    is not changed.
    """
    asked = Asked.of(argument)
    chosen, text = asked.selector(_WHAT)
    if not asked.whole:
        shell.screen.note(_state(shell))
        return
    if chosen is None:
        raise Misunderstood(_(":ablate takes a layer or a head, such as 2 or 2.1, or scan, or off"))
    if chosen[1] == "off" and asked.words == "off" and not asked.text:
        shell.screen.note(
            _("all heads and layers work again")
            if shell.session.think_unchanged("ablate")
            else _state(shell)
        )
        return
    if chosen[1] == "off":
        raise Misunderstood(_("`:ablate off` brings everything back, and nothing comes after it"))
    if asked.words != chosen[0]:
        raise Misunderstood(
            _("what comes after a head or `scan` is zero or mean; a text needs quotes")
        )
    part, how = chosen[1], chosen[4] or "zero"
    tell = partial(_told, part, how, head=bool(chosen[3]))
    model = shell.model().without("ablate", part)  # measured is what it adds
    looked = looking_at(shell, model, text_ids(shell, model, text))
    from minillm_repl.insight.ablation import scan_view, silencing
    from minillm_repl.insight.intervention_effect import effect_view
    from minillm_repl.render.intervention import effect_picture, scan_picture

    if chosen[1] == "scan":
        with shell.screen.waiting(_("silencing each head")) as update:
            view = scan_view(
                looked,
                how,
                lambda share: update(_("silencing each head  {share:.0%}", share=share)),
            )
        show(shell, view, scan_picture, asked.output)
        return
    tap = silencing(looked, int(chosen[2]), int(chosen[3]) if chosen[3] else None, how)
    effect = effect_view(looked, tell(), tap)
    show(shell, effect, effect_picture, asked.output, model)
    shell.session.change_thinking(Change("ablate", tell, tap, part))
    shell.screen.note(_("`:ablate off` brings it back"))


def _told(place: str, how: str, *, head: bool) -> str:
    if how == "mean":
        return (
            _("head {place} at its mean", place=place)
            if head
            else _("layer {place} at its mean", place=place)
        )
    return (
        _("without head {place}", place=place) if head else _("without layer {place}", place=place)
    )


def _state(shell: Shell) -> str:
    changes = [change.told for change in shell.model().changes if change.command == "ablate"]
    return (
        " · ".join(changes)
        if changes
        else _("nothing is silenced: `:ablate 0.0` would silence head 0 of layer 0")
    )
