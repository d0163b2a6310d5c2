"""`:steer`: a direction in the residual stream from one text to another (Turner et al., 2023)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook
from minillm_repl.repl.arguments import Arguments, Option, TextPair
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention, LoadedModel
from minillm_repl.repl.registry import command
from minillm_repl.settings import integer, number
from minillm_repl.tokenizer.lookup import word_ids
from minillm_repl.views import effect
from minillm_repl.views.base import (
    active_interventions,
    import_torch,
    inspect_ids,
    show,
    unseen_note,
)
from minillm_repl.views.direction import steer_along
from minillm_repl.views.effect import Averaged, EffectView
from minillm_repl.views.inspected_text import InspectedText, check_layer
from minillm_repl.views.prompts import CHAT, chat_ids, lead_ids
from minillm_repl.views.steering import (
    NamedStrength,
    parse_named,
    random_steering_hooks,
    residual_norm,
    steering_hook,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell


@dataclass(frozen=True)
class Side:
    """One of the two texts of a direction: its last `count` tokens are averaged."""

    inspected: InspectedText
    count: int

    @property
    def first(self) -> int:
        """The index of the first token that is averaged."""
        return len(self.inspected.ids) - self.count

    def averaged(self) -> Averaged:
        """Return the tokens that the view shows."""
        tokens, first = self.inspected.tokens, self.first
        return Averaged(tokens[:first], tokens[first:], self.inspected.position_of(first))

    def mean(self, layer: int) -> "Tensor":
        """Return the mean of the residual stream after a layer over these tokens: (d_model,)."""
        name = f"blocks.{layer}.residual"
        residual = self.inspected.run_with_cache(name, last_only=True)[1][name]  # (time, d_model)
        return residual[self.first :].float().mean(0)


def pair(towards: InspectedText, away: InspectedText) -> tuple[Side, Side]:
    """Return the tokens of two texts that are compared: as many of each, from the end.

    A shared beginning is left out, and so is position 0. The last token of a word of several tokens
    is the one that has seen the whole word. Raises UserError for a text of one token.
    """
    shortest = min(len(towards.ids), len(away.ids))
    shared = next(
        (index for index in range(shortest) if towards.ids[index] != away.ids[index]), shortest
    )
    count = max(shortest - max(shared, 1), 1)
    return _side(towards, count), _side(away, count)


def whole(inspected: InspectedText) -> Side:
    """Return all of a text but position 0. Raises UserError for a text of one token."""
    return _side(inspected, max(len(inspected.ids) - 1, 1))


def _side(inspected: InspectedText, count: int) -> Side:
    if len(inspected.ids) < 2:
        raise UserError(
            _(
                "{token} would be at position 0, where a model keeps the same large vector "
                "for any token. This vocabulary has no token to put before it. Give texts "
                "of two tokens or more",
                token=inspected.tokens[0].label,
            )
        )
    return Side(inspected, count)


def direction(towards: Side, away: Side, layer: int) -> "Tensor":
    """Return the unit vector (d_model,) from the mean of one side to the mean of the other.

    Raises UserError if there is no such layer, or no difference.
    """
    from torch.nn.functional import normalize

    check_layer(towards.inspected.config, layer)
    difference = towards.mean(layer) - away.mean(layer)
    if not difference.any():
        raise UserError(
            _("the two texts are identical to the model: there is no direction between them")
        )
    return normalize(difference, dim=0)


@command(
    "steer",
    arguments=Forms(
        (
            CHAT,
            TextPair("vs", "TEXT [vs TEXT]", required=1),
            Option("strength", number(-1e6, 1e6), 4.0),
            Option("layer", integer(-1), -1, "L"),  # -1 is the middle one
        ),
        (NamedStrength(),),
        ("off",),
        (),
    ),
    json=True,
    aliases=("방향",),
    group="Interventions",
    example=":steer 눈이 vs 비가 strength=2",
)
def steer(shell: "Shell", asked: Arguments) -> None:
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

    With `chat`, both texts are messages in the model's template, and the end of it counts too.

    :steer NAME=0.2 steers by a direction of `:direction`: 0.2 of the norm of the residual stream
    after its best layer. :steer NAME=0.2 5 does so after layer 5.

    The default layer is the middle one; layers count from 0.
    :steer off ends the steering. The model that is saved or trained does not change.
    """
    towards, away = asked.texts
    # A name that is no Latin word looks like a text.
    if named := asked.direction or (None if away else parse_named(towards)):
        steer_along(shell, named, asked.output)
        return
    if asked.keyword == "off" or not towards:
        _show_or_remove(shell, remove=asked.keyword == "off")
        return
    ids = shell.session.conversation.ids
    if not away and not ids:
        raise UsageError(_("give both texts: `:steer TEXT vs TEXT`"))
    # The effect is measured against the model without an earlier steering.
    model = shell.require_model().without_interventions("steer")
    layer = model.checkpoint.config.n_layers // 2 if asked.layer < 0 else asked.layer
    sides = make_sides(shell, model, towards, away, chat=bool(asked.chat))
    for side in sides:
        if side.inspected.unseen_ids:
            shell.screen.warn(unseen_note(side.inspected.window))
    inspected = inspect_ids(shell, model, ids) if ids else sides[1].inspected
    _steer(shell, model, inspected, sides, layer, asked)


