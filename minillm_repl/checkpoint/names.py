"""Where a checkpoint named by the user lies: a path, or the name of one that ships with the program."""

import os
from pathlib import Path

SUFFIX = ".safetensors"


def shipped_folder() -> Path:
    """Return the folder of the shipped checkpoints: inside the package when installed, beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def shipped() -> list[str]:
    """Return the names of the shipped checkpoints."""
    return sorted(path.stem for path in shipped_folder().glob(f"*{SUFFIX}"))


def find(name: str) -> Path:
    """Return what `name` means: a file, one less its ending, a shipped checkpoint, else the path as given."""
    path = user_path(name)
    for file in (path, path.with_name(path.name + SUFFIX) if path.name else path):
        if there(file) and not file.is_dir():
            return file
    return shipped_folder() / (name + SUFFIX) if name in shipped() else path


def user_path(text: str) -> Path:
    """Return a path as the user wrote it: `~` means their home, and quotes around it are not part of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises for an unknown user


def there(path: Path) -> bool:
    """Tell whether something lies at a path; a name that no file can have has nothing there."""
    return os.path.exists(path)  # noqa: PTH110 - Path's own raises for a name that is too long


def is_shipped(path: Path | None) -> bool:
    """Tell whether a path lies in the folder of the shipped checkpoints, which is not the user's to overwrite."""
    return path is not None and path.resolve().parent == shipped_folder()
