"""What the program is started with: flags over `MINILLM_*` variables over the configuration file
over defaults.
"""

import shlex
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_config_path, user_state_path

from minillm_repl.errors import UserError
from minillm_repl.language import LANGUAGES, Language, _, from_locale
from minillm_repl.repl.settings import Settings
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change, one_of, setting, specs, switch, whole
from minillm_repl.storage.paths import user_path

_APP = "minillm-repl"
_PREFIX = "MINILLM_"


@dataclass(frozen=True)
class Launch:
    """What is decided once, at the start."""

    ckpt: str = setting(
        "auto",
        str,
        "the checkpoint to open: a file, a Hugging Face folder, or a name that :models lists; "
        "auto is hangul, and nalssi for a lesson",
        metavar="PATH",
    )
    vocab: str = setting(
        "",
        str,
        "a text with the vocabulary of a checkpoint that has none of its own",
        metavar="FILE",
    )
    device: str = setting(
        "auto",
        one_of("auto", "cpu", "cuda", "mps"),
        "where to compute: auto, cpu, cuda or mps; auto chats on the CPU and trains on a GPU "
        "if there is one",
        metavar="WHERE",
    )
    dtype: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16", "float16"),
        "the kind of numbers of the weights: float32, bfloat16, float16, or auto for what is "
        "in the file",
        metavar="KIND",
    )
    allow_nonfinite: bool = setting(
        False,
        switch,
        "open weights that hold NaN or infinite numbers, which are otherwise refused",
        metavar="on|off",
        words={"on": True, "off": False},
    )
    context: int = setting(
        0,
        whole(0, 100_000_000),
        "how many tokens the model sees at once; auto is all that it allows",
        unit="tokens",
        words={"auto": 0},
    )
    quant: str = setting(
        "off",
        one_of("off", "int8", "int4"),
        "weights in fewer bits: off, int8, or int4, which loses much (32 of a row share a scale)",
        details=(
            "int8 reads half of what bfloat16 reads for each token, and hardly changes "
            "answers. int4 reads a third and"
            " is the fastest, but loses much: SmolLM2-135M finds another token the likeliest "
            "at 3 places of 10, and"
            " its perplexity rises by a fifth. It keeps embedding and output in 8 bits. "
            "Views and changes of what it"
            " thinks use the weights that answer; training uses those of the file."
        ),
        metavar="KIND",
    )
    threads: int = setting(0, whole(0, 1024), "processor threads; 0 chooses")
    color: str = setting(
        "auto",
        one_of("auto", "always", "never"),
        "colours: auto, always or never; auto asks the terminal and NO_COLOR",
        metavar="WHEN",
    )
    lang: str = setting(
        "auto",
        one_of("auto", *LANGUAGES),
        "the language of the program: en, ko, or auto for that of the terminal's locale",
        metavar="LANG",
    )
    history: str = setting(
        "on",
        str,
        "where typed lines are kept: a FILE, `on` for the usual place, `off` for nowhere",
        metavar="FILE",
    )

    @property
    def history_file(self) -> Path | None:
        """The file of typed lines, or None to keep none."""
        if self.history in ("", "off"):
            return None
        return (
            user_state_path(_APP) / "history" if self.history == "on" else user_path(self.history)
        )

    @property
    def recent_file(self) -> Path | None:
        """The file of the checkpoints opened last, or None to keep none: who wants no history
        wants none of this.
        """
        return None if self.history in ("", "off") else user_state_path(_APP) / "recent"

    @property
    def progress_file(self) -> Path | None:
        """The file of a learner's progress, or None to keep none."""
        return None if self.history in ("", "off") else user_state_path(_APP) / "progress.json"


ConfiguredT = TypeVar("ConfiguredT", Launch, Settings)


def configuration_file() -> Path:
    """Return where the user's configuration file lies, if there is one."""
    return user_config_path(_APP) / "config.toml"


def language(flag: str | None, environment: Mapping[str, str], path: Path) -> Language:
    """Return the language to start with; what is wrong with a flag, a variable or the file is
    told later, in it.
    """
    file: Mapping[str, str] = {}
    with suppress(UserError):
        file = read_configuration(path)
    said = next(
        (each for each in (flag, environment.get("MINILLM_LANG"), file.get("lang")) if each), "auto"
    )
    return next((each for each in LANGUAGES if each == said), from_locale(environment))


def read_configuration(path: Path) -> dict[str, str]:
    """Return the names and values of a TOML file, as they would be typed.

    Raises UserError naming the file.
    """
    name = safe_line(str(path))
    try:
        # Windows's editors put a mark before it
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):  # a home may be /dev/null
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            _("cannot read {name}: {error}", name=name, error=safe_line(str(error)))
        ) from None
    known = {**specs(Launch), **specs(Settings)}
    unknown = [key for key in data if key.replace("_", "-") not in known]
    if unknown:
        raise UserError(
            _(
                "{name} sets {unknown!r}, which there is not; there are {names}",
                name=name, unknown=safe_line(unknown[0]), names=", ".join(known),
            )
        )  # fmt: skip
    return {key.replace("_", "-"): _typed(key, value) for key, value in data.items()}


def _typed(key: str, value: Any) -> str:
    if key == "stop" and isinstance(value, str):
        value = [value]  # one text, whatever is in it
    if isinstance(value, bool):
        return "on" if value else "off"
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)


def configure(
    settings: ConfiguredT,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    file: Mapping[str, str],
) -> ConfiguredT:
    """Return `settings` with what the file, the variables and the flags say.

    Raises UserError naming the culprit.
    """
    for name, text, said in _said(settings, flags, environment, file):
        settings = change(settings, name, text, said=said)
    return settings


def _said(
    settings: Any, flags: Mapping[str, str], environment: Mapping[str, str], file: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and how it was named, the weakest word first."""
    for name in specs(settings):
        variable = _PREFIX + name.upper().replace("-", "_")
        if name in file:
            yield name, file[name], _("{name} in the configuration file", name=name)
        if environment.get(variable):
            yield name, environment[variable], variable
        if name in flags:
            yield name, flags[name], f"--{name}"
