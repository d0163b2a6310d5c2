"""Views that lessons show: shapes, a step of descent, one dot product, the code; `transformers`
is the oracle.
"""

import io
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from wcwidth import wcswidth

from minillm_repl.checkpoint import locate_in_file
from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.generate import Sampling
from minillm_repl.generate.sampling import process_logits, softmax
from minillm_repl.model.bfloat16 import BFLOAT16, convert
from minillm_repl.model.build import build, to_arrays
from minillm_repl.views import qkv, shapes, source
from minillm_repl.views.ablation import ablation_hook as silencing
from minillm_repl.views.descent import compute as descent_view
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.shapes import compute_sizes, sizes
from minillm_repl.views.steering import steering_hook as steering
from tests.conftest import ROOT, random_checkpoint
from tests.test_huggingface import FAMILIES, random_ids, random_model
from tests.test_insight import both, exact, of_text  # noqa: F401 - the fixture
from tests.test_interventions import layers


def drawn(picture, width):
    """What a picture looks like on a terminal of this width."""
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    console.print(picture)
    return console.file.getvalue().split("\n")


def own(logits):
    """The probabilities of drawing when no sampler is on."""
    return softmax(logits)[0]


def test_shapes_and_numbers_are_those_of_transformers_own_tensors(both):
    ours, model, theirs = both
    block, entered = layers(model)[0], {}
    mlp = block.block_sparse_moe if hasattr(block, "block_sparse_moe") else block.mlp
    attention = next(
        each for name, each in block.named_children() if "attn" in name or name == "attention"
    )
    hooks = [
        each.register_forward_pre_hook(
            lambda _, given, more, name=name: entered.update(
                {name: given[0] if given else more["hidden_states"]}
            ),
            with_kwargs=True,
        )
        for name, each in (("attention.input", attention), ("mlp.input", mlp))
    ]
    # What the MLP adds to the residual stream: after a norm of its output, if there is one.
    adds, multiplier = (
        getattr(block, "post_feedforward_layernorm", getattr(block, "post_norm2", mlp)),
        getattr(block, "residual_multiplier", 1),
    )
    hooks.append(
        adds.register_forward_hook(
            lambda _, given, made: entered.update({"mlp.out": made * multiplier})
        )
    )
    with torch.no_grad():
        cached = model(ours.input_ids, use_cache=True).past_key_values.layers[0]
    for hook in hooks:
        hook.remove()
    rows = {row.name: row for row in shapes.compute(ours, own).rows}
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
            np.testing.assert_allclose(
                rows[f"blocks.0.attention.{name}"].numbers, keys[0, 0, -1, :12], atol=1e-4
            )


def test_a_letter_stands_for_one_size_on_the_whole_way(both):
    rows = shapes.compute(both[0], own).rows
    for row in rows:
        assert [sizes(rows)[dim] for dim in row.dims] == list(row.shape), row.name


def test_what_can_be_drawn_follows_the_samplers():
    subject = of_text(random_checkpoint(), "가각갂")
    probabilities = subject.logits()[-1].double().div(0.5).softmax(-1)

    def draw(settings):
        return shapes.compute(
            subject, lambda logits: softmax(process_logits(logits, settings, subject.ids))[0]
        )

    view = draw(Sampling(temp=0.5, top_k=2))
    assert view.candidates == 2
    best = probabilities.topk(2)
    assert [each.token.id for each in view.drawn] == best.indices.tolist()
    np.testing.assert_allclose(
        [each.prob for each in view.drawn], best.values / best.values.sum(), atol=1e-6
    )
    assert [each.prob for each in draw(Sampling(temp=0)).drawn] == [1.0]


def test_the_way_through_a_changed_model_shows_the_change():
    subject = of_text(random_checkpoint(), "가각갂")
    along = torch.eye(12)[0]
    before, after = (
        shapes.compute(each, own).rows
        for each in (subject, subject.with_hook(steering(along, 1, 5.0)))
    )
    different = [
        old.name for old, new in zip(before, after, strict=True) if old.numbers != new.numbers
    ]
    assert different == ["blocks.1.residual", "final", "logits", "probabilities"]
    last = {row.name: row for row in after}["blocks.1.residual"].numbers[0]
    assert last == pytest.approx(
        {row.name: row for row in before}["blocks.1.residual"].numbers[0] + 5, abs=1e-5
    )


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_picture_of_the_way_fits_and_names_the_blocks_that_are_left_out(width, layers):
    checkpoint = random_checkpoint(layers=layers)
    subject = InspectedText(
        build(checkpoint.config, checkpoint.tensors), checkpoint.tokenizer, (3,)
    )
    lines = drawn(shapes.compute(subject, own, "temp 1").draw(width), width)
    assert max(map(wcswidth, lines)) <= width
    assert any("3 × 1 × 4" in line for line in lines)
    if width > 40:  # where names are not broken
        text = "\n".join(lines)
        assert ("block 1: the same" in text) == (layers == 2)
        assert ("blocks 1 to 4: the same" in text) == (layers == 5)


