"""Ablation, patching, steering: what is silenced, carried over or added, against the same done to `transformers`."""

import math

import pytest
import torch

from minillm_repl.errors import UserError
from minillm_repl.insight.ablation import scan_view, silencing
from minillm_repl.insight.attribution import residual_view, why_view
from minillm_repl.insight.effect import effect_view
from minillm_repl.insight.patching import patch_view, patched_logits
from minillm_repl.insight.steering import direction, random_direction, steering
from minillm_repl.insight.subject import Subject
from tests.conftest import random_checkpoint
from tests.test_huggingface import random_ids
from tests.test_insight import both, of_text  # noqa: F401 - the fixture
from tests.test_terminal import cache, models, visit  # noqa: F401 - the fixtures

LAYER, HEAD = 1, 2


def projection(model, layer=LAYER):
    """The output projection of transformers' attention, whatever its family calls it."""
    ending = f".{layer}.", ("attn.c_proj", "attention.dense", "self_attn.o_proj")
    return next(module for name, module in model.named_modules() if ending[0] in name and name.endswith(ending[1]))


def layers(model):
    base = model.base_model
    return getattr(base, "layers", None) or base.h


@pytest.fixture
def other(both):  # noqa: F811
    ours = both[0]
    return Subject(ours.model, ours.tokenizer, tuple(random_ids(21, seed=8)[0].tolist()))


