"""Views that lessons show: the whole way as shapes, held to `transformers`."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from wcwidth import wcswidth

from minillm_repl.engine.options import Sampling
from minillm_repl.engine.sampling import log_softmax, process
from minillm_repl.insight.shapes import shapes_view
from minillm_repl.insight.steering import steering
from minillm_repl.insight.subject import Subject
from minillm_repl.model.build import build
from minillm_repl.render.shapes import shapes_picture
from tests.conftest import random_checkpoint
from tests.test_insight import both, of_text  # noqa: F401 - the fixture
from tests.test_interventions import layers


def drawn(picture, width):
    """What a picture looks like on a terminal of this width."""
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    console.print(picture)
    return console.file.getvalue().split("\n")


def own(logits):
    """The probabilities of drawing when no sampler is on."""
    return np.exp(log_softmax(logits))


def test_shapes_and_numbers_are_those_of_transformers_own_tensors(both):  # noqa: F811
    ours, model, theirs = both
    block, entered = layers(model)[0], {}
    attention = next(each for name, each in block.named_children() if "attn" in name or name == "attention")
    hooks = [
        each.register_forward_pre_hook(
            lambda _, given, more, name=name: entered.update({name: given[0] if given else more["hidden_states"]}),
            with_kwargs=True,
        )
        for name, each in (("attention.input", attention), ("ff.input", block.mlp))
    ]
    hooks.append(block.mlp.register_forward_hook(lambda _, given, made: entered.update({"ff.out": made})))
    with torch.no_grad():
        cached = model(ours.input, use_cache=True).past_key_values.layers[0]
    for hook in hooks:
        hook.remove()
    rows = {row.name: row for row in shapes_view(ours, own).rows}
    expected = {
        "embedding": theirs.hidden_states[0][0],
        "blocks.0.residual": theirs.hidden_states[1][0],
        "blocks.0.attention.weights": theirs.attentions[0][0],
        "logits": theirs.logits[0],
        "probabilities": theirs.logits[0, -1].softmax(-1),
        **{f"blocks.0.{name}": tensor[0] for name, tensor in entered.items()},
    }
    for name, tensor in expected.items():
        assert rows[name].shape == tuple(tensor.shape)
        last = tensor[0] if tensor.ndim == 3 else tensor
        last = last[-1] if last.ndim == 2 else last
        np.testing.assert_allclose(rows[name].numbers, last[:12], atol=1e-4)
    for name, keys in (("k", cached.keys), ("v", cached.values)):
        if keys.shape[2] == len(ours.ids):  # a sliding window keeps fewer
            assert rows[f"blocks.0.attention.{name}"].shape == tuple(keys[0].shape)
            np.testing.assert_allclose(rows[f"blocks.0.attention.{name}"].numbers, keys[0, 0, -1, :12], atol=1e-4)


def test_a_letter_stands_for_one_size_on_the_whole_way(both):  # noqa: F811
    view = shapes_view(both[0], own)
    for row in view.rows:
        assert [view.sizes[dim] for dim in row.dims] == list(row.shape), row.name


def test_what_can_be_drawn_follows_the_samplers():
    subject = of_text(random_checkpoint(), "가각갂")
    probabilities = subject.logits()[-1].double().div(0.5).softmax(-1)

    def draw(settings):
        return shapes_view(subject, lambda logits: np.exp(log_softmax(process(logits, settings, subject.ids))))

    view = draw(Sampling(temp=0.5, top_k=2))
    assert view.candidates == 2
    best = probabilities.topk(2)
    assert [each.token.id for each in view.drawn] == best.indices.tolist()
    np.testing.assert_allclose([each.prob for each in view.drawn], best.values / best.values.sum(), atol=1e-6)
    assert [each.prob for each in draw(Sampling(temp=0)).drawn] == [1.0]


def test_the_way_through_a_changed_model_shows_the_change():
    subject = of_text(random_checkpoint(), "가각갂")
    along = torch.eye(12)[0]
    before, after = (shapes_view(each, own).rows for each in (subject, subject.with_tap(steering(along, 1, 5.0))))
    different = [old.name for old, new in zip(before, after, strict=True) if old.numbers != new.numbers]
    assert different == ["blocks.1.residual", "final", "logits", "probabilities"]
    last = {row.name: row for row in after}["blocks.1.residual"].numbers[0]
    assert last == pytest.approx({row.name: row for row in before}["blocks.1.residual"].numbers[0] + 5, abs=1e-5)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_picture_of_the_way_fits_and_names_the_blocks_that_are_left_out(width, layers):
    checkpoint = random_checkpoint(layers=layers)
    subject = Subject(build(checkpoint.config, checkpoint.tensors), checkpoint.tokenizer, (3,))
    lines = drawn(shapes_picture(shapes_view(subject, own, "temp 1"), width), width)
    assert max(map(wcswidth, lines)) <= width
    assert any("3 × 1 × 4" in line for line in lines)
    if width > 40:  # where names are not broken
        text = "\n".join(lines)
        assert ("block 1 too" in text) == (layers == 2)
        assert ("blocks 1 to 4 too" in text) == (layers == 5)
