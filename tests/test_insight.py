"""Attention, the logit lens, direct attribution: the `transformers` library and float64 say what
the numbers are.
"""

import json
import math

import numpy as np
import pytest
import torch
import transformers

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.model.hooks import caching
from minillm_repl.render.export import plain_text
from minillm_repl.tokenizer.lookup import find_token_ids
from minillm_repl.views import lens, residual, why
from minillm_repl.views.attention import compute_head, compute_layer
from minillm_repl.views.attention_patterns import find_patterns, weights
from minillm_repl.views.attn import compute_focus
from minillm_repl.views.contributions import written
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import random_checkpoint
from tests.outside import outside
from tests.test_huggingface import FAMILIES, random_ids, random_model
from tests.test_real_models import STORY

CHOSEN = ["gpt2", "gpt2 untied, relu, wide", "gpt_neox", "gpt_neox in turn, half rotary", "llama",
          "llama tied, biased", "mistral", "qwen2", "qwen3", "smollm3", "granite tied, biased",
          "hyperclovax", "olmo3", "exaone4, windows", "gemma2", "gemma3, two ropes, a cap",
          "qwen3_moe, dense layers, all switches", "olmoe", "granitemoe tied, biased",
          ]  # fmt: skip


@pytest.fixture(params=[*CHOSEN, "stories260K"])
def both(request, tmp_path):
    """A model of transformers', and ours with the same weights, on the same text."""
    return make_both(request, tmp_path)


@pytest.fixture(params=[*CHOSEN, "lfm2", "stories260K"])
def any_both(request, tmp_path):
    """The same, also of a model of which only one layer has attention."""
    return make_both(request, tmp_path)


def make_both(request, tmp_path):
    if request.param == "stories260K":
        stories = outside("checkpoints/stories260K-hf")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            stories, attn_implementation="eager"
        ).eval()
        checkpoint = load(stories)
        ids = torch.tensor([checkpoint.tokenizer.encode(STORY * 2)[:21]])
    else:
        theirs = random_model(*FAMILIES[request.param])
        theirs.save_pretrained(tmp_path)
        checkpoint, ids = load(tmp_path), random_ids(21)
    ours = InspectedText(
        build(checkpoint.config, checkpoint.tensors), checkpoint.tokenizer, tuple(ids[0].tolist())
    )
    with torch.no_grad():
        return ours, theirs, theirs(ids, output_attentions=True, output_hidden_states=True)


def exact(subject):
    return InspectedText(subject.model.double(), subject.tokenizer, subject.ids)


def test_attention_is_that_of_transformers_on_every_head(any_both):
    ours, _, theirs = any_both
    found = [each[0] for each in theirs.attentions if each is not None]  # a convolution has none
    for weight, expected in zip(weights(ours).values(), found, strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)
    layer = ours.config.attention_layers[-1]
    view = compute_head(ours, layer, 3)
    np.testing.assert_allclose(view.weights, found[-1][3], rtol=0, atol=1e-5)
    assert [head.weights for head in compute_layer(ours, layer).heads][3] == view.weights
    heads = {(head.layer, head.head): head.looked for head in compute_focus(ours).heads}
    looked = dict(heads[layer, 3])
    most = found[-1][3, -1].topk(5)
    assert list(looked) == most.indices.tolist()
    np.testing.assert_allclose(list(looked.values()), most.values, rtol=0, atol=1e-5)


def test_each_row_of_the_lens_is_the_last_norm_on_what_transformers_has_there(any_both):
    ours, model, theirs = any_both
    view = lens.compute(ours, top=97)
    norm = getattr(model.base_model, "ln_f", None) or getattr(
        model.base_model, "final_layer_norm", None
    )
    norm = norm or getattr(model.base_model, "embedding_norm", None) or model.base_model.norm
    rows = {row.place: row for row in view.rows}
    final = theirs.logits[0, -1].double().log_softmax(-1)
    last = model.config.num_hidden_layers - 1
    # the last hidden state of transformers has been through the norm already
    for layer in range(-1, last):
        with torch.no_grad():
            logits = unembed(model, norm(theirs.hidden_states[layer + 1][0, -1]))
        place = next(
            name
            for name in (f"{layer} feed-forward", f"{layer} block", "embedding")
            if name in rows
        )
        agrees(rows[place], logits.double().log_softmax(-1), final)
    agrees(view.rows[-1], final, final)


