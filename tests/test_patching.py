"""Patching of heads, paths and gradients: `transformers` with what its modules make exchanged."""

import pytest
import torch

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.model.attention import KVCache
from minillm_repl.model.build import build
from minillm_repl.views import path_patching
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.knockout import knockout_hook
from minillm_repl.views.patch import compute
from minillm_repl.views.patching import PARTS, attributed, measure, patched_logits
from tests.test_huggingface import FAMILIES, random_ids, random_model

LAYER, HEAD, POSITION = 1, 2, 11


def on_two_texts(family, folder):
    """A model of transformers' in float64, and ours of the same weights on two texts, A and B."""
    theirs = random_model(*FAMILIES[family])
    theirs.save_pretrained(folder)
    checkpoint = load(folder)
    ours = build(checkpoint.config, checkpoint.tensors)
    a, b = (
        InspectedText(ours, checkpoint.tokenizer, tuple(random_ids(12, seed)[0].tolist()))
        for seed in (8, 0)
    )
    return theirs.double(), a, b


@pytest.fixture(params=["llama", "qwen3"], scope="module")
def three(request, tmp_path_factory):
    return on_two_texts(request.param, tmp_path_factory.mktemp("model"))


def run(model, ids, module, change, *, of_input=False):
    """The last logits, with what enters a module of transformers' changed, or what it makes."""
    if of_input:
        handle = module.register_forward_pre_hook(lambda _, given: (change(given[0].clone()),))
    else:
        handle = module.register_forward_hook(lambda _, _given, out: change(out.clone()))
    with torch.no_grad():
        logits = model(ids).logits[0, -1]
    handle.remove()
    return logits


def seen(model, ids, module, *, of_input=False):
    """What enters a module of transformers', or what it makes."""
    kept = []
    if of_input:
        handle = module.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    else:
        handle = module.register_forward_hook(lambda _, _given, out: kept.append(out))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return kept[0]


def fraction(view, logits):
    apart = float(logits[view.answer_a.id] - logits[view.answer_b.id])
    return (apart - view.corrupt) / (view.clean - view.corrupt)


@pytest.mark.parametrize("position", [None, POSITION])
@pytest.mark.parametrize("what", ["z", "q", "k", "v", "pattern"])
def test_a_cell_of_a_head_is_a_pass_of_transformers_with_its_columns_exchanged(
    three, what, position
):
    model, a, b = three
    view = compute(a, b, what, position=position)
    config, attention = b.config, model.model.layers[LAYER].self_attn
    head = HEAD if what in ("z", "q", "pattern") else 1
    rows = slice(None) if position is None else slice(position, position + 1)
    columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
    if what in ("z", "pattern"):
        module, of_input = attention.o_proj, True
    else:
        module, of_input = getattr(attention, f"{what}_proj"), False
    other = seen(model, a.input_ids, module, of_input=of_input)
    if what == "pattern":
        with torch.no_grad():
            weights = model(a.input_ids, output_attentions=True).attentions[LAYER][0, head]
        group = head // (config.n_heads // config.n_kv_heads)
        values = seen(model, b.input_ids, attention.v_proj).unflatten(-1, (-1, config.head_dim))
        other = other.clone()
        other[0, :, columns] = weights @ values[0, :, group]

    def exchange(x):
        x[:, rows, columns] = other[:, rows, columns]
        return x

    logits = run(model, b.input_ids, module, exchange, of_input=of_input)
    expected = fraction(view, logits)
    assert view.effects[LAYER][head] == pytest.approx(expected, abs=5e-5)
    assert len(view.effects[0]) == (config.n_kv_heads if what in ("k", "v") else config.n_heads)
    assert abs(expected) > 3e-4


@pytest.mark.parametrize("what", PARTS)
def test_estimates_are_the_slope_of_the_patch_at_its_beginning(three, what):
    """Finite differences in float64: the activation moves from B's to A's by a millionth."""
    _model, a, b = three
    a, b = (InspectedText(each.model.double(), each.tokenizer, each.ids) for each in (a, b))
    part, step = PARTS[what], 1e-6
    logits, clean = a.run_with_cache(*part.names)
    found = measure(a, logits[-1], b.logits(last_only=True)[0])
    _, corrupt = b.run_with_cache(*part.names)
    for name in list(clean)[1:3]:
        effects = attributed(a, b, part, found)[name]
        cell = len(effects) - 1
        moved = corrupt[name].clone()
        index = (slice(None),) * part.cell_axis + (cell,)
        moved[index] += step * (clean[name][index] - corrupt[name][index])
        logits = patched_logits(b, name, moved, part, cells=[cell])
        assert found.fractions(logits)[0] / step == pytest.approx(
            float(effects[cell]), rel=1e-3, abs=1e-5
        )
    b.model.float()


