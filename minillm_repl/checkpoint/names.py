"""Where a checkpoint named by the user lies: a path, or the name of one that ships with the program."""

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
    """Return the path that `name` means: an existing path first, then a shipped checkpoint, else the path as given."""
    path = Path(name).expanduser()
    return path if path.exists() or name not in shipped() else shipped_folder() / (name + SUFFIX)


def is_shipped(path: Path | None) -> bool:
    """Tell whether a path lies in the folder of the shipped checkpoints, which is not the user's to overwrite."""
    return path is not None and path.resolve().parent == shipped_folder()
