"""`:direction`: directions from pairs, against a transcription of repeng and numpy in float64."""

import ctypes
import shutil
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

import minillm_repl as mr
from minillm_repl.checkpoint.gguf.write import save_control_vector, save_gguf
from minillm_repl.checkpoint.load_save import load as load_checkpoint
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.storage.encoding import DetectedEncoding
from minillm_repl.views import direction_fit
from minillm_repl.views.direction_fit import Direction, fit, read_pairs
from minillm_repl.views.inspected_text import InspectedText
from minillm_repl.views.steering import parse_named, residual_norm, steering_hook
from tests.outside import outside
from tests.test_huggingface import random_ids
from tests.test_insight import both  # noqa: F401 - the fixture


def texts_of(ours, count=13):
    ids = [tuple(random_ids(9, seed=seed)[0].tolist()) for seed in range(2 * count)]
    texts = [InspectedText(ours.model, ours.tokenizer, each) for each in ids]
    return list(zip(texts[::2], texts[1::2], strict=True))


def repeng(hidden):
    """`read_representations` of repeng 0.4, method `pca_diff`, as it has it with scikit-learn:
    `hidden` (2 · pair, d_model) has the positive text of each pair first.
    """
    train = hidden[::2] - hidden[1::2]
    centred = train - train.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)  # PCA(n_components=1, whiten=False)
    component = vectors[:, values.argmax()]
    projected = hidden @ component / np.linalg.norm(component)
    smaller = np.mean([projected[at] < projected[at + 1] for at in range(0, len(hidden), 2)])
    larger = np.mean([projected[at] > projected[at + 1] for at in range(0, len(hidden), 2)])
    return -component if smaller > larger else component


def test_directions_and_their_quality_are_those_of_float64(both):
    ours, theirs, _output = both
    pairs = texts_of(ours)
    mean, pca, layers = fit(pairs)
    with torch.no_grad():
        hidden = [
            torch.stack(
                [
                    theirs(each.input_ids, output_hidden_states=True).hidden_states[2][0, -1]
                    for each in pair
                ]
            )
            for pair in pairs
        ]
    streams = torch.stack(hidden).double().numpy()  # (pair, 2, d_model), after layer 1
    held_out = np.arange(len(pairs)) % 3 == 2
    train, test = streams[~held_out], streams[held_out]
    difference = train[:, 0].mean(0) - train[:, 1].mean(0)
    difference /= np.linalg.norm(difference)
    assert mean[1] @ difference > 0.9999
    assert pca[1] @ repeng(train.reshape(-1, train.shape[-1])) > 0.999
    first, second = test[:, 0] @ difference, test[:, 1] @ difference
    middle = (train @ difference).mean()
    accuracy = ((first > middle).sum() + (second <= middle).sum()) / (2 * len(test))
    auc = np.mean([a > b for a in first for b in second])
    assert (layers[1].accuracy, layers[1].auc) == pytest.approx((accuracy, auc))
    assert layers[1].norm == pytest.approx(np.linalg.norm(streams, axis=-1).mean(), rel=1e-4)
    assert 0.2 < layers[1].random_auc < 0.8


def test_a_control_vector_is_read_by_the_package_of_llama_cpp(tmp_path):
    vectors = {layer: np.arange(5, dtype=np.float32) + layer for layer in range(3)}
    save_control_vector(tmp_path / "v.gguf", vectors, "llama")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    found = {each.name: each.data.copy() for each in reader.tensors}
    assert list(found) == ["direction.1", "direction.2"]  # llama.cpp has no direction.0
    np.testing.assert_array_equal(found["direction.2"], vectors[2])
    field = lambda name: reader.get_field(name).contents()  # noqa: E731
    assert field("general.architecture") == "controlvector"
    assert (field("controlvector.model_hint"), field("controlvector.layer_count")) == ("llama", 2)


def test_a_direction_comes_back_from_its_file_and_from_no_other(tmp_path):
    quality = direction_fit.LayerQuality(1, 0.5, 0.75, 1, 0.25, 0.5, 0.5, -1)
    vectors = np.eye(2, 4, dtype=np.float32)
    ours = Direction("polite", "f.tsv", "m", "pca", (8, 4), vectors, -vectors, (quality,) * 2)
    direction_fit.save(ours, tmp_path / "d.safetensors")
    again = direction_fit.load(tmp_path / "d.safetensors")
    assert (again.name, again.method, again.pairs, again.layers) == (
        "polite", "pca", (8, 4), ours.layers,
    )  # fmt: skip
    np.testing.assert_array_equal(again.vectors, -vectors)
    direction_fit.save(replace(ours, mean=vectors * np.nan), tmp_path / "nan.safetensors")
    direction_fit.save(replace(ours, name="a b"), tmp_path / "name.safetensors")
    direction_fit.save(replace(ours, pca=vectors[:1]), tmp_path / "shape.safetensors")
    for name in ("nan", "name", "shape"):
        with pytest.raises(UserError, match="no file of a direction"):
            direction_fit.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError):
        direction_fit.load(shutil.copy(__file__, tmp_path / "text.safetensors"))


