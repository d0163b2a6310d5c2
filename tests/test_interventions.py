"""Ablation, patching, steering: what is silenced, carried over or added, as in `transformers`."""

import numpy as np
import pytest
import torch

from minillm_repl.errors import UserError
from minillm_repl.render.drawing import nats
from minillm_repl.tokenizer.library import byte_level_bpe
from minillm_repl.tokenizer.lookup import word_ids
from minillm_repl.tokenizer.subword import SubwordTokenizer
from minillm_repl.views import grad, lens, neurons, residual, why
from minillm_repl.views.ablation import ablation_hook as silencing
from minillm_repl.views.attention import compute_head
from minillm_repl.views.effect import compute as effect_view
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.patch import compute as patch_view
from minillm_repl.views.patching import patched_logits
from minillm_repl.views.prompts import lead_ids as lead
from minillm_repl.views.steer import direction, pair, whole
from minillm_repl.views.steering import RANDOM_DIRECTIONS as RANDOM
from minillm_repl.views.steering import random_steering_hooks as random_steering
from minillm_repl.views.steering import residual_norm as stream_norm
from minillm_repl.views.steering import steering_hook as steering
from tests.conftest import random_checkpoint
from tests.test_huggingface import random_ids
from tests.test_insight import agrees, both, of_text  # noqa: F401 - the fixture
from tests.test_terminal import models, visit  # noqa: F401 - the fixtures

LAYER, HEAD = 1, 2


def projection(model, layer=LAYER):
    """The output projection of transformers' attention, whatever its family calls it."""
    names = "attn.c_proj", "attention.dense", "self_attn.o_proj", "self_attn.out_proj"
    ending = f".{layer}.", names
    return next(
        module
        for name, module in model.named_modules()
        if ending[0] in name and name.endswith(ending[1])
    )


def layers(model):
    base = model.base_model
    return getattr(base, "layers", None) or base.h


def feed_forward_input(model, ids):
    """What enters the second matrix of transformers' feed-forward, whatever the family calls it."""
    names = "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.down_proj"
    down = next(module for name, module in layers(model)[LAYER].named_modules() if name in names)
    seen = []
    hook = down.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return seen[0]


@pytest.fixture
def other(both):
    ours = both[0]
    return InspectedText(ours.model, ours.tokenizer, tuple(random_ids(21, seed=8)[0].tolist()))


