"""A head, a neuron, a gradient, a prompt in training: `transformers`' hooks, finite differences."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from minillm_repl.errors import UserError
from minillm_repl.model.build import build, build_trainable
from minillm_repl.views import grad, lens, neurons, qkv, why
from minillm_repl.views.contributions import logit_direction
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.watch import Watch
from tests.conftest import random_checkpoint
from tests.test_insight import both, exact, of_text  # noqa: F401 - the fixture
from tests.test_interventions import feed_forward_input

LAYER, HEAD = 1, 2


@pytest.mark.parametrize("position", [0, 5, -1])
def test_a_query_meets_keys_and_mixes_values_as_the_models_own_attention_does(both, position):
    ours, model, theirs = both
    view = qkv.compute(ours, LAYER, HEAD, position)
    place = position % 21
    assert view.position == place
    expected = theirs.attentions[LAYER][0, HEAD, place, : place + 1]
    met = {each.position: each for each in view.met}
    for other, weight in enumerate(expected.tolist()):
        assert (met[other].weight if other in met else 0) == pytest.approx(weight, abs=1e-5)
    query, cap = np.array(view.query), getattr(model.config, "attn_logit_softcapping", None)
    scale = next(
        module.scaling
        for module in model.modules()
        if getattr(module, "layer_idx", None) == LAYER and hasattr(module, "scaling")
    )
    for each in view.met:
        assert each.dot == pytest.approx(float(query @ np.array(each.key)), abs=1e-4)
        score = each.dot * scale
        score = cap * np.tanh(score / cap) if cap else score
        assert each.scaled == pytest.approx(score, abs=1e-5)
    scores = np.array([each.scaled for each in view.met])
    softmax = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    np.testing.assert_allclose([each.weight for each in view.met], softmax, atol=1e-5)
    mixed = sum(each.weight * np.array(each.value) for each in view.met)
    np.testing.assert_allclose(view.mixed, mixed, atol=1e-5)
    _, found = ours.up_to(place).run_with_cache(f"blocks.{LAYER}.attention.z")
    np.testing.assert_allclose(
        view.mixed, found[f"blocks.{LAYER}.attention.z"][-1, HEAD], atol=1e-6
    )


def test_neurons_are_what_enters_the_second_matrix_of_transformers_feed_forward(both):
    ours, model, _ = both
    if ours.config.is_routed(LAYER):
        with pytest.raises(UserError, match="layer 1 is a mixture of experts"):
            neurons.compute(ours, LAYER)
        return
    hidden = feed_forward_input(model, ours.input_ids)  # (time, hidden)
    view = neurons.compute(ours, LAYER)
    assert view.size == hidden.shape[-1]
    assert [each.index for each in view.neurons] == hidden.abs().amax(0).topk(12).indices.tolist()
    for each in view.neurons:
        np.testing.assert_allclose(each.activations, hidden[:, each.index], rtol=1e-5, atol=1e-5)
    assert neurons.compute(ours, LAYER, view.neurons[3].index).neurons == (view.neurons[3],)
    with pytest.raises(UserError, match=f"are numbered from 0 to {view.size - 1}"):
        neurons.compute(ours, LAYER, view.size)


def multiplier(model):
    """What the stream begins with is the embedding times this."""
    return getattr(model.config, "embedding_multiplier", 1.0)


@pytest.mark.parametrize("versus", [None, 7])
def test_gradients_are_those_of_transformers(both, versus):
    ours, model, theirs = both
    view = grad.compute(ours, versus=versus)
    assert view.token.id == int(theirs.logits[0, -1].argmax())
    embeds = model.get_input_embeddings()(ours.input_ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits[0, -1]
    logit = logits[view.token.id] - (0 if versus is None else logits[versus])
    (gradient,) = torch.autograd.grad(logit, embeds)
    gradient = gradient / multiplier(model)
    assert view.logit == pytest.approx(float(logit.detach()), abs=1e-4)
    np.testing.assert_allclose(view.norms, gradient[0].norm(dim=-1), atol=1e-4, rtol=1e-4)
    entered = ours.run_with_cache("embedding")[1]["embedding"]
    np.testing.assert_allclose(view.times, (gradient[0] * entered).sum(-1), atol=1e-4, rtol=1e-3)


def test_where_nothing_depends_on_anything_the_largest_gradient_is_0(both):
    view = grad.compute(both[0], 5, 5)
    assert set(view.norms) == {0}
    out = Console(file=io.StringIO(), width=100)
    out.print(view)
    assert "at most 0.000" in out.file.getvalue()


def test_gradient_times_vector_is_the_slope_of_the_logit_as_the_vector_grows(both):
    subject, step = exact(both[0]), 1e-6
    view = grad.compute(subject, token=5)

    def logit(position, factor):
        def grown(name, x):
            if name != "embedding":
                return x
            x = x.clone()
            x[0, position] *= factor
            return x

        return float(subject.with_hook(grown).logits(last_only=True)[0, 5])

    for position in (0, 11, 20):
        slope = (logit(position, 1 + step) - logit(position, 1 - step)) / (2 * step)
        assert view.times[position] == pytest.approx(slope, abs=1e-7)


def test_gradients_leave_no_trace_in_the_model():
    checkpoint = random_checkpoint()
    model = build_trainable(checkpoint.config, checkpoint.tensors)
    grad.compute(InspectedText(model, checkpoint.tokenizer, (1, 2, 3)))
    assert all(each.grad is None for each in model.parameters())


def test_a_watched_prompt_is_what_the_lens_says_at_each_moment():
    checkpoint = random_checkpoint()
    model = build_trainable(checkpoint.config, checkpoint.tensors)
    watch = Watch(checkpoint.tokenizer, [3, 1, 4])
    assert watch.view() is None
    finals = []
    for step in range(3):
        moment = watch.look(model, 10 * step)
        subject = InspectedText(model, checkpoint.tokenizer, (3, 1, 4))
        assert moment.lens == lens.compute(subject)
        finals.append(subject.logits(last_only=True)[0].detach().softmax(-1))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.8)
    view = watch.view()
    assert [moment.step for moment in view.moments] == [0, 10, 20]
    assert view.answer.id == int(finals[-1].argmax())
    assert [each.prob for each in view.moments] == pytest.approx(
        [float(each[view.answer.id]) for each in finals]
    )


def test_a_long_watch_forgets_moments_between_the_first_and_the_last():
    checkpoint = random_checkpoint()
    model = build(checkpoint.config, checkpoint.tensors)
    watch = Watch(checkpoint.tokenizer, [3])
    for step in range(450):
        watch.look(model, step)
    steps = [moment.step for moment in watch.view().moments]
    assert len(steps) <= 201
    assert (steps[0], steps[-1]) == (0, 449)
    assert steps == sorted(steps)


def test_what_is_not_there_is_refused_by_number():
    subject = of_text(random_checkpoint(), "가각갂")
    for ask in (
        lambda: qkv.compute(subject, 2, 0),
        lambda: qkv.compute(subject, 0, 3),
        lambda: qkv.compute(subject, 0, 0, 3),
        lambda: neurons.compute(subject, 2),
    ):
        with pytest.raises(UserError, match=r"(are numbered|run) from 0 to \d"):
            ask()


def test_what_is_read_from_each_position_sums_to_what_the_heads_add(both):
    ours = both[0]
    view = why.compute(ours, 5, by="position")
    heads = sum(part.value for part in view.parts if part.name.startswith("head "))
    assert len(view.positions) == len(ours.ids)
    assert sum(view.positions) == pytest.approx(heads, abs=1e-4)
    if ours.config.norm_placement != "pre":
        return
    # Where only one position has a value in a layer, that layer's heads write what is read there.
    place, expected = 4, 0.0
    stream = ours.run_with_cache("residual", last_only=True)[1]
    last = stream[f"blocks.{ours.config.n_layers - 1}.residual"][-1]
    direction = logit_direction(ours.model, last, 5)[0] * ours.config.residual_multiplier
    for layer in ours.config.attention_layers:
        name = f"blocks.{layer}.attention."

        def alone(at, tensor, name=name):
            if at != name + "v":
                return tensor
            only = torch.zeros_like(tensor)
            only[:, :, place] = tensor[:, :, place]
            return only

        z = ours.with_hook(alone).run_with_cache(name + "z", last_only=True)[1][name + "z"][-1]
        weight = ours.model.get_submodule(name + "proj").weight.double()
        expected += float(weight @ z.double().flatten() @ direction)
    assert view.positions[place] == pytest.approx(expected, abs=1e-4)