def test_shipped_pairs_are_sixty_each_and_a_line_that_is_no_pair_is_named(tmp_path):
    for name in direction_fit.shipped_pairs():
        pairs = read_pairs(direction_fit.find_pairs(name), DetectedEncoding())
        assert len(set(pairs)) == 60 and all(first != second for first, second in pairs)
    (tmp_path / "bad.tsv").write_text("a\tb\nc\n")
    with pytest.raises(UserError, match="line 2 of bad.tsv is no pair"):
        read_pairs(tmp_path / "bad.tsv", DetectedEncoding())
    (tmp_path / "few.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match="has 1 pairs"):
        read_pairs(tmp_path / "few.tsv", DetectedEncoding())


def test_a_name_and_its_strength():
    assert parse_named("polite=0.2") == ("polite", 0.2, None)
    assert parse_named("존댓말=-1 5") == ("존댓말", -1.0, 5)
    assert parse_named("눈이 오면") is parse_named("a=b") is parse_named("a=1.2.3") is None


def test_the_command_makes_a_direction_of_a_file_and_names_what_is_not_there(tmp_path):
    model = mr.load("nalssi")
    lines = [f"날씨가 {a}\t바람이 {b}" for a in "좋다분" for b in "좋다"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines), "utf-8")
    view = model.view("direction", "날씨", f"weather from {tmp_path}/pairs.tsv")
    assert view.pairs == (4, 2) and len(view.layers) == 4
    with pytest.raises(UserError, match="no direction wind"):
        model.view("direction", "날씨", "wind")


def test_steering_by_name_adds_a_share_of_the_residual_norm(both):
    """Through the screen's command: the hook adds strength · norm · unit vector after the layer."""
    ours = both[0]
    mean, _pca, layers = fit(texts_of(ours))
    hook = steering_hook(torch.from_numpy(mean[1]), 1, 0.2 * layers[1].norm)
    name = "blocks.1.residual"
    added = ours.with_hook(hook).run_with_cache(name)[1][name] - ours.run_with_cache(name)[1][name]
    torch.testing.assert_close(
        added.norm(dim=-1), torch.full((len(ours.ids),), 0.2 * layers[1].norm), rtol=1e-3, atol=1e-4
    )


@pytest.fixture(scope="module")
def in_llama_cpp(tmp_path_factory):
    """SmolLM2 as we save it in GGUF, opened by llama.cpp itself, with our model of the same
    weights; `logits(vector, layers)` are those after the last token of a text.
    """
    llama_cpp = pytest.importorskip(
        "llama_cpp", reason="needs llama.cpp itself: pip install llama-cpp-python"
    )
    checkpoint = load_checkpoint(outside("smollm2"), dtype="float32")
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    save_gguf(checkpoint, path, "f32")
    llama = llama_cpp.Llama(
        str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1,
        type_k=0, type_v=0, flash_attn=False,  # keys and values in float32
    )  # fmt: skip
    ids = checkpoint.tokenizer.encode("The capital of France is the city of", add_special=True)

    def logits(vectors=None):
        layers, width = checkpoint.config.n_layers, checkpoint.config.d_model
        data = np.zeros((layers - 1, width), np.float32)  # of layers 1, 2, …
        for layer, each in (vectors or {}).items():
            data[layer - 1] = each
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) if vectors else None
        context = llama._ctx.ctx
        assert not llama_cpp.llama_set_adapter_cvec(
            context, pointer, data.size if vectors else 0, width, 1, layers - 1
        )
        llama.reset()
        llama.eval(ids)
        return torch.from_numpy(np.array(llama.scores[len(ids) - 1], np.float32))

    model = build(checkpoint.config, checkpoint.tensors)
    return InspectedText(model, checkpoint.tokenizer, tuple(ids)), logits


@pytest.mark.slow
@pytest.mark.parametrize("layer", [1, 29])
def test_a_control_vector_does_in_llama_cpp_what_steering_does_here(in_llama_cpp, layer, tmp_path):
    ours, theirs = in_llama_cpp
    generator = torch.Generator().manual_seed(layer)
    unit = torch.nn.functional.normalize(
        torch.randn(ours.config.d_model, generator=generator), dim=0
    )
    strength = 0.2 * residual_norm(ours, layer)
    # What the file holds is what a scale of 1 adds.
    save_control_vector(tmp_path / "v.gguf", {layer: (strength * unit).numpy()}, "llama")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    vectors = {int(each.name.split(".")[1]): each.data.copy() for each in reader.tensors}
    assert list(vectors) == [layer]
    plain, steered = (
        text.logits(last_only=True)[0]
        for text in (ours, ours.with_hook(steering_hook(unit, layer, strength)))
    )
    torch.testing.assert_close(theirs(), plain, rtol=0, atol=1e-2)
    torch.testing.assert_close(theirs(vectors), steered, rtol=0, atol=1e-2)
    assert (steered - plain).abs().max() > 0.5, "or else nothing was shown"
