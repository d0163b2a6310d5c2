"""Settings at the start: flags go before `MINILLM_*` variables, the file, and the defaults
(those of the model, then those of the program).
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
from minillm_repl.kernels import VARIANTS
from minillm_repl.language import LANGUAGES, Language, _, language_from_locale
from minillm_repl.lessons.progress import Progress, progress_file, student_name
from minillm_repl.repl.model_loading import ModelLoader
from minillm_repl.repl.settings import Settings, Source
from minillm_repl.safetext import safe_line
from minillm_repl.settings import change, integer, one_of, setting, specs, switch
from minillm_repl.storage.paths import find_checkpoint, user_path

_APP = "minillm-repl"
_PREFIX = "MINILLM_"  # of variables: MINILLM_TOP_K


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Settings that are fixed at the start of the program."""

    ckpt: str = setting(
        "auto",
        str,
        "checkpoint to open: a file, a Hugging Face folder, a name that :models lists, or the "
        "address of a server (http://127.0.0.1:8080); auto: hangul, at an English prompt pebble, "
        "in a lesson nalssi",
        metavar="PATH",
    )
    model: str = setting(
        "",
        str,
        "which model of a server; without it, the first",
        metavar="NAME",
    )
    vocab_file: str = setting(
        "",
        str,
        "text file with the vocabulary, for a checkpoint that has none",
        metavar="FILE",
        aliases=("vocab",),
    )
    base: str = setting(
        "",
        str,
        "model of an adapter, for one that names no model that is here",
        metavar="PATH",
    )
    device: str = setting(
        "auto",
        one_of("auto", "cpu", "cuda", "mps"),
        "compute device: auto, cpu, cuda or mps; auto chats on the CPU and trains on a GPU "
        "if there is one",
        metavar="WHERE",
    )
    dtype: str = setting(
        "auto",
        one_of("auto", "float32", "bfloat16", "float16"),
        "weight dtype: float32, bfloat16, float16, or auto (as stored)",
        metavar="KIND",
    )
    allow_nonfinite: bool = setting(
        False,
        switch,
        "open weights that contain NaN or infinity (refused by default)",
        metavar="on|off",
        special_values={"on": True, "off": False},
    )
    context_length: int = setting(
        0,
        integer(0, 100_000_000),  # tokens; the model has a limit of its own
        "context length in tokens; auto is the maximum of the model",
        unit="tokens",
        special_values={"auto": 0},
        aliases=("context",),
    )
    quant: str = setting(
        "off",
        one_of("off", "int8", "int4"),
        "quantize weights for generation: off, int8, or int4 (less accurate); group size 32",
        details=(
            "int8 reads half of what bfloat16 reads for each token, and hardly changes "
            "answers. int4 reads a third and is the fastest, but loses much: SmolLM2-135M "
            "finds another token the likeliest at 3 places of 10, and its perplexity rises "
            "by a fifth. It keeps embedding and output in 8 bits. Views and changes of what "
            "it thinks use the weights that answer; training uses those of the file."
        ),
        metavar="KIND",
    )
    threads: int = setting(0, integer(0, 1024), "CPU threads; 0: chosen automatically")
    kernels: str = setting(
        "auto",
        one_of("auto", *VARIANTS, "off"),
        "C kernels for the CPU; auto is the fastest that the processor runs, off is torch",
        metavar="VARIANT",
    )
    color: str = setting(
        "auto",
        one_of("auto", "always", "never", "contrast"),
        "colours: auto, always, never, or contrast (high contrast: no colour, nothing dim); auto "
        "follows the terminal and NO_COLOR",
        metavar="WHEN",
    )
    lang: str = setting(
        "auto",
        one_of("auto", *LANGUAGES),
        "display language: en, ko, or auto (from the terminal's locale)",
        metavar="LANG",
    )
    history: str = setting(
        "on",
        str,
        "file for the input history: a FILE, `on` for the default path, `off` for none",
        metavar="FILE",
    )
    student: str = setting(
        "", student_name, "keep progress in lessons under a NAME of its own", metavar="NAME"
    )
    progress: str = setting(
        "on",
        str,
        "folder for progress in lessons: a FOLDER, `on` for the default path, `off` for none",
        metavar="FOLDER",
    )

    startup: str = setting(
        "on",
        str,
        "file of lines to run at the start: a FILE, `on` for the default path, `off` for none",
        metavar="FILE",
    )

    def loader(self, variables: Mapping[str, str]) -> ModelLoader:
        """Return what opens checkpoints as these settings say; `variables` have a server's key."""
        return ModelLoader(
            device=self.device,
            dtype=self.dtype,
            context_length=self.context_length,
            vocabulary=user_path(self.vocab_file) if self.vocab_file else None,
            base=find_checkpoint(self.base) if self.base else None,
            allow_nonfinite=self.allow_nonfinite,
            threads=self.threads,
            kernels=self.kernels,
            quantization=self.quant,
            server_model=self.model,
            server_key=server_key(variables),
        )

    @property
    def history_file(self) -> Path | None:
        """The file of typed lines, or None without a history."""
        if self.history in ("", "off"):
            return None
        if self.history == "on":
            return user_state_path(_APP) / "history"
        return user_path(self.history)

    @property
    def startup_file(self) -> Path | None:
        """The file of lines that are run at the start, which need not exist; None for none."""
        if self.startup in ("", "off"):
            return None
        return (
            user_config_path(_APP) / "startup" if self.startup == "on" else user_path(self.startup)
        )

    @property
    def recent_file(self) -> Path | None:
        """The file of recently opened checkpoints, or None without a history."""
        return None if self.history in ("", "off") else user_state_path(_APP) / "recent"

    @property
    def session_folder(self) -> Path | None:
        """The folder of the sessions, or None without a history."""
        return None if self.history in ("", "off") else user_state_path(_APP) / "sessions"

    def load_progress(self) -> Progress:
        """Return the learner's progress. It does not depend on the history of typed lines."""
        return Progress.load(progress_file(self.progress, self.student), self.student)


