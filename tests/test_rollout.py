"""`:attn rollout`: float64 products of the attentions of `transformers` say what the shares are."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from minillm_repl.errors import UserError
from minillm_repl.views import rollout
from tests.test_insight import any_both  # noqa: F401 - the fixture


def test_a_rollout_is_the_product_of_mean_attentions_and_identities(any_both):
    ours, _, theirs = any_both
    if len(ours.config.attention_layers) < ours.config.n_layers:
        with pytest.raises(UserError, match="layers without"):
            rollout.compute(ours)
        return
    rolled = np.eye(len(ours.ids))
    for layer, weights in enumerate(theirs.attentions):
        a = weights[0].double().numpy().mean(0)
        a = 0.5 * a + 0.5 * np.eye(len(a))
        rolled = (a / a.sum(-1, keepdims=True)) @ rolled
        found = rollout.compute(ours, layer)
        assert_allclose(found.shares, rolled[-1], rtol=0, atol=1e-6)
        assert sum(found.shares) == pytest.approx(1, abs=1e-5)
        assert len(found.by_layer) == layer + 1 and found.by_layer[-1] == found.shares
        assert_allclose(found.attention, weights[0, :, -1].double().mean(0), rtol=0, atol=1e-6)
    assert rollout.compute(ours).shares == found.shares
    with pytest.raises(UserError, match="no layer 99"):
        rollout.compute(ours, 99)