def _steer(
    shell: "Shell",
    model: LoadedModel,
    inspected: InspectedText,
    sides: tuple[Side, Side],
    layer: int,
    asked: Arguments,
) -> None:
    """Show what steering between two sides does after a layer, and steer from now on."""

    def describe() -> str:
        return _(
            "steering at layer {layer}, strength {strength:g}", layer=layer, strength=asked.strength
        )

    hook = steering_hook(direction(*sides, layer), layer, asked.strength)
    view = _measure(shell, inspected, sides, hook, layer, asked.strength, describe())
    show(shell, view, asked.output, model)
    workspace = shell.session.workspace
    if asked.strength:
        workspace.add_intervention(Intervention("steer", describe, hook))
        shell.screen.note(_advice(residual_norm(inspected, layer), asked.strength))
    else:  # without a hook, the output stays the same to the last bit
        workspace.remove_interventions("steer")
        shell.screen.note(_("strength=0 adds nothing: no steering is active"))


def make_sides(
    shell: "Shell", model: LoadedModel, towards: str, away: str, *, chat: bool = False
) -> tuple[Side, Side]:
    """Return the tokens that are compared. Without `away`, the second side is the text so far."""
    tokenizer, ids = model.checkpoint.tokenizer, shell.session.conversation.ids
    import_torch(shell)
    texts = [each for each in (towards, away) if each]
    if chat and away:
        first, other = (inspect_ids(shell, model, chat_ids(shell, model, each)) for each in texts)
        return pair(first, other)
    plain = [shell.encode(model, each, start=False) for each in texts]
    lead = lead_ids(tokenizer)
    first, *others = (
        inspect_ids(shell, model, (*lead, *word)) for word in word_ids(tokenizer, texts, plain)
    )
    if others:
        return pair(first, others[0])
    so_far = inspect_ids(shell, model, ids if len(ids) > 1 else [*lead, *ids])
    side = Side(first, len(first.ids) - len(lead)) if lead else whole(first)
    return side, whole(so_far)


def _measure(
    shell: "Shell",
    inspected: InspectedText,
    sides: tuple[Side, Side],
    hook: Hook,
    layer: int,
    strength: float,
    description: str,
) -> EffectView:
    """Return the effect of steering beside that of random directions."""
    with shell.screen.waiting(_("measuring random directions")) as update:
        random_hooks = random_steering_hooks(
            inspected,
            layer,
            strength,
            lambda share: update(_("measuring random directions  {share:.0%}", share=share)),
        )
        averaged = sides[0].averaged(), sides[1].averaged()
        return effect.compute(inspected, description, hook, random_hooks, averaged)


def _advice(norm: float, strength: float) -> str:
    """Return the norm of the residual stream, and a larger strength if this one is small."""
    if abs(strength) < norm / 20:
        return _(
            "residual stream norm at that layer: {norm:.1f} (strength={strength:.2g} is "
            "20% of it) · `:steer off` stops steering",
            norm=norm,
            strength=norm / 5,
        )
    return _(
        "residual stream norm at that layer: {norm:.1f} · `:steer off` stops steering", norm=norm
    )


def _show_or_remove(shell: "Shell", *, remove: bool) -> None:
    """Say which steering is active, or end it."""
    if remove and shell.session.workspace.remove_interventions("steer"):
        shell.screen.note(_("steering removed"))
        return
    active = " · ".join(active_interventions(shell, "steer"))
    shell.screen.note(active or _("no steering is active: use `:steer TEXT vs TEXT`"))
