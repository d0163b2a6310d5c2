"""Who looks at whom: attention weights, and what patterns they follow."""

import torch
from torch import Tensor

from minillm_repl.insight.views.thinking import FocusView, HeadFocus, HeadView, LayerView, Pattern
from minillm_repl.language import N_
from minillm_repl.model.attention import attention_weights
from minillm_repl.views.inspected_text import InspectedText, check_layer, to_tuples

_LOOKS = 5  # positions that are listed for the last token
_BY_CONTENT = N_("same token"), N_("induction on this text")
_ENOUGH = 3  # positions, before these are told of a head


def head_view(subject: InspectedText, layer: int, head: int) -> HeadView:
    """Return one head's attention on the text. Raises UserError if there is no such head."""
    check_layer(subject.config, layer, head)
    return layer_view(subject, layer).heads[head]


def layer_view(subject: InspectedText, layer: int) -> LayerView:
    """Return all heads of a layer. Raises UserError if there is no such layer."""
    check_layer(subject.config, layer)
    of_layer = weights(subject, layer)[layer]
    found = patterns(of_layer, subject.ids, _window(subject, layer))
    return LayerView(
        subject.tokens,
        tuple(
            HeadView(layer, head, subject.tokens, to_tuples(each), of, **subject.window_fields)
            for head, (each, of) in enumerate(zip(of_layer, found, strict=True))
        ),
        **subject.window_fields,
    )


def focus_view(subject: InspectedText) -> FocusView:
    """Return where the last token looked through every head of every layer."""
    heads = []
    for layer, of_layer in weights(subject).items():
        found = patterns(of_layer, subject.ids, _window(subject, layer))
        for head, weight in enumerate(of_layer):
            most = weight[-1].argsort(descending=True, stable=True)[:_LOOKS].tolist()
            looked = tuple((subject.position_of(place), float(weight[-1, place])) for place in most)
            heads.append(HeadFocus(layer, head, looked, found[head]))
    return FocusView(subject.tokens, tuple(heads), **subject.window_fields)


def weights(subject: InspectedText, layer: int | None = None) -> dict[int, Tensor]:
    """Return the attention weights of one layer, or of all: each (head, time, time), as they
    were in one pass.
    """
    layers = range(subject.config.n_layers) if layer is None else [layer]
    prefix = "" if layer is None else f"blocks.{layer}."
    _, found = subject.run_with_cache(
        prefix + "attention.q", prefix + "attention.k", last_only=True
    )
    return {
        each: attention_weights(
            found[f"blocks.{each}.attention.q"][None],
            found[f"blocks.{each}.attention.k"][None],
            _window(subject, each),
        )[0]
        for each in layers
    }


def patterns(weight: Tensor, ids: tuple[int, ...], window: int = 0) -> list[tuple[Pattern, ...]]:
    """Return for each head of a layer (head, time, time) the patterns that it could follow, the
    highest score first.

    A score is the weight that goes where the pattern says, as a mean over the positions that have
    such a place, beside what even attention over the positions that they see would give. A pattern
    without any such place is left out, and so are those by content (same token, induction) with
    fewer than three.
    """
    weight, visible = weight.float().cpu(), _visible(len(ids), window)
    even = visible / visible.sum(-1, keepdim=True)  # (time, time)
    scored = []
    for name, place in _places(ids, visible).items():
        asked = place.any(-1)
        if (count := int(asked.sum())) >= (_ENOUGH if name in _BY_CONTENT else 1):
            scores = (weight * place).sum(-1)[:, asked].mean(-1).tolist()  # one for each head
            chance = float((even * place).sum(-1)[asked].mean())
            scored.append([Pattern(name, score, chance, count) for score in scores])
    of_heads = ([of_all[head] for of_all in scored] for head in range(len(weight)))
    return [tuple(sorted(of_head, key=lambda each: -each.score)) for of_head in of_heads]


def _places(ids: tuple[int, ...], visible: Tensor) -> dict[str, Tensor]:
    """Return where each pattern says that a position (row) attends: (time, time) each.

    Rows that cannot show it are empty: position 0 sees only itself, and what is before position 1
    is the first token.
    """
    time, token = len(ids), torch.tensor(ids)
    earlier = visible.tril(-1)
    same = (token[:, None] == token[None, :]) & earlier
    after_same = (
        torch.nn.functional.pad((token[:, None] == token[None, :]).tril(-1), (1, 0))[:, :-1]
        & earlier
    )
    later = torch.arange(time)[:, None]
    return {
        N_("itself"): torch.eye(time, dtype=torch.bool) & (later > 0),
        N_("previous token"): earlier.triu(-1) & (later > 1),
        N_("first token"): earlier & (torch.arange(time) == 0),
        _BY_CONTENT[0]: same,
        _BY_CONTENT[1]: after_same,
    }


def _visible(time: int, window: int) -> Tensor:
    """Return which positions each position sees: (time, time)."""
    every = torch.ones(time, time, dtype=torch.bool).tril()
    return every.triu(1 - window) if window else every


def _window(subject: InspectedText, layer: int) -> int:
    """Return how many positions back a layer sees, itself included; 0 is all."""
    windows = subject.config.sliding_windows
    return windows[layer] if windows else 0
