"""The atlas of heads: probes on repeated random tokens, OV and QK circuits, composition.

TransformerLens, where installed, says what the scores are (test_transformer_lens.py).
"""

import io
from dataclasses import replace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.training import head_probe
from minillm_repl.views import circuits, composition, heads
from minillm_repl.views.attention_patterns import weights
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import random_checkpoint
from tests.test_insight import both  # noqa: F401 - the fixture


def small(**sizes):
    checkpoint = random_checkpoint(vocab=40, context=64, **sizes)
    return InspectedText(
        build(checkpoint.config, checkpoint.tensors), checkpoint.tokenizer, ids=(0,)
    )


def make_probe(inspected, seed=0):
    return head_probe.make_probe(inspected.tokenizer, inspected.config, seed)


def test_the_probe_repeats_each_token_once_and_depends_on_its_seed_alone():
    inspected = small()
    probe = make_probe(inspected, seed=3)
    assert probe.half == 32
    for ids in probe.sequences:
        assert len(set(ids)) == probe.half and ids[: probe.half] == ids[probe.half :]
    torch.manual_seed(0)
    assert make_probe(inspected, seed=3) == probe
    assert make_probe(inspected, seed=4) != probe


def test_a_head_that_does_one_thing_only_scores_the_most_that_there_can_be():
    probe = make_probe(small())
    patterns = head_probe.detection_patterns(torch.tensor(probe.sequences[0]))
    most, uniform = head_probe.baselines(probe)
    time = 2 * probe.half
    assert most == pytest.approx((0.5, (time - 1) / time, 0.5))
    assert patterns[0].nonzero().tolist() == [[at, at - 31] for at in range(32, 64)]
    assert all(0 < each < top for each, top in zip(uniform, most, strict=True))


def test_shares_are_those_of_the_attention_weights_of_each_sequence(both):
    ours = both[0]
    probe = make_probe(ours)
    found = head_probe.measure(ours.model, probe)
    expected = torch.zeros_like(found)
    for ids in probe.sequences:
        for layer, weight in weights(replace(ours, ids=ids)).items():
            for query in range(1, len(ids)):
                for key in range(query):
                    shape = torch.tensor(
                        [ids[key - 1 :][:1] == (ids[query],) and key > 0, key == query - 1,
                         ids[key] == ids[query]]
                    )  # fmt: skip
                    expected[layer] += weight[:, query, key, None] * shape / len(ids)
    torch.testing.assert_close(found, expected / len(probe.sequences), rtol=0, atol=1e-5)


def test_circuits_are_those_of_the_whole_matrices_in_float64(both):
    """W_E·W_V·W_O·W_U is vocabulary by vocabulary; composition is the norm of a whole product."""
    ours = both[0]
    model, config = ours.model, ours.config
    if config.attention_layers != (0, 1, 2):
        return
    parts = [circuits.matrices(model, layer) for layer in range(config.n_layers)]
    ov = [(each.v.double() @ each.o.double()) for each in parts]  # (head, d_model, d_model)
    qk = [(each.q.double() @ each.k.double().mT) for each in parts]
    found = composition.composition(model).double()
    for at, reader in enumerate((qk[2], [each.mT for each in qk[2]], ov[2])):
        expected = (ov[0][1] @ reader[3]).norm() / (ov[0][1].norm() * reader[3].norm())
        assert float(found[at, 0, 1, 2, 3]) == pytest.approx(float(expected), abs=1e-5)
    assert not found[:, 1, :, 1].any() and not found[:, 2, :, 0].any()
    product = circuits.unembedded_embedding(model)
    small = torch.linalg.eigvals(ov[1][2] @ product)
    values = circuits.ov_eigenvalues(model, 1, product)[2]
    largest = lambda each: each.abs().sort(descending=True)[0][: config.head_dim]  # noqa: E731
    torch.testing.assert_close(largest(values), largest(small), rtol=1e-4, atol=1e-6)
    score = float(circuits.copying_scores(values[None])[0])
    assert score == pytest.approx(float(small.real.sum() / small.abs().sum()), abs=1e-4)


def test_a_head_that_writes_what_it_reads_copies():
    inspected = small(width=24)
    block = inspected.model.blocks[1]
    with torch.no_grad():
        block.ln1.weight.fill_(1)
        inspected.model.ln_f.weight.fill_(1)
        inspected.model.lm_head.weight.copy_(inspected.model.token_embedding.weight)
        value = block.attention.qkv.weight[48:56]  # of head 0: (head_dim, d_model)
        block.attention.proj.weight[:, :8] = value.T
        block.attention.proj.weight[:, 8:16] = -block.attention.qkv.weight[56:64].T
    view = heads.compute(inspected, "small", sort="copying")
    scores = {(each.layer, each.head): each.copying for each in view.heads}
    assert scores[1, 0] == pytest.approx(1) and scores[1, 1] == pytest.approx(-1)
    assert view.heads[0].head == 0 and list(scores.values()) == sorted(scores.values())[::-1]
    card = heads.compute_card(inspected, "small", 1, 0)
    assert card.ranks[3] == 1 and all(real > 0 for real, _imaginary in card.eigenvalues)


def test_a_model_that_is_too_small_says_so():
    few = random_checkpoint(vocab=40, context=7)
    with pytest.raises(UserError, match="context of 7 positions is too short"):
        head_probe.make_probe(few.tokenizer, few.config)
    single = small(layers=1)
    with pytest.raises(UserError, match="only one layer has heads"):
        composition.compute(single.model, "small")
    with pytest.raises(UserError, match="no head 9"):
        heads.compute_card(single, "small", 0, 9)


def test_pictures_fit_80_columns_and_24_lines():
    inspected = small(layers=12, width=24)
    for view in (
        heads.compute(inspected, "small"),
        heads.compute_card(inspected, "small", 1, 0),
        composition.compute(inspected.model, "small"),
    ):
        screen = Console(width=80, file=io.StringIO())
        screen.print(view.picture(80))
        lines = screen.file.getvalue().splitlines()
        assert len(lines) <= 23 and max(map(cell_len, lines)) <= 80
