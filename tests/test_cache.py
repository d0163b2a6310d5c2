"""`:cache`: the cache of `transformers` says which keys and values are kept of a text."""

import pytest
import torch

from minillm_repl.generate.backends.torch import TorchDecoder
from minillm_repl.model.attention import KVCache
from minillm_repl.views import cache
from minillm_repl.views.inspected_text import InspectedText
from tests.test_insight import any_both  # noqa: F401 - the fixture


def test_norms_and_the_attention_to_each_position_are_those_of_transformers(any_both):
    ours, model, theirs = any_both
    with torch.no_grad():
        kept = model(ours.input_ids, use_cache=True).past_key_values
    found = cache.measure(ours)
    assert sorted(found) == list(ours.config.attention_layers)
    attentions = [each for each in theirs.attentions if each is not None]
    for at, (layer, (keys, values, received)) in enumerate(sorted(found.items())):
        for own, name in ((keys, "keys"), (values, "values")):
            expected = getattr(kept.layers[layer], name)[0].norm(dim=-1).mean(0).double()
            # Of a window, `transformers` keeps the last positions only.
            torch.testing.assert_close(own[-len(expected) :], expected, rtol=1e-4, atol=1e-5)
        weights = attentions[at][0].double()  # (head, time, time)
        shares = weights.tril(-1).sum(1).mean(0) / (len(ours.ids) - 1)
        torch.testing.assert_close(received, shares, rtol=0, atol=1e-5)
    view = cache.compute(ours, TorchDecoder(ours.model))
    total = sum(each[2] for each in found.values())
    assert view.sink == int(total.argmax())
    layer = cache.compute_layer(ours, ours.config.attention_layers[-1])
    assert layer.received == tuple(found[layer.layer][2].tolist())


@pytest.mark.parametrize("tokens", [1, 130])
def test_the_bytes_of_all_layers_are_those_of_the_cache(any_both, tokens):
    ours = any_both[0]
    config = ours.config
    kept = KVCache(config, torch.device("cpu"))
    kept.reserve(tokens)
    per_layer = sum(cache.bytes_per_position(config, layer) for layer in range(config.n_layers))
    if config.attention_layers == tuple(range(config.n_layers)) and not config.has_canon_layers:
        assert per_layer * kept.capacity == kept.nbytes
    else:  # room is kept in all layers for both, whatever a layer has
        assert per_layer * kept.capacity < kept.nbytes
    assert kept.update(0, *torch.zeros(2, 1, config.n_kv_heads, 1, config.head_dim))[0].dtype == (
        torch.float32
    )


def test_a_text_of_one_token_has_no_later_tokens(any_both):
    ours = any_both[0]
    view = cache.compute(
        InspectedText(ours.model, ours.tokenizer, ours.ids[:1]), TorchDecoder(ours.model)
    )
    assert view.sink == 0 and all(each.sink_share == 0 for each in view.layers)
