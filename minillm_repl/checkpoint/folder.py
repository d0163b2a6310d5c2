"""A Hugging Face folder: its files, and its config.

This module imports no numpy, so that the first prompt appears at once.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint import foreign
from minillm_repl.checkpoint.dequantise import describe, is_supported
from minillm_repl.checkpoint.families import WITH_OWN_CODE, find_family
from minillm_repl.checkpoint.families.family import Family
from minillm_repl.checkpoint.families.fields import SLIDING_ATTENTION
from minillm_repl.checkpoint.header import Header, read_header
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line
from minillm_repl.storage.files import parse_json, read_utf8

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors", re.ASCII)
_MAX_JSON_BYTES = 64 << 20  # the largest tokenizer.json of known models has 34 MB


@dataclass(frozen=True)
class Folder:
    """A folder with a config.json; `weight_file` is the file in it that the user named, if any."""

    path: Path
    weight_file: Path | None = None

    @property
    def name(self) -> str:
        """The folder's path for a message."""
        return safe_line(str(self.path))

    def json(self, file: str) -> Any:
        """Return the parsed content of a JSON file of the folder; None without the file.

        Raises UserError.
        """
        text = self.text(file)
        return None if text is None else parse_json(text, safe_line(str(self.path / file)))

    def fields(self, file: str) -> dict[str, Any]:
        """Return the object in a JSON file of the folder; empty without the file.

        Raises UserError, also for a config that needs code of the folder (`auto_map`).
        """
        data = self.json(file)
        if data is None:
            return {}
        if not isinstance(data, dict):
            raise UserError(_("{path} is not a JSON object", path=safe_line(str(self.path / file))))
        # Python code beside the weights; `transformers` would run it with trust_remote_code.
        if "auto_map" in data and data.get("model_type") not in WITH_OWN_CODE:
            raise UserError(
                _(
                    "{path} refers to its own code (auto_map), which is not run",
                    path=safe_line(str(self.path / file)),
                )
            )
        return data

    def text(self, file: str) -> str | None:
        """Return the content of a text file of the folder; None without it. Raises UserError."""
        path = self.path / file
        # lexists: a broken link is an error, not a missing file.
        if not os.path.lexists(path):
            return None
        return read_utf8(path, _MAX_JSON_BYTES)

    @cached_property
    def config_fields(self) -> Mapping[str, Any]:
        """The parsed config.json. Raises UserError."""
        if not os.path.lexists(self.path / CONFIG):
            kind = foreign.describe_without_config(self.path)
            missing = _(
                "{name} is a folder without {config}: it contains no model",
                name=self.name,
                config=CONFIG,
            )
            raise self._error_of_kind(kind, missing)
        return self.fields(CONFIG)

    @cached_property
    def family(self) -> Family:
        """The model's family. Raises UserError with the supported ones."""
        kind = foreign.describe_architecture(self.config_fields)
        try:
            return find_family(self.config_fields.get("model_type"))
        except UserError as error:
            raise UserError(
                _("{name} is {kind}: {error}", name=self.name, kind=kind, error=error)
                if kind
                else f"{self.name}: {error}"
            ) from None

    @cached_property
    def config(self) -> AnyConfig:
        """The model's config. Raises UserError, also for quantised weights."""
        family = self.family
        method = foreign.quantisation_of_config(self.config_fields)
        if method and not is_supported(self.config_fields):
            # Quantised weights are integers: read as floats they would be noise.
            raise foreign.quantised_error(self.name, method)
        try:
            return family.parse_config(self.config_fields)
        except UserError as error:
            raise UserError(f"{safe_line(str(self.path / CONFIG))}: {error}") from None

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user: what the folder declares, and the program ignores."""
        notes = list[str]()
        config = self.config
        kinds = self.config_fields.get("layer_types")
        # 0 is a layer without a window.
        windows = config.sliding_windows or (0,) * config.n_layers
        if (
            kinds
            and isinstance(kinds, list)
            and [kind == SLIDING_ATTENTION for kind in kinds] != [each > 0 for each in windows]
        ):
            notes.append(
                _(
                    "layer_types in {config} is ignored: all layers of a {family} have the "
                    "same window",
                    config=CONFIG,
                    family=self.family.title,
                )
            )
        if config.rope is not None and config.rope.scaling == "longrope":
            declared = self.config_fields.get("max_position_embeddings")
            notes.append(
                _(
                    "the context is limited to {n:,} of {all} tokens: longrope has other "
                    "frequencies for longer texts, which are not supported",
                    n=config.context_length,
                    all=safe_line(str(declared)),
                )
            )
        method = foreign.quantisation_of_config(self.config_fields)
        if method:
            notes.append(_("the quantised weights ({how}) become floats here", how=method))
        if self._has_adapter:
            kind = foreign.describe_adapter(self.path)
            notes.append(_("the adapter next to the model is not applied: {kind}", kind=kind))
        return tuple(notes)

    def headers(self) -> list[Header]:
        """Return the headers of the weight files. Raises UserError if a file is missing.

        Quantised tensors that open here stand in them as what they become.
        """
        headers = [read_header(path) for path in self._weight_files()]
        try:
            return describe(headers, self.config_fields)
        except UserError as error:
            how = foreign.quantisation_of_config(self.config_fields)
            raise UserError(
                _("{name} is quantised ({how}): {error}", name=self.name, how=how, error=error)
            ) from None

    def _weight_files(self) -> list[Path]:
        """Return the paths of the weights: the named file, model.safetensors, or the shards."""
        index = self.fields(INDEX)
        shards = self._indexed_shards(index) if index else self._numbered_shards()
        # A named file is opened alone, unless it is one of the shards.
        if self.weight_file is not None and self.weight_file.name not in shards:
            if self.weight_file.name == foreign.ADAPTER_WEIGHTS and self._has_adapter:
                raise UserError(
                    _("{name} is {kind}", name=self.name, kind=foreign.describe_adapter(self.path))
                )
            return [self.weight_file]
        # As in `transformers`, a complete file goes before shards.
        whole = self.path / WEIGHTS
        if whole.exists() or (not shards and os.path.lexists(whole)):
            return [whole]
        if not shards:
            raise self._missing_weights_error()
        for shard in shards:
            self._check_shard(shard)
        return [self.path / shard for shard in shards]

    def _check_shard(self, shard: str) -> None:
        """Raise UserError unless a shard is a file directly in the folder."""
        # An index is untrusted: `../../x` would read files elsewhere.
        if Path(shard).name != shard or shard in (".", "..") or "\\" in shard:
            raise UserError(
                _(
                    "{index} in {name} points outside the folder: {shard:.80}",
                    index=INDEX,
                    name=self.name,
                    shard=safe_line(shard),
                )
            )
        # A download may have stopped between two shards.
        if not os.path.lexists(self.path / shard):
            raise UserError(
                _(
                    "{name} has no {shard:.80}, one of its shards",
                    name=self.name,
                    shard=safe_line(shard),
                )
            )

    def _numbered_shards(self) -> list[str]:
        """Return the shards of a model without an index: `model-00001-of-00003.safetensors`."""
        if self.weight_file:
            names = [self.weight_file.name]
        else:
            names = sorted(path.name for path in self.path.glob("*.safetensors"))
        # The first shard's name gives the number of all shards.
        match = next(filter(None, map(_SHARD.fullmatch, names)), None)
        if match is None:
            return []
        stem, count = match["stem"], match["count"]
        return [f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]

    @property
    def _has_adapter(self) -> bool:
        """Whether the folder has an adapter of PEFT."""
        return os.path.lexists(self.path / foreign.ADAPTER_CONFIG)

    def _missing_weights_error(self) -> UserError:
        """Return the error for a folder with a config.json, but without weights that open."""
        others = sorted(
            path.name
            for path in self.path.glob("*.safetensors")
            if path.name != foreign.ADAPTER_WEIGHTS
        )
        # Weights without the usual name: the user may mean one of them.
        if others:
            return UserError(
                _(
                    "{name} has no {weights}, but {file:.80}: open that file by its name",
                    name=self.name,
                    weights=WEIGHTS,
                    file=safe_line(others[0]),
                )
            )
        if self._has_adapter:
            kind = foreign.describe_adapter(self.path)
        else:
            kind = foreign.describe_other_weights(self.path)
        missing = _(
            "{name} has no {weights}, only a description of the model",
            name=self.name,
            weights=WEIGHTS,
        )
        return self._error_of_kind(kind, missing)

    def _error_of_kind(self, kind: str, missing: str) -> UserError:
        """Return the error of a folder that is of another kind, or lacks something."""
        return UserError(_("{name} is {kind}", name=self.name, kind=kind) if kind else missing)

    def _indexed_shards(self, index: Mapping[str, Any]) -> list[str]:
        """Return the shards that the index names, each once, sorted."""
        files = index.get("weight_map")
        if (
            not isinstance(files, dict)
            or not files
            or not all(isinstance(file, str) for file in files.values())
        ):
            raise UserError(
                _(
                    "{index} in {name} has no weight_map with file names",
                    index=INDEX,
                    name=self.name,
                )
            )
        return sorted(set(files.values()))


def find_folder(path: Path) -> Folder | None:
    """Return the Hugging Face folder that `path` is, or that contains it; None if neither.

    A JSON file in it, such as the config or the index, means the folder. Any other file becomes
    `weight_file`.
    """
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        return Folder(path)
    if path.name == foreign.ADAPTER_CONFIG or os.path.lexists(path.parent / CONFIG):
        return Folder(path.parent, None if path.suffix == ".json" else path)
    return None
