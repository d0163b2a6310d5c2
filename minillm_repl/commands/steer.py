"""`:steer`."""

from dataclasses import dataclass
from functools import partial

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.repl.looking import Asked, looking_at, not_seen, show, text_ids
from minillm_repl.repl.opening import Change
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.repl.words import with_options
from minillm_repl.settings import number, setting, whole


@dataclass(frozen=True)
class Steering:
    """How to steer."""

    strength: float = setting(4.0, number(-1e6, 1e6), "how much is added, as an L2 norm")
    layer: int = setting(-1, whole(-1), "after which layer; -1 is the middle one")


@command(
    "steer",
    ":steer TEXT [vs TEXT] [strength=4] [layer=L]|off",
    aliases=("방향",),
    words=("off", "strength=", "layer="),
    group="Change what it thinks",
)
def steer(shell: Shell, argument: str) -> None:
    """Push the model towards one text and away from another.

    The direction is the difference of two means: of the residual stream after layer L over the positions of the one
    text, and of the other (position 0 left out, if there are more), made to have length 1. From now on `strength` times
    it is added there at every position, while one goes on writing. Without `vs` the other text is the one so far.
    The table shows what that does to the next token, and how far a random direction as long would move it (KL, nats):
    much more than that, and the direction means something. Without layer it is the middle one; they count from 0.
    :steer off ends it. What is saved or trained is not changed.
    """
    session, model = shell.session, shell.model()
    if argument in ("", "off"):
        changed = session.think_unchanged("steer") if argument else False
        states = [change.told for change in model.changes if change.command == "steer"]
        idle = states[0] if states and not argument else _("nothing is steered: `:steer TEXT vs TEXT` does")
        shell.screen.note(_("no longer steered") if changed else idle)
        return
    asked = Asked.of(argument)
    said, how = with_options(asked.whole, Steering())
    to, vs, away = (each.strip().strip('"') for each in f" {said} ".partition(" vs "))
    if not to or not (away or (session.ids and not vs)):
        raise Misunderstood(_("say where to and where from: `:steer TEXT vs TEXT`"))
    layer = model.checkpoint.config.layers // 2 if how.layer < 0 else how.layer
    model = model.changed(tuple(change for change in model.changes if change.command != "steer"))  # measured without it
    towards, fleeing = (looking_at(shell, model, text_ids(shell, model, each)) for each in (to, away))
    for looked in (towards, fleeing):
        if looked.gap:
            shell.screen.warn(not_seen(looked.seen))
    probe = looking_at(shell, model, session.ids) if session.ids else fleeing
    from minillm_repl.insight.effect import effect_view
    from minillm_repl.insight.steering import direction, random_direction, steering, stream_norm
    from minillm_repl.render.intervention import effect_picture

    along = direction(towards, fleeing, layer)
    tap = steering(along, layer, how.strength)
    tell = partial(_steered, how.strength, layer)
    view = effect_view(probe, tell(), tap, steering(random_direction(along), layer, how.strength))
    show(shell, view, effect_picture, asked.output, model)
    session.think_unchanged("steer")
    session.change_thinking(Change("steer", tell, tap))
    length = stream_norm(probe, layer)
    shell.screen.note(
        _(
            "the stream there is {length:.1f} long, so that strength={strength:.0f} would be a fifth of it"
            " · `:steer off` ends it",
            length=length,
            strength=length / 5,
        )
        if abs(how.strength) < length / 20
        else _("the stream there is {length:.1f} long · `:steer off` ends it", length=length)
    )


def _steered(strength: float, layer: int) -> str:
    return _("steered by {strength:g} at layer {layer}", strength=strength, layer=layer)