def unembed(model, hidden):
    """What the head of a model of transformers makes of the last norm's output."""
    logits, config = model.get_output_embeddings()(hidden), model.config
    scaling = getattr(config, "logits_scaling", 1.0)
    logits = logits * scaling if config.model_type == "hyperclovax" else logits / scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def agrees(row, here, final):
    expected = here.exp()
    np.testing.assert_allclose(
        [each.prob for each in row.top], expected[[each.token.id for each in row.top]], atol=1e-5
    )
    answer = int(final.argmax())
    assert row.prob == pytest.approx(float(expected[answer]), abs=1e-5)
    assert row.rank == int((here > here[answer]).sum()) + 1
    kl = torch.nn.functional.kl_div(here, final, reduction="sum", log_target=True)
    assert row.kl == pytest.approx(float(kl), abs=1e-4)


def test_the_lens_ends_with_the_models_own_answer_at_every_position(any_both):
    ours, _, theirs = any_both
    for position in (0, 7, -1):
        view = lens.compute(ours, position)
        assert view.answer.id == int(theirs.logits[0, position].argmax())
        assert (view.rows[-1].rank, view.rows[-1].kl) == (1, 0)
        places = [row.place for row in view.rows]
        since = places.index(view.first)
        assert all(row.rank == 1 for row in view.rows[since:])
        assert since == 0 or view.rows[since - 1].rank > 1


