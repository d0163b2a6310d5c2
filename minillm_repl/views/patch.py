"""`:patch`: where the answer of one prompt can be carried to another (Meng et al., 2022)."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, ChoiceOption, Option, TextPair
from minillm_repl.repl.places import Place, PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Token
from minillm_repl.views import path_patching
from minillm_repl.views.base import Row, View, show
from minillm_repl.views.finding import find_predicted, occurrences
from minillm_repl.views.inspected_text import InspectedText, no_grad, place_name
from minillm_repl.views.patch_view import Checked, PatchView
from minillm_repl.views.patching import (
    PARTS,
    Measure,
    Part,
    Progress,
    attributed,
    check_pair,
    measure,
    patched_logits,
)
from minillm_repl.views.prompts import CHAT, inspect_prompt, with_time_left

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_CHECKED = 10  # cells of a scan by gradients that are patched too


@no_grad
def compute(
    a: InspectedText,
    b: InspectedText,
    what: str = "residual",
    progress: Progress = lambda _share: None,
    *,
    by: str = "runs",
    position: int | None = None,
    interrupted: Callable[[], bool] = bool,
) -> PatchView:
    """Return how much of A's answer each activation of A restores in the pass over B.

    `what` is a name of `PARTS`: an activation, at each position alone, or of each head alone, at
    all positions or at `position`. The measure is a logit difference, A's answer − B's answer: 0 is
    as after B, 1 as after A. The answers are the top tokens; if these are the same, the two tokens
    that differ most. With `by` = `gradient`, the effects are estimates to first order, of which the
    largest are checked. After Ctrl-C, the rows that are done are returned. Raises UserError if the
    prompts do not pair token by token, if one exceeds the context, or if the answers barely differ.
    """
    check_pair(a, b)
    part = PARTS[what]
    logits_a, cache = a.run_with_cache(*part.names, last_only=True)  # (1, vocab)
    found = measure(a, logits_a[0], b.logits(last_only=True)[0])
    places = {name: _place(b, name) for name in cache}
    checked: tuple[Checked, ...] = ()
    if by == "gradient":
        effects = {
            name: tuple(values.tolist())
            for name, values in attributed(a, b, part, found, position).items()
        }
        checked = _check(b, effects, cache, found, part, position, places, progress)
    else:
        effects = _by_runs(b, found, cache, part, position, progress, interrupted)
    answer_a, answer_b = (Token.from_id(a.tokenizer, answer) for answer in found.answers)
    return PatchView(
        what=what,
        by=by,
        a=a.tokens,
        b=b.tokens,
        position=position,
        answer_a=answer_a,
        answer_b=answer_b,
        likeliest=found.likeliest,
        clean=found.clean,
        corrupt=found.corrupt,
        places=tuple(places[name] for name in effects),
        effects=tuple(effects.values()),
        checked=checked,
    )


def _by_runs(
    b: InspectedText,
    found: Measure,
    cache: "dict[str, Tensor]",
    part: Part,
    position: int | None,
    progress: Progress,
    interrupted: Callable[[], bool],
) -> dict[str, tuple[float, ...]]:
    """Return the effects by the names of the activations; after Ctrl-C, those that are done."""
    effects: dict[str, tuple[float, ...]] = {}

    def advance(share: float) -> None:
        progress((len(effects) + share) / len(cache))

    for name, activation in cache.items():
        try:
            logits = patched_logits(b, name, activation, part, position=position, progress=advance)
        except UserError:
            if not (effects and interrupted()):
                raise
            break
        effects[name] = tuple(found.fractions(logits))
    return effects


def _check(
    b: InspectedText,
    effects: dict[str, Row],
    cache: "dict[str, Tensor]",
    found: Measure,
    part: Part,
    position: int | None,
    places: dict[str, str],
    progress: Progress,
) -> tuple[Checked, ...]:
    """Return the cells with the largest estimates, each with what its patch does."""
    cells = [(name, cell) for name, row in effects.items() for cell in range(len(row))]
    cells.sort(key=lambda each: -abs(effects[each[0]][each[1]]))
    checked = []
    for name, cell in cells[:_CHECKED]:
        logits = patched_logits(b, name, cache[name], part, position=position, cells=[cell])
        effect = found.fractions(logits)[0]
        checked.append(Checked(places[name], cell, effects[name][cell], effect))
        progress(len(checked) / min(_CHECKED, len(cells)))
    return tuple(checked)


def _place(inspected: InspectedText, name: str) -> str:
    is_residual = name == "embedding" or name.endswith("residual")
    return place_name(inspected, name) if is_residual else name.split(".")[1]


_ARGUMENTS = (
    CHAT,
    TextPair("->", "A -> B", also="→", required=2),
    ChoiceOption("what", *PARTS),
    ChoiceOption("by", "runs", "gradient"),
    Option("from", path_patching.parse_sender, "", "HEAD"),
    Option("to", path_patching.parse_receiver, "", "HEAD.q"),
    PlaceArgument(),
)


@command(
    "patch",
    arguments=_ARGUMENTS,
    json=True,
    aliases=("바꿔넣기",),
    group="Interventions",
    example=":patch 눈이 -> 비가",
)
def patch(shell: "Shell", asked: Arguments) -> None:
    """Patch activations from prompt A into prompt B.

    The command runs prompt B many times. Each run replaces one activation with that of prompt A. A
    cell shows the fraction of A's answer that this restores: (patched − B) / (A − B). Each term is
    a logit difference: the logit of A's top token minus the logit of B's top token, after the
    patched prompt, B and A. 0% is no effect and 100% is the same as A; values below 0% and above
    100% are possible.

    If both prompts have the same answer, the two tokens are those that add most to KL(A ‖ B) and
    KL(B ‖ A). If A − B is below 0.001, the view shows nothing: the numbers would be rounding
    errors.

    The activation is the residual stream, at one position after one layer. With what=attention or
    what=feed-forward, it is what that part adds to the residual stream.

    With what=z, q, k, v or pattern, it is that of one head: its output before the output
    projection, its queries, keys, values, or attention weights. k and v are numbered by KV head. It
    is replaced at all positions, or at the place that is given: `@3`, `@날`.

    by=gradient estimates all cells from one gradient: (A − B) · ∂(logit difference). It takes
    seconds. The ten largest estimates are patched too, and the view shows the errors.

    from=2.1 to=3.0.q patches a path: what head 2.1 has on A reaches the queries of head 3.0
    directly, through the residual stream, while all other heads and MLPs stay as on B. Then B runs
    on with these queries. A sender is a head (2.1), an MLP (2.mlp) or `embedding`; a receiver is
    3.0.q, 3.0.k, 3.0.v, an MLP (3.mlp) or `logits`. With to= alone, all senders are ranked.

    `:patch chat A -> B` makes each prompt the first message of a chat, in the model's template.

    The prompts need the same number of tokens; they are paired by position. Positions, layers and
    heads count from 0. `--json FILE` writes the numbers.
    """
    a, b = (inspect_prompt(shell, text, chat=bool(asked.chat)) for text in asked.texts)
    sender, receiver = asked.values["from"], asked.to
    position = _position(a, b, asked.place)
    by_head = PARTS[asked.what].head is not None
    is_path = bool(sender or receiver)
    if asked.place and (is_path or not by_head):
        raise UserError(
            _("a place needs one of {names}", names="what=z, what=q, what=k, what=v, what=pattern")
        )
    with shell.screen.waiting(_("patching")) as update:
        progress = with_time_left(update, _("patching"))
        view: View
        model = safe_line(shell.require_model().name)
        if is_path:
            path = path_patching.compute(a, b, sender, receiver or "logits", progress)
            view = replace(path, model=model)
        else:
            view = compute(
                a, b, asked.what, progress, by=asked.by, position=position,
                interrupted=shell.interrupted,
            )  # fmt: skip
            view = replace(view, model=model)
    show(shell, view, asked.output)
    if shell.interrupted():
        shell.screen.note(_("stopped early: the rows above are those that were done"))


def _position(a: InspectedText, b: InspectedText, place: Place) -> int | None:
    """Return the position of both prompts where heads are patched; None: at all.

    A token of either means its own position, not the one before, where it was predicted.
    """
    if not place.token:
        return None if place.position is None else b.index_of(place.position)
    prompt = b if occurrences(b, place.token) else a
    return prompt.index_of(find_predicted(prompt, place.token, place.number))