def test_a_head_set_to_zero_is_its_columns_of_the_projection_set_to_zero(both):
    ours, theirs, _ = both
    dense, size = projection(theirs), ours.config.head_dim
    columns = slice(HEAD * size, (HEAD + 1) * size)
    with torch.no_grad():
        if type(dense).__name__ == "Conv1D":  # GPT-2 keeps its weights the other way round
            dense.weight[columns] = 0
        else:
            dense.weight[:, columns] = 0
        expected = theirs(ours.input_ids).logits[0]
    silenced = ours.with_hook(silencing(ours, LAYER, HEAD)).logits()
    torch.testing.assert_close(silenced, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(silenced, ours.logits(), atol=1e-3)


def test_a_head_at_its_mean_is_what_enters_the_projection_averaged_over_the_text(both):
    ours, theirs, _ = both
    size = ours.config.head_dim
    columns = slice(HEAD * size, (HEAD + 1) * size)

    def averaged(_module, arguments):
        z = arguments[0].clone()
        z[..., columns] = z[..., columns].mean(1, keepdim=True)
        return (z,)

    hook = projection(theirs).register_forward_pre_hook(averaged)
    with torch.no_grad():
        expected = theirs(ours.input_ids).logits[0]
    hook.remove()
    silenced = ours.with_hook(silencing(ours, LAYER, HEAD, "mean")).logits()
    torch.testing.assert_close(silenced, expected, rtol=0, atol=1e-4)


def test_a_layer_that_is_silenced_hands_on_what_it_got(both):
    ours, theirs, _ = both
    with torch.no_grad():
        hook = layers(theirs)[LAYER].register_forward_hook(
            lambda _, given, out: (given[0], *out[1:]) if isinstance(out, tuple) else given[0]
        )
        expected = theirs(ours.input_ids).logits[0]
        hook.remove()
    torch.testing.assert_close(
        ours.with_hook(silencing(ours, LAYER)).logits(), expected, rtol=0, atol=1e-4
    )


def test_changes_add_up_as_hooks_in_transformers_do_together(both, other):
    ours, theirs, _ = both
    size = ours.config.head_dim
    along = direction(*pair(other, ours), 1)
    changed = ours.with_hook(silencing(ours, 0, 1)).with_hook(steering(along, 1, 3))
    # the mean as the changed model has it
    changed = changed.with_hook(silencing(changed, 2, HEAD, "mean"))

    def silenced(_module, given):
        z = given[0].clone()
        z[..., size : 2 * size] = 0
        return (z,)

    def averaged(_module, given):
        z, columns = given[0].clone(), slice(HEAD * size, (HEAD + 1) * size)
        z[..., columns] = z[..., columns].mean(1, keepdim=True).detach()  # a fixed reference
        return (z,)

    def steered(_module, _given, out):
        return (out[0] + 3 * along, *out[1:]) if isinstance(out, tuple) else out + 3 * along

    hooks = [
        projection(theirs, 0).register_forward_pre_hook(silenced),
        layers(theirs)[1].register_forward_hook(steered),
        projection(theirs, 2).register_forward_pre_hook(averaged),
    ]
    embeds = theirs.get_input_embeddings()(ours.input_ids).detach().requires_grad_()
    found = theirs(inputs_embeds=embeds, output_attentions=True)
    expected = found.logits[0].detach()
    (gradient,) = torch.autograd.grad(found.logits[0, -1].max(), embeds)
    gradient = gradient / getattr(theirs.config, "embedding_multiplier", 1.0)
    is_routed = bool(ours.config.n_experts)  # then no single neuron is every token's
    hidden = None if is_routed else feed_forward_input(theirs, ours.input_ids)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(changed.logits(), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(changed.logits(), ours.logits(), atol=1e-2)
    np.testing.assert_allclose(
        compute_head(changed, 2, 0).weights, found.attentions[2][0, 0].detach(), atol=1e-5
    )
    np.testing.assert_allclose(
        grad.compute(changed).norms, gradient[0].norm(dim=-1), rtol=1e-3, atol=1e-4
    )
    if not is_routed:
        busiest = neurons.compute(changed, LAYER).neurons[0]
        np.testing.assert_allclose(busiest.activations, hidden[:, busiest.index], atol=1e-4)
    final = expected[-1].double().log_softmax(-1)
    agrees(lens.compute(changed, top=5).rows[-1], final, final)
    view = why.compute(changed)
    assert sum(part.value for part in view.parts) == pytest.approx(view.logit, abs=1e-3)


def test_patching_a_prompt_with_itself_changes_nothing(both):
    ours = both[0]
    _, found = ours.run_with_cache("embedding", "residual", "attention.out", "mlp.out")
    for name, activation in found.items():
        patched = patched_logits(ours, name, activation)
        torch.testing.assert_close(
            patched, ours.logits(last_only=True).expand_as(patched), rtol=0, atol=1e-5
        )
    with pytest.raises(UserError, match="prompts are the same"):
        patch_view(ours, ours)


@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-4, 1.0])
def test_shares_of_a_difference_that_is_rounding_are_refused_with_the_difference(
    both, other, share
):
    """Prompts of which the model reads but one vector, which differs between them by a share of
    what it did.
    """
    ours, last = both[0], f"blocks.{both[0].config.n_layers - 1}.residual"
    mine, theirs = (each.run_with_cache(last)[1][last][-1] for each in (ours, other))

    def hands_on(vector):
        return lambda name, x: vector.expand_as(x) if name == last else x

    a, b = other.with_hook(hands_on(mine + share * (theirs - mine))), ours.with_hook(hands_on(mine))
    apart = (a.logits(last_only=True) - b.logits(last_only=True))[0]
    if share == 1:
        view = patch_view(a, b)
        assert view.clean - view.corrupt == pytest.approx(
            float(apart[view.answer_a.id] - apart[view.answer_b.id]), abs=1e-4
        )
    elif float(apart.max() - apart.min()) < 1e-3:
        with pytest.raises(
            UserError, match=r"logit difference of .* is almost the same after both prompts \("
        ):
            patch_view(a, b)


