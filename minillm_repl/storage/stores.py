"""GGUF files that other programs keep: the stores of ollama and LM Studio, and any folder of them.

Nothing is downloaded, and nothing in a store is changed.
"""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from minillm_repl.errors import UserError
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import open_regular, parse_json

GGUF_SUFFIX = ".gguf"
OLLAMA, LM_STUDIO = "ollama:", "lmstudio:"  # before the names of their models
_OLLAMA_REGISTRY = "registry.ollama.ai/"  # where names without a place come from
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_LATER_PART = re.compile(r".+-(?!00001)\d{5}-of-\d{5}\.gguf", re.ASCII | re.IGNORECASE)
_MAX_FILES = 1_000  # that are looked at in a store
_MAX_MANIFEST_BYTES = 1 << 20  # a manifest has about a kilobyte


def stored_models() -> dict[str, Path]:
    """Return the models of ollama and LM Studio: `ollama:qwen3:0.6b` -> its file."""
    return {**dict(_ollama_models()), **dict(_lm_studio_models())}


def find_stored(name: str) -> Path | None:
    """Return the file of a model by its name in a store, or None. A tag may be left out."""
    if not name.startswith((OLLAMA, LM_STUDIO)):
        return None
    models = stored_models()
    return models.get(name) or models.get(f"{name}:latest")


def stored_name(path: Path) -> str:
    """Return the name of a file in a store of ollama, whose files have no names; or empty."""
    if path.parent.name != "blobs" or not path.name.startswith("sha256-"):
        return ""
    return next((name for name, file in _ollama_models() if file == path), "")


def gguf_files(folder: Path) -> list[Path]:
    """Return the GGUF files of models in a folder; of a split file, its first part."""
    try:
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in islice(found, _MAX_FILES))
    except (OSError, ValueError):
        return []
    return [folder / name for name in names if _is_model(name)]


def _is_model(name: str) -> bool:
    # mmproj: the encoder of images, which lies beside its language model.
    lower = name.lower()
    return (
        lower.endswith(GGUF_SUFFIX)
        and not lower.startswith("mmproj")
        and not _LATER_PART.fullmatch(name)
    )


def _ollama_models() -> Iterator[tuple[str, Path]]:
    home = os.path.expanduser("~/.ollama/models")  # noqa: PTH111
    root = Path(os.environ.get("OLLAMA_MODELS") or home)
    manifests = root / "manifests"
    # PLACE/USER/MODEL/TAG
    for manifest in sorted(islice(manifests.glob("*/*/*/*"), _MAX_FILES)):
        place, _slash, tag = manifest.relative_to(manifests).as_posix().rpartition("/")
        blob = _model_blob(manifest)
        file = root / "blobs" / f"sha256-{blob}"
        if blob and os.path.exists(file):  # noqa: PTH110 - a loop of links is no error here
            name = place.removeprefix(_OLLAMA_REGISTRY).removeprefix("library/")
            yield f"{OLLAMA}{name}:{tag}", file


def _model_blob(manifest: Path) -> str:
    """Return the digest of the weights that a manifest names; empty if it names none."""
    try:
        with open_regular(manifest) as file:
            data = parse_json(file.read(_MAX_MANIFEST_BYTES), safe_line(str(manifest)))
    except UserError:
        return ""
    layers = data.get("layers") if isinstance(data, dict) else None
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER:
            match = _DIGEST.fullmatch(str(layer.get("digest")))
            return match[1] if match else ""
    return ""


def _lm_studio_models() -> Iterator[tuple[str, Path]]:
    # The second folder is that of older versions.
    for place in ("~/.lmstudio/models", "~/.cache/lm-studio/models"):
        root = Path(os.path.expanduser(place))  # noqa: PTH111 - Path's raises without a home
        for file in sorted(islice(root.glob("*/*/*"), _MAX_FILES)):
            if _is_model(file.name):
                yield f"{LM_STUDIO}{file.relative_to(root).as_posix()}", file
