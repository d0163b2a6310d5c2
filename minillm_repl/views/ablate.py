"""`:ablate`: heads, layers and directions are taken away, until turned off or each in turn."""

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import N_, _
from minillm_repl.repl.arguments import Arguments, Choice, ChoiceOption, Option, TextArgument, Words
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention, LoadedModel
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import user_path
from minillm_repl.views import effect
from minillm_repl.views.ablate_scan import compute_scan
from minillm_repl.views.ablate_view import KINDS
from minillm_repl.views.ablation import (
    How,
    PartArgument,
    Piece,
    ablation_hook,
    direction_hook,
    direction_places,
)
from minillm_repl.views.base import (
    active_interventions,
    find_tokens,
    import_torch,
    inspect_ids,
    inspect_text,
    show,
    text_ids,
)
from minillm_repl.views.direction import require
from minillm_repl.views.inspected_text import InspectedText, check_layer
from minillm_repl.views.prompts import with_time_left
from minillm_repl.views.steering import random_directions
from minillm_repl.views.windows import file_windows

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_SAMPLES = "samples"  # what `over=` says for the model's own
_TEXTS, _SAMPLED = 16, 8  # of a reference: of a file, and of the model's own samples
_RESAMPLED = 4  # texts of which a scan takes the mean
_TOKENS = 32, 256  # of each: as many as the text has, within these
_DIRECTION = re.compile(r"(\S+)(?:\s+(\d{1,9}))?")
_HOW = (
    Choice("zero", "mean", "resample", name="how", 영="zero", 평균="mean"),
    Option("over", str, "", "FILE"),
    TextArgument(quoted=True),
)


@command(
    "ablate",
    arguments=Forms(
        (PartArgument(), *_HOW),
        (
            "scan",
            _HOW[0],
            ChoiceOption("what", *KINDS),
            ChoiceOption("by", "loss", "logits", "kl"),
            Option("token", str, "", "TOKEN"),
            Option("vs", str, "", "TOKEN"),
            *_HOW[1:],
        ),
        ("direction", Words("asked", "NAME [LAYER]", required=True), TextArgument(quoted=True)),
        ("off",),
        (),
    ),
    json=True,
    aliases=("끄기",),
    group="Interventions",
    example=":ablate scan",
)
def ablate(shell: "Shell", asked: Arguments) -> None:
    """Ablate a head, a layer or a direction until turned off.

    :ablate 2.1 ablates head 1 of layer 2: its output before the output projection is replaced, now
    and while text is generated.
    :ablate 2 ablates everything that layer 2 adds to the residual stream, :ablate 2.mlp what its
    MLP adds, :ablate 2.attention what its attention adds.
    :ablate scan ablates each head alone, and ranks the heads.
    :ablate direction NAME removes a direction of `:direction` from the residual stream, wherever it
    has changed: x − (x·v)v. v is the direction at its best layer. :ablate direction NAME 3 removes
    the direction of layer 3 after layer 3 only.
    :ablate off removes all ablations.

    `zero` replaces the output with zeros. `mean` replaces it with its mean over all positions of
    the text so far, or of a text in quotes. With over=FILE the mean is over texts of a file, with
    over=samples over samples of the model; the first position of each does not count. `resample`
    puts what the part writes on another text there, position by position; without over= on a sample
    of the model. The numbers include earlier interventions. Interventions add up: each acts at its
    own place, and later layers see the result.

    The table shows the effect on the next token. KL is KL(now ‖ before) = Σ now · ln(now / before),
    in nats. Beside a direction stand 32 random ones, removed in the same way.

    The scan ablates heads, or what=attention, feed-forward, layers or all. It ranks by the loss on
    the text without the part − loss, in nats per token: above 0, the part is useful for this text.
    by=logits ranks by the change of a logit difference after the last token, of the two most likely
    tokens or of token=A vs=B. by=kl ranks by KL(ablated ‖ whole) there. Of `resample`, the scan has
    the mean over 4 texts. Ctrl-C ends it with what is done.

    Layers and heads count from 0. The model that is saved or trained does not change.
    """
    if asked.keyword == "scan":
        _scan(shell, asked)
    elif asked.keyword == "direction":
        _ablate_direction(shell, asked)
    elif asked.keyword == "off":
        removed = shell.session.workspace.remove_interventions("ablate")
        shell.screen.note(_("all ablations removed") if removed else _state(shell))
    elif asked.layer is None:
        shell.screen.note(_state(shell))
    else:
        _ablate(shell, asked)


def _scan(shell: "Shell", asked: Arguments) -> None:
    inspected = inspect_text(shell, asked.text)
    pair = find_tokens(inspected, (asked.token, asked.vs)) if asked.by == "logits" else (None, None)
    if asked.by != "logits" and (asked.token or asked.vs):
        raise UsageError(_("token= and vs= need by=logits"))
    with shell.screen.waiting(_("ablating each part")) as update:
        reference = _reference(shell, shell.require_model(), asked, len(inspected.ids), update)
        view = compute_scan(
            inspected,
            asked.how or "zero",
            with_time_left(update, _("ablating each part")),
            what=asked.what,
            by=asked.by,
            pair=pair,
            reference=reference[: _RESAMPLED if asked.how == "resample" else None],
            source=_source(asked),
            interrupted=shell.interrupted,
        )
    show(shell, view, asked.output)


