"""A config as JSON: in native checkpoints, and nowhere else."""

from dataclasses import MISSING, asdict, fields
from typing import Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import (
    AnyConfig,
    GPTConfig,
    LlamaConfig,
    ModelConfig,
    Rope,
    printable,
)
from minillm_repl.safetext import safe_line

_SIZES = {entry.name for entry in fields(ModelConfig)}  # never left out


def config_from_json(data: Any) -> AnyConfig:
    """Return the config of `{"arch": "gpt", "vocab_size": 44, ...}`, of either family; an entry
    with a default may be left out.

    Raises UserError.
    """
    arch = data.get("arch") if isinstance(data, dict) else None
    family: type[GPTConfig | LlamaConfig] = LlamaConfig if arch == LlamaConfig.arch else GPTConfig
    if arch != family.arch or not set(data) >= _SIZES:
        raise UserError(
            _(
                "expected arch = {arch} with {sizes}, got {value}",
                arch=family.arch,
                sizes=", ".join(sorted(_SIZES)),
                value=printable(data),
            )
        )
    values = {name: value for name, value in data.items() if name != "arch"}
    _check_names(family, values)
    if isinstance(values.get("rope"), dict):
        try:
            values["rope"] = Rope(**values["rope"])
        except TypeError:
            raise UserError(
                _("unknown RoPE settings: {value}", value=printable(values["rope"]))
            ) from None
    if isinstance(values.get("sliding_windows"), list):
        values["sliding_windows"] = tuple(values["sliding_windows"])
    return family(**values)


def config_to_json(config: AnyConfig) -> dict[str, Any]:
    """Return what `config_from_json` reads: the sizes, and what differs from its default."""
    data: dict[str, Any] = {"arch": config.arch}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in _SIZES or value != entry.default:
            data[entry.name] = asdict(value) if isinstance(value, Rope) else value
    return data


def _check_names(family: type[GPTConfig | LlamaConfig], values: dict[str, Any]) -> None:
    """Raise UserError for an entry that the family does not have, or that is missing."""
    known = {entry.name: entry for entry in fields(family)}
    extra = sorted(set(values) - set(known))
    if extra:
        name = safe_line(extra[0])
        raise UserError(
            _("unknown entry for arch = {arch}: {name:.40}", arch=family.arch, name=name)
        )
    required = (name for name, entry in known.items() if entry.default is MISSING)
    missing = [name for name in required if name not in values]
    if missing:
        raise UserError(
            _("missing entry for arch = {arch}: {name}", arch=family.arch, name=missing[0])
        )