def test_the_whole_residual_stream_of_the_other_prompt_brings_its_logits(both, other):
    ours = both[0]
    _, found = other.run_with_cache("embedding", ".residual")
    assert list(found) == [
        "embedding",
        *(f"blocks.{layer}.residual" for layer in range(ours.config.n_layers)),
    ]
    for name, activation in found.items():
        all_of_it = ours.with_hook(
            lambda at, x, name=name, whole=activation: whole[None] if at == name else x
        )
        torch.testing.assert_close(all_of_it.logits(), other.logits(), rtol=0, atol=1e-5)


def test_each_cell_is_a_pass_of_transformers_with_that_one_vector_exchanged(both, other):
    ours, theirs, _ = both
    view = patch_view(other, ours)
    a, b = view.answer_a.id, view.answer_b.id
    with torch.no_grad():
        hidden = theirs(other.input_ids, output_hidden_states=True).hidden_states
    apart = lambda logits: float(logits[0, -1, a] - logits[0, -1, b])  # noqa: E731
    with torch.no_grad():
        clean, corrupt = apart(theirs(other.input_ids).logits), apart(theirs(ours.input_ids).logits)
    assert (view.clean, view.corrupt) == (
        pytest.approx(clean, abs=1e-4),
        pytest.approx(corrupt, abs=1e-4),
    )
    for position in (3, 20):

        def exchanged(_module, _given, out, position=position):
            stream = (out[0] if isinstance(out, tuple) else out).clone()
            stream[0, position] = hidden[LAYER + 1][0, position]
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        hook = layers(theirs)[LAYER].register_forward_hook(exchanged)
        with torch.no_grad():
            expected = (apart(theirs(ours.input_ids).logits) - corrupt) / (clean - corrupt)
        hook.remove()
        assert view.effects[LAYER + 1][position] == pytest.approx(expected, abs=1e-3)
    # the last place is all that the answer is read from
    assert view.effects[-1][-1] == pytest.approx(1, abs=1e-5)
    assert max(map(abs, view.effects[-1][:-1])) < 1e-5


@pytest.mark.parametrize("what", ["attention", "feed-forward"])
def test_only_the_last_position_of_the_last_layers_parts_reaches_the_answer(both, other, what):
    view = patch_view(other, both[0], what)
    assert view.places == tuple(map(str, range(both[0].config.n_layers)))
    assert all(abs(effect) < 1e-5 for effect in view.effects[-1][:-1])
    assert abs(view.effects[-1][-1]) > 1e-4


def test_prompts_that_do_not_pair_are_told_by_their_lengths(both):
    with pytest.raises(UserError, match="the same number of tokens, but have 4 and 21"):
        patch_view(both[0].up_to(3), both[0])


def test_steering_adds_the_difference_of_two_means_to_the_stream_of_transformers(both, other):
    ours, theirs, _ = both
    along = direction(*pair(other, ours), LAYER)
    with torch.no_grad():
        to, away = (
            theirs(each.input_ids, output_hidden_states=True)
            .hidden_states[LAYER + 1][0, 1:]
            .mean(0)
            for each in (other, ours)
        )
    expected = (to - away) / (to - away).norm()
    torch.testing.assert_close(along, expected, rtol=0, atol=1e-5)

    def steered(_module, _given, out):
        return (out[0] + 3 * expected, *out[1:]) if isinstance(out, tuple) else out + 3 * expected

    hook = layers(theirs)[LAYER].register_forward_hook(steered)
    with torch.no_grad():
        logits = theirs(ours.input_ids).logits[0]
    hook.remove()
    torch.testing.assert_close(
        ours.with_hook(steering(along, LAYER, 3)).logits(), logits, rtol=0, atol=1e-4
    )
    with pytest.raises(UserError, match="no direction"):
        direction(*pair(ours, ours), LAYER)


