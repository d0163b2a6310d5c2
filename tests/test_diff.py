"""`:diff`: what parts two models, against float64 and the models of `transformers`."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from minillm_repl.checkpoint.native import save_native
from minillm_repl.errors import UserError
from minillm_repl.model.build import build
from minillm_repl.views import diff
from minillm_repl.views.ablation import ablation_hook
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import random_checkpoint
from tests.test_insight import both  # noqa: F401 - the fixture

NAMES = ("ours", "theirs")


def test_two_models_part_as_their_distributions_and_streams_do_in_float64(both):
    theirs, _model, output = both
    changed = theirs.with_hook(ablation_hook(theirs, 1, 2))
    view = diff.compute(iter([(changed, theirs, 0, 0)]), NAMES, "text")
    q = output.logits[0].double().log_softmax(-1)  # of transformers
    p = changed.logits().double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert view.kl_mean == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-7)
    assert view.kl_median == pytest.approx(np.median(kl), rel=1e-3, abs=1e-7)
    assert view.flips == int((p.argmax(-1) != q.argmax(-1)).sum())
    ids = theirs.input_ids[0]
    loss = -q[:-1].gather(1, ids[1:, None]).mean()
    assert view.loss[1] == pytest.approx(float(loss), abs=1e-4)
    assert [each.kl for each in view.worst] == sorted(each.kl for each in view.worst)[::-1]
    assert view.worst[0].position == int(kl.argmax())
    assert view.parts_at == "1" and view.layers[1].distance == 0
    ours = changed.run_with_cache("blocks.1.residual")[1]["blocks.1.residual"]
    stream = output.hidden_states[2][0]
    expected = (ours - stream).norm(dim=-1).sum() / stream.norm(dim=-1).sum()
    assert view.layers[2].distance == pytest.approx(float(expected), rel=1e-3)


def test_a_model_and_itself_differ_by_exactly_nothing(both):
    ours = both[0]
    again = replace(ours)
    view = diff.compute(iter([(ours, again, 0, 0)]), NAMES, "text")
    assert (view.kl_mean, view.kl_max, view.flips, view.parts_at, view.worst) == (0, 0, 0, "", ())
    assert all(each.distance == 0 for each in view.layers)
    assert view.loss[0] == view.loss[1]


def test_windows_of_a_file_count_each_token_once_and_an_early_end_keeps_what_was_done():
    checkpoint = random_checkpoint(vocab=20, context=8)
    model = build(checkpoint.config, checkpoint.tensors)
    ids = torch.randint(20, (16,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [InspectedText(model, checkpoint.tokenizer, tuple(ids[at : at + 8])) for at in (0, 8)]
    hook = ablation_hook(texts[0], 0)

    def windows(last):
        yield texts[0].with_hook(hook), texts[0], 0, 0
        if last:
            raise UserError("stopped")
        yield texts[1].with_hook(hook), texts[1], 8, 0

    whole = diff.compute(windows(last=False), NAMES, "file")
    part = diff.compute(windows(last=True), NAMES, "file")
    assert (whole.positions, part.positions, part.stopped) == (16, 8, "stopped")
    assert {each.position for each in whole.worst} == set(range(16))
    single = replace(texts[0], ids=texts[0].ids[:1])
    assert math.isnan(diff.compute(iter([(single, single, 0, 0)]), NAMES, "t").loss[0])


def test_the_command_compares_with_a_file_and_with_itself_and_refuses_other_tokenizers(tmp_path):
    import minillm_repl as mr

    ours = random_checkpoint(vocab=20, context=8)
    save_native(ours, tmp_path / "ours.safetensors")
    save_native(random_checkpoint(vocab=21, context=8), tmp_path / "other.safetensors")
    (tmp_path / "text.txt").write_text("".join(map(chr, range(0xAC00, 0xAC14))), "utf-8")
    model = mr.load(tmp_path / "ours.safetensors")
    view = model.diff(f"{tmp_path}/ours.safetensors on {tmp_path}/text.txt")
    assert (view.positions, view.kl_max, view.text) == (20, 0, "text.txt")
    with pytest.raises(mr.UserError, match="different tokenizers"):
        model.diff(f"{tmp_path}/other.safetensors on 가각")
    assert model.view("diff", "가각", "base").kl_max == 0