ConfiguredT = TypeVar("ConfiguredT", Launch, Settings)


def server_key(variables: Mapping[str, str]) -> str:
    """Return the key for a server. It comes from variables alone: a flag is seen by others."""
    return variables.get("MINILLM_API_KEY") or variables.get("OPENAI_API_KEY") or ""


def configuration_file() -> Path:
    """Return the path of the user's configuration file, which need not exist."""
    return user_config_path(_APP) / "config.toml"


def initial_language(flag: str | None, environment: Mapping[str, str], path: Path) -> Language:
    """Return the language of the flag, the variable, the file at `path`, or the locale.

    Errors in these are ignored here; `configure` reports them later, in this language.
    """
    file: Mapping[str, str] = {}
    with suppress(UserError):
        file = read_configuration(path)
    # The order of `configure`, which cannot run yet: its errors need a language.
    requested = flag or environment.get("MINILLM_LANG") or file.get("lang")
    for language in LANGUAGES:
        if language == requested:
            return language
    return language_from_locale(environment)


def read_configuration(path: Path) -> dict[str, str]:
    """Return the names and values of a TOML file, as a user types them; empty without a file.

    Raises UserError naming the file.
    """
    name = safe_line(str(path))
    try:
        # utf-8-sig: editors on Windows write a byte order mark.
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):  # a home folder may be /dev/null
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            _("cannot read {name}: {error}", name=name, error=safe_line(str(error)))
        ) from None
    # A misspelt setting would be ignored silently.
    known = {**specs(Launch), **specs(Settings)}
    full_names = {alias: name for name, spec in known.items() for alias in (name, *spec.aliases)}
    unknown = [key for key in data if key.replace("_", "-") not in full_names]
    if unknown:
        raise UserError(
            _(
                "{name} sets {unknown!r}, which is not a setting; available: {names}",
                name=name, unknown=safe_line(unknown[0]), names=", ".join(known),
            )
        )  # fmt: skip
    return {full_names[key.replace("_", "-")]: _as_typed(key, value) for key, value in data.items()}


def _as_typed(key: str, value: Any) -> str:
    if key == "stop" and isinstance(value, str):
        value = [value]  # one stop string, even with spaces
    # A user types on and off for TOML's true and false.
    if isinstance(value, bool):
        return "on" if value else "off"
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)


def configure(
    settings: ConfiguredT,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    file: Mapping[str, str],
) -> ConfiguredT:
    """Return `settings` changed by the file, the variables and the flags.

    Raises UserError naming the flag, the variable or the line.
    """
    for name, text, display_name, _source in _configured(settings, flags, environment, file):
        settings = change(settings, name, text, display_name=display_name)
    return settings


def setting_sources(
    settings: Any, flags: Mapping[str, str], environment: Mapping[str, str], file: Mapping[str, str]
) -> dict[str, Source]:
    """Return where the user has set each of the settings that `configure` changes."""
    configured = _configured(settings, flags, environment, file)
    return {name: source for name, _text, _display_name, source in configured}


def _configured(
    settings: Any, flags: Mapping[str, str], environment: Mapping[str, str], file: Mapping[str, str]
) -> Iterator[tuple[str, str, str, Source]]:
    """Yield the name, value, display name and source of each setting.

    The last value of a name counts.
    """
    for name, spec in specs(settings).items():
        # From the weakest source to the strongest.
        if name in file:
            yield name, file[name], _("{name} in the configuration file", name=name), "file"
        # Korean aliases are not valid names of variables everywhere.
        for spelling in (*filter(str.isascii, spec.aliases), name):
            variable = _PREFIX + spelling.upper().replace("-", "_")
            if environment.get(variable):
                yield name, environment[variable], variable, "variable"
        if name in flags:
            yield name, flags[name], f"--{name}", "flag"
