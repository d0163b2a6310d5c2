"""What to say of a model that is not on this disk: how one gets it. Nothing is downloaded here."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import (
    SUFFIX,
    exists,
    find_checkpoint,
    has_other_format,
    server_url,
)
from minillm_repl.storage.stores import GGUF_SUFFIX, OLLAMA

_PART = r"[A-Za-z0-9_][\w.-]*"
_HUB_NAME = re.compile(rf"({_PART}/{_PART})(?:/({_PART}\.gguf))?", re.ASCII | re.IGNORECASE)
_HUB_URL = re.compile(
    rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/({_PART}/{_PART})"
    r"(?:/(?:resolve|blob)/[^/]+/([^?#]+)|/[^?#]*)?(?:[?#].*)?",
    re.ASCII | re.IGNORECASE,
)
_FILE_URL = re.compile(
    r"https?://\S+\.(?:safetensors|gguf|bin|pth?|ckpt|zip|tar|gz|txt|json)(?:[?#]\S*)?",
    re.IGNORECASE,
)


def refuse_download(name: str) -> None:
    """Raise UserError for the address of a file, or of a model at Hugging Face: how to get it.

    Any other address is that of a server that runs a model.
    """
    name = name.strip()
    hub = _HUB_URL.fullmatch(name)
    if hub:
        file = unquote(hub[2]) if hub[2] else ""
        remedy = _hub_command(hub[1], file)
        opened = f"{hub[1]}/{file}" if file.lower().endswith(GGUF_SUFFIX) else hub[1]
    elif _FILE_URL.fullmatch(name):
        remedy = f"curl -LO '{name}'" if "'" not in name else "curl -LO URL"
        opened = unquote(urlsplit(name).path.rpartition("/")[2])
    else:
        return
    raise UserError(
        _(
            "nothing is downloaded here, so that you know what runs: `{command}` gets the file, "
            "then `:load {name}` opens it",
            command=safe_line(remedy),
            name=safe_line(opened),
        )
    )


def is_elsewhere(name: str) -> bool:
    """Tell whether a name that is no file is that of a model at Hugging Face or of ollama."""
    hub = _HUB_NAME.fullmatch(name)
    # In a folder of the user's, the name is that of a file to be made.
    is_file = not hub or name.endswith(SUFFIX) or exists(Path(name).parent)
    return name.startswith(OLLAMA) or not is_file


def find_model(name: str, *, is_made: bool, is_named: bool) -> Path:
    """Return the path of what the program is started with, which need not exist.

    Raises UserError for a model that is not here, unless it `is_made`: a run of training writes it.
    A file of our own may be made later, unless the user just said a name (`is_named`).
    """
    refuse_download(name)
    path = find_checkpoint(name)
    if is_made or exists(path) or server_url(path):
        return path
    if is_named or is_elsewhere(name):
        raise UserError(missing_model(name))
    if has_other_format(path):
        raise UserError(_("{path} does not exist", path=safe_line(name)))
    return path


def missing_model(name: str) -> str:
    """Return what to say of a name that opens no model: how to get the model."""
    name = name.strip()
    shown = safe_line(name)
    if name.startswith(OLLAMA):
        return _(
            "{name} is not in ollama's store: `ollama pull {model}` gets it",
            name=shown,
            model=safe_line(name.removeprefix(OLLAMA)),
        )
    hub = _HUB_NAME.fullmatch(name)
    if hub and is_elsewhere(name):
        return _(
            "{name} is not on this disk, and nothing is downloaded here: `{command}` gets it",
            name=shown,
            command=_hub_command(hub[1], hub[2] or ""),
        )
    return _(
        "{name} does not exist; `:models` lists the models that are here, and "
        "`hf download ORG/NAME` gets one of Hugging Face",
        name=shown,
    )


def _hub_command(model: str, file: str) -> str:
    """Return the command that downloads a model, or a file of it, into the cache."""
    if file:
        return f"hf download {model} {file}" if " " not in file else f"hf download {model} '{file}'"
    # A GGUF repository has the model in many roundings, of which one is enough.
    only = " --include '*Q8_0.gguf'" if model.upper().endswith("GGUF") else ""
    return f"hf download {model}{only}"
