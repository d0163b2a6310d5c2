"""A Hugging Face folder: which files are in it, and what its config says. Needs no numpy, so that a prompt can wait."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minillm_repl.checkpoint.families import family_called
from minillm_repl.checkpoint.family import Family
from minillm_repl.checkpoint.header import Header, open_regular, parse_json, read_header
from minillm_repl.checkpoint.kinds import HEAD, kind_of
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "consolidated.00.pth")
_LARGEST_JSON = 64 << 20  # bytes; the largest tokenizer.json of known models has 34 million


@dataclass(frozen=True)
class Folder:
    """A folder with a config.json; `chosen` is the weight file the user named in it, if any."""

    path: Path
    chosen: Path | None = None

    @property
    def name(self) -> str:
        """The folder's path, fit for a message."""
        return safe_line(str(self.path))

    def json(self, file: str) -> Any:
        """Return the parsed content of a JSON file of the folder, None if there is none. Raises UserError."""
        text = self.text(file)
        return None if text is None else parse_json(text, safe_line(str(self.path / file)))

    def fields(self, file: str) -> dict[str, Any]:
        """Return a JSON file of the folder that must be an object; empty if there is none. Raises UserError."""
        data = self.json(file)
        if data is None:
            return {}
        if not isinstance(data, dict):
            raise UserError(_("{path} is not a JSON object", path=safe_line(str(self.path / file))))
        if "auto_map" in data:
            raise UserError(
                _("{path} asks to run code of its own (auto_map); it is not run", path=safe_line(str(self.path / file)))
            )
        return data

    def text(self, file: str) -> str | None:
        """Return a text file of the folder, None if there is none. Raises UserError."""
        path = self.path / file
        if not os.path.lexists(path):
            return None
        with open_regular(path) as opened:
            data = opened.read(_LARGEST_JSON + 1)
        try:
            if len(data) > _LARGEST_JSON:
                raise UserError(
                    _("{path} is larger than {size} MiB", path=safe_line(str(path)), size=_LARGEST_JSON >> 20)
                )
            return data.decode()
        except UnicodeDecodeError:
            kind = kind_of(data[:HEAD])
            raise UserError(
                _("{name} is {kind}", name=safe_line(str(path)), kind=kind)
                if kind
                else _("{path} is not UTF-8 text", path=safe_line(str(path)))
            ) from None

    @cached_property
    def config_fields(self) -> Mapping[str, Any]:
        """The parsed config.json. Raises UserError."""
        if not os.path.lexists(self.path / CONFIG):
            raise UserError(
                _("{name} is a folder without a {config}: no model is in it", name=self.name, config=CONFIG)
            )
        return self.fields(CONFIG)

    @cached_property
    def family(self) -> Family:
        """The model's family. Raises UserError with those that are supported."""
        model_type = self.config_fields.get("model_type")
        try:
            return family_called(model_type)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from None

    @cached_property
    def config(self) -> AnyConfig:
        """The model's sizes. Raises UserError."""
        try:
            return self.family.config(self.config_fields)
        except UserError as error:
            raise UserError(f"{safe_line(str(self.path / CONFIG))}: {error}") from None

    def headers(self) -> list[Header]:
        """Read the headers of the weight files. Raises UserError if one is missing, or if there are none."""
        return [read_header(path) for path in self._weight_files()]

    def _weight_files(self) -> list[Path]:
        index = self.fields(INDEX)
        shards = sorted({str(shard) for shard in self._shards(index)}) if index else []
        if self.chosen is not None and self.chosen.name not in shards:
            return [self.chosen]
        if shards and not (self.path / WEIGHTS).exists():
            for shard in shards:
                if Path(shard).name != shard or shard in (".", "..") or "\\" in shard:
                    raise UserError(
                        _(
                            "{index} in {name} points outside the folder: {shard:.80}",
                            index=INDEX,
                            name=self.name,
                            shard=safe_line(shard),
                        )
                    )
                if not os.path.lexists(self.path / shard):
                    raise UserError(
                        _("{name} lacks {shard:.80}, which its index names", name=self.name, shard=safe_line(shard))
                    )
            return [self.path / shard for shard in shards]
        if not os.path.lexists(self.path / WEIGHTS):
            pickle = next((file for file in _PICKLES if os.path.lexists(self.path / file)), None)
            if pickle:
                raise UserError(
                    _(
                        "{name} holds its weights as pickle ({pickle}), which can run code: not opened",
                        name=self.name,
                        pickle=pickle,
                    )
                )
            raise UserError(_("{name} has no {weights}", name=self.name, weights=WEIGHTS))
        return [self.path / WEIGHTS]

    def _shards(self, index: Mapping[str, Any]) -> list[Any]:
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
            raise UserError(_("{index} in {name} has no weight_map of file names", index=INDEX, name=self.name))
        return list(places.values())


def folder_at(path: Path) -> Folder | None:
    """Return the Hugging Face folder that `path` is, or that the weight file `path` lies in; None if neither."""
    if os.path.isdir(path):  # noqa: PTH112 - Path's own raises for a name that is too long
        return Folder(path)
    if os.path.lexists(path.parent / CONFIG):
        return Folder(path.parent, path)
    return None
