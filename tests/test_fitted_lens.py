"""The Jacobian lens and the tuned lens: finite differences, the definition in float64, and training
that gets nearer to the model's own output than the logit lens.
"""

from dataclasses import replace

import pytest
import torch

from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.render.export import plain_text
from minillm_repl.views import lens_fit, lens_maps
from minillm_repl.views.headless import run_view
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import MODELS, random_checkpoint
from tests.test_lessons import shell_for, state  # noqa: F401 - the last is a fixture
from tests.test_places import TEXT

IDS = (3, 1, 4, 1, 5, 9, 2, 6)


@pytest.fixture
def tiny():
    """A model of random weights in float64, on a text of eight tokens."""
    checkpoint = random_checkpoint(layers=3)
    model = build(checkpoint.config, checkpoint.tensors).double()
    return InspectedText(model, checkpoint.tokenizer, IDS)


def tail(text, layer):
    """The model from a layer's stream (time, d_model) on to the last layer's."""
    place = "embedding" if layer < 0 else f"blocks.{layer}.residual"
    last = f"blocks.{text.config.n_layers - 1}.residual"

    def run(stream):
        found = {}

        def hook(name, tensor):
            if name == place:
                return stream[None]
            if name == last:
                found[name] = tensor[0]
            return tensor

        text.model(text.input_ids, hook=hook)
        return found[last]

    stream = text.run_with_cache(place)[1][place]
    return run, stream


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_j_is_its_definition_and_what_finite_differences_give(tiny, layer):
    found = lens_fit.jacobians(tiny, lambda: False)
    run, stream = tail(tiny, layer)
    whole = torch.autograd.functional.jacobian(run, stream)  # (t', d, t, d)
    valid = range(2, 7)  # a quarter of eight positions is skipped, and the last
    wanted = torch.zeros(12, 12, dtype=torch.float64)
    for t in valid:
        for later in valid:
            if later >= t:
                wanted += whole[later, :, t, :] / len(valid)
    place = "embedding" if layer < 0 else f"blocks.{layer}.residual"
    torch.testing.assert_close(found[place].double(), wanted, rtol=1e-5, atol=1e-6)
    # one column, by moving one dimension at one position after the other
    column, step = torch.zeros(12, dtype=torch.float64), 1e-5
    for t in valid:
        moved = stream.clone()
        moved[t, 5] += step
        with torch.no_grad():
            up = run(moved)[2:7].sum(0)
            moved[t, 5] -= 2 * step
            column += (up - run(moved)[2:7].sum(0)) / (2 * step) / len(valid)
    torch.testing.assert_close(found[place][:, 5].double(), column, rtol=1e-4, atol=1e-5)


def test_the_lens_of_several_texts_is_the_mean_of_theirs(tiny):
    windows = [IDS, IDS[::-1]]
    *_, (now, done) = lens_fit.fit_jacobian(tiny, windows, lambda: False)
    each = [lens_fit.jacobians(replace(tiny, ids=ids), lambda: False) for ids in windows]
    place = "blocks.0.residual"
    torch.testing.assert_close(now().maps[place], (each[0][place] + each[1][place]) / 2)
    assert done == now().texts == 2


def test_the_loss_of_the_tuned_lens_is_computed_directly_and_falls_below_the_logit_lens(tiny):
    generator = torch.Generator().manual_seed(0)
    windows = [tuple(torch.randint(11, (8,), generator=generator).tolist()) for _ in range(4)]
    text = replace(tiny, model=tiny.model.float())
    steps = list(lens_fit.fit_tuned(text, windows, 200, lambda: False))
    first = next(lens_fit.fit_tuned(text, windows, 200, lambda: False))[0]()
    for each in first.maps.values():
        assert torch.equal(each, torch.eye(12))
    subjects = [replace(text, ids=ids) for ids in windows]
    fitted = steps[-1][0]()
    rows = lens_maps.measure(fitted, subjects, lambda: False)
    for place, row in zip(fitted.maps, rows, strict=True):
        total = logit = 0.0
        for subject in subjects:
            logits, cache = subject.run_with_cache("embedding", "residual")
            final = logits.double().log_softmax(-1)
            for stream, bias in ((cache[place] @ fitted.maps[place].T + fitted.biases[place], 0),
                                 (cache[place], 1)):  # fmt: skip
                here = subject.model.unembed(stream).double().log_softmax(-1)
                kl = float((final.exp() * (final - here)).sum(-1).mean()) / len(subjects)
                total, logit = (total + kl, logit) if not bias else (total, logit + kl)
        assert row.kl == pytest.approx(total, rel=1e-6)
        assert row.logit_kl == pytest.approx(logit, rel=1e-6)
        assert row.kl < 0.8 * row.logit_kl
        assert row.control_kl > row.kl


def test_the_control_differs_from_the_identity_by_the_same_numbers(tiny):
    maps = next(lens_fit.fit_jacobian(tiny, [IDS], lambda: False))[0]()
    for place, each in maps.maps.items():
        control = maps.control.maps[place]
        assert not torch.allclose(control, each)
        torch.testing.assert_close(
            (control - torch.eye(12)).flatten().sort().values,
            (each - torch.eye(12)).flatten().sort().values,
            rtol=0, atol=1e-6,
        )  # fmt: skip


@pytest.fixture
def shell(state, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shell_for(MODELS / "nalssi.safetensors")


@pytest.mark.parametrize("kind", ["j", "tuned"])
def test_a_lens_is_fitted_on_samples_kept_and_beats_its_control(shell, kind):
    with pytest.raises(UserError, match=f":lens fit {kind}"):
        run_view(shell, "lens", f'{kind} "{TEXT}"')
    fitted = run_view(shell, "lens", f"fit {kind} texts=12 steps=60")
    better = sum(row.control_kl > row.kl for row in fitted.rows)
    assert better == len(fitted.rows) == 4
    view = run_view(shell, "lens", f'{kind} @좋 "{TEXT}"')
    plain = run_view(shell, "lens", f'@좋 "{TEXT}"')
    assert view.rows[-1] == view.logit_rows[-1] == plain.rows[-1]
    assert set(view.logit_rows) <= set(plain.rows)
    assert view.fit == fitted
    grid = run_view(shell, "lens", f'grid {kind} @좋 "{TEXT}"')
    assert [row.top[-1].token for row in grid.rows] == [row.top[0].token for row in view.rows]
    shown = plain_text(view, 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert ("Jacobian lens" if kind == "j" else "tuned lens") in shown
    assert "samples of the model" in shown


def test_a_lens_of_other_weights_or_a_broken_file_is_refused(shell, tmp_path):
    run_view(shell, "lens", "fit j texts=2 tokens=16")
    model = shell.require_model()
    path = lens_maps.lens_path(lens_maps.digest(model), "j")
    data = path.read_bytes()
    for broken in (data[:-4], data.replace(b'\\"steps\\":', b'\\"stepz\\":'), b"{}"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=path.name[:20]):
            lens_maps.load(model, "j")
    other = shell_for(MODELS / "hangul.safetensors").require_model()
    with pytest.raises(UserError, match="no such lens yet"):
        lens_maps.load(other, "j")


def test_ctrl_c_keeps_what_was_fitted(shell):
    presses = iter(range(100))
    shell.interrupted = lambda: next(presses) > 60
    maps = lens_fit.fit(shell, "tuned", str(MODELS.parent / "README.md"), 8, 16, 1000)
    assert 0 < maps.steps < 1000
    shell.interrupted = lambda: False
    assert lens_maps.load(shell.require_model(), "tuned").steps == maps.steps
