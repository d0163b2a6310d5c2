"""Ablation: what stands in the place of a part, as in `transformers`; scans against single runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import minillm_repl as mr
from minillm_repl.errors import UserError
from minillm_repl.generate.backends import make_decoder
from minillm_repl.render.export import plain_text
from minillm_repl.repl.model_loading import LoadedModel, ModelLoader
from minillm_repl.repl.settings import Settings
from minillm_repl.views import effect
from minillm_repl.views.ablate_scan import compute_scan
from minillm_repl.views.ablation import (
    ablation_hook,
    direction_hook,
    direction_places,
)
from minillm_repl.views.direction_fit import Direction, LayerQuality
from minillm_repl.views.edges import WRITES, check_graph, cut_hook
from minillm_repl.views.headless import make_shell
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.partial_pass import can_begin_inside
from tests.conftest import random_checkpoint
from tests.test_huggingface import random_ids
from tests.test_insight import make_both, of_text
from tests.test_interventions import HEAD, LAYER, layers, projection


@pytest.fixture(params=["gpt2", "gpt_neox", "llama tied, biased", "gemma2", "lfm2"])
def some(request, tmp_path):
    return make_both(request, tmp_path)


@pytest.fixture
def texts(some):
    """Two reference texts, the first longer than the inspected one, the second shorter."""
    ours = some[0]
    return [
        InspectedText(ours.model, ours.tokenizer, tuple(random_ids(size, seed=size)[0].tolist()))
        for size in (23, 13)
    ]


def piece_of(effect):
    return {"head": effect.head, "attention": "attention", "feed-forward": "mlp",
            "layer": None}[effect.kind]  # fmt: skip


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_a_scan_has_what_each_ablation_alone_does(some, texts, how, monkeypatch):
    ours, _, theirs = some
    reference = [] if how == "zero" else texts
    targets = ours.input_ids[0, 1:]
    whole = theirs.logits[0]
    first, second = whole[-1].argsort(descending=True)[:2].tolist()
    before = whole[-1].double().log_softmax(-1)

    def loss(logits):
        return float(cross_entropy(logits[:-1].double(), targets))

    def apart(logits):
        return float(logits[-1, first].double() - logits[-1, second].double())

    def kl(logits):
        now = logits[-1].double().log_softmax(-1)
        return float((now.exp() * (now - before)).sum())

    measures = {"loss": loss, "logits": apart, "kl": kl}
    views = {by: compute_scan(ours, how, what="all", by=by, reference=reference) for by in measures}
    n_attention = len(ours.config.attention_layers)
    expected = n_attention * ours.config.n_heads + 3 * ours.config.n_layers
    assert {len(view.effects) for view in views.values()} == {views["kl"].parts} == {expected}
    assert views["loss"].before == pytest.approx(loss(whole), abs=1e-5)
    assert views["logits"].before == pytest.approx(apart(whole), abs=1e-4)
    for by, view in views.items():
        changes = [each.change for each in view.effects]
        assert changes == sorted(changes, reverse=True)
        for each in view.effects[::7]:
            # each text to resample from by itself: the scan has their mean
            runs = [[text] for text in texts] if how == "resample" else [reference]
            found = [
                measures[by](ours.with_hook(ablation_hook(
                    ours, each.layer, piece_of(each), how, one)).logits())
                for one in runs
            ]  # fmt: skip
            change = sum(found) / len(found) - (view.before or 0.0)
            assert each.change == pytest.approx(change, abs=1e-4)
    monkeypatch.setattr("minillm_repl.views.ablate_scan._MAX_WORK", 1)  # one at a time
    monkeypatch.setattr("minillm_repl.views.ablate_scan._MAX_LOGITS", 1)
    again = compute_scan(ours, how, what="all", reference=reference)
    assert {each.part: pytest.approx(each.change, abs=1e-5) for each in again.effects} == {
        each.part: each.change for each in views["loss"].effects
    }


@pytest.mark.parametrize("how", ["mean", "resample"])
def test_what_stands_for_a_head_is_what_enters_the_projection_on_other_texts(some, texts, how):
    ours, theirs, _ = some
    layer = ours.config.attention_layers[-1]
    dense, size = projection(theirs, layer), ours.config.head_dim
    columns = slice(HEAD * size, (HEAD + 1) * size)
    seen = []
    hook = dense.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    with torch.no_grad():
        for each in texts:
            theirs(each.input_ids)
    hook.remove()
    instead = seen[0][: len(ours.ids)] if how == "resample" else (
        torch.cat([each[1:] for each in seen]).mean(0)
    )  # fmt: skip

    def replaced(_module, given):
        z = given[0].clone()
        z[..., columns] = instead[..., columns]
        return (z,)

    hook = dense.register_forward_pre_hook(replaced)
    with torch.no_grad():
        expected = theirs(ours.input_ids).logits[0]
    hook.remove()
    changed = ours.with_hook(ablation_hook(ours, layer, HEAD, how, texts)).logits()
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(changed, ours.logits(), atol=1e-3)


def test_a_text_longer_than_what_it_is_resampled_from_has_it_again_without_its_first(nalssi):
    ours = of_text(nalssi, "날씨가 좋다.")
    short = InspectedText(ours.model, ours.tokenizer, ours.ids[2:5])
    hook = ablation_hook(ours, 1, "mlp", "resample", [short])
    changed = ours.with_hook(hook).run_with_cache("1.mlp.out")[1]["blocks.1.mlp.out"]
    rows = short.run_with_cache("1.mlp.out")[1]["blocks.1.mlp.out"]
    torch.testing.assert_close(changed, rows[[0, 1, 2, 1, 2, 1, 2]][: len(ours.ids)])


@pytest.mark.parametrize("name", ["gpt2 untied, relu, wide", "gpt_neox", "llama", "qwen3"])
def test_a_direction_removed_everywhere_is_one_that_no_weight_writes(name, request, tmp_path):
    """Every matrix that writes into the stream is made orthogonal to it (Arditi et al., 2024)."""
    request.param = name
    ours, theirs, _ = make_both(request, tmp_path)
    along = normalize(torch.randn(ours.config.d_model, generator=torch.manual_seed(1)), dim=0)
    ends = ("c_proj", "dense", "dense_4h_to_h", "o_proj", "down_proj")
    with torch.no_grad():
        for part in theirs.modules():
            if isinstance(part, torch.nn.Embedding):
                part.weight -= (part.weight @ along)[:, None] * along
        for where, part in theirs.named_modules():
            if not where.endswith(ends):
                continue
            weight = part.weight.T if type(part).__name__ == "Conv1D" else part.weight
            weight -= along[:, None] * (along @ weight)
            if getattr(part, "bias", None) is not None:
                part.bias -= (part.bias @ along) * along
        expected = theirs(ours.input_ids).logits[0]
    hook = direction_hook(along, direction_places(ours.config.n_layers))
    removed = ours.with_hook(hook)
    torch.testing.assert_close(removed.logits(), expected, rtol=0, atol=1e-4)
    assert not torch.allclose(removed.logits(), ours.logits(), atol=1e-3)


def test_a_direction_removed_after_a_layer_is_no_longer_there(some):
    ours, theirs, _ = some
    along = normalize(torch.randn(ours.config.d_model, generator=torch.manual_seed(1)), dim=0)

    def project(_module, _given, out):
        x = out[0] if isinstance(out, tuple) else out
        x = x - (x @ along)[..., None] * along
        return (x, *out[1:]) if isinstance(out, tuple) else x

    hook = layers(theirs)[LAYER].register_forward_hook(project)
    with torch.no_grad():
        expected = theirs(ours.input_ids).logits[0]
    hook.remove()
    removed = ours.with_hook(direction_hook(along, direction_places(9, LAYER))).logits()
    torch.testing.assert_close(removed, expected, rtol=0, atol=1e-4)


def test_what_must_see_all_layers_is_scanned_by_whole_passes():
    """The hook of a cut circuit adds up what all layers have written."""
    ours = of_text(random_checkpoint(), "가각갂간")
    other = of_text(random_checkpoint(), "각간가갂")
    graph = check_graph(ours)
    kept = graph.all_edges() & (torch.rand(graph.all_edges().shape) > 0.5)
    instead = other.run_with_cache(*WRITES, last_only=True)[1]
    cut = ours.with_hook(cut_hook(ours.model, kept, instead))
    logits, cache = cut.run_with_cache("residual", last_only=True)
    assert not can_begin_inside(cut, list(cache.values())[-2], logits[0])
    assert can_begin_inside(
        ours, list(ours.run_with_cache("residual")[1].values())[-2], ours.logits()[-1]
    )
    view = compute_scan(cut, what="feed-forward", by="logits")
    for each in view.effects:
        logits = cut.with_hook(ablation_hook(cut, each.layer, "mlp")).logits()[-1]
        change = logits[view.answer.id] - logits[view.other.id] - view.before
        assert each.change == pytest.approx(float(change), abs=1e-4)


def test_a_text_of_one_token_has_no_loss_but_a_next_token():
    ours = of_text(random_checkpoint(), "가")
    with pytest.raises(UserError, match="one token"):
        compute_scan(ours)
    assert compute_scan(ours, by="kl").parts == 6


def test_a_scan_that_is_stopped_shows_what_it_has(nalssi, monkeypatch):
    monkeypatch.setattr("minillm_repl.views.ablate_scan._MAX_WORK", 1)
    stopped = []

    def ends(name, tensor):
        if stopped:
            raise UserError("stopped")
        return tensor

    ours = of_text(nalssi, "날씨가 좋다.").with_hook(ends)
    view = compute_scan(
        ours, progress=lambda share: stopped.append(share) if share > 0.3 else None,
        interrupted=lambda: bool(stopped),
    )  # fmt: skip
    assert 0 < len(view.effects) < view.parts
    assert f"stopped after {len(view.effects)} of {view.parts}" in plain_text(view, 200)


def test_the_title_says_in_which_direction_the_kl_is_and_the_rows_which_part():
    model = mr.load("nalssi")
    view = model.view("ablate", "날씨가 좋", "scan what=all by=kl")
    title, *rows = plain_text(view, 80).splitlines()
    assert title.startswith("ablation scan   KL(ablated ‖ whole)")
    assert any(row.startswith(("L0 mlp", "L1 mlp", "L2 mlp", "L3 mlp")) for row in rows)
    alone = model.view("ablate", "날씨가 좋", "0.mlp")
    assert next(each for each in view.effects if each.part == "0 feed-forward").change == (
        pytest.approx(alone.kl, abs=1e-6)
    )
    view = model.view("ablate", "날씨가 좋", "scan by=logits token=다 vs=은")
    assert "logit difference 다 − 은 without the part" in plain_text(view, 200)


def test_a_reference_is_a_file_or_samples_of_the_model(tmp_path):
    model = mr.load("nalssi")
    file = tmp_path / "words.txt"
    file.write_text("하늘이 맑고 바람이 불어요. 비가 오면 우산을 써요. " * 20)
    text = "날씨가 좋"
    means = {
        over: model.view("ablate", text, f"0.mlp mean {over}").kl
        for over in ("", f"over={file}", "over=samples")
    }
    assert len(set(means.values())) == 3
    view = model.view("ablate", text, f"scan resample over={file}")
    assert (view.source, view.texts) == ("words.txt", 4)
    assert "the mean over 4 texts of words.txt" in plain_text(view, 200)
    for wrong, message in (
        ("0 over=samples", "needs `mean` or"),
        ("scan token=다", "need by=logits"),
        ("direction nobody", "no direction nobody"),
        ("9.mlp", "no layer 9"),
    ):
        with pytest.raises(UserError, match=message):
            model.view("ablate", text, wrong)


def test_a_direction_of_the_session_is_removed_until_off(nalssi):
    warned = []
    shell = make_shell(ModelLoader(), LoadedModel(nalssi, make_decoder(nalssi)), Settings(),
                       warned.append)  # fmt: skip
    shell.session.conversation.ids = nalssi.tokenizer.encode("날씨가 좋")
    vectors = np.eye(nalssi.config.n_layers, nalssi.config.d_model, dtype=np.float32)
    quality = LayerQuality(1, 0.5, 0.75, 1, 0.25, 0.5, 0.5, -1)
    layers = tuple(replace(quality, auc=at / 9) for at in range(nalssi.config.n_layers))
    found = Direction("polite", "a", "nalssi", "mean", (4, 2), vectors, vectors, layers)
    shell.session.workspace.directions["polite"] = found
    whole = of_text(nalssi, "날씨가 좋")
    for line, layer, description in (
        (":ablate direction polite", None, "direction polite removed everywhere"),
        (":ablate direction polite 1", 1, "direction polite removed after layer 1"),
    ):
        shell.run_line(line)  # the second in the place of the first
        view, model = shell.last_shown, shell.require_model()
        assert [each.description for each in model.interventions] == [description]
        along = torch.from_numpy(vectors[found.best_layer if layer is None else layer])
        places = direction_places(nalssi.config.n_layers, layer)
        expected = effect.compute(whole, description, direction_hook(along, places))
        assert view.kl == expected.kl > 0
        assert view.random.directions == 32
    shell.run_line(":ablate off")
    assert not shell.require_model().interventions
    with pytest.raises(UserError, match="of another model"):
        shell.session.workspace.directions["polite"] = replace(found, mean=vectors[:1])
        shell.run_line(":ablate direction polite")
