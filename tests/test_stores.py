"""GGUF files of other programs: in the stores of ollama and LM Studio, and in the cache."""

import json
import os

import pytest

from minillm_repl.checkpoint.load_save import load, summarise
from minillm_repl.errors import UserError
from minillm_repl.repl.workspace import Workspace
from minillm_repl.storage.paths import cached_models, checkpoint_title, find_checkpoint
from minillm_repl.storage.stores import find_stored, stored_models
from tests.hostile_gguf import RIGHT

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home and a cache without models."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path / "home"


def in_ollama(root, place="registry.ollama.ai/library/qwen3/0.6b", digest=DIGEST, **more):
    manifest, blob = root / "manifests" / place, root / "blobs" / f"sha256-{digest}"
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    other = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64}
    for path, data in (
        (manifest, json.dumps({"schemaVersion": 2, "layers": [other, layer | more]}).encode()),
        (blob, RIGHT),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return blob


def written(path, data=RIGHT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_models_of_ollama_open_by_their_names(home, tmp_path, monkeypatch):
    root = home / ".ollama" / "models"
    blob = in_ollama(root)
    in_ollama(root, "registry.ollama.ai/library/small/latest")
    in_ollama(root, "registry.ollama.ai/me/mine/v1")
    in_ollama(root, "hf.co/some/body-GGUF/Q4_K_M")
    assert sorted(stored_models()) == [
        "ollama:hf.co/some/body-GGUF:Q4_K_M",
        "ollama:me/mine:v1",
        "ollama:qwen3:0.6b",
        "ollama:small:latest",
    ]
    assert find_checkpoint("ollama:qwen3:0.6b") == blob
    assert find_checkpoint("ollama:small") == blob
    assert load(find_checkpoint("ollama:qwen3:0.6b")).config.n_layers == 2
    assert checkpoint_title(blob) == "ollama:hf.co/some/body-GGUF:Q4_K_M"
    assert ("ollama:qwen3:0.6b", "ollama") in Workspace().models()
    assert summarise(blob).dtype == "F32"
    in_ollama(tmp_path / "elsewhere", "registry.ollama.ai/library/other/1b")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    assert list(stored_models()) == ["ollama:other:1b"]


def test_a_manifest_that_is_none_names_no_model(home):
    root = home / ".ollama" / "models"
    for number, digest in enumerate(("../../../etc/passwd", "sha256:" + "A" * 64, "", "sha512:00")):
        in_ollama(root, f"registry.ollama.ai/library/bad/{number}", digest=DIGEST)
        manifest = root / "manifests/registry.ollama.ai/library/bad" / str(number)
        data = json.loads(manifest.read_text())
        data["layers"][1]["digest"] = digest
        manifest.write_text(json.dumps(data))
    in_ollama(root, "registry.ollama.ai/library/bad/kind", mediaType="application/other")
    for number, text in enumerate(
        ("", "[", "[]", "{}", '{"layers": 3}', '{"layers": [1, [], {}]}')
    ):
        written(root / f"manifests/registry.ollama.ai/library/odd/{number}", text.encode())
    (root / "manifests/registry.ollama.ai/library/odd/folder").mkdir()
    os.mkfifo(root / "manifests/registry.ollama.ai/library/odd/fifo")
    in_ollama(root, "registry.ollama.ai/library/gone/1", digest="cd" * 32).unlink()
    assert stored_models() == {}
    assert find_stored("ollama:bad:0") is None
    with pytest.raises(UserError, match="cannot open ollama:bad:0"):
        load(find_checkpoint("ollama:bad:0"))


def test_models_of_lm_studio_open_by_their_names(home):
    models = home / ".lmstudio" / "models" / "me" / "tiny-GGUF"
    file = written(models / "tiny-Q4_0.gguf")
    written(models / "mmproj-tiny.gguf")
    written(models / "big-00001-of-00002.gguf")
    written(models / "big-00002-of-00002.gguf")
    written(home / ".cache" / "lm-studio" / "models" / "me" / "old" / "old.gguf")
    assert sorted(stored_models()) == [
        "lmstudio:me/old/old.gguf",
        "lmstudio:me/tiny-GGUF/big-00001-of-00002.gguf",
        "lmstudio:me/tiny-GGUF/tiny-Q4_0.gguf",
    ]
    assert find_checkpoint("lmstudio:me/tiny-GGUF/tiny-Q4_0.gguf") == file
    assert checkpoint_title(file) == "tiny-Q4_0"
    assert ("lmstudio:me/old/old.gguf", "LM Studio") in Workspace().models()


@pytest.mark.parametrize("beside", ["", "config.json"])
def test_a_folder_or_a_repository_with_one_gguf_file_is_that_file(beside, tmp_path):
    commit = "d" * 40
    snapshot = tmp_path / "hub" / "models--some-body--tiny-GGUF" / "snapshots" / commit
    file = written(snapshot / "tiny-Q4_K_M.gguf")
    written(snapshot / "README.md", b"#")
    if beside:
        written(snapshot / beside, b'{"model_type": "llama"}')
    assert cached_models() == {"some-body/tiny-GGUF": file}
    assert find_checkpoint("some-body/tiny-GGUF") == find_checkpoint(str(snapshot)) == file
    assert load(find_checkpoint("some-body/tiny-GGUF")).config.n_layers == 2
    other = written(snapshot / "tiny-Q8_0.gguf")
    assert cached_models() == {
        "some-body/tiny-GGUF/tiny-Q4_K_M.gguf": file,
        "some-body/tiny-GGUF/tiny-Q8_0.gguf": other,
    }
    assert find_checkpoint("some-body/tiny-GGUF/tiny-Q8_0.gguf") == other
    with pytest.raises(UserError, match=r"GGUF file.*\(tiny-Q4_K_M.gguf\); open that file by its"):
        load(find_checkpoint("some-body/tiny-GGUF"))
    # Weights of transformers go first.
    written(snapshot / "model.safetensors", b"")
    assert find_checkpoint(str(snapshot)) == snapshot
