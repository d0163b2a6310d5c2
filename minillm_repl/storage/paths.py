"""The path of a checkpoint that the user names: a path, a shipped model, a cache or a store; and
where a run of training is kept.
"""

import os
import re
import shlex
import time
import unicodedata
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from platformdirs import user_cache_path, user_state_path

from minillm_repl.errors import UserError
from minillm_repl.storage.atomic import try_lock
from minillm_repl.storage.files import open_regular
from minillm_repl.storage.stores import GGUF_SUFFIX, find_stored, gguf_files, stored_name

SUFFIX = ".safetensors"
DEFAULT_MODEL = "hangul"  # opens when the user names none
ENGLISH_MODEL = "pebble"  # opens instead for who types at a prompt in English
LESSON_MODEL = "nalssi"
_MAX_SESSIONS = 100  # sessions at once that have a run in no named file
_CACHED = re.compile(r"models--(?:(?P<owner>[\w.-]+?)--)?(?P<model>[\w.-]+)", re.ASCII)
_COMMIT = re.compile(rb"\w[\w.-]{0,199}", re.ASCII)
_SERVER = re.compile(r"(https?:)/*(.*)", re.IGNORECASE | re.DOTALL)
_OTHER_FORMATS = re.compile(  # suffixes of formats that are not written here
    r"\.(gguf|ggml|bin|pth?|ckpt|pkl|pickle|onnx|h5|hdf5|keras|msgpack"
    r"|np[zy]|tflite|mlmodel|zip|gz|xz|zst|tar|jsonl?"
    r"|txt|md|csv|tsv|ya?ml|toml|html?|svg|pdf|py)",
    re.IGNORECASE,
)


def shipped_folder() -> Path:
    """Return the folder of the shipped checkpoints.

    It is inside the installed package, or beside the package in a source tree.
    """
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def shipped_names() -> list[str]:
    """Return the names of the shipped checkpoints."""
    return sorted(path.stem for path in shipped_folder().glob(f"*{SUFFIX}"))


def cached_models() -> dict[str, Path]:
    """Return the models in Hugging Face's cache: `owner/model` -> folder, or its only GGUF file.

    Several GGUF files have names of their own: `owner/model/file.gguf`. An old name may lack the
    owner. Nothing is downloaded.
    """
    models = dict[str, Path]()
    for name, folder in _cached_snapshots().items():
        files = [] if _has_safetensors(folder) else gguf_files(folder)
        if len(files) > 1:
            models |= {f"{name}/{file.name}": file for file in files}
        elif files or exists(folder / "config.json"):
            models[name] = _only_gguf(folder) or folder
    return models


def _cached_snapshots() -> dict[str, Path]:
    # The variables and their order are those of the huggingface_hub library.
    cache = _environment_folder("XDG_CACHE_HOME") or user_path("~/.cache")
    home = _environment_folder("HF_HOME") or cache / "huggingface"
    hub = (
        _environment_folder("HF_HUB_CACHE")
        or _environment_folder("HUGGINGFACE_HUB_CACHE")
        or home / "hub"
    )
    snapshots = {}
    for folder in sorted(hub.glob("models--*")) if exists(hub) else []:
        name = _name_in_cache(folder)
        snapshot = _snapshot(folder)
        if name and snapshot:
            snapshots[name] = snapshot
    return snapshots


def _snapshot(folder: Path) -> Path | None:
    """Return the snapshot of a model that its `main` branch names, or else the newest, or None."""
    # lstat: the files of a snapshot are links, and the link is as old as the download.
    found = [*folder.glob("snapshots/*/config.json"), *folder.glob("snapshots/*/*.gguf")]
    configs = sorted(found, key=lambda file: file.lstat().st_mtime)
    try:
        with open_regular(folder / "refs" / "main") as file:
            commit = file.read(256).strip()
    except UserError:
        commit = b""
    if _COMMIT.fullmatch(commit):
        named = folder / "snapshots" / commit.decode()
        if exists(named):
            return named
    return configs[-1].parent if configs else None


def _name_in_cache(folder: Path) -> str:
    """Return the model name of a folder of the cache; empty for another folder."""
    match = _CACHED.fullmatch(folder.name)
    return "/".join(part for part in match.groups() if part) if match else ""


def server_url(path: Path | str) -> str:
    """Return the address of a server that a user named in place of a file; empty for a path."""
    found = _SERVER.fullmatch(str(path).strip())  # a Path has one of two slashes
    return f"{found[1].lower()}//{found[2]}" if found else ""


def find_checkpoint(name: str) -> Path:
    """Return the path of a checkpoint; the address of a server stays as it is (`server_url`).

    `name` is a file with or without its suffix, a folder, or the name of a shipped or cached model,
    or of one in a store of ollama or LM Studio. A folder whose weights are one GGUF file is that
    file. Any other name is returned as a path.
    """
    if server_url(name):
        return Path(name.strip())
    path = user_path(name)
    snapshot = _snapshot(path) if _name_in_cache(path) else None
    only = _only_gguf(snapshot or path)
    if only is not None:
        return only
    # A folder without a config.json may have the name of a checkpoint file.
    for file in (snapshot or path, user_path(f"{path}{SUFFIX}") if path.name else path):
        if exists(file) and (not file.is_dir() or exists(file / "config.json")):
            return file
    if name in shipped_names():
        return shipped_folder() / (name + SUFFIX)
    name = name.removesuffix("/")
    stored = find_stored(name) or cached_models().get(name)
    return stored or _cached_snapshots().get(name, snapshot or path)