PAIRS = {  # ids of two texts, and the positions of each that are compared
    "a word of one token and one of three": ((9, 8, 1), (9, 8, 2, 3, 4), [2], [4]),
    "as many tokens of each": ((9, 1, 2), (9, 3, 4), [1, 2], [1, 2]),
    "two tokens and four after what both begin with": (
        (9, 5, 6, 1, 2),
        (9, 5, 6, 3, 4, 1, 7),
        [3, 4],
        [5, 6],
    ),
    "one is how the other begins": ((9, 5, 6), (9, 5, 6, 7, 8), [2], [4]),
    "nothing in common, and nothing before": ((1, 2, 3), (4, 5), [2], [1]),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_direction_compares_as_many_tokens_of_each_text_from_its_end_and_never_position_0(
    both, case
):
    ours, theirs, _ = both
    *texts, at_to, at_away = PAIRS[case]
    sides = pair(*(InspectedText(ours.model, ours.tokenizer, ids) for ids in texts))
    told = [each.averaged() for each in sides]
    assert [list(range(each.first, each.first + len(each.tokens))) for each in told] == [
        at_to,
        at_away,
    ]
    assert [[*each.after, *each.tokens] for each in told] == [
        list(each.inspected.tokens) for each in sides
    ]
    with torch.no_grad():
        hidden = [
            theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]
            for ids in texts
        ]
    difference = hidden[0][at_to].mean(0) - hidden[1][at_away].mean(0)
    # a difference may be small beside what rounding leaves
    found = direction(*sides, LAYER) * difference.norm()
    torch.testing.assert_close(found, difference, rtol=0, atol=1e-5)

    # as trained models have it: a large vector at position 0, whatever the token
    def sink(name, x):
        return (
            x + 1e4 * (torch.arange(x.shape[1]) == 0)[:, None]
            if name == f"blocks.{LAYER}.residual"
            else x
        )

    parked = (type(each)(each.inspected.with_hook(sink), each.count) for each in sides)
    torch.testing.assert_close(
        direction(*parked, LAYER), direction(*sides, LAYER), rtol=0, atol=1e-6
    )


def test_a_text_that_has_only_position_0_is_refused_by_its_token():
    subject = of_text(random_checkpoint(), "가")
    for ask in (
        lambda: pair(subject, of_text(random_checkpoint(), "가각")),
        lambda: whole(subject),
    ):
        with pytest.raises(UserError, match="가 would be at position 0"):
            ask()
    assert whole(of_text(random_checkpoint(), "가각갂")).first == 1


def test_words_are_read_after_the_start_token_and_a_line_break_where_a_vocabulary_has_them(nalssi):
    assert lead(nalssi.tokenizer) == tuple(nalssi.tokenizer.encode("\n"))
    assert lead(random_checkpoint().tokenizer) == ()
    merges = ["Ġ h", "h a", "Ġh a", "ha p", "Ġha p"]
    letters = [*"\n hapsd", "ha", "hap", "Ġh", "Ġha", "Ġhap", "<|endoftext|>"]
    vocabulary = {
        each.replace(" ", "Ġ").replace("\n", "Ċ"): place for place, each in enumerate(letters)
    }
    described = byte_level_bpe(vocabulary, "\n".join(merges))
    tokenizer = SubwordTokenizer(described, {"bos_token": "<|endoftext|>"}, len(vocabulary))
    assert [
        tokenizer.special_name(each) or tokenizer.token_bytes(each) for each in lead(tokenizer)
    ] == [
        "<|endoftext|>",
        b"\n",
    ]

    def as_words(*texts):
        return word_ids(
            tokenizer, texts, [tokenizer.encode(each, add_special=False) for each in texts]
        )

    assert as_words("hap", "ha") == [[vocabulary["Ġhap"]], [vocabulary["Ġha"]]]
    # here the space would be a token of its own
    assert as_words("d", "s") == [[vocabulary["d"]], [vocabulary["s"]]]


