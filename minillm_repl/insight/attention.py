"""Who looks at whom: attention weights, and what patterns they follow."""

import torch
from torch import Tensor

from minillm_repl.insight.subject import Subject, check_layer, rows
from minillm_repl.insight.views.thinking import FocusView, HeadFocus, HeadView, LayerView
from minillm_repl.language import N_
from minillm_repl.model.attention import attention_weights

_LOOKS = 5  # positions that are listed for the last token


def head_view(subject: Subject, layer: int, head: int) -> HeadView:
    """Return one head's attention on the text. Raises UserError if there is no such head."""
    check_layer(subject.config, layer, head)
    return _head(subject, layer, head, weights(subject, layer)[layer][head])


def layer_view(subject: Subject, layer: int) -> LayerView:
    """Return all heads of a layer. Raises UserError if there is no such layer."""
    check_layer(subject.config, layer)
    of_layer = weights(subject, layer)[layer]
    return LayerView(
        subject.tokens, tuple(_head(subject, layer, head, each) for head, each in enumerate(of_layer)), **subject.where
    )


def focus_view(subject: Subject) -> FocusView:
    """Return where the last token looked through every head of every layer."""
    heads = []
    for layer, of_layer in weights(subject).items():
        for head, weight in enumerate(of_layer):
            most = weight[-1].argsort(descending=True, stable=True)[:_LOOKS].tolist()
            looked = tuple((subject.position(place), float(weight[-1, place])) for place in most)
            heads.append(HeadFocus(layer, head, looked, patterns(weight, subject.ids)))
    return FocusView(subject.tokens, tuple(heads), **subject.where)


def weights(subject: Subject, layer: int | None = None) -> dict[int, Tensor]:
    """Return the attention weights of one layer, or of all: each (head, time, time), as they were in one pass."""
    layers = range(subject.config.layers) if layer is None else [layer]
    windows = getattr(subject.config, "windows", ())
    prefix = "" if layer is None else f"blocks.{layer}."
    _, found = subject.record(prefix + "attention.q", prefix + "attention.k", last=True)
    return {
        each: attention_weights(
            found[f"blocks.{each}.attention.q"][None],
            found[f"blocks.{each}.attention.k"][None],
            windows[each] if windows else 0,
        )[0].float()
        for each in layers
    }


def patterns(weight: Tensor, ids: tuple[int, ...]) -> tuple[tuple[str, float], ...]:
    """Return the patterns that one head's weights (time, time) could follow, most first, each with its score.

    A score is the weight that goes where the pattern says, as a mean over the tokens for which there is such a place:
    the token itself; the one before; the first of the text (not counting itself); an earlier one that is the same;
    the one after an earlier one that is the same (induction). A pattern without any such place is left out.
    """
    time = len(ids)
    token = torch.tensor(ids)
    earlier = torch.ones(time, time, dtype=torch.bool).tril(-1)
    same = (token[:, None] == token[None, :]) & earlier
    places = {
        N_("itself"): torch.eye(time, dtype=torch.bool),
        N_("previous token"): torch.ones(time, time, dtype=torch.bool).tril(-1).triu(-1),
        N_("first token"): earlier & (torch.arange(time) == 0),
        N_("same token"): same,
        N_("induction"): torch.nn.functional.pad(same, (1, 0))[:, :-1] & earlier,
    }
    scores = []
    for name, place in places.items():
        asked = place.any(-1)
        if asked.any():
            scores.append((name, float((weight.cpu() * place).sum(-1)[asked].mean())))
    return tuple(sorted(scores, key=lambda each: -each[1]))


def _head(subject: Subject, layer: int, head: int, weight: Tensor) -> HeadView:
    return HeadView(layer, head, subject.tokens, rows(weight), patterns(weight, subject.ids), **subject.where)