@pytest.mark.parametrize("versus", [None, 5])
def test_the_parts_add_up_to_the_logit(any_both, versus):
    ours, model, theirs = any_both
    logits, cap = theirs.logits[0, -1], getattr(model.config, "final_logit_softcapping", None)
    if cap:  # the logits before it
        logits = cap * torch.atanh(logits.double() / cap)
    for token in (None, 0, 96):
        view = why.compute(ours, token, versus)
        assert view.logit_softcap == (cap or 0)
        chosen = logits[view.token.id] - (logits[versus] if versus is not None else 0)
        assert view.logit == pytest.approx(float(chosen), abs=1e-4)
        assert sum(part.value for part in view.parts) == pytest.approx(view.logit, abs=1e-4)
    view = why.compute(exact(ours), 3, versus)
    assert math.fsum(part.value for part in view.parts) == pytest.approx(view.logit, abs=1e-9)
    heads = 4 * len(ours.config.attention_layers)
    assert len(view.parts) >= heads + (3 - heads // 4) + 3 + 2


def test_the_heads_and_the_bias_add_up_to_what_attention_writes(any_both):
    ours = exact(any_both[0])
    _, found = ours.run_with_cache(
        "embedding", "attention.z", "attention.out", "mlp.out", "residual"
    )
    parts = written(ours, {name: tensor[-1] for name, tensor in found.items()})
    for layer in range(3):
        added = sum(
            vector
            for name, vector in parts.items()
            if name.startswith(
                (f"head {layer}.", f"attention bias {layer}", f"convolution {layer}")
            )
        )
        torch.testing.assert_close(
            added, found[f"blocks.{layer}.attention.out"][-1], rtol=0, atol=1e-12
        )


def test_the_stream_is_as_long_as_the_hidden_states_of_transformers(any_both):
    ours, _, theirs = any_both
    rows = {row.place: row for row in residual.compute(ours).rows}
    assert rows["embedding"].stream == pytest.approx(
        float(theirs.hidden_states[0][0, -1].norm()), abs=1e-4
    )
    for layer in range(2):
        stream = float(theirs.hidden_states[layer + 1][0, -1].norm())
        assert rows[f"{layer} feed-forward"].stream == pytest.approx(stream, rel=1e-5)


def test_each_direction_is_the_cosine_with_the_stream_that_the_part_has_read(any_both):
    ours, model, theirs = any_both
    names = "attn.c_proj", "attention.dense", "self_attn.o_proj"
    names += "self_attn.out_proj", "conv.out_proj"
    blocks = getattr(model.base_model, "layers", None) or model.base_model.h
    made = []
    by = getattr(model.config, "residual_multiplier", 1.0)
    for block in blocks:
        modules = dict(block.named_modules())
        mlp = modules.get("block_sparse_moe") or modules.get("feed_forward") or block.mlp
        ends = [next(module for name, module in modules.items() if name in names), mlp]
        if ours.config.norm_placement != "pre":
            own = "post_norm1", "post_norm2"
            usual = "post_attention_layernorm", "post_feedforward_layernorm"
            ends = [modules[name] for name in (own if own[0] in modules else usual)]
        for module in ends:
            module.register_forward_hook(lambda module, _, out: made.append(by * out[0, -1]))
    with torch.no_grad():
        model(ours.input_ids)
    rows = {row.place: row for row in residual.compute(ours).rows}
    parallel = ours.config.parallel_residual
    for layer, (attention, forward) in enumerate(zip(made[::2], made[1::2], strict=True)):
        mixer = "convolution" if ours.config.is_conv(layer) else "attention"
        entered = theirs.hidden_states[layer][0, -1]
        read = entered if parallel else entered + attention
        for place, added, before in (
            (mixer, attention, entered),
            ("feed-forward", forward, read),
        ):
            cosine = float(torch.nn.functional.cosine_similarity(added, before, dim=0))
            assert rows[f"{layer} {place}"].aligned == pytest.approx(cosine, abs=1e-4)
            assert rows[f"{layer} {place}"].added == pytest.approx(float(added.norm()), abs=1e-4)


def test_all_taps_on_change_no_bit_of_the_logits(any_both):
    ours = any_both[0]
    everything = {}
    with torch.no_grad():
        tapped = ours.model(ours.input_ids, hook=caching(everything))[0]
    assert len(everything) > 20
    assert torch.equal(tapped, ours.logits())
    assert torch.equal(ours.run_with_cache("")[0], ours.logits())


def test_patterns_are_found_where_they_were_put():
    ids = (7, 8, 9, 7, 8)
    previous, induction = torch.zeros(5, 5), torch.zeros(5, 5)
    for place in range(5):
        previous[place, max(place - 1, 0)] = 1
        induction[place, {3: 1, 4: 2}.get(place, 0)] = 1
    of_both = find_patterns(torch.stack((previous, induction)), ids)
    looking_back, inducing = ({each.name: each.score for each in found} for found in of_both)
    assert looking_back == pytest.approx({"previous token": 1, "first token": 0.25, "itself": 0})
    # two places prove nothing
    assert inducing == pytest.approx({"previous token": 0, "first token": 0.5, "itself": 0})
    assert of_both[0][0].name == "previous token"
    assert find_patterns(torch.ones(2, 1, 1), (7,)) == [(), ()]


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize(
    ("ids", "by_content"),
    [
        ((7, 8, 9, 7, 8), {}),
        ((7, 8, 9, 7, 8, 9), {"same token": 3, "induction on this text": 3}),
        # what follows the one before is the token itself: no place to look back to
        ((5, 5, 5, 5), {"same token": 3}),
        ((1, 2, 1, 3, 1, 4, 1, 5), {"same token": 3, "induction on this text": 3}),
    ],
)
def test_even_attention_scores_the_chance_level_of_each_pattern_over_the_rows_that_can_show_it(
    ids, by_content, window
):
    time = len(ids)
    sees = [range(max(0, row + 1 - window) if window else 0, row + 1) for row in range(time)]
    even = torch.tensor(
        [[1 / len(seen) if each in seen else 0 for each in range(time)] for seen in sees]
    )
    places = {  # by their definitions, a row at a time
        "itself": {row: {row} for row in range(1, time)},
        "previous token": {row: {row - 1} for row in range(2, time)},
        "first token": {row: {0} for row in range(1, time)},
        "same token": {
            row: {each for each in range(row) if ids[each] == ids[row]} for row in range(time)
        },
        "induction on this text": {
            row: {each + 1 for each in range(row - 1) if ids[each] == ids[row]}
            for row in range(time)
        },
    }
    found = {each.name: each for each in find_patterns(even[None], ids, window)[0]}
    for name, rows in places.items():
        there = {row: here for row, of in rows.items() if (here := of & set(sees[row]))}
        if len(there) < (3 if name in ("same token", "induction on this text") else 1):
            assert name not in found
            continue
        expected = sum(len(here) / len(sees[row]) for row, here in there.items()) / len(there)
        assert found[name].places == len(there)
        assert (found[name].score, found[name].chance) == pytest.approx((expected, expected))
    if not window:
        named = ("same token", "induction on this text")
        assert {name: found[name].places for name in found if name in named} == by_content


def test_a_head_that_looks_one_back_gets_no_credit_where_that_is_the_first_token():
    sink = torch.zeros(6, 6)
    sink[:, 0] = 1
    found = {each.name: each.score for each in find_patterns(sink[None], (1, 2, 3, 4, 5, 6))[0]}
    assert found == pytest.approx({"first token": 1, "previous token": 0, "itself": 0})


def of_text(checkpoint, text):
    return InspectedText(
        build(checkpoint.config, checkpoint.tensors),
        checkpoint.tokenizer,
        tuple(checkpoint.tokenizer.encode(text)),
    )


def test_what_is_not_there_is_refused_by_number():
    subject = of_text(random_checkpoint(), "가각갂")
    for ask in (
        lambda: compute_head(subject, 2, 0),
        lambda: compute_head(subject, 1, 3),
        lambda: compute_layer(subject, 9),
        lambda: lens.compute(subject, 3),
        lambda: lens.compute(subject, -4),
    ):
        with pytest.raises(UserError, match=r"(are numbered|run) from 0 to \d"):
            ask()


def test_damaged_weights_are_told_not_drawn():
    checkpoint = random_checkpoint()
    checkpoint.tensors["blocks.1.mlp.down.weight"][:] = np.inf
    for ask in (compute_focus, lens.compute, why.compute, residual.compute):
        with pytest.raises(UserError, match="the logits are not finite: a weight is not finite"):
            ask(of_text(checkpoint, "가각"))


def test_a_view_is_json_that_any_reader_takes():
    view = lens.compute(of_text(random_checkpoint(), "가각"))
    data = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    assert data["view"] == "lens"
    assert data["tokens"][1] == {"id": 1, "text": "각", "bytes": list("각".encode())}
    assert data["rows"][-1]["rank"] == 1


def test_a_token_is_found_by_what_one_types(nalssi):
    tokenizer = nalssi.tokenizer
    assert find_token_ids(tokenizer, "좋") == tokenizer.encode("좋")
    assert find_token_ids(tokenizer, "␣") == tokenizer.encode(" ")
    assert find_token_ids(tokenizer, "⏎") == tokenizer.encode("\n")
    assert find_token_ids(tokenizer, "#7") == [7]
    for wrong in ("#44", "날씨", "xyz"):
        with pytest.raises(UserError):
            find_token_ids(tokenizer, wrong)


def test_a_word_is_the_token_with_a_space_or_without_it_whichever_is_likelier():
    tokenizer = load(outside("checkpoints/stories260K-hf")).tokenizer
    with_space = tokenizer.encode(" there", add_special=False)
    assert len(with_space) == 1
    assert with_space[0] in find_token_ids(tokenizer, "there")
    assert find_token_ids(tokenizer, "<s>") == [tokenizer.token_to_id("<s>")]


def test_a_deep_model_shows_the_rows_that_change_on_one_screen_and_all_when_scrolled():
    view = lens.compute(of_text(random_checkpoint(layers=20), "가각간갇"))
    shown, whole = view._shown(80), view._shown(20_000)
    assert (len(shown), len(whole)) == (15, 41)
    assert [shown[0], shown[-1]] == [whole[0], whole[-1]]
    assert not view.first or view.first in {row.place for row in shown}
    assert "26 rows in which p changes least are left out" in plain_text(view, 80)


def test_the_weights_of_a_layer_are_made_one_after_the_other_and_can_be_stopped():
    subject = of_text(random_checkpoint(layers=3), "가각간갇")
    passed = []

    def stop(name, tensor):
        passed.append(name)
        if name == "blocks.1.attention.weights":
            raise UserError("stopped")
        return tensor

    with pytest.raises(UserError, match="stopped"):
        compute_focus(subject.with_hook(stop))
    assert "blocks.0.attention.weights" in passed
    assert "blocks.2.attention.weights" not in passed
