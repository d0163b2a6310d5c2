"""Where a checkpoint that the user names lies: at a path, with the program, or in the HF cache."""

import os
import re
import shlex
import unicodedata
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from minillm_repl.errors import UserError
from minillm_repl.storage.files import open_regular

SUFFIX = ".safetensors"
# the shipped model that opens when none is named, and that of the lessons
DEFAULT_MODEL, LESSON_MODEL = "hangul", "nalssi"
_CACHED = re.compile(r"models--(?:(?P<owner>[\w.-]+?)--)?(?P<model>[\w.-]+)", re.ASCII)
_COMMIT = re.compile(rb"\w[\w.-]{0,199}", re.ASCII)
_OTHERS = re.compile(  # endings that say that a file is of another format
    r"\.(gguf|ggml|bin|pth?|ckpt|pkl|pickle|onnx|h5|hdf5|keras|msgpack"
    r"|np[zy]|tflite|mlmodel|zip|gz|xz|zst|tar|jsonl?"
    r"|txt|md|csv|tsv|ya?ml|toml|html?|svg|pdf|py)",
    re.IGNORECASE,
)


def shipped_folder() -> Path:
    """Return the folder of the shipped checkpoints: inside the package when installed, beside it
    in a source tree.
    """
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def shipped_names() -> list[str]:
    """Return the names of the shipped checkpoints."""
    return sorted(path.stem for path in shipped_folder().glob(f"*{SUFFIX}"))


def cached_models() -> dict[str, Path]:
    """Return the models in Hugging Face's cache that have a config: `owner/model`, or `model` ->
    folder. Only looks.
    """
    return {
        name: folder
        for name, folder in _cached_snapshots().items()
        if exists(folder / "config.json")
    }


def _cached_snapshots() -> dict[str, Path]:
    home = _environment_folder("XDG_CACHE_HOME") or user_path("~/.cache")
    home = _environment_folder("HF_HOME") or home / "huggingface"
    hub = (
        _environment_folder("HF_HUB_CACHE")
        or _environment_folder("HUGGINGFACE_HUB_CACHE")
        or home / "hub"
    )
    snapshots = {}
    for folder in sorted(hub.glob("models--*")) if exists(hub) else []:
        name, snapshot = _name_in_cache(folder), _snapshot(folder)
        if name and snapshot:
            snapshots[name] = snapshot
    return snapshots


def _snapshot(folder: Path) -> Path | None:
    """Return the version of a model that its `main` branch names, else the newest that is there;
    None if none is.
    """
    configs = sorted(folder.glob("snapshots/*/config.json"), key=lambda file: file.lstat().st_mtime)
    try:
        with open_regular(folder / "refs" / "main") as file:
            commit = file.read(256).strip()
    except UserError:
        commit = b""
    named = folder / "snapshots" / commit.decode() if _COMMIT.fullmatch(commit) else None
    return named if named and exists(named) else configs[-1].parent if configs else None


def _name_in_cache(folder: Path) -> str:
    """Return the name of the model that a folder of the cache is for; empty if none."""
    match = _CACHED.fullmatch(folder.name)
    return "/".join(part for part in match.groups() if part) if match else ""


def find_checkpoint(name: str) -> Path:
    """Return what `name` means: a file with or without ending, a folder, a shipped or cached model.

    If it means none of these, it is the path as given.
    """
    path = user_path(name)
    snapshot = _snapshot(path) if _name_in_cache(path) else None
    for file in (snapshot or path, user_path(f"{path}{SUFFIX}") if path.name else path):
        if exists(file) and (not file.is_dir() or exists(file / "config.json")):
            return file
    if name in shipped_names():
        return shipped_folder() / (name + SUFFIX)
    return _cached_snapshots().get(name.removesuffix("/"), snapshot or path)


def checkpoint_title(path: Path) -> str:
    """Return what to call a checkpoint: the file's name less its ending, or the model's folder
    or name in the cache.
    """
    folder = (
        path.parent
        if path.suffix in (SUFFIX, ".json") and exists(path.parent / "config.json")
        else path
    )
    real = folder if folder.parent.name == "snapshots" else _realpath(folder)
    if real.parent.name == "snapshots" and _name_in_cache(real.parent.parent):
        return _name_in_cache(real.parent.parent)
    return folder.stem if folder.suffix == SUFFIX else real.name


def user_path(text: str) -> Path:
    r"""Return a path as the user wrote it, or a terminal pasted it.

    `~` means their home; quotes, `\ ` for a space, and `file://` are no part of it unless a file
    has that name.
    """
    if not exists(Path(text)):
        text = _unquoted(text.strip())
    return _match_disk_spelling(Path(_expanded(text)))


def _expanded(text: str) -> str:
    """Return a path with `~` and `~name` expanded where such a user can be looked up; a NUL byte
    is in nobody's name.
    """
    # Path's own raises for an unknown user.
    return text if "\0" in text else os.path.expanduser(text)  # noqa: PTH111


def _unquoted(text: str) -> str:
    """Return a path without what a shell would take from it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        with suppress(ValueError):
            words = shlex.split(text)  # a quote in it is written '\\''
            text = words[0] if len(words) == 1 else text[1:-1]
    elif "\\" in text and os.sep == "/" and not exists(Path(_expanded(text))):
        text = re.sub(r"\\(.)", r"\1", text)
    url = re.fullmatch(r"file://(?:localhost)?(/.*)", text, re.DOTALL)
    if url is None:
        return text
    path = unquote(url[1])
    return path[1:] if re.match(r"/[A-Za-z]:", path) and os.sep != "/" else path


def _match_disk_spelling(path: Path) -> Path:
    """Return a path with each name as the disk spells it: a Mac writes letters in parts (NFD), a
    keyboard does not.
    """
    if str(path).isascii():
        return path
    found = Path()
    for part in path.parts:
        spellings = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found /= next((each for each in spellings if exists(found / each)), part)
    return found


def _environment_folder(name: str) -> Path | None:
    """Return the folder that a variable of Hugging Face's names, read as their library reads it."""
    value = os.environ.get(name)
    return Path(os.path.expandvars(_expanded(value))) if value else None


def has_other_format(path: Path) -> bool:
    """Tell whether a name says that a file is of a format that is not written here."""
    return _OTHERS.fullmatch(path.suffix) is not None


def exists(path: Path) -> bool:
    """Tell whether something lies at a path; a name that no file can have has nothing there."""
    return os.path.exists(path)  # noqa: PTH110 - Path's own raises for a name that is too long


def is_shipped(path: Path | None) -> bool:
    """Tell whether a path lies with the shipped checkpoints, which users are not to overwrite."""
    return path is not None and _realpath(path).parent == shipped_folder()


def _realpath(path: Path) -> Path:
    """Return a path without links, or as it is if no file can have its name."""
    try:
        return Path(os.path.realpath(path))  # Path's own raises for links that go in a circle
    except ValueError:
        return path
