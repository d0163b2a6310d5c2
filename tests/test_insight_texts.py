"""Tokens, surprisal, neighbours, the map, two models on one text: `transformers`, numpy and
float64 say the numbers.
"""

import math

import numpy as np
import pytest
import torch

import minillm_repl as mr
from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.render.export import plain_text
from minillm_repl.views.compare import compute as compare_view
from minillm_repl.views.embedding import compute_near as near_view
from minillm_repl.views.embedding_map import compute_map as map_view
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.surprise import compute as surprise_view
from minillm_repl.views.tokens import compute as tokens_view
from tests.conftest import random_checkpoint
from tests.outside import outside
from tests.test_insight import both, of_text  # noqa: F401 - the fixture
from tests.test_real_models import STORY


def test_tokens_are_told_with_their_bytes_and_their_rows_of_the_embedding(nalssi):
    embedding, text = nalssi.tensors["token_embedding.weight"], "날씨가 좋다"
    view = tokens_view(nalssi.tokenizer, embedding, nalssi.tokenizer.encode(text), text)
    assert [piece.token.text for piece in view.pieces] == list(text)
    assert (view.characters, view.bytes) == (6, len(text.encode()))
    assert view.tokens_per_character == 1
    assert view.bytes_per_token == pytest.approx(16 / 6)
    for piece in view.pieces:
        row = embedding[nalssi.tokenizer.encode(piece.token.text)[0]]
        assert piece.vector == tuple(row.tolist())
        assert piece.norm == pytest.approx(
            math.sqrt(math.fsum(float(each) ** 2 for each in row)), rel=1e-6
        )


def test_surprisal_is_the_cross_entropy_of_transformers(both):
    ours, model, theirs = both
    view = surprise_view(ours)
    targets = ours.input_ids[0, 1:]
    nats = torch.nn.functional.cross_entropy(theirs.logits[0, :-1], targets, reduction="none")
    assert view.bits[0] is None
    np.testing.assert_allclose(view.bits[1:], nats / math.log(2), atol=1e-4)
    with torch.no_grad():
        loss = float(model(ours.input_ids, labels=ours.input_ids).loss)
    assert view.mean == pytest.approx(loss, abs=1e-5)
    assert view.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert view.blind == pytest.approx(math.log2(model.config.vocab_size))
    worst = view.most[0]
    assert worst.position == 1 + int(nats.argmax())
    before = theirs.logits[0, worst.position - 1]
    assert worst.rank == 1 + int((before > before[worst.token.id]).sum())
    assert [each.token.id for each in worst.expected] == before.topk(5).indices.tolist()


def test_of_what_was_just_written_only_that_is_measured(both):
    ours = both[0]
    whole, part = surprise_view(ours), surprise_view(ours, first=15)
    assert part.bits == whole.bits
    assert part.mean == pytest.approx(sum(whole.bits[15:]) / 6 * math.log(2))
    assert min(each.position for each in part.most) == 15
    assert surprise_view(ours, first=-3).mean == whole.mean


def test_bits_per_byte_leave_special_tokens_out():
    checkpoint = load(outside("checkpoints/stories260K-hf"))
    subject = of_text(checkpoint, STORY)
    view = surprise_view(subject)
    logits = subject.logits().double().log_softmax(-1)
    bits = [
        -float(logits[place, token]) / math.log(2) for place, token in enumerate(subject.ids[1:])
    ]
    assert subject.tokens[0].text == "<s>"
    # with a space before the text
    assert sum(len(token.bytes) for token in subject.tokens[1:]) == len(STORY) + 1
    assert view.bits_per_byte == pytest.approx(math.fsum(bits) / len(STORY), abs=1e-9)
    assert 1 < view.perplexity < 3  # it has learnt stories that begin like this one


def test_a_text_of_one_token_has_no_surprise():
    with pytest.raises(UserError, match="one token"):
        surprise_view(of_text(random_checkpoint(), "가"))


def neighbours_by_numpy(table, terms):
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    aim = sum(sign * unit[token] for sign, token in terms)
    cosines = unit @ (aim / np.linalg.norm(aim))
    order = [
        token
        for token in np.argsort(-cosines, kind="stable")
        if token not in {token for _, token in terms}
    ]
    return order[:10], cosines[order[:10]]


@pytest.mark.parametrize("terms", [[(1, 10)], [(1, 10), (-1, 27), (1, 31)]])
def test_neighbours_are_those_of_numpy_in_both_tables(nalssi, terms):
    model = build(nalssi.config, nalssi.tensors)
    view = near_view(model, nalssi.tokenizer, terms)
    for name, found in (("token_embedding", view.input), ("lm_head", view.output)):
        order, cosines = neighbours_by_numpy(
            nalssi.tensors[f"{name}.weight"].astype(np.float64), terms
        )
        assert [each.token.id for each in found] == order
        np.testing.assert_allclose([each.cosine for each in found], cosines, atol=1e-6)
    with pytest.raises(UserError, match="cancel"):
        near_view(model, nalssi.tokenizer, [(1, 5), (-1, 5)])


