"""A row of a lens: what the last norm and the head make of one place of the residual stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl.render.drawing import short_label
from minillm_repl.views.inspected_text import (
    InspectedText,
    Likely,
    kl_divergence,
    place_name,
    rank,
    topk,
)

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5  # tokens that a row lists


@dataclass(frozen=True, kw_only=True)
class LensRow:
    """What the model would predict if it stopped at one place of the residual stream."""

    # `embedding`, `0 attention`, `0 feed-forward`; `0 block` where the two work in parallel
    place: str
    top: tuple[Likely, ...]
    prob: float  # of the answer
    rank: int  # of the answer, 1 = most likely
    kl: float  # nats, KL(final ‖ here) = Σ final · ln(final / here)


def draw_top(top: tuple[Likely, ...], width: int) -> Text:
    """Return as many of the tokens as fit in `width` cells; the first is always there."""
    labels = Text()
    for likely in top:
        label = short_label(likely.token)
        if labels and labels.cell_len + 1 + label.cell_len > width:
            break
        labels.append(" " if labels else "").append_text(label)
    return labels


def lens_row(
    inspected: InspectedText,
    hook_name: str,
    residual: "Tensor",
    final: "Tensor",
    answer: int,
    top: int = TOP,
) -> LensRow:
    """Return what the last norm and the head make of a residual stream (d_model,) at a place.

    `final` are the log-probabilities of the model's own output (vocab,).
    """
    here = inspected.model.unembed(residual).double().log_softmax(-1)  # (vocab,)
    return LensRow(
        place=place_name(inspected, hook_name),
        top=topk(inspected.tokenizer, here, top),
        prob=float(here[answer].exp()),
        rank=rank(here, answer),
        kl=kl_divergence(final, here),
    )
