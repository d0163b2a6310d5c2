"""`:steer`."""

from functools import partial
from typing import TYPE_CHECKING

from minillm_repl.errors import UsageError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Option, TextPair
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention, LoadedModel
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import integer, number
from minillm_repl.views.base import unseen_note
from minillm_repl.views.inspecting import (
    import_torch,
    inspect_ids,
    show_view,
)

if TYPE_CHECKING:
    from minillm_repl.insight.steering import Side
    from minillm_repl.insight.views.changes import EffectView
    from minillm_repl.model.hooks import Hook
    from minillm_repl.views.inspected_text import InspectedText


@command(
    "steer",
    arguments=Forms(
        (
            TextPair("vs", "TEXT [vs TEXT]"),
            Option("strength", number(-1e6, 1e6), 4.0),
            Option("layer", integer(-1), -1, "L"),  # -1 is the middle one
        ),
        ("off",),
    ),
    json=True,
    aliases=("방향",),
    group="Interventions",
)
def steer(shell: Shell, asked: Arguments) -> None:
    """Steer the model towards one text and away from another.

    The steering vector is the difference of two means of the residual stream after layer L, scaled
    to norm 1. One mean is over the last tokens of the first text, the other over as many tokens of
    the second text. A prefix that both texts share is left out. If a word of several tokens is
    compared with a word of one token, its last token counts, because that token has seen the whole
    word.

    The model reads each text after its start token, if it has one, and a line break. So no token of
    the text is at position 0, where models keep a large vector for any token. If words have their
    space inside the token, a space is added. The view shows which tokens were averaged. Without
    `vs`, TEXT is compared with all of the text so far, except position 0.

    From then on, `strength` times the vector is added at every position, also while text is
    generated. Ablations and steering combine: each acts at its own place, and later layers see the
    result.

    The table shows the effect on the next token. KL is KL(now ‖ before) = Σ now · ln(now / before),
    in nats. Next to it is the same number for 32 random directions of equal norm (always the same
    32). The view gives the median, the range from the 5th to the 95th percentile, and the
    percentage of them with a smaller effect. A high percentile shows that this token depends on the
    direction. A low percentile does not show that the direction means nothing. A direction that the
    model never meets can disturb it more than one that it knows. To see what a direction means,
    continue the text, and steer the other way (`strength=-4`).

    The default layer is the middle one; layers count from 0.
    :steer off ends the steering. The model that is saved or trained does not change.
    """
    to, away = asked.texts
    if asked == steer.parse(asked.keyword):
        _show_or_remove(shell, asked.keyword)
        return
    session, model = shell.session, shell.require_model()
    if not to or not (away or session.conversation.ids):
        raise UsageError(_("give both texts: `:steer TEXT vs TEXT`"))
    layer = model.checkpoint.config.n_layers // 2 if asked.layer < 0 else asked.layer
    model = model.without_interventions("steer")  # measured is what it adds
    sides = _make_sides(shell, model, to, away)
    for side in sides:
        if side.subject.unseen_ids:
            shell.screen.warn(unseen_note(side.subject.window))
    probe = (
        inspect_ids(shell, model, session.conversation.ids)
        if session.conversation.ids
        else sides[1].subject
    )
    from minillm_repl.render.intervention import effect_picture

    describe = partial(_describe, asked.strength, layer)
    hook, view, norm = _measure_effect(shell, sides, probe, layer, asked.strength, describe())
    show_view(shell, view, effect_picture, asked.output, model)
    # nothing is added, so what answers is what answers without it, to the last bit
    if not asked.strength:
        session.workspace.remove_interventions("steer")
        shell.screen.note(_("strength=0 adds nothing: no steering is active"))
        return
    session.workspace.add_intervention(Intervention("steer", describe, hook))
    shell.screen.note(
        _(
            "residual stream norm at that layer: {norm:.1f} (strength={strength:.2g} is "
            "20% of it) · `:steer off` stops steering",
            norm=norm,
            strength=norm / 5,
        )
        if abs(asked.strength) < norm / 20
        else _(
            "residual stream norm at that layer: {norm:.1f} · `:steer off` stops steering",
            norm=norm,
        )
    )


def _measure_effect(
    shell: Shell,
    sides: tuple["Side", "Side"],
    probe: "InspectedText",
    layer: int,
    strength: float,
    description: str,
) -> tuple["Hook", "EffectView", float]:
    """Return how to steer, what that does beside random directions, and the norm of the stream
    that it is added to.
    """
    from minillm_repl.insight.intervention_effect import effect_view
    from minillm_repl.insight.steering import direction, random_steering, steering, stream_norm

    with shell.screen.waiting(_("measuring random directions")) as update:
        hook = steering(direction(*sides, layer), layer, strength)
        norm = stream_norm(probe, layer)
        random_hooks = random_steering(
            probe,
            layer,
            strength,
            lambda share: update(_("measuring random directions  {share:.0%}", share=share)),
        )
        return (
            hook,
            effect_view(
                probe, description, hook, random_hooks, (sides[0].averaged(), sides[1].averaged())
            ),
            norm,
        )


def _show_or_remove(shell: Shell, argument: str) -> None:
    """Say what is steered, or end it."""
    changed = shell.session.workspace.remove_interventions("steer") if argument else False
    states = [
        change.description
        for change in shell.require_model().interventions
        if change.command == "steer"
    ]
    idle = (
        states[0]
        if states and not argument
        else _("no steering is active: use `:steer TEXT vs TEXT`")
    )
    shell.screen.note(_("steering removed") if changed else idle)


def _make_sides(
    shell: Shell, model: LoadedModel, towards_text: str, away_text: str
) -> tuple["Side", "Side"]:
    """Return the tokens that are compared. Without `away` it is the text so far."""
    tokenizer, session = model.checkpoint.tokenizer, shell.session
    import_torch(shell)
    from minillm_repl.insight.steering import Side, lead, pair, whole, word_ids

    texts = [each for each in (towards_text, away_text) if each]
    plain = [shell.encode(model, each, start=False) for each in texts]
    before = lead(tokenizer)
    read = [inspect_ids(shell, model, (*before, *ids)) for ids in word_ids(tokenizer, texts, plain)]
    if away_text:
        return pair(*read)
    so_far = (
        session.conversation.ids
        if len(session.conversation.ids) > 1
        else [*before, *session.conversation.ids]
    )
    towards = Side(read[0], len(read[0].ids) - len(before)) if before else whole(read[0])
    return towards, whole(inspect_ids(shell, model, so_far))


def _describe(strength: float, layer: int) -> str:
    return _("steering at layer {layer}, strength {strength:g}", strength=strength, layer=layer)