def _only_gguf(folder: Path) -> Path | None:
    """Return the GGUF file of a folder if it has one, and no other weights; else None."""
    files = gguf_files(folder)
    return files[0] if len(files) == 1 and not _has_safetensors(folder) else None


def _has_safetensors(folder: Path) -> bool:
    return next(folder.glob(f"*{SUFFIX}"), None) is not None


def checkpoint_title(path: Path) -> str:
    """Return the title of a checkpoint.

    It is the file's name without its suffix, the name of the model's folder, or the model's name
    in the cache or in a store.
    """
    in_store = stored_name(path)
    if in_store:
        return in_store
    folder = path
    if path.suffix in (SUFFIX, ".json") and exists(path.parent / "config.json"):
        folder = path.parent
    real = folder if folder.parent.name == "snapshots" else _realpath(folder)
    if real.parent.name == "snapshots" and _name_in_cache(real.parent.parent):
        return _name_in_cache(real.parent.parent)
    return folder.stem if folder.suffix in (SUFFIX, GGUF_SUFFIX) else real.name


def user_path(text: str) -> Path:
    r"""Return the path that the user typed, or that a terminal pasted.

    `~` is the home folder. Quotes, `\ ` for a space, and `file://` are removed, unless a file has
    exactly the typed name.
    """
    if not exists(Path(text)):
        text = _unquoted(text.strip())
    return _match_disk_spelling(Path(_expanded(text)))


def _expanded(text: str) -> str:
    """Return a path with `~` and `~name` expanded. An unknown user's `~name` stays."""
    # Path.expanduser raises for an unknown user. A NUL byte would raise in the look-up.
    return text if "\0" in text else os.path.expanduser(text)  # noqa: PTH111


def _unquoted(text: str) -> str:
    """Return a path without the quotes and backslashes that a shell would remove."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        with suppress(ValueError):
            words = shlex.split(text)  # shells write a quote inside as '\\''
            text = words[0] if len(words) == 1 else text[1:-1]
    elif "\\" in text and os.sep == "/" and not exists(Path(_expanded(text))):
        text = re.sub(r"\\(.)", r"\1", text)
    url = re.fullmatch(r"file://(?:localhost)?(/.*)", text, re.DOTALL)
    if url is None:
        return text
    path = unquote(url[1])
    if os.sep != "/" and re.match(r"/[A-Za-z]:", path):  # Windows: /C:/folder
        return path[1:]
    return path


def _match_disk_spelling(path: Path) -> Path:
    """Return a path with each name as the disk spells it, composed (NFC) or decomposed (NFD).

    A Mac may store decomposed Hangul; a keyboard types composed Hangul.
    """
    # An ASCII name has only one spelling.
    if str(path).isascii():
        return path
    found = Path()
    for part in path.parts:
        spellings = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found /= next((each for each in spellings if exists(found / each)), part)
    return found


def _environment_folder(name: str) -> Path | None:
    """Return the folder in an environment variable, expanded as huggingface_hub does, or None."""
    value = os.environ.get(name)
    return Path(os.path.expandvars(_expanded(value))) if value else None


def has_other_format(path: Path) -> bool:
    """Tell whether a file's suffix is that of a format that is not written here."""
    return _OTHER_FORMATS.fullmatch(path.suffix) is not None


def exists(path: Path) -> bool:
    """Tell whether a path exists; False for a name that no file can have."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that is too long


def is_shipped(path: Path | None) -> bool:
    """Tell whether a path is in the folder of shipped checkpoints, which are never overwritten."""
    return path is not None and _realpath(path).parent == shipped_folder()


def _realpath(path: Path) -> Path:
    """Return a path without links; unchanged if no file can have its name."""
    try:
        return Path(os.path.realpath(path))  # Path.resolve raises for a circle of links
    except ValueError:
        return path


# -- where a run is kept


def resume_path(path: Path) -> Path:
    """Return where the resume file of a checkpoint lies: beside it."""
    return path.with_name(path.name.removesuffix(SUFFIX) + ".resume" + SUFFIX)


def unsaved_path() -> Path:
    """Return where training is saved on its way while no file has been named for the model.

    It is where the run lies that was stopped last, unless another session works at it.
    """
    return _claim_path(user_state_path("minillm-repl"))


def rescue_path(path: Path) -> Path:
    """Return a place of the user's for weights that could not be saved at `path`: a new name."""
    name = f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}{SUFFIX}"
    return user_state_path("minillm-repl") / "rescued" / name


def cache_folder(kind: str) -> Path:
    """Return the folder of what can be made again: `tokens`, `lenses` or `features`."""
    return user_cache_path("minillm-repl") / kind


@cache
def _claim_path(folder: Path) -> Path:
    """Return a place in a folder that no other session has; this one has it until it ends."""
    names = ("unsaved", *(f"unsaved-{number}" for number in range(2, _MAX_SESSIONS)))
    places = sorted((folder / f"{name}{SUFFIX}" for name in names), key=_saved_at, reverse=True)
    return next(filter(_try_lock, places), places[0])


def _saved_at(path: Path) -> float:
    """Return when the run at a place stopped, 0 for none; places without one keep their order."""
    try:
        return resume_path(path).stat().st_mtime
    except OSError:
        return 0.0


def _try_lock(path: Path) -> bool:
    """Take a place for the rest of this process, unless another one has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock")
        os.close(os.open(lock, os.O_RDONLY | os.O_CREAT, 0o600))
    except OSError:
        return False  # then nothing is kept there, and one place is as good as another
    return try_lock(lock, wait=False) is not None