def test_a_head_set_to_zero_is_its_columns_of_the_projection_set_to_zero(both):  # noqa: F811
    ours, theirs, _ = both
    dense, size = projection(theirs), ours.config.head_size
    columns = slice(HEAD * size, (HEAD + 1) * size)
    with torch.no_grad():
        if type(dense).__name__ == "Conv1D":  # GPT-2 keeps its weights the other way round
            dense.weight[columns] = 0
        else:
            dense.weight[:, columns] = 0
        expected = theirs(ours.input).logits[0]
    silenced = ours.with_tap(silencing(ours, LAYER, HEAD)).logits()
    torch.testing.assert_close(silenced, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(silenced, ours.logits(), atol=1e-3)


def test_a_head_at_its_mean_is_what_enters_the_projection_averaged_over_the_text(both):  # noqa: F811
    ours, theirs, _ = both
    size = ours.config.head_size
    columns = slice(HEAD * size, (HEAD + 1) * size)

    def averaged(_module, arguments):
        z = arguments[0].clone()
        z[..., columns] = z[..., columns].mean(1, keepdim=True)
        return (z,)

    hook = projection(theirs).register_forward_pre_hook(averaged)
    with torch.no_grad():
        expected = theirs(ours.input).logits[0]
    hook.remove()
    silenced = ours.with_tap(silencing(ours, LAYER, HEAD, "mean")).logits()
    torch.testing.assert_close(silenced, expected, rtol=0, atol=1e-4)


def test_a_layer_that_is_silenced_hands_on_what_it_got(both):  # noqa: F811
    ours, theirs, _ = both
    with torch.no_grad():
        hook = layers(theirs)[LAYER].register_forward_hook(
            lambda _, given, out: (given[0], *out[1:]) if isinstance(out, tuple) else given[0]
        )
        expected = theirs(ours.input).logits[0]
        hook.remove()
    torch.testing.assert_close(ours.with_tap(silencing(ours, LAYER)).logits(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", ["zero", "mean"])
def test_the_scan_ranks_every_head_by_the_loss_without_it(both, how, monkeypatch):  # noqa: F811
    ours, _, theirs = both
    view = scan_view(ours, how)
    targets = ours.input[0, 1:]
    assert view.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(theirs.logits[0, :-1], targets)), abs=1e-5
    )
    assert [head.change for head in view.heads] == sorted((head.change for head in view.heads), reverse=True)
    assert len({(head.layer, head.head) for head in view.heads}) == ours.config.layers * ours.config.heads
    for head in view.heads[::5]:
        logits = ours.with_tap(silencing(ours, head.layer, head.head, how)).logits()
        loss = float(torch.nn.functional.cross_entropy(logits[:-1], targets))
        assert head.change == pytest.approx(loss - view.loss, abs=1e-5)
    monkeypatch.setattr("minillm_repl.insight.ablation._AT_ONCE", 1)  # one at a time
    assert {(head.layer, head.head): pytest.approx(head.change, abs=1e-6) for head in scan_view(ours, how).heads} == {
        (head.layer, head.head): head.change for head in view.heads
    }


def test_patching_a_prompt_with_itself_changes_nothing(both):  # noqa: F811
    ours = both[0]
    _, found = ours.record("embedding", "residual", "attention.out", "ff.out")
    for name, activation in found.items():
        patched = patched_logits(ours, name, activation)
        torch.testing.assert_close(patched, ours.logits(last=True).expand_as(patched), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="the same after both"):
        patch_view(ours, ours)


def test_the_whole_residual_stream_of_the_other_prompt_brings_its_logits(both, other):  # noqa: F811
    ours = both[0]
    _, found = other.record("embedding", ".residual")
    assert list(found) == ["embedding", *(f"blocks.{layer}.residual" for layer in range(ours.config.layers))]
    for name, activation in found.items():
        all_of_it = ours.with_tap(lambda at, x, name=name, whole=activation: whole[None] if at == name else x)
        torch.testing.assert_close(all_of_it.logits(), other.logits(), rtol=0, atol=1e-5)


def test_each_cell_is_a_pass_of_transformers_with_that_one_vector_exchanged(both, other):  # noqa: F811
    ours, theirs, _ = both
    view = patch_view(other, ours)
    a, b = view.answer_a.id, view.answer_b.id
    with torch.no_grad():
        hidden = theirs(other.input, output_hidden_states=True).hidden_states
    apart = lambda logits: float(logits[0, -1, a] - logits[0, -1, b])  # noqa: E731
    with torch.no_grad():
        clean, corrupt = apart(theirs(other.input).logits), apart(theirs(ours.input).logits)
    assert (view.clean, view.corrupt) == (pytest.approx(clean, abs=1e-4), pytest.approx(corrupt, abs=1e-4))
    for position in (3, 20):

        def exchanged(_module, _given, out, position=position):
            stream = (out[0] if isinstance(out, tuple) else out).clone()
            stream[0, position] = hidden[LAYER + 1][0, position]
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        hook = layers(theirs)[LAYER].register_forward_hook(exchanged)
        with torch.no_grad():
            expected = (apart(theirs(ours.input).logits) - corrupt) / (clean - corrupt)
        hook.remove()
        assert view.effects[LAYER + 1][position] == pytest.approx(expected, abs=1e-3)
    assert view.effects[-1][-1] == pytest.approx(1, abs=1e-5)  # the last place is all that the answer is read from
    assert max(map(abs, view.effects[-1][:-1])) < 1e-5


@pytest.mark.parametrize("what", ["attention", "feed-forward"])
def test_only_the_last_position_of_the_last_layers_parts_reaches_the_answer(both, other, what):  # noqa: F811
    view = patch_view(other, both[0], what)
    assert view.places == tuple(map(str, range(both[0].config.layers)))
    assert all(abs(effect) < 1e-5 for effect in view.effects[-1][:-1])
    assert abs(view.effects[-1][-1]) > 1e-3


def test_prompts_that_do_not_pair_are_told_by_their_lengths(both):  # noqa: F811
    with pytest.raises(UserError, match="as many tokens as each other, and these have 4 and 21"):
        patch_view(both[0].upto(3), both[0])


def test_steering_adds_the_difference_of_two_means_to_the_stream_of_transformers(both, other):  # noqa: F811
    ours, theirs, _ = both
    along = direction(other, ours, LAYER)
    with torch.no_grad():
        to, away = (
            theirs(each.input, output_hidden_states=True).hidden_states[LAYER + 1][0, 1:].mean(0)
            for each in (other, ours)
        )
    expected = (to - away) / (to - away).norm()
    torch.testing.assert_close(along, expected, rtol=0, atol=1e-5)

    def steered(_module, _given, out):
        return (out[0] + 3 * expected, *out[1:]) if isinstance(out, tuple) else out + 3 * expected

    hook = layers(theirs)[LAYER].register_forward_hook(steered)
    with torch.no_grad():
        logits = theirs(ours.input).logits[0]
    hook.remove()
    torch.testing.assert_close(ours.with_tap(steering(along, LAYER, 3)).logits(), logits, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="no direction"):
        direction(ours, ours, LAYER)


def test_what_a_change_does_is_the_divergence_from_before_to_after(both, other):  # noqa: F811
    ours = both[0]
    along = direction(other, ours, LAYER)
    chance = random_direction(along)
    assert float(chance.norm()) == pytest.approx(1)
    view = effect_view(ours, "steered", steering(along, LAYER, 2), steering(chance, LAYER, 2))
    before = ours.logits(last=True)[0].double().log_softmax(-1)
    after = ours.with_tap(steering(along, LAYER, 2)).logits(last=True)[0].double().log_softmax(-1)
    assert view.kl == pytest.approx(float((after.exp() * (after - before)).sum()), abs=1e-9)
    assert [each.token.id for each in view.after] == after.topk(6).indices.tolist()
    assert [each.prob for each in view.before] == pytest.approx(before.exp().topk(6).values.tolist())
    assert math.isfinite(view.kl_random)
    assert view.kl_random > 0


@pytest.mark.parametrize("how", ["a head", "a layer", "steered", "all of it"])
def test_of_a_changed_model_the_parts_still_add_up_and_the_stream_is_what_it_is(both, other, how):  # noqa: F811
    ours = both[0]
    changed = ours
    if how in ("a head", "all of it"):
        changed = changed.with_tap(silencing(ours, LAYER, HEAD))
    if how in ("a layer", "all of it"):
        changed = changed.with_tap(silencing(ours, 0, how="mean"))
    if how in ("steered", "all of it"):
        changed = changed.with_tap(steering(direction(other, ours, LAYER), LAYER, 30))
    view = why_view(changed)
    assert sum(part.value for part in view.parts) == pytest.approx(view.logit, abs=1e-3)
    names = [part.name for part in view.parts]
    assert (f"added after layer {LAYER}" in names) == (how in ("steered", "all of it"))
    assert ("attention 0" in names) == (how in ("a layer", "all of it"))
    _, found = changed.record(".residual")
    streams = {row.place: row.stream for row in residual_view(changed).rows}
    for layer in range(ours.config.layers):
        expected = float(found[f"blocks.{layer}.residual"][-1].norm())
        assert streams[f"{layer} feed-forward"] == pytest.approx(expected, rel=1e-5)


def test_a_text_of_one_token_has_no_scan():
    with pytest.raises(UserError, match="one token"):
        scan_view(of_text(random_checkpoint(), "가"))


def test_a_silenced_head_is_told_in_the_toolbar_until_it_is_back(visit):  # noqa: F811
    terminal = visit("--temp", "0", "-n", "8", ckpt="nalssi")
    terminal.wait_for_prompt()
    before = terminal.do("오늘").split("\n")[0]
    assert "brings it back" in terminal.do(":ablate 0")
    terminal.wait_for_toolbar("without layer 0")
    assert terminal.do("오늘").split("\n")[0] != before
    terminal.do(":steer 하늘이 vs 기분이 layer=1")
    terminal.wait_for_toolbar("without layer 0 · steered by 4 at layer 1")
    assert "work again" in terminal.do(":ablate off")
    assert "no longer steered" in terminal.do(":steer off")
    terminal.wait_for_toolbar("nalssi · temp 0")
    assert terminal.do("오늘").split("\n")[0] == before


def test_what_a_change_does_is_measured_without_it_and_without_no_other(visit):  # noqa: F811
    terminal = visit("--temp", "0", "-n", "6", ckpt="nalssi")
    terminal.wait_for_prompt()
    terminal.do("날씨가 좋")
    fresh = terminal.do(':ablate 0 mean "날씨가 좋"').split("\n")[1:]
    terminal.do(":ablate off")
    terminal.do(':ablate 0 "날씨가 좋"')
    assert (
        terminal.do(':ablate 0 mean "날씨가 좋"').split("\n")[1:] == fresh
    )  # not the mean of what is silenced already
    assert "the model is changed: without layer 0" in terminal.do(":lens")
    terminal.do(":steer 날씨 vs 공원")
    assert "the same to the model" in terminal.do(":steer 하늘 vs 하늘")
    assert "steered by 4 at layer 2" in terminal.do(":steer")  # what failed has not ended what was on
    assert "a text needs quotes" in terminal.do(":ablate 0.1 mena")
    assert "without head 0.1" not in terminal.do(":lens")


def test_a_patched_prompt_is_a_map_with_its_columns_in_line(visit):  # noqa: F811
    terminal = visit(ckpt="nalssi", variables={"NO_COLOR": "1"})
    terminal.wait_for_prompt()
    terminal.do(":patch 날씨가 맑다 -> 날씨가 좋다")
    ends = [[end for end, cell in enumerate(terminal.screen.cells(y)) if cell == "%"] for y in range(24)]
    table = [each for each in ends if len(each) == 5]
    assert len(table) == 6
    assert all(each == table[0] for each in table)
    assert "맑→좋" in terminal.text
