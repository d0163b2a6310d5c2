"""Activation patching: where a prompt's answer can be carried to another (Meng et al., 2022)."""

from collections.abc import Callable

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.insight.views.changes import PatchView
from minillm_repl.language import _
from minillm_repl.model.hooks import compose
from minillm_repl.tokenizer.base import Token
from minillm_repl.views.inspected_text import InspectedText, check_finite, place_name, topk_ids

_NAMES = {
    "residual": ("embedding", ".residual"),
    "attention": ("attention.out",),
    "feed-forward": ("mlp.out",),
}
_AT_ONCE = 2**22  # numbers of one activation that exist at once
_LEAST = 1e-3  # logits that the answers after A and B must lie apart; float32 rounds to some 1e-5


@torch.no_grad()
def patch_view(
    a: InspectedText,
    b: InspectedText,
    what: str = "residual",
    told: Callable[[float], None] = lambda _: None,
) -> PatchView:
    """Return how much of A's answer each activation of A, put into the pass over B, carries over.

    `what` is the residual stream, or what `attention` or the `feed-forward` adds to it.

    The measure is the difference of two logits, A's answer less B's: 0 as it is after B, 1 as after
    A. The answers are the likeliest tokens; where that is one token, those that tell the two
    distributions apart most. `told` hears how much is done, 0 to 1. Raises UserError if the prompts
    do not pair token by token, if a part of one is not seen, or if the model says (nearly) the same
    after both.
    """
    for name, prompt in (("A", a), ("B", b)):
        if prompt.unseen_ids:
            raise UserError(
                _(
                    "prompt {name} exceeds the context: the model sees {seen} of its {all} "
                    "tokens, but patching needs them all",
                    name=name,
                    all=len(prompt.ids) + len(prompt.unseen_ids),
                    seen=len(prompt.ids),
                )
            )
    if len(a.ids) != len(b.ids):
        raise UserError(
            _(
                "the two prompts need the same number of tokens, but have {a} and {b}; "
                "check with `:tokens TEXT`",
                a=len(a.ids),
                b=len(b.ids),
            )
        )
    if a.ids == b.ids:
        raise UserError(_("both prompts are the same tokens: there is nothing to patch"))
    logits_a, found = a.run_with_cache(*_NAMES[what], last_only=True)
    logits_b = b.logits(last_only=True)
    answers = _answers(logits_a[0], logits_b[0])
    clean, corrupt = _apart(logits_a, answers)[0], _apart(logits_b, answers)[0]
    if abs(clean - corrupt) < _LEAST:
        raise UserError(
            _(
                "the logit difference of {a} and {b} is almost the same after both prompts "
                "({clean:.4f} after A, {corrupt:.4f} after B): fractions of it would be "
                "rounding errors",
                a=Token.from_id(a.tokenizer, answers[0]).label,
                b=Token.from_id(a.tokenizer, answers[1]).label,
                clean=clean,
                corrupt=corrupt,
            )
        )
    effects = []
    for name, activation in found.items():
        patched = _apart(patched_logits(b, name, activation), answers)
        effects.append(tuple((each - corrupt) / (clean - corrupt) for each in patched))
        told(len(effects) / len(found))
    answer_a, answer_b = (Token.from_id(a.tokenizer, answer) for answer in answers)
    places = tuple(_place(b, name) for name in found)
    likeliest_both = answers == (topk_ids(logits_a[0], 1)[0], topk_ids(logits_b[0], 1)[0])
    return PatchView(
        what,
        a.tokens,
        b.tokens,
        answer_a,
        answer_b,
        likeliest_both,
        clean,
        corrupt,
        places,
        tuple(effects),
    )


@torch.no_grad()
def patched_logits(subject: InspectedText, name: str, activation: Tensor) -> Tensor:
    """Return the last position's logits (time, vocab): row t is of a pass whose activation `name`
    was replaced at t.

    `activation` (time, width) is of another text of the same length.
    """
    rows = []
    size = max(1, _AT_ONCE // activation.numel())
    for start in range(0, len(subject.ids), size):
        places = torch.arange(start, min(start + size, len(subject.ids)))

        def tap(at: str, tensor: Tensor, places: Tensor = places) -> Tensor:
            if at != name:
                return tensor
            changed = tensor.clone()  # (row, time, width)
            changed[torch.arange(len(places)), places] = activation[places]
            return changed

        ids = subject.input_ids.expand(len(places), -1)
        rows.append(
            check_finite(subject.model(ids, hook=compose(subject.hook, tap), last_only=True)[:, 0])
        )
    return torch.cat(rows)


def _answers(a: Tensor, b: Tensor) -> tuple[int, int]:
    """Return the likeliest tokens after A and B, or those by which distributions differ most."""
    first, second = topk_ids(a, 1)[0], topk_ids(b, 1)[0]
    if first != second:
        return first, second
    of_a, of_b = a.double().log_softmax(-1), b.double().log_softmax(-1)
    more = of_a - of_b
    return topk_ids(of_a.exp() * more, 1)[0], topk_ids(of_b.exp() * -more, 1)[0]


def _apart(logits: Tensor, answers: tuple[int, int]) -> list[float]:
    """Return how far the first answer's logit is above the second's, by row of (row, vocab)."""
    apart: list[float] = (logits[:, answers[0]].double() - logits[:, answers[1]].double()).tolist()
    return apart


def _place(subject: InspectedText, name: str) -> str:
    return (
        place_name(subject, name)
        if name == "embedding" or name.endswith("residual")
        else name.split(".")[1]
    )
