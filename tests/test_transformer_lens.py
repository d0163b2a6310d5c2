"""A second oracle, where installed: TransformerLens reads the same numbers of the same models."""

import pytest
import torch

from minillm_repl.training.head_probe import make_probe, measure
from minillm_repl.views import circuits, lens, path_patching, why
from minillm_repl.views.ablation import ablation_hook as silencing
from minillm_repl.views.attention_patterns import weights
from minillm_repl.views.composition import composition
from minillm_repl.views.patch import compute as patch_view
from tests.test_insight import agrees, both  # noqa: F401 - the fixture
from tests.test_interventions import HEAD, LAYER, other  # noqa: F401 - the fixture

sources = pytest.importorskip(
    "transformer_lens.model_bridge.sources",
    reason="TransformerLens, version 4 or newer, is not installed",
)

CLOSE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture
def pair(both):
    """Our model and text, and the model of transformers' taken apart by TransformerLens, its
    weights as they are.
    """
    ours, model, _ = both
    with torch.no_grad():
        yield (
            ours,
            sources.build_bridge_from_module(model, type(model).__name__, hf_config=model.config),
        )


def test_the_logits_are_those_of_transformer_lens(pair):
    ours, theirs = pair
    torch.testing.assert_close(ours.logits(), theirs(ours.input_ids)[0], **CLOSE)


def test_attention_is_the_pattern_of_every_head(pair):
    ours, theirs = pair
    _, cache = theirs.run_with_cache(ours.input_ids)
    found = weights(ours)
    assert len(found) == theirs.cfg.n_layers
    for layer, weight in found.items():
        torch.testing.assert_close(weight, cache["pattern", layer][0], **CLOSE)


def test_each_row_of_the_lens_is_the_accumulated_stream_unembedded(pair):
    ours, theirs = pair
    logits, cache = theirs.run_with_cache(ours.input_ids)
    mid = not ours.config.parallel_residual
    stack = cache.accumulated_resid(incl_mid=mid, apply_ln=True, pos_slice=-1)[:, 0]
    for row, stream in zip(lens.compute(ours, top=97).rows, stack, strict=True):
        agrees(
            row,
            theirs.unembed(stream).double().log_softmax(-1),
            logits[0, -1].double().log_softmax(-1),
        )


@pytest.mark.parametrize("versus", [None, 5])
def test_each_part_adds_to_the_logit_what_its_attribution_says(pair, versus):
    ours, theirs = pair
    theirs.enable_compatibility_mode(  # now the last norm's weight is in W_U and its bias in b_U
        fold_ln=True, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    _, cache = theirs.run_with_cache(ours.input_ids)
    for token in (3, 96):
        values = {}
        for decompose in (cache.decompose_resid, cache.stack_head_results):
            stack, labels = decompose(return_labels=True, pos_slice=-1)
            attributed = cache.logit_attrs(stack, token, incorrect_tokens=versus, pos_slice=-1)[
                :, 0
            ]
            values |= dict(zip(labels, attributed.tolist(), strict=True))
        expected = {
            "embedding": values["embed"] + values.get("pos_embed", 0),
            "bias": float(theirs.b_U[token] - (theirs.b_U[versus] if versus is not None else 0)),
        }
        for layer in range(ours.config.n_layers):
            heads = {
                f"head {layer}.{head}": values[f"L{layer}H{head}"]
                for head in range(ours.config.n_heads)
            }
            expected |= heads
            expected[f"attention bias {layer}"] = values[f"{layer}_attn_out"] - sum(heads.values())
            expected[f"feed-forward {layer}"] = values[f"{layer}_mlp_out"]
        parts = {part.name: part.value for part in why.compute(ours, token, versus).parts}
        absent = dict.fromkeys(expected, 0)  # such as the bias of an attention that has none
        assert absent | parts == pytest.approx(expected, abs=1e-4)


def test_a_silenced_head_is_one_whose_z_a_hook_sets_to_zero(pair):
    ours, theirs = pair

    def zero(z, hook):
        z[:, :, HEAD] = 0
        return z

    expected = theirs.run_with_hooks(
        ours.input_ids, fwd_hooks=[(f"blocks.{LAYER}.attn.hook_z", zero)]
    )[0]
    torch.testing.assert_close(
        ours.with_hook(silencing(ours, LAYER, HEAD)).logits(), expected, **CLOSE
    )
    assert not torch.allclose(expected, ours.logits(), atol=1e-2)


def test_a_cell_of_the_patches_is_a_pass_with_that_resid_post_exchanged(pair, other):
    ours, theirs = pair
    view = patch_view(other, ours)
    apart = lambda logits: float(logits[0, -1, view.answer_a.id] - logits[0, -1, view.answer_b.id])  # noqa: E731
    logits, cache = theirs.run_with_cache(other.input_ids)
    clean, corrupt = apart(logits), apart(theirs(ours.input_ids))
    assert (view.clean, view.corrupt) == pytest.approx((clean, corrupt), abs=1e-4)
    for position in (3, 20):

        def exchange(stream, hook, position=position):
            stream[:, position] = cache["resid_post", LAYER][:, position]
            return stream

        patched = theirs.run_with_hooks(
            ours.input_ids, fwd_hooks=[(f"blocks.{LAYER}.hook_resid_post", exchange)]
        )
        expected = (apart(patched) - corrupt) / (clean - corrupt)
        assert view.effects[LAYER + 1][position] == pytest.approx(expected, abs=1e-4)


def measured(view):
    """The fraction that a view shows, of the logits of TransformerLens."""
    a, b = view.answer_a.id, view.answer_b.id
    span = view.clean - view.corrupt
    return lambda logits: (logits[0, -1, a] - logits[0, -1, b] - view.corrupt) / span


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("attention", "attn_out"),
        ("feed-forward", "mlp_out"),
        *((each, f"attn_head_{each}_all_pos") for each in ("q", "k", "v", "pattern")),
        ("z", "attn_head_out_all_pos"),
    ],
)
def test_every_patch_is_that_of_transformer_lens(pair, other, what, name):
    from transformer_lens import patching

    ours, theirs = pair
    if what in ("q", "k") and ours.config.qk_norm and not ours.config.qk_norm_per_head:
        pytest.skip("its hook is before the norm over all heads, ours is after it")
    view = patch_view(other, ours, what)
    _, cache = theirs.run_with_cache(other.input_ids)
    scan = getattr(patching, f"get_act_patch_{name}")
    found = scan(theirs, ours.input_ids, cache, measured(view))
    torch.testing.assert_close(torch.tensor(view.effects), found.float(), **CLOSE)


