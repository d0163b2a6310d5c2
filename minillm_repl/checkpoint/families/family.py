"""A family of Hugging Face models as data: names of tensors and fields, and conversions."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minillm_repl.checkpoint import AS_IS, Layout, SourceTensor, WeightMap
from minillm_repl.checkpoint.families.fields import ConfigFields
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.safetext import safe_line

_BLOCK = re.compile(r"blocks\.(\d+)\.(.*)")
_EXPERT = re.compile(r"(mlp\.experts)\.(\d+)\.(.*)")
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
    tensor_names: Mapping[str, tuple[str, ...]]  # a second {} is for the number of an expert
    prefix: str  # of all names but the unembedding's; files of a bare model lack it
    defaults: Mapping[str, Any]  # of fields that a config.json leaves out
    arch: str = "gpt"  # the model that runs it: gpt or llama
    field_aliases: Mapping[str, str] = field(
        default_factory=dict
    )  # these go before the usual names
    layouts: Callable[[AnyConfig], Mapping[str, Layout]] = field(default=lambda _config: {})
    tensor_aliases: Mapping[str, str] = field(default_factory=dict)  # from usual to other names
    # Complete names of tensors of 3 dimensions, in which a file has all experts of a layer. The
    # first that a file has counts; where `tensor_names` has no others, the first is written.
    stacked_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
        outer = self._wrapper_prefix(names)
        sources = {
            name: self._stacked_source(name, shape, config, outer, names)
            or self._sources(name, shape, config, outer, names)
            for name, shape in config.shapes()
        }
        embedding, head = self.embedding_and_head_names(names)
        # A file with tied embeddings may have the matrix only under the unembedding's name.
        if config.tie_word_embeddings and embedding not in names and head in names:
            sources["token_embedding.weight"] = (
                replace(sources["token_embedding.weight"][0], name=head),
            )
        return WeightMap(sources, _ANYTHING)

    def _sources(
        self,
        name: str,
        shape: tuple[int, ...],
        config: AnyConfig,
        outer: str,
        names: Collection[str],
    ) -> tuple[SourceTensor, ...]:
        """Return the tensors in a file that make one of ours, one below the other."""
        key, numbers, ending = split_name(name)
        theirs = [
            self._resolve_name(f"{each.format(*numbers)}.{ending}", outer, names)
            for each in self.tensor_names[key]
        ]
        layout = self.layouts(config).get(key, AS_IS)
        shapes = split_shape(config, len(theirs), shape)
        return tuple(
            SourceTensor(each, layout.file_shape(shape), layout)
            for each, shape in zip(theirs, shapes, strict=True)
        )

    def _stacked_source(
        self,
        name: str,
        shape: tuple[int, ...],
        config: AnyConfig,
        outer: str,
        names: Collection[str],
    ) -> tuple[SourceTensor, ...]:
        """Return the stack in a file that has the matrix of an expert; () if there is none."""
        key, numbers, _ending = split_name(name)
        stacks = [
            self._resolve_name(each.format(*numbers), outer, names)
            for each in self.stacked_names.get(key, ())
        ]
        usual = stacks[:1] if key not in self.tensor_names else []
        found = [each for each in stacks if each in names] or usual
        return tuple(
            SourceTensor(each, (config.n_experts, *shape), index=int(numbers[1]))
            for each in found[:1]
        )

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


def split_name(name: str) -> tuple[str, tuple[str, ...], str]:
    """Return the key of one of our tensors in tables of names, its numbers, and its ending.

    The numbers are the layer, and the expert in it, where there are any; the ending is `weight` or
    `bias`.
    """
    stem, _dot, ending = name.rpartition(".")
    block = _BLOCK.fullmatch(stem)
    if block is None:
        return stem, (), ending
    expert = _EXPERT.fullmatch(block[2])
    if expert is None:
        return block[2], (block[1],), ending
    return f"{expert[1]}.{expert[3]}", (block[1], expert[2]), ending


def split_shape(config: AnyConfig, parts: int, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the 1, 2 or 3 parts of a tensor: itself, gate and up, or q, k and v."""
    if parts == 1:
        return [shape]
    if parts == 2:
        return [(shape[0] // 2, *shape[1:])] * 2
    q_rows = config.n_heads * config.head_dim
    kv_rows = config.n_kv_heads * config.head_dim
    return [(rows, *shape[1:]) for rows in (q_rows, kv_rows, kv_rows)]
