"""Numbers out and in: activations in safetensors files, ids as prompts, chats as prompts."""

import json

import pytest
import torch
from safetensors import safe_open

from minillm_repl.commands.activations import save_activations
from minillm_repl.errors import UserError
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.settings import Settings
from minillm_repl.tokenizer.lookup import typed_ids
from minillm_repl.views.headless import make_shell
from minillm_repl.views.prompts import chat_ids
from tests.test_huggingface import FAMILIES, random_ids, random_model


@pytest.fixture
def visited(tmp_path):
    """A model of transformers', a shell with the same model open and a text, and the file."""
    theirs = random_model(*FAMILIES["llama"])
    theirs.save_pretrained(tmp_path / "theirs")
    loader = ModelLoader()
    shell = make_shell(loader, loader.load(tmp_path / "theirs"), Settings(), print)
    ids = random_ids(9)
    shell.session.conversation.ids = ids[0].tolist()
    return theirs, ids, shell, tmp_path / "a.safetensors"


def save(shell, line):
    save_activations.run(shell, save_activations.parse(line))


def test_saved_activations_are_those_of_transformers_with_ids_and_text(visited):
    theirs, ids, shell, path = visited
    save(shell, f"{path} what=residual,logits,z,q,pattern layers=0-1 places=@2,-1")
    with torch.no_grad():
        out = theirs(ids, output_hidden_states=True, output_attentions=True)
    with safe_open(path, "pt") as file:
        found, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    rows = [2, 8]
    assert {name.split(".")[1] for name in found if "blocks" in name} == {"0", "1"}
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    expected = {
        "blocks.1.residual": out.hidden_states[2][0, rows],
        "blocks.1.attention.pattern": out.attentions[1][0][:, rows],
        "logits": out.logits[0, rows],
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)
    config = shell.require_model().checkpoint.config
    assert found["blocks.0.attention.z"].shape == (2, config.n_heads, config.head_dim)
    assert found["blocks.0.attention.q"].shape == (config.n_heads, 2, config.head_dim)
    assert json.loads(metadata["token_ids"]) == ids[0].tolist()
    assert json.loads(metadata["positions"]) == rows
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists: `--overwrite`"):
        save(shell, str(path))
    assert path.read_bytes() == before
    save(shell, f"{path} layers=2 --overwrite")
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["blocks.2.residual"]


@pytest.mark.parametrize(
    ("options", "told"),
    [("what=mind", "some of residual"), ("layers=9", "no layer 9"), ("places=@99", "no position"),
     ("layers=x", "layers such as"), ("what=residual layers=1 places=@", "missing after @")],
)  # fmt: skip
def test_what_is_not_there_is_named_and_no_file_is_made(visited, options, told):
    _theirs, _ids, shell, path = visited
    with pytest.raises(UserError, match=told):
        save(shell, f"{path} {options}")
    assert not path.exists()


def test_ids_are_a_text_as_they_are(visited):
    shell = visited[2]
    tokenizer = shell.require_model().checkpoint.tokenizer
    assert typed_ids(tokenizer, "ids:1 96 0") == [1, 96, 0]
    assert shell.encode(shell.require_model(), "ids:1 96 0") == [1, 96, 0]
    assert typed_ids(tokenizer, "ids: none") is None
    with pytest.raises(UserError, match=f"no token #{tokenizer.vocab_size}"):
        typed_ids(tokenizer, f"ids:1 {tokenizer.vocab_size}")


def test_a_chat_prompt_is_what_the_conversation_would_begin_with():
    from minillm_repl.storage.paths import find_checkpoint

    loader = ModelLoader()
    model = loader.load(find_checkpoint("hangul"))
    shell = make_shell(loader, model, Settings(), print)
    shell.start_chat_turn(model, "안녕", is_first=True)
    assert chat_ids(shell, model, "안녕") == shell.session.conversation.ids