def test_the_map_is_the_first_two_principal_components(nalssi):
    view = map_view(build(nalssi.config, nalssi.tensors), nalssi.tokenizer, [3, 10, 3])
    table = nalssi.tensors["token_embedding.weight"].astype(np.float64)
    _, values, axes = np.linalg.svd(table - table.mean(0), full_matrices=False)
    expected = (table - table.mean(0)) @ axes[:2].T
    assert [point.token.id for point in view.points][:2] == [3, 10]
    assert [point.in_text for point in view.points] == [True, True] + [False] * 42
    places = np.array([(point.x, point.y) for point in view.points])
    order = [point.token.id for point in view.points]
    for axis in (0, 1):
        sign = np.sign(places[0, axis] / expected[order[0], axis])
        np.testing.assert_allclose(places[:, axis], sign * expected[order, axis], atol=1e-4)
    np.testing.assert_allclose(view.explained, values[:2] ** 2 / (values**2).sum(), atol=1e-6)


def test_the_map_of_chosen_tokens_has_the_components_of_their_vectors_alone(nalssi):
    model, chosen = build(nalssi.config, nalssi.tensors), [7, 3, 20, 3, 31]
    view = map_view(model, nalssi.tokenizer, [3], chosen)
    rows = nalssi.tensors["token_embedding.weight"].astype(np.float64)[[7, 3, 20, 31]]
    _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    expected = (rows - rows.mean(0)) @ axes[:2].T
    assert [point.token.id for point in view.points] == [7, 3, 20, 31]
    places = np.array([(point.x, point.y) for point in view.points])
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-5)
    np.testing.assert_allclose(view.explained, values[:2] ** 2 / (values**2).sum(), atol=1e-6)
    assert "principal components of these 4 tokens" in plain_text(view, 80)
    # two have only one direction between them: they stand on the map of all
    pair, everything = (
        map_view(model, nalssi.tokenizer, (), [7, 3]),
        map_view(model, nalssi.tokenizer),
    )
    assert {(each.token.id, each.x, each.y) for each in pair.points} < {
        (each.token.id, each.x, each.y) for each in everything.points
    }
    view = mr.load("nalssi").view("map", "", "날 씨 가 좋")
    assert [point.token.text for point in view.points] == ["날", "씨", "가", "좋"]


def test_damaged_vectors_are_told_not_drawn():
    checkpoint = random_checkpoint()
    checkpoint.tensors["token_embedding.weight"][3, 2] = np.nan
    model = build(checkpoint.config, checkpoint.tensors)
    for ask in (
        lambda: near_view(model, checkpoint.tokenizer, [(1, 5)]),
        lambda: map_view(model, checkpoint.tokenizer),
    ):
        with pytest.raises(UserError, match="weights are damaged"):
            ask()


def test_two_models_are_as_far_apart_as_torch_says(both):
    ours = both[0]
    other = InspectedText(
        ours.model, ours.tokenizer, ours.ids, lambda name, x: x * 1.3 if name == "embedding" else x
    )
    view = compare_view(ours, other, ("a", "b"))
    categorical = torch.distributions.Categorical
    p, q = (categorical(logits=each.logits().double()) for each in (ours, other))
    there, back = torch.distributions.kl_divergence(p, q), torch.distributions.kl_divergence(q, p)
    assert view.why == ""
    assert view.kl == pytest.approx((float(there[-1]), float(back[-1])), abs=1e-9)
    assert view.kl_mean == pytest.approx((float(there.mean()), float(back.mean())), abs=1e-9)
    assert [each.position for each in view.differ] == there.topk(8).indices.tolist()
    first = view.differ[0]
    assert first.ours.token.id == int(p.probs[first.position].argmax())
    assert first.theirs.prob == pytest.approx(float(q.probs[first.position].max()))
    assert [each.token.id for each in view.top[1]] == q.probs[-1].topk(8).indices.tolist()
    assert view.bits_per_byte[0] == surprise_view(ours).bits_per_byte
    opposite = InspectedText(
        ours.model, ours.tokenizer, ours.ids, lambda name, x: -x if name == "final" else x
    )
    for theirs, seen in ((other, view), (opposite, compare_view(ours, opposite, ("a", "b")))):
        tops = [each.logits().argmax(-1) for each in (ours, theirs)]
        assert seen.same_top == int((tops[0] == tops[1]).sum())
    assert seen.same_top < len(ours.ids)
    same = compare_view(ours, ours, ("a", "a"))
    assert (same.kl, same.kl_mean, same.same_top, same.differ) == (
        (0, 0),
        (0, 0),
        len(ours.ids),
        (),
    )


def test_models_of_different_vocabularies_are_compared_as_far_as_they_can_be():
    one = of_text(random_checkpoint(), "가각갂")
    other = of_text(random_checkpoint(characters=[*"힣각갂가"], seed=1), "가각갂")
    view = compare_view(one, other, ("a", "b"))
    assert "different vocabularies" in view.why
    assert view.kl is view.same_top is None
    assert view.differ == ()
    assert view.bits_per_byte == pytest.approx(
        [surprise_view(each).bits_per_byte for each in (one, other)]
    )
    lacks = of_text(random_checkpoint(characters=["가", "각"]), "가각갂")
    assert compare_view(one, lacks, ("a", "b")).bits_per_byte == (None, None)
    fewer = InspectedText(one.model, one.tokenizer, one.ids[1:])
    assert "different texts" in compare_view(one, fewer, ("a", "b")).why


def test_random_texts_have_the_surprisal_of_a_blind_guess():
    checkpoint = random_checkpoint()
    for tensor in checkpoint.tensors.values():
        tensor[:] = 0
    subject = InspectedText(
        build(checkpoint.config, checkpoint.tensors), checkpoint.tokenizer, (1, 5, 3, 3)
    )
    view = surprise_view(subject)
    assert view.bits[1:] == pytest.approx([math.log2(11)] * 3)
    assert view.perplexity == pytest.approx(11)
