"""Circuits: what an edge is in `transformers`, and a circuit that training has put into a model."""

import pytest
import torch

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.model.build import build, build_new
from minillm_repl.model.config import GPTConfig
from minillm_repl.model.hooks import PatternHook, caching
from minillm_repl.tokenizer import CharacterTokenizer
from minillm_repl.views import circuit
from minillm_repl.views.edges import WRITES, Graph, cut_hook, scores
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.patching import measure
from tests.test_huggingface import FAMILIES, random_model
from tests.test_patching import (  # noqa: F401 - one is a fixture
    direct,
    fraction,
    on_two_texts,
    reading,
    run,
    seen,
    three,
)

EDGES = [
    ("0.1", "2.3.q"),
    ("1.mlp", "2.1.k"),
    ("embedding", "2.0.v"),
    ("2.2", "2.mlp"),
    ("0.mlp", "logits"),
]


def edge(graph, sender, receiver):
    return graph.readers.index(receiver), graph.writers.index(sender)


def activations(subject):
    return subject.run_with_cache(*WRITES, last_only=True)[1]


@pytest.mark.parametrize("steps", [1, 3])
def test_the_score_of_an_edge_is_the_slope_of_what_transformers_reads_through_it(three, steps):
    """Finite differences, at the embeddings of each step; the norms of transformers are float32."""
    model, a, b = three
    exact_a, exact_b = (InspectedText(x.model.double(), x.tokenizer, x.ids) for x in (a, b))
    clean, corrupt = activations(exact_a), activations(exact_b)
    answers = measure(a, a.logits()[-1], b.logits()[-1]).answers
    found = scores(exact_a, clean, corrupt, answers, steps)
    a.model.float()
    table, graph, step = model.get_input_embeddings(), Graph(a.config), 3e-3
    apart = lambda logits: float(logits[answers[0]] - logits[answers[1]])  # noqa: E731
    total = dict.fromkeys(EDGES, 0.0)
    vectors = [table.weight[x.input_ids[0]].detach() for x in (a, b)]
    changes = {sender: direct(model, a, b, sender) for sender, _receiver in EDGES}
    for share in torch.arange(1, steps + 1) / steps:
        moved = vectors[1] + share * (vectors[0] - vectors[1])
        handle = table.register_forward_hook(lambda _, _given, _made, moved=moved: moved[None])
        for sender, receiver in EDGES:
            up, down = (
                apart(reading(model, a, receiver, sign * step * changes[sender]))
                for sign in (1, -1)
            )
            total[sender, receiver] += (up - down) / (2 * step) / steps
        handle.remove()
    assert {each: float(found[edge(graph, *each)]) for each in EDGES} == pytest.approx(
        total, rel=2e-3, abs=1e-4
    )


def test_a_cut_edge_is_what_transformers_does_where_one_reader_gets_the_other_prompts_writer(three):
    model, a, b = three
    view, graph, corrupt = circuit.compute(a, b, 5), Graph(a.config), activations(b)
    for sender, receiver in EDGES:
        kept = graph.all_edges()
        kept[edge(graph, sender, receiver)] = False
        logits = a.with_hook(cut_hook(a.model, kept, corrupt)).logits()[-1]
        expected = reading(model, a, receiver, -direct(model, a, b, sender))
        assert fraction(view, logits) == pytest.approx(fraction(view, expected), abs=1e-4)


def test_all_edges_are_the_whole_model_bit_by_bit_and_none_is_the_other_prompt(three):
    _model, a, b = three
    corrupt, there = activations(b), Graph(a.config).all_edges()
    whole = a.with_hook(cut_hook(a.model, there, corrupt)).logits()
    torch.testing.assert_close(whole, a.logits(), rtol=0, atol=1e-5)
    none = a.with_hook(cut_hook(a.model, ~there, corrupt)).logits()
    torch.testing.assert_close(none, b.logits(), rtol=0, atol=1e-4)
    view = circuit.compute(a, b, 10_000)
    assert len(view.edges) == view.all_edges == int(there.sum())
    assert (view.faithfulness, view.completeness) == (
        pytest.approx(1, abs=1e-4), pytest.approx(0, abs=1e-4),
    )  # fmt: skip


def test_every_part_of_a_circuit_reads_something_and_is_read(three):
    _model, a, b = three
    view, graph = circuit.compute(a, b, 40), Graph(a.config)
    assert 0 < len(view.edges) <= 40
    read = {graph.readers.index(each.receiver) for each in view.edges}
    reached = {graph.readers.index("logits")}
    for each in view.edges:
        reached |= set(graph.sources(each.sender))
        assert each.sender == "embedding" or set(graph.sources(each.sender)) & read
    assert read <= reached


POST = "gemma2", "gemma3, two ropes, a cap", "olmo3", "exaone4, windows"


@pytest.fixture(params=POST, scope="module")
def normed(request, tmp_path_factory):
    """The same as `three`, of models that normalise what attention adds."""
    return on_two_texts(request.param, tmp_path_factory.mktemp("model"))


def written_after_a_norm(model, subject, sender):
    """What a sender adds in transformers: of a head its part, times what the norm multiplies by."""
    layer, _dot, which = sender.partition(".")
    if not which:
        with torch.no_grad():
            return model(subject.input_ids, output_hidden_states=True).hidden_states[0]
    block = model.model.layers[int(layer)]
    if which == "mlp":
        return seen(model, subject.input_ids, block.post_feedforward_layernorm)
    norm, dense = block.post_attention_layernorm, block.self_attn.o_proj
    size = subject.config.head_dim
    columns = slice(int(which) * size, (int(which) + 1) * size)
    z = seen(model, subject.input_ids, dense, of_input=True)[..., columns]
    scale = seen(model, subject.input_ids, norm) / seen(
        model, subject.input_ids, norm, of_input=True
    )
    return z @ dense.weight[:, columns].mT * scale


