"""What a family of Hugging Face models is: a name map, and the few lines in which it differs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minillm_repl.checkpoint.fields import Fields
from minillm_repl.checkpoint.recipe import AS_IS, TRANSPOSED, Layout, Piece, Recipe
from minillm_repl.model.config import AnyConfig, LlamaConfig

_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Family:
    """One family: how its config.json is read and written, and what it calls our tensors."""

    model_type: str
    title: str
    architecture: str
    read: Callable[[Fields], AnyConfig]
    write: Callable[[Any], dict[str, Any]]
    names: Mapping[str, tuple[str, ...]]  # ours, less the ending -> theirs, one below the other
    prefix: str  # of all names but the head's; files of a bare model lack it
    defaults: Mapping[str, Any]  # what a config.json that leaves a field out means
    arch: str = "gpt"  # which of our models runs it
    renamed: Mapping[str, str] = field(default_factory=dict)  # other names of fields, which come before the usual ones
    layouts: Callable[[AnyConfig], Mapping[str, Layout]] = field(default=lambda _: {})
    ignored: str = r"(?!)"

    def config(self, data: Mapping[str, Any]) -> AnyConfig:
        """Read a config.json; what it leaves out is as in the `transformers` library. Raises UserError."""
        other = {usual: data[name] for name, usual in self.renamed.items() if name in data}
        return self.read(Fields({**data, **other}, self.defaults))

    def recipe(self, config: AnyConfig, *, bare: bool = False) -> Recipe:
        """Return how our tensors are made of theirs; `bare` names lack the prefix."""
        layouts = self.layouts(config)
        pieces: dict[str, tuple[Piece, ...]] = {}
        for name, shape in config.shapes():
            stem, _, ending = name.rpartition(".")
            block = _BLOCK.fullmatch(stem)
            key, layer = (block[2], block[1]) if block else (stem, "")
            theirs = [f"{each.format(layer)}.{ending}" for each in self.names[key]]
            if bare:
                theirs = [each.removeprefix(self.prefix) for each in theirs]
            layout = layouts.get(key, AS_IS)
            shapes = _shared_out(config, key, shape)
            if layout is TRANSPOSED:
                shapes = [shape[::-1] for shape in shapes]
            pieces[name] = tuple(Piece(each, shape, layout) for each, shape in zip(theirs, shapes, strict=True))
        head = self.names["lm_head"][0]
        unused = rf"^{re.escape(head)}\.weight$" if config.tied else r"(?!)"
        return Recipe(pieces, re.compile(f"{self.ignored}|{unused}"))


def _shared_out(config: AnyConfig, key: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the pieces of a fused tensor; a GPT's are fused in its files too."""
    if isinstance(config, LlamaConfig) and key == "attention.qkv":
        return [(rows, *shape[1:]) for rows in (config.query_rows, config.key_rows, config.key_rows)]
    if key == "ff.gate_up":
        return [(shape[0] // 2, *shape[1:])] * 2
    return [shape]