def test_a_path_is_the_direct_path_of_transformer_lens(pair, other):
    from transformer_lens import patching

    ours, theirs = pair
    view = path_patching.compute(other, ours, "0.1", "2.3.q")
    _, clean = theirs.run_with_cache(other.input_ids)
    _, corrupt = theirs.run_with_cache(ours.input_ids)
    try:
        found = patching.get_act_patch_direct_path(
            theirs, ours.input_ids, clean, corrupt, measured(view), 0, 1, verbose=False
        )
    except (ValueError, NotImplementedError) as error:
        pytest.skip(str(error))  # such as norms after the parts, which it does not take apart
    assert view.senders[0].effect == pytest.approx(float(found[2, 3]), abs=1e-4)


def test_the_atlas_of_heads_is_detect_head_and_the_circuits_of_transformer_lens(pair):
    ours, theirs = pair
    if ours.config.norm_placement != "pre":
        pytest.skip("TransformerLens does not fold the norm after attention into W_O")
    detect = pytest.importorskip("transformer_lens.head_detector").detect_head
    probe = make_probe(ours.tokenizer, ours.config, batches=3)
    theirs.cfg.n_ctx += 1  # `detect_head` takes no text that fills the context
    found = measure(ours.model, probe)
    names = "induction_head", "previous_token_head", "duplicate_token_head"
    for at, name in enumerate(names):
        scores = []
        for ids in probe.sequences:
            theirs.to_tokens = lambda _text, ids=ids: torch.tensor([ids])
            scores.append(detect(theirs, "", name))
        torch.testing.assert_close(found[..., at].float(), torch.stack(scores).mean(0), **CLOSE)
    theirs.enable_compatibility_mode()
    for kind, scores in zip("QKV", composition(ours.model), strict=True):
        expected = theirs.all_composition_scores(kind).scores
        torch.testing.assert_close(scores, expected, **CLOSE)
    eigenvalues = (theirs.W_E @ theirs.OV @ theirs.W_U).eigenvalues
    expected = eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)
    product = circuits.unembedded_embedding(ours.model)
    for layer in range(ours.config.n_layers):
        copying = circuits.copying_scores(circuits.ov_eigenvalues(ours.model, layer, product))
        torch.testing.assert_close(copying.float(), expected[layer], **CLOSE)