def test_a_scan_by_gradients_checks_its_largest_estimates_by_patches(three):
    _model, a, b = three
    runs, view = compute(a, b, "z"), compute(a, b, "z", by="gradient")
    assert len(view.checked) == 10
    largest = sorted((abs(each) for row in view.effects for each in row), reverse=True)[:10]
    assert [abs(each.estimate) for each in view.checked] == largest
    for each in view.checked:
        place = view.places.index(each.place)
        assert each.effect == pytest.approx(runs.effects[place][each.row], abs=1e-4)
        assert each.error == each.estimate - each.effect


def direct(model, a, b, sender):
    """What a sender adds to the residual stream on A, less what it adds on B."""
    layer, _dot, which = sender.partition(".")
    if not which:
        module = model.model.embed_tokens
        return seen(model, a.input_ids, module) - seen(model, b.input_ids, module)
    block = model.model.layers[int(layer)]
    if which == "mlp":
        return seen(model, a.input_ids, block.mlp) - seen(model, b.input_ids, block.mlp)
    size, dense = b.config.head_dim, block.self_attn.o_proj
    columns = slice(int(which) * size, (int(which) + 1) * size)
    z = [seen(model, each.input_ids, dense, of_input=True) for each in (a, b)]
    return (z[0] - z[1])[..., columns] @ dense.weight[:, columns].mT


def reading(model, subject, receiver, change):
    """The last logits where one receiver alone reads a changed stream."""
    layer, *rest = receiver.split(".")
    ids = subject.input_ids
    with torch.no_grad():
        if receiver == "logits":
            stream = seen(model, ids, model.model.layers[-1])
            return model.lm_head(model.model.norm(stream + change))[0, -1]
        block = model.model.layers[int(layer)]
        is_mlp = rest == ["mlp"]
        norm = block.post_attention_layernorm if is_mlp else block.input_layernorm
        normed = norm(seen(model, ids, norm, of_input=True) + change)
        if is_mlp:
            read = block.mlp(normed)
            return run(model, ids, block.mlp, lambda _made: read)
        module, size = getattr(block.self_attn, f"{rest[1]}_proj"), subject.config.head_dim
        columns = slice(int(rest[0]) * size, (int(rest[0]) + 1) * size)
        read = module(normed)[..., columns]

        def exchange(made):
            made[..., columns] = read
            return made

        return run(model, ids, module, exchange)


@pytest.mark.parametrize("receiver", ["2.3.q", "2.1.k", "2.0.v", "2.mlp", "logits"])
def test_a_path_is_the_senders_change_added_to_what_the_receiver_alone_reads(three, receiver):
    model, a, b = three
    view = path_patching.compute(a, b, "", receiver)
    effects = {each.sender: each.effect for each in view.senders}
    heads = b.config.n_heads
    if receiver != "logits":
        assert len(effects) == 1 + 2 * (heads + 1) + (heads if "mlp" in receiver else 0)
    for sender in ("embedding", "0.1", "1.mlp", "1.3"):
        logits = reading(model, b, receiver, direct(model, a, b, sender))
        assert effects[sender] == pytest.approx(fraction(view, logits), abs=1e-4)


def test_a_sender_that_is_not_there_or_writes_too_late_is_refused(three):
    _model, a, b = three
    for sender, receiver, told in (
        ("2.0", "2.0.q", "does not write before"),
        ("2.mlp", "2.mlp", "does not write before"),
        ("0.9", "2.0.q", "no head 9"),
        ("0.0", "2.3.k", "no KV head 3"),
        ("0.0", "9.mlp", "no layer 9"),
    ):
        with pytest.raises(UserError, match=told):
            path_patching.compute(a, b, sender, receiver)


@pytest.mark.parametrize("head", [None, HEAD])
def test_attention_that_is_cut_is_a_score_of_minus_infinity_in_transformers(three, head):
    model, _a, b = three
    attention, query, key = model.model.layers[LAYER].self_attn, 9, 4
    # Below the diagonal, transformers' mask is 0; a row of it is added to the scores of all heads.
    rows = torch.full((1, b.config.n_heads, 12, 12), -torch.inf, dtype=torch.float64).triu(1)
    rows[:, slice(None) if head is None else head, query, key] = -torch.inf

    def masked(_module, given, named):
        return given, named | {"attention_mask": rows}

    handle = attention.register_forward_pre_hook(masked, with_kwargs=True)
    with torch.no_grad():
        expected = model(b.input_ids).logits[0]
    handle.remove()
    hook = knockout_hook(LAYER, head, query, key)
    cut = b.with_hook(hook)
    torch.testing.assert_close(cut.logits().double(), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(cut.logits()[query:], b.logits()[query:], atol=1e-4)
    # With a KV cache, a query is found by its position; a text without it keeps every bit.
    cache = KVCache(b.config, torch.device("cpu"))
    with torch.no_grad():
        parts = [b.model(b.input_ids[:, part], cache, hook) for part in (slice(7), slice(7, None))]
    torch.testing.assert_close(torch.cat(parts, 1)[0], cut.logits(), rtol=0, atol=1e-4)
    assert torch.equal(cut.up_to(query - 1).logits(), b.up_to(query - 1).logits())