def losses(model, ids):
    """−ln p of each token but the first, by transformers' own model."""
    return torch.nn.functional.cross_entropy(
        model(ids).logits[0, :-1], ids[0, 1:], reduction="none"
    )


def test_a_step_of_descent_is_that_of_torchs_sgd_on_transformers_own_model(both):
    ours, model, _ = both
    view = descent_view(ours, 0.05)
    model.get_input_embeddings().padding_idx = None  # the token for padding is a token like others
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = losses(model, ours.input_ids)
    before.mean().backward()
    steepest = max(
        float(each.grad.abs().max()) for each in model.parameters() if each.grad is not None
    )
    optimizer.step()
    with torch.no_grad():
        after = losses(model, ours.input_ids)
    np.testing.assert_allclose(
        [each.nats_before for each in view.targets], before.detach(), atol=1e-4
    )
    np.testing.assert_allclose([each.nats_after for each in view.targets], after, atol=2e-3)
    assert view.loss_before == pytest.approx(float(before.detach().mean()), abs=1e-5)
    assert view.loss_after == pytest.approx(float(after.mean()), abs=1e-3)
    assert abs(view.gradient) == pytest.approx(steepest, rel=1e-3)
    assert view.new_value == view.value - 0.05 * view.gradient
    np.testing.assert_allclose(
        np.exp([-each.nats_after for each in view.targets]), [e.after for e in view.targets]
    )


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("seed", range(4))
def test_the_steepest_weight_is_named_as_in_the_models_file(family, seed, tmp_path):
    random_model(*FAMILIES[family]).save_pretrained(tmp_path)
    checkpoint = load(tmp_path)
    ids = tuple(random_ids(9, seed)[0].tolist())
    subject = InspectedText(build(checkpoint.config, checkpoint.tensors), checkpoint.tokenizer, ids)
    view = descent_view(subject, 0.1, checkpoint.weight_map)
    assert float(load_file(tmp_path / "model.safetensors")[view.weight][view.index]) == view.value


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_every_number_has_its_place_in_the_file(family, tmp_path):
    random_model(*FAMILIES[family]).save_pretrained(tmp_path)
    checkpoint, file = load(tmp_path), load_file(tmp_path / "model.safetensors")
    for name, tensor in checkpoint.tensors.items():
        for index in (
            (0,) * tensor.ndim,
            tuple(size // 2 for size in tensor.shape),
            tuple(np.array(tensor.shape) - 1),
        ):
            theirs, place = locate_in_file(checkpoint.weight_map, name, tensor.shape, index)
            assert float(file[theirs][place]) == tensor[index], name


def test_the_gradient_is_the_slope_of_the_loss_as_the_weight_grows(both):
    subject, step = exact(both[0]), 1e-5
    view = descent_view(subject, 0.1)
    weight = subject.model.get_parameter(view.weight)
    assert float(weight[view.index]) == view.value
    means = []
    for moved in (step, -2 * step):
        weight[view.index] += moved
        logits = subject.logits()[:-1]
        means.append(float(torch.nn.functional.cross_entropy(logits, subject.input_ids[0, 1:])))
    assert view.gradient == pytest.approx((means[0] - means[1]) / (2 * step), rel=1e-5)


def in_bfloat16(subject):
    """The same with weights in bfloat16."""
    arrays = {
        name: convert(array, BFLOAT16)
        for name, array in to_arrays(subject.model.state_dict()).items()
    }
    return InspectedText(build(subject.config, arrays), subject.tokenizer, subject.ids)


def test_a_step_of_descent_leaves_the_model_as_it_was_and_knows_no_half_numbers():
    subject = of_text(random_checkpoint(), "가각갂각")
    half = in_bfloat16(subject)
    kept = {name: each.clone() for name, each in half.model.named_parameters()}
    same = InspectedText(
        build(half.config, to_arrays(half.model.state_dict())), subject.tokenizer, subject.ids
    )
    assert descent_view(half, 0.1) == descent_view(same, 0.1)
    for name, each in half.model.named_parameters():
        assert torch.equal(each, kept[name])
        assert each.grad is None


@pytest.mark.parametrize(
    ("rate", "worse"), [(0.0, False), (0.01, False), (30.0, True), (900.0, True)]
)
def test_a_step_that_goes_too_far_says_so(rate, worse):
    view = descent_view(of_text(random_checkpoint(), "가각갂가각"), rate)
    assert (view.loss_after > view.loss_before) == worse
    said = "\n".join(drawn(view.draw(200), 200))
    assert (
        f"! the loss increased: the gradient points down only nearby, and rate {rate:g} steps"
        in said
    ) == worse
    assert ("The model itself is unchanged" in said) == worse


def test_a_step_of_descent_is_one_of_the_model_as_it_is_changed():
    subject = of_text(random_checkpoint(), "가각갂각")
    silenced = subject.with_hook(silencing(subject, 0))
    expected = torch.nn.functional.cross_entropy(silenced.logits()[:-1], subject.input_ids[0, 1:])
    assert descent_view(silenced, 0.1).loss_before == pytest.approx(float(expected), abs=1e-5)
    assert descent_view(silenced, 0.1).loss_before != descent_view(subject, 0.1).loss_before


def test_a_step_needs_something_to_predict_and_a_rate_that_leads_to_numbers():
    with pytest.raises(UserError, match="no next token"):
        descent_view(of_text(random_checkpoint(), "가"), 0.1)
    with pytest.raises(UserError, match=r"not finite with rate=1e\+30"):
        descent_view(of_text(random_checkpoint(), "가각갂"), 1e30)
    damaged = random_checkpoint()
    damaged.tensors["lm_head.weight"][0] = np.nan
    with pytest.raises(UserError, match="the logits are not finite"):
        descent_view(of_text(damaged, "가각갂"), 0.1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("width", [40, 80])
def test_what_is_shown_of_a_step_can_be_computed_again(seed, width):
    view = descent_view(
        of_text(random_checkpoint(seed=seed), "가각갂가각"), (0.1, 0.5, 3.0)[seed % 3]
    )
    lines = drawn(view.draw(width), width)
    assert max(map(wcswidth, lines)) <= width
    rows = [re.fullmatch(r"\d+ .* ([\d.]+) +([\d.]+) +[↓↑=]", line.rstrip()) for line in lines]
    rows = [(float(row[1]), float(row[2])) for row in rows if row]
    assert len(rows) == 4
    mean = next(line for line in lines if line.split()[:1] == ["mean"]).split()
    for shown, column in zip(mean[-3:-1], zip(*rows, strict=True), strict=True):
        assert f"{sum(column) / 4:.3f}" == shown
    number = r"\(?(-?[\d.]+)\)?"
    equation = re.search(
        f"{number} − {number} × {number} = {number}", " ".join(" ".join(lines).split())
    )
    value, rate, gradient, new = map(float, equation.groups())
    assert value - rate * gradient == pytest.approx(new, abs=0.6e-6)


def part(subject, path):
    return type(subject.model.get_submodule(path))


@pytest.mark.parametrize("path", ["", "blocks.0", "blocks.0.attention", "blocks.0.mlp"])
def test_the_code_shown_is_that_in_the_file_but_for_the_letters_of_shapes(both, path):
    thing = part(both[0], path)
    plain, sized = (
        source.compute("a part", thing),
        source.compute("a part", thing, compute_sizes(both[0])),
    )
    file = (
        (ROOT / "minillm_repl" / plain.file)
        .read_text(encoding="utf-8")
        .split("\n")[plain.line - 1 :]
    )
    lines = plain.code.split("\n")
    assert file[: len(lines)] == lines
    assert lines[0] == f"class {thing.__name__}(nn.Module):"
    for old, new in zip(lines, sized.code.split("\n"), strict=True):
        assert old.partition("  # ")[0] == new.partition("  # ")[0]
        assert re.sub(r"\w+", "", old) == re.sub(r"\w+", "", new)


def test_the_shapes_in_the_code_are_those_of_the_tensors(both):
    subject, found = both[0], {}

    def keep(name, tensor):
        found[name.removeprefix("blocks.0.")] = str(tuple(tensor.shape))
        return tensor

    logits = subject.with_hook(keep).logits()
    codes = {
        path: source.compute("a part", part(subject, path), compute_sizes(subject)).code
        for path in ("", "blocks.0.attention", "blocks.0.mlp")
    }
    expected = {
        "blocks.0.attention": {
            "permute(2" if "permute(2" in codes["blocks.0.attention"] else "q, k = qk.": found[
                "attention.q"
            ],
            "z = z.transpose(": found["attention.z"],
        },
        "blocks.0.mlp": {
            "hidden = self." if "self.up" in codes["blocks.0.mlp"] else "gate, up = ": found[
                "mlp.hidden"
            ]
        }
        if "mlp.hidden" in found  # each expert has its own
        else {},
        "": {"self.token_embedding(ids)": found["embedding"]},
    }
    for path, lines in expected.items():
        for start, shape in lines.items():
            line = next(
                line for line in codes[path].split("\n") if start in line and "  # " in line
            )
            assert shape in line.partition("  # ")[2], line
    assert compute_sizes(subject)["v"] == logits.shape[-1]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_code_is_drawn_whole(width):
    view = source.compute(
        "attention", part(of_text(random_checkpoint(), "가"), "blocks.0.attention")
    )
    lines = drawn(view.draw(width), width)
    assert max(map(wcswidth, lines)) <= width
    assert "".join("".join(lines).split()).endswith("".join(view.code.split()))


def test_one_key_gets_the_share_that_transformers_gives_it(both):
    ours, _, theirs = both
    view = qkv.compute_dot(ours, 1, 2, 20, 18)
    assert math.fsum(view.products) == pytest.approx(view.dot, abs=1e-4)
    scores = torch.tensor([score for _place, score, _weight in view.all_scaled]).double()
    assert view.scaled == pytest.approx(view.scoring.of(view.dot), abs=1e-5)
    assert scores.softmax(0).tolist() == pytest.approx(
        [weight for _place, _score, weight in view.all_scaled], abs=1e-6
    )
    assert view.weight == pytest.approx(float(theirs.attentions[1][0, 2, 20, 18]), abs=1e-5)
    for place, _, weight in view.all_scaled:
        assert weight == pytest.approx(float(theirs.attentions[1][0, 2, 20, place]), abs=1e-5)


def numbers(line):
    return re.findall(r"[+-]\d+\.\d+", line)


def rounded(value, like):
    """A value with as many digits as a shown number has."""
    return f"{value:+.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("head_size", [4, 16, 30])
@pytest.mark.parametrize("seed", range(3))
def test_a_dot_product_as_it_is_shown_adds_up_to_the_last_digit(seed, head_size, half):
    subject = of_text(random_checkpoint(seed=seed, width=3 * head_size), "가각갂갃간")
    subject = in_bfloat16(subject) if half else subject
    view = qkv.compute_dot(subject, 1, 2, -1, 2)
    lines = drawn(view.draw(80), 80)
    rows = [numbers(line) for line in lines if len(numbers(line)) == 3 and "%" not in line]
    assert len(rows) == (head_size if head_size <= 16 else 12)
    for q, k, product in rows:
        assert rounded(float(q) * float(k), product) == product
    (rest,) = [numbers(line) for line in lines if "more" in line] or [["0"]]
    (dot,) = numbers(next(line for line in lines if "sum, q·k" in line))
    (scaled,) = numbers(next(line for line in lines if "÷ √" in line))
    assert rounded(sum(float(row[2]) for row in rows) + float(rest[0]), dot) == dot
    assert rounded(float(dot) / math.sqrt(head_size), scaled) == scaled
    shares = re.findall(r"(\d) \S ([+-]\d+\.\d+) +(<?[\d.]+%)", " ".join(lines))
    assert [int(place) for place, _, _ in shares] == [0, 1, 2, 3, 4]
    assert shares[2][1] == scaled
    total = sum(math.exp(float(score)) for _, score, _ in shares)
    for _, score, share in shares:
        computed = math.exp(float(score)) / total
        assert (f"{computed:.1%}" if computed >= 0.0005 else "<0.1%") == share


def test_a_key_that_is_not_seen_is_refused():
    subject = of_text(random_checkpoint(), "가각갂갃")
    with pytest.raises(UserError, match="no position 3 in .*: positions run from 0 to 2"):
        qkv.compute_dot(subject, 0, 0, 2, 3)
    assert qkv.compute_dot(subject, 0, 0, 2, -3).met == 0


def test_a_key_before_the_window_is_out_of_sight(both):
    ours = both[0]
    windows = ours.config.sliding_windows
    if windows and windows[0]:
        with pytest.raises(UserError, match=f"attends to positions from {21 - windows[0]} onwards"):
            qkv.compute_dot(ours, 0, 0, -1, 0)
    else:
        assert len(qkv.compute_dot(ours, 0, 0, -1, 0).all_scaled) == 21


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_dot_product_fits(both, width):
    view = qkv.compute_dot(both[0], 1, 0, -1, 18)
    lines = drawn(view.draw(width), width)
    assert max(map(wcswidth, lines)) <= width
    below = " ".join(
        lines[lines.index(next(line for line in lines if line.startswith("softmax"))) :]
    )
    assert ("more" in below) == (len(view.all_scaled) > 16)
