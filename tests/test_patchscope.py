"""`:patchscope`: hooks in `transformers` say what a prompt goes on with."""

import pytest
import torch

from minillm_repl.checkpoint.load_save import load
from minillm_repl.errors import UserError
from minillm_repl.views import patchscope
from minillm_repl.views.inspected_text import InspectedText
from tests.conftest import MODELS
from tests.test_huggingface import random_ids
from tests.test_insight import any_both  # noqa: F401 - the fixture
from tests.test_interventions import layers

AT, COUNT = 4, 3


def went_on(model, ids, layer, state):
    """What the model goes on with, the output of one layer replaced at a position."""

    def put(_module, _given, out):
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        hidden[:, AT] = state
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    hook = layers(model)[layer].register_forward_hook(put)
    probs = []
    with torch.no_grad():
        for _step in range(COUNT):
            found = model(ids, use_cache=False).logits[0, -1].softmax(-1).max(-1)
            probs.append(float(found.values))
            ids = torch.cat((ids, found.indices[None, None]), dim=1)
    hook.remove()
    return ids[0, -COUNT:].tolist(), probs[0]


@pytest.mark.parametrize("into", [None, 1])
def test_a_state_says_what_it_says_in_transformers(any_both, into):
    ours, model, theirs = any_both
    target = InspectedText(ours.model, ours.tokenizer, tuple(random_ids(9, seed=5)[0].tolist()))
    view = patchscope.compute(ours, target, AT, into, COUNT)
    last = ours.config.n_layers - 1
    for layer in range(last):  # the last hidden state of transformers is after the norm
        state = theirs.hidden_states[layer + 1][0, -1]
        tokens, prob = went_on(model, target.input_ids, layer if into is None else into, state)
        said = view.rows[layer + 1]
        assert (said.place, [each.id for each in said.tokens]) == (str(layer), tokens)
        assert said.prob == pytest.approx(prob, abs=1e-5)
    logits = target.logits()[-1].softmax(-1)
    assert view.plain.prob == pytest.approx(float(logits.max()), abs=1e-6)
    assert len(view.rows) == last + 2 and view.rows[0].place == "embedding"


def test_a_state_of_the_last_layer_at_the_end_says_what_the_model_would(any_both):
    ours = any_both[0]
    target = InspectedText(ours.model, ours.tokenizer, ours.ids[:3])
    view = patchscope.compute(ours, target, 2, None, 1)
    own = ours.logits()[-1].softmax(-1)
    assert view.rows[-1].tokens[0].id == int(own.argmax())
    assert view.rows[-1].prob == pytest.approx(float(own.max()), abs=1e-5)


def test_a_model_of_characters_gets_a_prompt_of_its_letters():
    for name, shown in (("nalssi", ""), ("hangul", "가->가"), ("story", "a->a")):
        tokenizer = load(MODELS / f"{name}.safetensors").tokenizer
        ids = patchscope.identity_ids(tokenizer)
        text = b"".join(map(tokenizer.token_bytes, ids)).decode()
        assert shown in text
        assert not tokenizer.find_unknown(text) and len(ids) < 28


def test_a_target_without_room_is_refused(any_both):
    ours = any_both[0]
    with pytest.raises(UserError, match="leaves no room"):
        patchscope.compute(ours, ours, 2, None, ours.config.context_length)
    with pytest.raises(UserError, match="no layer 99"):
        patchscope.compute(ours, ours, 2, 99)