def _source(asked: Arguments) -> str:
    """Return what is said of a reference: the name of its file, or that these are samples."""
    if asked.over and asked.over != _SAMPLES:
        return safe_line(user_path(asked.over).name)
    return _SAMPLES if asked.over or asked.how == "resample" else ""


def _reference(
    shell: "Shell", model: LoadedModel, asked: Arguments, size: int, update: Callable[[str], None]
) -> list[InspectedText]:
    """Return the texts that `mean` and `resample` are taken from; none is the text itself.

    Raises UserError.
    """
    if asked.over and asked.how not in ("mean", "resample"):
        raise UsageError(_("over= needs `mean` or `resample`"))
    if not _source(asked):
        return []
    update(_("reading the reference"))
    file = "" if asked.over == _SAMPLES else asked.over
    low, high = _TOKENS
    tokens = min(max(size, low), high, model.checkpoint.config.context_length)
    count = _TEXTS if file else _SAMPLED
    if asked.how == "resample":
        count = min(count, _RESAMPLED if asked.keyword else 1)
    windows = file_windows(shell, model, file, count, tokens, update)
    return [inspect_ids(shell, model, each) for each in windows if len(each) > 1]


def _ablate(shell: "Shell", asked: Arguments) -> None:
    layer, piece = asked.layer, asked.piece
    how: How = asked.how or "zero"
    place = f"{layer}" if piece is None else f"{layer}.{piece}"
    describe = partial(_describe, layer, piece, how, _source(asked))
    # The effect is measured against the model without an earlier ablation of the same place.
    model = shell.require_model().without_interventions("ablate", place)
    inspected = inspect_ids(shell, model, text_ids(shell, model, asked.text))
    check_layer(inspected.config, layer, piece if isinstance(piece, int) else None)
    with shell.screen.waiting(_("ablating")) as update:
        reference = _reference(shell, model, asked, len(inspected.ids), update)
        hook = ablation_hook(inspected, layer, piece, how, reference)
        view = effect.compute(inspected, describe(), hook)
    show(shell, view, asked.output, model)
    shell.session.workspace.add_intervention(Intervention("ablate", describe, hook, place))
    shell.screen.note(_("`:ablate off` undoes it"))


def _describe(layer: int, piece: Piece, how: str, source: str) -> str:
    if isinstance(piece, int):
        part = _("head {place}", place=f"{layer}.{piece}")
    else:
        names = {"attention": N_("attention {n}"), "mlp": N_("feed-forward {n}")}
        part = _(names[piece], n=layer) if piece else _("layer {n}", n=layer)
    if how == "zero":
        return _("{part} ablated", part=part)
    if how == "resample":
        return _("{part} resampled from {source}", part=part, source=source)
    if source:
        return _("{part} mean-ablated over {source}", part=part, source=source)
    return _("{part} mean-ablated", part=part)


def _ablate_direction(shell: "Shell", asked: Arguments) -> None:
    """Remove a direction from the stream, and show what that changes. Raises UserError."""
    parsed = _DIRECTION.fullmatch(asked.asked)
    if parsed is None:
        raise UsageError(_("unexpected argument {text!r}", text=safe_line(asked.asked[:40])))
    import_torch(shell)
    import torch

    found, layer = require(shell, parsed[1]), None if parsed[2] is None else int(parsed[2])
    place = f"direction {found.name}"
    model = shell.require_model().without_interventions("ablate", place)
    config = model.checkpoint.config
    check_layer(config, layer or 0)
    if found.vectors.shape != (config.n_layers, config.d_model):
        raise UserError(_("direction {name} is of another model: {model}",
                          name=found.name, model=found.model))  # fmt: skip
    of = found.best_layer if layer is None else layer
    vector = torch.from_numpy(found.vectors[of].copy())
    places = direction_places(config.n_layers, layer)
    hook = direction_hook(vector, places)
    describe = partial(_describe_direction, found.name, layer)
    inspected = inspect_ids(shell, model, text_ids(shell, model, asked.text))
    with shell.screen.waiting(_("measuring random directions")):
        placebo = (direction_hook(each, places) for each in random_directions(inspected))
        view = effect.compute(inspected, describe(), hook, placebo)
    show(shell, view, asked.output, model)
    # The line that found the direction changes nothing: a session needs it to make this again.
    lines = found.line, f":ablate direction {asked.asked}"
    change = Intervention("ablate", describe, hook, place, lines=lines)
    shell.session.workspace.add_intervention(change)
    shell.screen.note(_("`:ablate off` undoes it"))


def _describe_direction(name: str, layer: int | None) -> str:
    if layer is None:
        return _("direction {name} removed everywhere", name=name)
    return _("direction {name} removed after layer {layer}", name=name, layer=layer)


def _state(shell: "Shell") -> str:
    """Return which ablations are active."""
    ablations = " · ".join(active_interventions(shell, "ablate"))
    return ablations or _("nothing is ablated: `:ablate 0.0` ablates head 0 of layer 0")