@pytest.mark.parametrize("at_once", [2**22, 1])
def test_what_a_direction_does_is_beside_what_32_random_ones_of_its_norm_do_to_transformers(
    both,
    other,
    monkeypatch,
    at_once,
):
    ours, theirs, _ = both
    monkeypatch.setattr("minillm_repl.views.steering._MAX_ACTIVATION", at_once)
    shares = []
    taps = list(random_steering(ours, LAYER, 3, shares.append))
    assert shares == [each / len(taps) for each in range(len(taps))]
    # a quarter at most, so that progress is seen
    assert len(taps) == (4 if at_once > 1 else RANDOM)
    stream = torch.zeros(1, 1, ours.config.d_model)
    vectors = torch.cat([tap(f"blocks.{LAYER}.residual", stream) for tap in taps])  # (32, 1, width)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.full((32, 1), 3.0))
    # 32 different ones
    assert float((vectors[:, 0] @ vectors[:, 0].mT / 9).triu(1).abs().max()) < 0.9
    along = direction(*pair(other, ours), LAYER)
    view = effect_view(ours, "steered", steering(along, LAYER, 3), taps)
    kls = []
    with torch.no_grad():
        before = theirs(ours.input_ids).logits[0, -1].double().log_softmax(-1)
        for vector in (*vectors[:, 0], 3 * along):
            hook = layers(theirs)[LAYER].register_forward_hook(
                lambda _, given, out, v=vector: (
                    (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v
                )
            )
            after = theirs(ours.input_ids).logits[0, -1].double().log_softmax(-1)
            hook.remove()
            kls.append(float((after.exp() * (after - before)).sum()))
    *kls, mine = kls
    assert view.kl == pytest.approx(mine, abs=1e-5)
    assert view.kl_random == pytest.approx(np.median(kls), abs=1e-5)
    assert (view.random.low, view.random.high) == pytest.approx(
        tuple(np.percentile(kls, [5, 95])), abs=1e-5
    )
    assert view.random.directions == 32
    assert view.random.below == pytest.approx(
        100 * np.mean([each < mine for each in kls]), abs=100 / 32
    )
    again = effect_view(ours, "steered", steering(along, LAYER, 3), random_steering(ours, LAYER, 3))
    assert again.kl_random == pytest.approx(view.kl_random, abs=1e-5)


def test_a_divergence_too_small_for_three_places_is_not_told_as_none():
    assert [nats(each) for each in (0.0, 4.2e-6, 4.9e-4, 5e-4, 0.0123, 2.5)] == [
        "0", "4e-06", "5e-04", "0.001", "0.012", "2.500"
    ]  # fmt: skip


def test_a_strength_of_0_changes_no_bit(both, other):
    ours = both[0]
    tap = steering(direction(*pair(other, ours), LAYER), LAYER, 0.0)
    assert torch.equal(ours.with_hook(tap).logits(), ours.logits())
    view = effect_view(ours, "steered", tap, random_steering(ours, LAYER, 0.0))
    assert (view.kl, view.kl_random, view.random.low, view.random.high) == (0, 0, 0, 0)
    assert stream_norm(ours, LAYER) == float(
        ours.run_with_cache(f"blocks.{LAYER}.residual")[1].popitem()[1][-1].norm()
    )


def test_what_a_change_does_is_the_divergence_from_before_to_after(both, other):
    ours = both[0]
    along = direction(*pair(other, ours), LAYER)
    view = effect_view(ours, "steered", steering(along, LAYER, 2))
    before = ours.logits(last_only=True)[0].double().log_softmax(-1)
    after = (
        ours.with_hook(steering(along, LAYER, 2)).logits(last_only=True)[0].double().log_softmax(-1)
    )
    assert view.kl == pytest.approx(float((after.exp() * (after - before)).sum()), abs=1e-9)
    assert [each.token.id for each in view.after] == after.topk(6).indices.tolist()
    assert [each.prob for each in view.before] == pytest.approx(
        before.exp().topk(6).values.tolist()
    )
    assert (view.kl_random, view.random, view.between) == (None, None, None)


@pytest.mark.parametrize("how", ["a head", "a layer", "steered", "all of it"])
def test_of_a_changed_model_the_parts_still_add_up_and_the_stream_is_what_it_is(both, other, how):
    ours = both[0]
    changed = ours
    if how in ("a head", "all of it"):
        changed = changed.with_hook(silencing(ours, LAYER, HEAD))
    if how in ("a layer", "all of it"):
        changed = changed.with_hook(silencing(ours, 0, how="mean"))
    if how in ("steered", "all of it"):
        changed = changed.with_hook(steering(direction(*pair(other, ours), LAYER), LAYER, 30))
    view = why.compute(changed)
    assert sum(part.value for part in view.parts) == pytest.approx(view.logit, abs=1e-3)
    names = [part.name for part in view.parts]
    assert (f"added after layer {LAYER}" in names) == (how in ("steered", "all of it"))
    assert ("attention 0" in names) == (how in ("a layer", "all of it"))
    _, found = changed.run_with_cache(".residual")
    rows = {row.place: row for row in residual.compute(changed).rows}
    for layer in range(ours.config.n_layers):
        expected = float(found[f"blocks.{layer}.residual"][-1].norm())
        last = rows.get(f"added after layer {layer}", rows[f"{layer} feed-forward"])
        assert last.stream == pytest.approx(expected, rel=1e-5)
    if how in ("steered", "all of it"):
        assert rows[f"added after layer {LAYER}"].added == pytest.approx(30, rel=1e-3)
    assert sum("added" in place for place in rows) == (how in ("steered", "all of it"))


def test_a_silenced_head_is_told_in_the_toolbar_until_it_is_back(visit):
    terminal = visit("--temp", "0", "-n", "8", ckpt="nalssi")
    terminal.wait_for_prompt()
    before = terminal.do("오늘").split("\n")[0]
    assert "undoes it" in terminal.do(":ablate 0")
    terminal.wait_for_toolbar("layer 0 ablated")
    assert terminal.do("오늘").split("\n")[0] != before
    shown = terminal.do(":steer 하늘이 vs 기분이 layer=1")
    assert "towards the mean of 하늘이 @1–3   after ⏎" in shown
    assert "32 random directions of equal norm" in shown
    terminal.wait_for_toolbar("layer 0 ablated · steering at layer 1, strength 4")
    assert "all ablations removed" in terminal.do(":ablate off")
    assert "steering removed" in terminal.do(":steer off")
    terminal.wait_for_toolbar("nalssi · temp 0")
    assert terminal.do("오늘").split("\n")[0] == before


def test_what_a_change_does_is_measured_without_it_and_without_no_other(visit):
    terminal = visit("--temp", "0", "-n", "6", ckpt="nalssi")
    terminal.wait_for_prompt()
    terminal.do("날씨가 좋")
    fresh = terminal.do(':ablate 0 mean "날씨가 좋"').split("\n")[1:]
    terminal.do(":ablate off")
    terminal.do(':ablate 0 "날씨가 좋"')
    assert (
        terminal.do(':ablate 0 mean "날씨가 좋"').split("\n")[1:] == fresh
    )  # not the mean of what is silenced already
    # in place of the layer set to zero
    assert "active interventions: layer 0 mean-ablated" in terminal.do(":lens")
    terminal.do(":steer 날씨 vs 공원")
    assert "identical to the model" in terminal.do(":steer 하늘 vs 하늘")
    # what failed has not ended what was on
    assert "steering at layer 2, strength 4" in terminal.do(":steer")
    assert "put a text in quotes" in terminal.do(":ablate 0.1 mena")
    assert "head 0.1 ablated" not in terminal.do(":lens")


def test_a_patched_prompt_is_a_map_with_its_columns_in_line(visit):
    terminal = visit(ckpt="nalssi", variables={"NO_COLOR": "1"})
    terminal.wait_for_prompt()
    terminal.do(":patch 날씨가 맑다 -> 날씨가 좋다")
    ends = [
        [end for end, cell in enumerate(terminal.screen.cells(y)) if cell == "%"] for y in range(24)
    ]
    table = [each for each in ends if len(each) == 5]
    assert len(table) == 6
    assert all(each == table[0] for each in table)
    assert "맑→좋" in terminal.text
