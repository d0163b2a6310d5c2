"""Features of a model: a planted one is found, SAELens's arithmetic, and what is done by them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.render.export import plain_text
from minillm_repl.views import features_folder, features_train
from minillm_repl.views.features_use import ablating_hook
from minillm_repl.views.headless import run_view
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import MODELS, random_checkpoint
from tests.test_lessons import shell_for, state  # noqa: F401 - the last is a fixture
from tests.test_places import TEXT


@pytest.fixture(scope="module")
def tiny():
    """A model of random weights, and windows of random tokens."""
    checkpoint = random_checkpoint(vocab=23, context=16, width=12)
    model = build(checkpoint.config, checkpoint.tensors)
    generator = torch.Generator().manual_seed(0)
    windows = [tuple(torch.randint(23, (16,), generator=generator).tolist()) for _ in range(120)]
    return InspectedText(model, checkpoint.tokenizer, windows[0]), windows


def trained(streams, steps=300, features=36, k=3):
    trainer = features_train.Trainer(streams, 0, k, features)
    for _step in trainer.steps(steps):
        pass
    return trainer.dictionary()


def test_a_planted_feature_is_recovered_and_fires_where_it_was_planted(tiny):
    text, windows = tiny
    direction = torch.nn.functional.normalize(
        torch.randn(12, generator=torch.Generator().manual_seed(1)), dim=0
    )

    chance = torch.Generator().manual_seed(2)
    streams, planted = [], []
    for window in windows:
        there = torch.rand(16, 1, generator=chance) < 0.05

        def plant(name, tensor, there=there):
            return tensor + 15 * there * direction if name == "blocks.0.residual" else tensor

        subject = replace(text, hook=plant)
        streams.append(
            features_train.collect(subject, [window], "blocks.0.residual", lambda: False)
        )
        planted.append(there[:, 0])
    streams, there = torch.cat(streams), torch.cat([each[1:] for each in planted])
    dictionary = trained(streams, steps=400, features=24, k=2)
    cosines = torch.nn.functional.normalize(dictionary.decoder, dim=-1) @ direction
    best = int(cosines.argmax())
    assert cosines[best] > 0.9
    activations = dictionary.encode(streams)[:, best]
    assert activations[there].mean() > 10 * activations[~there].mean()
    assert torch.allclose(dictionary.decoder.norm(dim=-1), torch.ones(24), atol=1e-5)
    examples = features_train.find_examples(dictionary, streams, windows, lambda: False)
    assert examples.values[best][0] == pytest.approx(float(activations.max()))
    at = int(activations.argmax())
    window, place = divmod(at, 15)  # the first token of each window is left out
    assert planted[window][place + 1]
    assert examples.ids[best][0][examples.marked[best][0]] == windows[window][place + 1]
    assert examples.density[best] == pytest.approx(float((activations > 0).float().mean()))


def by_hand(arrays, x, config):
    """SAELens's own formulas, in numpy."""
    before = (x - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"]
    norms = np.linalg.norm(arrays["W_dec"], axis=-1)
    if config.get("rescale_acts_by_decoder_norm"):
        before = before * norms
    if config["architecture"] == "topk":
        active = np.zeros_like(before)
        top = np.argsort(-before, axis=-1)[:, : config["k"]]
        np.put_along_axis(active, top, np.maximum(np.take_along_axis(before, top, -1), 0), -1)
    else:
        active = np.maximum(before, 0)
        if config["architecture"] == "jumprelu":
            active = before * (before > arrays["threshold"]) * (before > 0)
    scaled = active / norms if config.get("rescale_acts_by_decoder_norm") else active
    return active, scaled @ arrays["W_dec"] + arrays["b_dec"]


def a_folder(tmp_path, config, width=12, features=30):
    import safetensors.numpy

    rng, shapes = np.random.default_rng(0), features_folder._shapes(
        config.get("architecture"), width, features
    )  # fmt: skip
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    (tmp_path / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    safetensors.numpy.save_file(arrays, tmp_path / "sae_weights.safetensors")
    return arrays


BASE = {"d_in": 12, "d_sae": 30, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}


@pytest.mark.parametrize(
    "kind",
    [
        {"architecture": "topk", "k": 4},
        {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True},
        {"architecture": "standard"},
        {"architecture": "jumprelu"},
    ],
)
def test_a_folder_of_saelens_opens_computes_and_comes_back(tmp_path, kind):
    arrays, config = a_folder(tmp_path, BASE | kind), random_checkpoint(width=12).config
    dictionary = features_folder.load(tmp_path, config)
    x = np.random.default_rng(1).normal(size=(50, 12)).astype(np.float32)
    active, made = by_hand(arrays, x, BASE | kind)
    np.testing.assert_allclose(dictionary.encode(torch.tensor(x)), active, rtol=0, atol=1e-4)
    again = dictionary.decode(dictionary.encode(torch.tensor(x)))
    np.testing.assert_allclose(again, made, rtol=0, atol=1e-4)
    features_folder.save(dictionary, tmp_path / "copy", "tiny")
    copy = features_folder.load(tmp_path / "copy", config)
    assert torch.equal(copy.encode(torch.tensor(x)), dictionary.encode(torch.tensor(x)))
    assert copy.layer == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gated"}, "architecture that does not open"),
        ({"d_in": 13}, "another width"),
        ({"d_sae": 2**40}, "no valid d_sae"),
        ({"k": 0}, "no valid k"),
        ({"d_sae": 31}, "must have the shape"),
        ({"metadata": {"hook_name": "blocks.9.hook_resid_post"}}, "not for a residual stream or"),
        ({"metadata": {"hook_name": "\x1b[2Jx"}}, "not for a residual stream or"),
        ({"normalize_activations": "layer_norm"}, "not done here"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, change, message):
    a_folder(tmp_path, BASE | {"architecture": "topk", "k": 4})
    config = BASE | {"architecture": "topk", "k": 4} | change
    (tmp_path / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        features_folder.load(tmp_path, random_checkpoint(width=12).config)
    assert "\x1b" not in str(error.value)


def test_the_figures_are_what_a_computation_by_hand_says(tiny):
    text, windows = tiny
    streams = features_train.collect(text, windows[20:], "blocks.0.residual", lambda: False)
    dictionary = trained(streams, steps=120)
    figures = features_train.measure(dictionary, text, windows[:2])
    losses = {"loss": 0.0, "loss_with": 0.0, "loss_without": 0.0}
    for name, change in (
        ("loss", lambda x: x),
        ("loss_with", lambda x: dictionary.decode(dictionary.encode(x))),
        ("loss_without", lambda x: 0 * x),
    ):

        def hook(place, x, change=change):
            if place == "blocks.0.residual":
                x = x.clone()
                x[:, 1:] = change(x[:, 1:])
            return x

        with torch.no_grad():
            for window in windows[:2]:
                logs = text.model(torch.tensor([window]), hook=hook)[0].log_softmax(-1)
                losses[name] -= sum(float(logs[at, window[at + 1]]) for at in range(1, 15)) / 28
    for name, value in losses.items():
        assert getattr(figures, name) == pytest.approx(value, rel=1e-4)
    assert 0 < figures.recovered <= 1.05
    assert figures.l0 <= 3
    assert 0.5 < figures.explained <= 1


def test_features_are_trained_kept_shown_and_steered_by(state, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shell = shell_for(MODELS / "nalssi.safetensors")
    with pytest.raises(UserError, match="no features yet"):
        run_view(shell, "features", f'"{TEXT}"')
    corpus = MODELS / "nalssi.txt"
    fitted = run_view(shell, "features", f"train layer=2 text={corpus} k=8 width=2 steps=150")
    assert (fitted.features, fitted.k, fitted.steps) == (128, 8, 150)
    assert fitted.figures.recovered > 0.8
    more = run_view(shell, "features", f"more text={corpus} steps=20")
    assert more.steps == 170
    assert more.figures.recovered > 0.8
    listed = run_view(shell, "features", f'"{TEXT}"')
    feature = listed.rows[0].feature
    one = run_view(shell, "features", str(feature))
    assert one.examples[0].value >= 0.5 * listed.rows[0].peak
    for view in (listed, one, fitted):
        assert max(map(len, plain_text(view, 80).splitlines())) <= 80
    model = shell.require_model()
    dictionary = features_folder.load(next((tmp_path / "cache").rglob("layer-2")),
                                          model.checkpoint.config)  # fmt: skip
    ids = model.checkpoint.tokenizer.encode(TEXT)
    text = InspectedText(model.language_model, model.checkpoint.tokenizer, tuple(ids))
    place = "blocks.2.residual"
    before = text.run_with_cache(place)[1][place]
    hook = ablating_hook(dictionary, feature)
    after = text.with_hook(hook).run_with_cache(place)[1][place]
    active = dictionary.encode(before)[:, feature]
    torch.testing.assert_close(before - after, active[:, None] * dictionary.decoder[feature])
    view_commands = shell.registry.get("features")
    for line in (f"steer {feature} strength=3", f"ablate {feature}"):
        view_commands.run(shell, view_commands.parse(line))
        assert len(shell.require_model().interventions) == 1  # the same feature: one replaces it
    view_commands.run(shell, view_commands.parse("off"))
    assert not shell.require_model().interventions
    view_commands.run(shell, view_commands.parse(f"save {tmp_path}/out"))
    assert {each.name for each in (tmp_path / "out").iterdir()} >= {
        "cfg.json", "sae_weights.safetensors",
    }  # fmt: skip
    opened = run_view(shell, "features", f"open text={corpus} {tmp_path}/out")
    assert opened.figures.loss_with == pytest.approx(more.figures.loss_with, rel=1e-4)


def test_ctrl_c_keeps_what_was_trained(state, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shell = shell_for(MODELS / "nalssi.safetensors")
    presses = iter(range(10_000))
    shell.interrupted = lambda: next(presses) > 80
    line = f"train layer=1 text={MODELS / 'nalssi.txt'} width=1 k=4 steps=5000"
    view = run_view(shell, "features", line)
    assert 0 < view.steps < 5000
    shell.interrupted = lambda: False
    assert run_view(shell, "features", f'"{TEXT}"').steps == view.steps


def test_a_transcoder_learns_an_mlp_and_its_figures_are_those_of_a_direct_computation(tiny):
    """What replaces the output of the module is computed in numpy, from what the module reads."""
    text, windows = tiny
    trainer_of = lambda k: features_train.Trainer(  # noqa: E731
        *(features_train.collect(text, windows, f"blocks.1.mlp.{end}", lambda: False)
          for end in ("in",)), 1, k, 60,
        targets=features_train.collect(text, windows, "blocks.1.mlp.out", lambda: False),
    )  # fmt: skip
    trainer = trainer_of(12)
    for _step in trainer.steps(400):
        pass
    dictionary = trainer.dictionary()
    assert dictionary.is_transcoder and not dictionary.subtracts_bias
    held = windows[:8]
    figures = features_train.measure(dictionary, text, held)
    mlp, made, read = text.model.blocks[1].mlp, [], []
    losses = [0.0, 0.0, 0.0]
    for window in held:
        ids = torch.tensor([window])
        for at in range(3):

            def replaced(_module, given, out, at=at):
                x, out = given[0][0, 1:].detach().numpy().astype(float), out.clone()
                before = x @ dictionary.encoder.double().numpy() + dictionary.encoder_bias.numpy()
                active = np.zeros_like(before)
                top = np.argsort(-before, axis=-1)[:, : dictionary.k]
                kept = np.maximum(np.take_along_axis(before, top, -1), 0)
                np.put_along_axis(active, top, kept, -1)
                guess = (
                    active @ dictionary.decoder.double().numpy() + dictionary.decoder_bias.numpy()
                )
                if at == 0:
                    made.append(out[0, 1:].detach().double().numpy())
                    read.append((guess, (active > 0).sum()))
                    return None
                out[0, 1:] = torch.tensor(guess) if at == 1 else 0
                return out

            handle = mlp.register_forward_hook(replaced)
            with torch.no_grad():
                logits = text.model(ids)[0, 1:-1].double()
            handle.remove()
            losses[at] += float(torch.nn.functional.cross_entropy(logits, ids[0, 2:])) / len(held)
    found = figures.loss, figures.loss_with, figures.loss_without
    assert found == pytest.approx(losses, rel=1e-4)
    y, guess = np.concatenate(made), np.concatenate([each for each, _count in read])
    explained = 1 - ((y - guess) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert figures.explained == pytest.approx(explained, abs=1e-4)
    assert figures.l0 == pytest.approx(sum(count for _each, count in read) / len(y))
    assert figures.explained > 0.7


@pytest.mark.parametrize("kind", ["transcoder", "jumprelu_transcoder", "topk_transcoder"])
def test_a_folder_of_a_transcoder_opens_computes_and_comes_back(tmp_path, kind):
    config = BASE | {"architecture": kind, "k": 4, "d_out": 12, "apply_b_dec_to_input": False}
    config["metadata"] = {"hook_name": "blocks.1.mlp.hook_in"}
    shapes = features_folder._shapes(kind.rpartition("_")[0] or "standard", 12, 30)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    import safetensors.numpy

    safetensors.numpy.save_file(arrays, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    ours = random_checkpoint(width=12).config
    dictionary = features_folder.load(tmp_path, ours)
    assert (dictionary.reads, dictionary.writes) == ("blocks.1.mlp.in", "blocks.1.mlp.out")
    x = rng.normal(size=(50, 12)).astype(np.float32)
    before = x @ arrays["W_enc"] + arrays["b_enc"]  # as `encode` of a Transcoder in SAELens
    active = np.maximum(before, 0)
    if kind == "jumprelu_transcoder":
        active = active * (before > arrays["threshold"])
    if kind == "topk_transcoder":
        active = np.where(before >= np.sort(before, axis=-1)[:, -4:-3], active, 0)
    np.testing.assert_allclose(dictionary.encode(torch.tensor(x)), active, rtol=0, atol=1e-4)
    features_folder.save(dictionary, tmp_path / "copy", "tiny")
    written = json.loads((tmp_path / "copy" / "cfg.json").read_text())
    assert (written["architecture"], written["d_out"]) == (kind, 12)
    assert written["apply_b_dec_to_input"] is False  # or SAELens refuses it
    again = features_folder.load(tmp_path / "copy", ours)
    assert torch.equal(again.encode(torch.tensor(x)), dictionary.encode(torch.tensor(x)))
    config["metadata"] = {"hook_name": "blocks.1.ln2.hook_normalized"}
    (tmp_path / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="not for a residual stream or an MLP"):
        features_folder.load(tmp_path, ours)


def test_a_transcoder_is_trained_kept_and_intervened_by(state, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shell = shell_for(MODELS / "nalssi.safetensors")
    corpus = MODELS / "nalssi.txt"
    line = f"train layer=2 kind=transcoder text={corpus} k=8 width=2 steps=150"
    view = run_view(shell, "features", line)
    assert view.kind == "transcoder" and view.figures.explained > 0.4
    assert "transcoder of the MLP of layer 2" in plain_text(view, 80)
    more = run_view(shell, "features", f"more text={corpus} steps=20")
    assert (more.kind, more.steps) == ("transcoder", 170)
    listed = run_view(shell, "features", f'"{TEXT}"')
    feature = listed.rows[0].feature
    model = shell.require_model()
    ids = tuple(model.checkpoint.tokenizer.encode(TEXT))
    text = InspectedText(model.language_model, model.checkpoint.tokenizer, ids)
    dictionary = features_folder.load(next((tmp_path / "cache").rglob("layer-2-mlp")),
                                      model.checkpoint.config)  # fmt: skip
    read, place = "blocks.2.mlp.in", "blocks.2.mlp.out"
    before = text.run_with_cache(read, place)[1]
    after = text.with_hook(ablating_hook(dictionary, feature)).run_with_cache(place)[1][place]
    active = dictionary.encode(before[read])[:, feature]
    assert active.any()
    torch.testing.assert_close(before[place] - after, active[:, None] * dictionary.decoder[feature],
                               rtol=1e-4, atol=1e-5)  # fmt: skip
