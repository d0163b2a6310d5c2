"""`:steer`."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from minillm_repl.errors import Misunderstood
from minillm_repl.language import _
from minillm_repl.repl.argument_parsing import parted, with_options
from minillm_repl.repl.inspecting import Asked, get_ready, looking_at, not_seen, show
from minillm_repl.repl.model_loading import Change, Model
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import number, setting, whole

if TYPE_CHECKING:
    from minillm_repl.insight.inspected_text import Subject
    from minillm_repl.insight.steering import Side
    from minillm_repl.insight.views.changes import EffectView
    from minillm_repl.model.hooks import Tap


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

    The direction is the difference of two means of the residual stream after layer L, made to have
    norm 1: over the last tokens of the one text, and over as many of the other. What both texts
    begin with is left out, and a word of several tokens against one of a single token is its last
    token, which has seen the whole word. Each text is read after the model's start token, if it has
    one, and a line break: no token of it is at position 0, where models keep a large vector
    whatever the token. Where words have their space in their token, it is put there. The view says
    which tokens were averaged. Without `vs` it is TEXT against all of the text so far but position
    0. From now on `strength` times the direction is added there at every position, while one goes
    on writing; ablations and steering work together, each at its own place, and what comes later
    sees what was changed before. The table shows what that does to the next token. KL is KL(now ‖
    before) = Σ now · ln(now / before), in nats. Beside it stands the same for 32 random directions
    of the same norm (always the same 32): the median, what lies between the 5th and the 95th
    percentile, and the percent of them that move the answer less. A high percentile says that this
    token hangs on the direction; a low one does not say that it means nothing: what a model never
    meets disturbs it more than what it knows. Write on, and steer the other way (`strength=-4`), to
    see what a direction means. Without layer it is the middle one; they count from 0.
    :steer off ends it. What is saved or trained is not changed.
    """
    if argument in ("", "off"):
        _tell_or_end(shell, argument)
        return
    asked, session, model = Asked.of(argument), shell.session, shell.model()
    said, how = with_options(asked.whole, Steering())
    to, vs, away = parted(f" {said} ", " vs ")
    to, away = (each.strip().strip('"') for each in (to, away))
    if not to or not (away or (session.ids and not vs)):
        raise Misunderstood(_("say where to and where from: `:steer TEXT vs TEXT`"))
    layer = model.checkpoint.config.layers // 2 if how.layer < 0 else how.layer
    model = model.without("steer")  # measured is what it adds
    sides = _sides(shell, model, to, away)
    for side in sides:
        if side.subject.gap:
            shell.screen.warn(not_seen(side.subject.seen))
    probe = looking_at(shell, model, session.ids) if session.ids else sides[1].subject
    from minillm_repl.render.intervention import effect_picture

    tell = partial(_steered, how.strength, layer)
    tap, view, norm = _measured(shell, sides, probe, layer, how.strength, tell())
    show(shell, view, effect_picture, asked.output, model)
    # nothing is added, so what answers is what answers without it, to the last bit
    if not how.strength:
        session.think_unchanged("steer")
        shell.screen.note(_("strength=0 adds nothing: the model is not steered"))
        return
    session.change_thinking(Change("steer", tell, tap))
    shell.screen.note(
        _(
            "the norm of the stream there is {norm:.1f}, so that strength={strength:.2g} "
            "would be a fifth of it"
            " · `:steer off` ends it",
            norm=norm,
            strength=norm / 5,
        )
        if abs(how.strength) < norm / 20
        else _("the norm of the stream there is {norm:.1f} · `:steer off` ends it", norm=norm)
    )


def _measured(
    shell: Shell,
    sides: tuple["Side", "Side"],
    probe: "Subject",
    layer: int,
    strength: float,
    told: str,
) -> tuple["Tap", "EffectView", float]:
    """Return how to steer, what that does beside random directions, and the norm of the stream
    that it is added to.
    """
    from minillm_repl.insight.intervention_effect import effect_view
    from minillm_repl.insight.steering import direction, random_steering, steering, stream_norm

    with shell.screen.waiting(_("steering in random directions")) as update:
        tap = steering(direction(*sides, layer), layer, strength)
        norm = stream_norm(probe, layer)
        chance = random_steering(
            probe,
            layer,
            strength,
            lambda share: update(_("steering in random directions  {share:.0%}", share=share)),
        )
        return (
            tap,
            effect_view(probe, told, tap, chance, (sides[0].averaged(), sides[1].averaged())),
            norm,
        )


def _tell_or_end(shell: Shell, argument: str) -> None:
    """Say what is steered, or end it."""
    changed = shell.session.think_unchanged("steer") if argument else False
    states = [change.told for change in shell.model().changes if change.command == "steer"]
    idle = (
        states[0]
        if states and not argument
        else _("nothing is steered: `:steer TEXT vs TEXT` does")
    )
    shell.screen.note(_("no longer steered") if changed else idle)


def _sides(shell: Shell, model: Model, to: str, away: str) -> tuple["Side", "Side"]:
    """Return the tokens that are compared. Without `away` it is the text so far."""
    tokenizer, session = model.checkpoint.tokenizer, shell.session
    get_ready(shell)
    from minillm_repl.insight.steering import Side, lead, pair, whole, word_ids

    texts = [each for each in (to, away) if each]
    plain = [shell.encode(model, each, start=False) for each in texts]
    before = lead(tokenizer)
    read = [looking_at(shell, model, (*before, *ids)) for ids in word_ids(tokenizer, texts, plain)]
    if away:
        return pair(*read)
    so_far = session.ids if len(session.ids) > 1 else [*before, *session.ids]
    towards = Side(read[0], len(read[0].ids) - len(before)) if before else whole(read[0])
    return towards, whole(looking_at(shell, model, so_far))


def _steered(strength: float, layer: int) -> str:
    return _("steered by {strength:g} at layer {layer}", strength=strength, layer=layer)
