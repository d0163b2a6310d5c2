"""A family of Hugging Face models as data: names of tensors and fields, and conversions."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minillm_repl.checkpoint import AS_IS, TRANSPOSED, Layout, SourceTensor, WeightMap
from minillm_repl.checkpoint.families.fields import ConfigFields
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line

_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_ANYTHING = re.compile("")
_BUFFERS = r"(^|\.)(position_ids|rotary_emb\.\w+)$"  # constants that older versions saved


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: its config.json, and its names of the model's tensors."""

    model_type: str  # in config.json
    title: str  # on the screen
    architecture: str  # the class of the `transformers` library
    read_config: Callable[[ConfigFields], AnyConfig]
    write_config: Callable[[Any], dict[str, Any]]
    # From our name to the names in a file, both without `.weight`. Several are stacked by rows.
    tensor_names: Mapping[str, tuple[str, ...]]
    prefix: str  # of all names but the unembedding's; files of a bare model lack it
    defaults: Mapping[str, Any]  # of fields that a config.json leaves out
    arch: str = "gpt"  # the model that runs it: gpt or llama
    field_aliases: Mapping[str, str] = field(
        default_factory=dict
    )  # these go before the usual names
    layouts: Callable[[AnyConfig], Mapping[str, Layout]] = field(default=lambda _config: {})
    tensor_aliases: Mapping[str, str] = field(default_factory=dict)  # from usual to other names
    ignored: str = r"(?!)"  # pattern of tensors that mean nothing
    inner_config: str = ""  # the field of config.json that has the text model's fields

    def parse_config(self, data: Mapping[str, Any]) -> AnyConfig:
        """Return the config of a config.json; the defaults are those of `transformers`.

        Raises UserError.
        """
        if self.inner_config:
            inner = data.get(self.inner_config, {})
            if not isinstance(inner, dict):
                raise UserError(
                    _(
                        "{name} must be {wanted}, not {value:.40}",
                        name=self.inner_config,
                        wanted=_("a JSON object"),
                        value=safe_line(str(inner)),
                    )
                )
            data = inner
        other = {usual: data[name] for name, usual in self.field_aliases.items() if name in data}
        return self.read_config(ConfigFields({**data, **other}, self.defaults))

    def weight_map(self, config: AnyConfig, names: Collection[str] = ()) -> WeightMap:
        """Return the weight map from a file with these tensor names to the model.

        Other tensors of the file are ignored; `unused` returns them.
        """
        layouts = self.layouts(config)
        outer = self._wrapper_prefix(names)
        sources: dict[str, tuple[SourceTensor, ...]] = {}
        for name, shape in config.shapes():
            stem, _dot, ending = name.rpartition(".")  # ending: weight or bias
            block = _BLOCK.fullmatch(stem)
            key, layer = (block[2], block[1]) if block else (stem, "")
            theirs = [
                self._resolve_name(f"{each.format(layer)}.{ending}", outer, names)
                for each in self.tensor_names[key]
            ]
            layout = layouts.get(key, AS_IS)
            shapes = split_shape(config, len(theirs), shape)
            # The shapes are those in the file.
            if layout is TRANSPOSED:
                shapes = [shape[::-1] for shape in shapes]
            sources[name] = tuple(
                SourceTensor(each, shape, layout)
                for each, shape in zip(theirs, shapes, strict=True)
            )
        embedding, head = self.embedding_and_head_names(names)
        # A file with tied embeddings may have the matrix only under the unembedding's name.
        if config.tie_word_embeddings and embedding not in names and head in names:
            sources["token_embedding.weight"] = (
                replace(sources["token_embedding.weight"][0], name=head),
            )
        return WeightMap(sources, _ANYTHING)

    def unused(self, weight_map: WeightMap, names: Collection[str]) -> list[str]:
        """Return the tensors of a file that the model does not use, without meaningless ones."""
        used = {piece.name for pieces in weight_map.sources.values() for piece in pieces}
        known = re.compile(f"{self.ignored}|{_BUFFERS}")
        # A tied model may save its matrix under both names.
        others = set(names) - used - set(self.embedding_and_head_names(names))
        return sorted(name for name in others if not known.search(name))

    def embedding_and_head_names(self, names: Collection[str]) -> tuple[str, str]:
        """Return the names of the embedding and the unembedding in a file with these names."""
        outer = self._wrapper_prefix(names)
        embedding = self.tensor_names["token_embedding"][0] + ".weight"
        head = self.tensor_names["lm_head"][0] + ".weight"
        return self._resolve_name(embedding, outer, names), self._resolve_name(head, outer, names)

    def _resolve_name(self, name: str, outer: str, names: Collection[str]) -> str:
        """Return the name of a tensor in a file; `name` itself if the file lacks it.

        A bare model saves names without the prefix, a wrapped model with a second one, `outer`.
        """
        bare = name.removeprefix(self.prefix)
        other = self.tensor_aliases.get(name, name)
        candidates = (outer + name, outer + bare, name, bare, outer + other, other)
        return next((each for each in candidates if each in names), name)

    def _wrapper_prefix(self, names: Collection[str]) -> str:
        """Return the prefix of a model that was saved as a part of another module; often empty.

        The last norm shows it: every model has exactly one.
        """
        norm = self.tensor_names.get("norm_f") or self.tensor_names["ln_f"]
        last = norm[0].removeprefix(self.prefix) + ".weight"
        found = [name.removesuffix(last) for name in names if f".{name}".endswith(f".{last}")]
        return min(found, key=len, default="").removesuffix(self.prefix)


def split_shape(config: AnyConfig, parts: int, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the 1, 2 or 3 parts of a tensor: itself, gate and up, or q, k and v."""
    if parts == 1:
        return [shape]
    if parts == 2:
        return [(shape[0] // 2, *shape[1:])] * 2
    q_rows = config.n_heads * config.head_dim
    kv_rows = config.n_kv_heads * config.head_dim
    return [(rows, *shape[1:]) for rows in (q_rows, kv_rows, kv_rows)]