@pytest.mark.parametrize("sender", ["embedding", "0.1", "0.mlp", "1.2"])
@pytest.mark.parametrize("receiver", ["2.0.v", "2.mlp", "logits"])
def test_a_head_before_a_norm_writes_its_part_at_the_scale_of_the_norm(normed, sender, receiver):
    """One edge is cut: transformers gives one reader the stream with the other prompt's part."""
    model, a, b = normed
    ids, graph = a.input_ids, Graph(a.config)
    change = written_after_a_norm(model, b, sender) - written_after_a_norm(model, a, sender)
    block = model.model.layers[2]
    if receiver == "logits":
        module = model.model.norm
    else:
        name = "pre_feedforward_layernorm" if receiver.endswith("mlp") else "input_layernorm"
        part = block.mlp if receiver.endswith("mlp") else block.self_attn.v_proj
        module = getattr(block, name, part)  # models without norms before parts read the stream
    read = run(model, ids, module, lambda x: x + change, of_input=True)
    if receiver == "2.0.v":  # of that head alone
        size, dense = a.config.head_dim, block.self_attn.v_proj
        moved = module(seen(model, ids, module, of_input=True) + change)
        value = (dense(moved) if module is not dense else moved)[..., :size]
        read = run(model, ids, dense, lambda made: torch.cat((value, made[..., size:]), dim=-1))
    kept = graph.all_edges()
    kept[edge(graph, sender, receiver)] = False
    hook = cut_hook(a.model, kept, activations(b))
    found = a.with_hook(hook).logits()[-1]
    torch.testing.assert_close(found.double(), read, rtol=0, atol=1e-4)
    assert (read - a.logits()[-1]).abs().max() > 1e-3


def test_a_circuit_of_all_edges_is_the_model_and_of_none_the_other_prompt(normed):
    _model, a, b = normed
    corrupt, there = activations(b), Graph(a.config).all_edges()
    whole = a.with_hook(cut_hook(a.model, there, corrupt)).logits()
    torch.testing.assert_close(whole, a.logits(), rtol=0, atol=1e-5)
    none = a.with_hook(cut_hook(a.model, ~there, corrupt)).logits()
    torch.testing.assert_close(none, b.logits(), rtol=0, atol=1e-4)
    view = circuit.compute(a, b, 10_000)
    assert view.faithfulness == pytest.approx(1, abs=1e-4)
    assert view.completeness == pytest.approx(0, abs=1e-4)


def test_a_model_with_convolutions_has_no_circuit(tmp_path):
    random_model(*FAMILIES["lfm2"]).save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    model = build(checkpoint.config, checkpoint.tensors)
    a, b = (InspectedText(model, checkpoint.tokenizer, ids) for ids in ((1, 2, 3), (1, 2, 4)))
    with pytest.raises(UserError, match="layers 0, 2 have a short conv"):
        circuit.compute(a, b)


PERIODS, LETTERS, LENGTH = (3, 9), 10, 16


def periodic(generator, count):
    """Rows of letters that repeat after a period of their own, and which letters can be known."""
    periods = torch.randint(*PERIODS, (count,), generator=generator)
    letters = torch.rand(count, LETTERS, generator=generator).argsort(-1)
    places = torch.arange(LENGTH) % periods[:, None]
    return letters.gather(1, places), torch.arange(1, LENGTH) >= periods[:, None]


@pytest.fixture(scope="module")
def induction():
    """A model of two layers of one head without an MLP that has learnt induction.

    Layer 0 is also trained to attend to the previous token, so that the way is known.
    """
    torch.manual_seed(0)
    generator, name = torch.Generator().manual_seed(0), "blocks.0.attention.pattern"
    config = GPTConfig(vocab_size=LETTERS, context_length=LENGTH, d_model=32, n_layers=2, n_heads=1)
    model = build_new(config).requires_grad_()
    # The MLPs start at zero, and stay there.
    learnt = [weight for name, weight in model.named_parameters() if ".mlp." not in name]
    optimizer = torch.optim.Adam(learnt, lr=0.01, betas=(0.9, 0.98))
    for step in range(1000):
        ids, known = periodic(generator, 32)
        cache = {}
        hook = PatternHook(caching(cache, lambda at: at == name), lambda at: at == name)
        logits = model(ids, hook=hook)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[known], ids[:, 1:][known])
        if step > 100 and loss < 0.01:
            break
        previous = -cache[name][:, 0].diagonal(-1, 1, 2).log().mean()
        optimizer.zero_grad()
        (loss + previous).backward()
        optimizer.step()
    return model.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5])
def test_the_first_edge_between_heads_is_from_the_previous_token_to_induction(induction, steps):
    tokenizer = CharacterTokenizer([chr(ord("a") + index) for index in range(LETTERS)])
    a, b = (
        InspectedText(induction, tokenizer, tuple(tokenizer.encode(x)))
        for x in ("dfbhcdf", "dibhcdf")
    )
    view = circuit.compute(a, b, 10, steps)
    assert view.answer_a.text == "b"
    first = view.composition[0]
    assert (first.sender, first.receiver) == ("0.0", "1.0.k")
    assert view.faithfulness > 0.9 > 0.1 > view.completeness
    graph = Graph(induction.config)
    kept = graph.all_edges()
    kept[edge(graph, "0.0", "1.0.k")] = False
    logits = a.with_hook(cut_hook(induction, kept, activations(b))).logits()[-1]
    assert fraction(view, logits) < 0.3  # without this edge the ability is gone
    assert a.logits()[-1].argmax() == view.answer_a.id != logits.argmax()
