"""What a family of Hugging Face models is: a name map, and the few lines in which it differs."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minillm_repl.checkpoint.families.fields import ConfigFields
from minillm_repl.checkpoint.weight_map import AS_IS, TRANSPOSED, Layout, SourceTensor, WeightMap
from minillm_repl.model.config import AnyConfig

_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_ANYTHING = re.compile("")
_BUFFERS = r"(^|\.)(position_ids|rotary_emb\.\w+)$"  # numbers that are not learnt, saved by mistake


@dataclass(frozen=True)
class Family:
    """One family: how its config.json is read and written, and what it calls our tensors."""

    model_type: str
    title: str
    architecture: str
    read_config: Callable[[ConfigFields], AnyConfig]
    write_config: Callable[[Any], dict[str, Any]]
    tensor_names: Mapping[
        str, tuple[str, ...]
    ]  # ours, less the ending -> theirs, one below the other
    prefix: str  # of all names but the head's; files of a bare model lack it
    defaults: Mapping[str, Any]  # what a config.json that leaves a field out means
    arch: str = "gpt"  # which of our models runs it
    # other names of fields, which come before the usual ones
    field_aliases: Mapping[str, str] = field(default_factory=dict)
    layouts: Callable[[AnyConfig], Mapping[str, Layout]] = field(default=lambda _: {})
    tensor_aliases: Mapping[str, str] = field(default_factory=dict)  # what some files call a tensor
    ignored: str = r"(?!)"

    def parse_config(self, data: Mapping[str, Any]) -> AnyConfig:
        """Read a config.json; what it leaves out is as in the `transformers` library.

        Raises UserError.
        """
        other = {usual: data[name] for name, usual in self.field_aliases.items() if name in data}
        return self.read_config(ConfigFields({**data, **other}, self.defaults))

    def weight_map(self, config: AnyConfig, names: Collection[str] = ()) -> WeightMap:
        """Return how our tensors are made of theirs, which a file calls by some of `names`.

        What else a file holds is ignored: `unused` tells what that is.
        """
        layouts, outer = self.layouts(config), self._wrapper_prefix(names)
        sources: dict[str, tuple[SourceTensor, ...]] = {}
        for name, shape in config.shapes():
            stem, _, ending = name.rpartition(".")
            block = _BLOCK.fullmatch(stem)
            key, layer = (block[2], block[1]) if block else (stem, "")
            theirs = [
                self._resolve_name(f"{each.format(layer)}.{ending}", outer, names)
                for each in self.tensor_names[key]
            ]
            layout = layouts.get(key, AS_IS)
            shapes = _split_shape(config, shape, len(theirs))
            if layout is TRANSPOSED:
                shapes = [shape[::-1] for shape in shapes]
            sources[name] = tuple(
                SourceTensor(each, shape, layout)
                for each, shape in zip(theirs, shapes, strict=True)
            )
        embedding, head = self.embedding_and_head_names(names)
        # one of two names for the same numbers
        if config.tie_word_embeddings and embedding not in names and head in names:
            sources["token_embedding.weight"] = (
                replace(sources["token_embedding.weight"][0], name=head),
            )
        return WeightMap(sources, _ANYTHING)

    def unused(self, weight_map: WeightMap, names: Collection[str]) -> list[str]:
        """Return which of a file's tensors the model has no place for, less those that are known
        to mean nothing.
        """
        used = {piece.name for pieces in weight_map.sources.values() for piece in pieces}
        known = re.compile(f"{self.ignored}|{_BUFFERS}")
        others = set(names) - used - set(self.embedding_and_head_names(names))
        return sorted(name for name in others if not known.search(name))

    def embedding_and_head_names(self, names: Collection[str]) -> tuple[str, str]:
        """Return what a file of these names calls the embedding's and the output head's matrix."""
        outer = self._wrapper_prefix(names)
        embedding, head = (
            f"{self.tensor_names[key][0]}.weight" for key in ("token_embedding", "lm_head")
        )
        return self._resolve_name(embedding, outer, names), self._resolve_name(head, outer, names)

    def _resolve_name(self, name: str, outer: str, names: Collection[str]) -> str:
        """Return which of a file's names is `name`: a bare model's lack the prefix, a wrapped
        one's have one more.
        """
        bare, other = name.removeprefix(self.prefix), self.tensor_aliases.get(name, name)
        return next(
            (
                each
                for each in (outer + name, outer + bare, name, bare, outer + other, other)
                if each in names
            ),
            name,
        )

    def _wrapper_prefix(self, names: Collection[str]) -> str:
        """Return what stands before all names of a model saved from inside something else."""
        last = (
            self.tensor_names["norm_f" if "norm_f" in self.tensor_names else "ln_f"][
                0
            ].removeprefix(self.prefix)
            + ".weight"
        )
        found = [name.removesuffix(last) for name in names if f".{name}".endswith(f".{last}")]
        return min(found, key=len, default="").removesuffix(self.prefix)


def _split_shape(config: AnyConfig, shape: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors of a file, `count` of them, that are one fused tensor here.

    Three are queries, keys and values; two are gate and up, of equal size; one is fused in the file
    too, as in a GPT.
    """
    if count == 3:
        query_rows, kv_rows = (
            heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads)
        )
        return [(rows, *shape[1:]) for rows in (query_rows, kv_rows, kv_rows)]
    return [(shape[0] // count, *shape[1:])] * count
