"""The log-probabilities of a given text: one computation, whatever decoder and passes it takes."""

import numpy as np
import pytest
import torch

from minillm_repl.errors import UserError
from minillm_repl.generate import scoring
from minillm_repl.generate.backends import make_decoder
from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.generate.generate import prefill
from minillm_repl.kernels.library import available
from minillm_repl.model.build import build
from tests.small import random_checkpoint

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]


def checkpoint(context=32):
    return random_checkpoint(context=context)


def decoders(context=32):
    found = checkpoint(context)
    return [
        *(make_decoder(found, kernels=variant) for variant in available()),
        TorchDecoder(build(found.config, found.tensors)),
    ]


def log_probabilities(ids):
    """Of every token after every prefix: (time, vocab), by torch in float64."""
    found = checkpoint()
    with torch.no_grad():
        return build(found.config, found.tensors)(torch.tensor([ids]))[0].double().log_softmax(-1)


@pytest.mark.parametrize("cached", [[], IDS[:7], IDS, [0, 0, 0]])
@pytest.mark.parametrize("since", [1, 6, 19])
def test_scores_are_those_of_torch_whatever_the_cache_holds(cached, since):
    logs = log_probabilities(IDS)
    for decoder in decoders():
        if cached:
            decoder.prefill(cached)
        found = list(decoder.score(IDS, since, 3))
        assert [each.id for each in found] == IDS[since:]
        for place, each in enumerate(found, since - 1):
            assert each.logprob == pytest.approx(float(logs[place, each.id]), abs=1e-5)
            assert each.rank == int((logs[place] > logs[place, each.id]).sum()) + 1
            best = logs[place].topk(3)
            assert [token for token, _logprob in each.top] == best.indices.tolist()
            assert [value for _token, value in each.top] == pytest.approx(
                best.values.tolist(), abs=1e-5
            )


def test_scores_do_not_depend_on_the_passes_they_are_computed_in(monkeypatch):
    for decoder in decoders():
        whole = list(decoder.score(IDS))
        monkeypatch.setattr(scoring, "_CHUNK_LOGITS", 7 * decoder.vocab_size)  # 7 tokens a pass
        decoder.trim(0)
        parts = list(decoder.score(IDS))
        assert [each.logprob for each in parts] == pytest.approx(
            [each.logprob for each in whole], abs=1e-5
        )
        monkeypatch.undo()


def test_what_two_texts_share_is_read_once():
    decoder, prompt, read = decoders()[0], IDS[:15], []
    prefill_all, forward = decoder.prefill_all, decoder.prefill
    decoder.prefill_all = lambda ids: read.append(len(ids)) or prefill_all(ids)
    decoder.prefill = lambda ids: read.append(len(ids)) or forward(ids)
    list(decoder.score([*prompt, 1, 2, 3], 15))
    assert sum(read) == 17  # the last token is read for nobody
    read.clear()
    list(decoder.score([*prompt, 4, 5], 15))
    assert sum(read) == 2  # the last token of the prompt, whose logits are needed, and the 4


def test_beyond_the_context_a_token_is_scored_after_what_the_model_sees():
    for decoder in decoders(context=8):
        found = [each.logprob for each in decoder.score(IDS, 4)]
        for place, logprob in enumerate(found, 4):
            logits = np.array(prefill(decoder, IDS[:place]), dtype=np.float64)
            expected = logits[IDS[place]] - np.log(np.exp(logits).sum())
            assert logprob == pytest.approx(expected, abs=1e-5)


def test_a_hook_is_in_every_score():
    found = checkpoint()
    model = build(found.config, found.tensors)
    changed = TorchDecoder(model, lambda name, x: x * 2 if name == "blocks.0.residual" else x)
    ours = [each.logprob for each in changed.score(IDS)]
    assert ours != pytest.approx([each.logprob for each in TorchDecoder(model).score(IDS)])


def test_ctrl_c_ends_it_between_two_passes():
    for decoder in decoders():
        with pytest.raises(UserError, match="stopped"):
            list(decoder.score(IDS, interrupted=lambda: True))


def test_logits_that_are_no_numbers_are_an_error():
    found = checkpoint()
    found.tensors["token_embedding.weight"][9] = np.nan
    with pytest.raises(UserError, match="not finite"):
        list(make_decoder(found).score([3, 1, 4, 1, 5, 9, 2]))
