"""A model as a graph: every head, MLP and the embedding writes, every input of a head or MLP reads.

An edge is what one part reads of another through the residual stream. Edges are scored by gradients
(Syed et al., 2023; Hanna et al., 2024), and can be cut one by one: the reader then gets what the
writer had in another pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.hooks import Hook, compose
from minillm_repl.views.inspected_text import InspectedText, check_finite, look_back

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel

WRITES = "embedding", "attention.z", "mlp.out"
"""The hooks of what is written, before a head's output goes through its output projection."""

_MAX_NUMBERS = 2**28  # of what all parts write: 1 GiB


@dataclass(frozen=True)
class Graph:
    """The writers and readers of a model, by name and index.

    A writer is `embedding`, `2.1` (head 1 of layer 2) or `2.mlp`. A reader is `2.1.q`, `2.0.k`,
    `2.0.v` (by KV head), `2.mlp` or `logits`.
    """

    config: AnyConfig

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """All writers, in the order of the model."""
        heads = self.config.n_heads
        names = ["embedding"]
        for layer in range(self.config.n_layers):
            names += [*(f"{layer}.{head}" for head in range(heads)), f"{layer}.mlp"]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """All readers, in the order of the model."""
        sides = (
            ("q", self.config.n_heads),
            ("k", self.config.n_kv_heads),
            ("v", self.config.n_kv_heads),
        )
        names: list[str] = []
        for layer in range(self.config.n_layers):
            names += (f"{layer}.{head}.{side}" for side, count in sides for head in range(count))
            names.append(f"{layer}.mlp")
        return (*names, "logits")

    @property
    def n_attention(self) -> int:
        """How many readers the attention of a layer has."""
        return self.config.n_heads + 2 * self.config.n_kv_heads

    def rows(self, layer: int) -> slice:
        """Return which readers are of the attention of a layer; the next one is its MLP."""
        start = layer * (self.n_attention + 1)
        return slice(start, start + self.n_attention)

    def written_before(self, reader: int) -> int:
        """Return how many writers come before a reader."""
        layer, place = divmod(reader, self.n_attention + 1)
        before = 1 + layer * (self.config.n_heads + 1)
        reads_attention = place == self.n_attention and not self.config.parallel_residual
        return before + (self.config.n_heads if reads_attention else 0)

    @cached_property
    def n_edges(self) -> int:
        """How many edges there are."""
        return sum(self.written_before(reader) for reader in range(len(self.readers)))

    def all_edges(self) -> "Tensor":
        """Return True where there is an edge: (reader, writer)."""
        import torch

        before = torch.tensor([self.written_before(each) for each in range(len(self.readers))])
        return torch.arange(len(self.writers)) < before[:, None]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.readers)}

    def sources(self, writer: str) -> Iterator[int]:
        """Yield the readers that a writer computes from."""
        layer, _dot, which = writer.partition(".")
        if which == "mlp":
            yield self._places[writer]
        elif which:
            group = int(which) * self.config.n_kv_heads // self.config.n_heads
            for side in (f"{writer}.q", f"{layer}.{group}.k", f"{layer}.{group}.v"):
                yield self._places[side]


def check_graph(inspected: InspectedText) -> Graph:
    """Return the graph of a model. Raises UserError for layers without heads, or a long text."""
    config = inspected.config
    if config.attention_layers != tuple(range(config.n_layers)):
        others = ", ".join(map(str, filter(config.is_conv, range(config.n_layers))))
        told = _("layers {layers:.40} have a short convolution in place of attention, and a "
                 "circuit has heads and MLPs only", layers=others)  # fmt: skip
        raise UserError(told)
    graph = Graph(config)
    if len(graph.writers) * len(inspected.ids) * config.d_model > _MAX_NUMBERS:
        raise UserError(_("the text is too long for this; give prompts of fewer tokens"))
    return graph


def head_writes(model: "LanguageModel", layer: int, z: "Tensor") -> "Tensor":
    """Return what each head of a layer adds to the stream, (head, time, d_model), of z (time, head,
    head_dim); the bias left out. A norm after attention has the scale that it has in this pass.
    """
    import torch

    projection = model.get_submodule(f"blocks.{layer}.attention.proj")
    assert isinstance(projection, torch.nn.Linear)
    columns = projection.weight[:].to(z.dtype).view(-1, *z.shape[-2:])  # (d_model, head, head_dim)
    written = torch.einsum("thk,dhk->htd", z, columns) * model.config.residual_multiplier
    if model.config.norm_placement == "pre":
        return written
    norm: Any = model.get_submodule(f"blocks.{layer}.post_norm1")
    total = projection(z.flatten(1))  # (time, d_model): what the norm reads
    scale: Tensor = norm.scale() * (total.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    return written * scale


def head_changes(model: "LanguageModel", layer: int, z: "Tensor", before: "Tensor") -> "Tensor":
    """Return by how much what each head adds differs between two z: (head, time, d_model)."""
    if model.config.norm_placement == "pre":
        return head_writes(model, layer, z - before)
    return head_writes(model, layer, z) - head_writes(model, layer, before)


def changes(model: "LanguageModel", a: "dict[str, Tensor]", b: "dict[str, Tensor]") -> "Tensor":
    """Return by how much what each writer adds to the stream differs between two passes, from the
    activations of `WRITES`: (writer, time, d_model).
    """
    import torch

    parts = [(a["embedding"] - b["embedding"])[None]]
    for layer in range(model.config.n_layers):
        z, mlp = f"blocks.{layer}.attention.z", f"blocks.{layer}.mlp.out"
        parts += [head_changes(model, layer, a[z], b[z]), (a[mlp] - b[mlp])[None]]
    return torch.cat(parts)


Read = Callable[[slice, "Tensor"], "Tensor"]
"""Gets which readers are next, and the stream (1, time, d_model) that they would all read; returns
what each reads: (reader, time, d_model)."""


def split_hook(graph: Graph, read: Read, wrote: Callable[[str, "Tensor"], None]) -> Hook:
    """Return a hook that gives each reader a stream of its own.

    Where a layer reads, the pass goes on as a batch of streams, one for each reader, and the plain
    stream as the first. Of each reader's row, what it computes is taken, and the others are left.
    `wrote` is called with the activation of each hook of `WRITES`: (time, ...).
    """
    import torch

    config = graph.config
    heads, groups, parallel = config.n_heads, config.n_kv_heads, config.parallel_residual
    first = {"q": 1, "k": 1 + heads, "v": 1 + heads + groups}

    def rows(which: slice, stream: "Tensor") -> "Tensor":
        return torch.cat((stream, read(which, stream)))

    def enter(layer: int, stream: "Tensor") -> "Tensor":
        which = (
            graph.rows(layer) if layer < config.n_layers else slice(len(graph.readers) - 1, None)
        )
        if parallel and layer < config.n_layers:  # the MLP reads the same stream
            which = slice(which.start, which.stop + 1)
        # The logits are read from one stream: nothing comes after them.
        return rows(which, stream) if layer < config.n_layers else read(which, stream)

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name == "embedding":
            if len(tensor) > 1:
                raise UserError(_("several texts in one pass need the whole model: `:circuit off`"))
            wrote(name, tensor[0])
            return enter(0, tensor)
        _blocks, *rest = name.split(".")
        layer, what = int(rest[0]) if rest else 0, ".".join(rest[1:])
        if what in ("attention.q", "attention.k", "attention.v"):
            own = torch.arange(tensor.shape[1], device=tensor.device)
            return tensor[first[what[-1]] + own, own][None]  # (1, head, time, head_dim)
        if what == "attention.z":
            wrote(name, tensor[0])
        elif what == "residual.mid":
            mlp = graph.rows(layer).stop
            return rows(slice(mlp, mlp + 1), tensor[:1])
        elif what in ("mlp.hidden", "mlp.out"):
            if what == "mlp.out":
                wrote(name, tensor[-1])
            return tensor[-1:]  # the last row is the one that the MLP reads
        elif what == "residual":
            return enter(layer + 1, tensor[:1])
        return tensor

    return hook


def scores(
    a: InspectedText,
    clean: "dict[str, Tensor]",
    corrupt: "dict[str, Tensor]",
    answers: tuple[int, int],
    steps: int = 1,
    progress: Callable[[float], None] = lambda _share: None,
) -> "Tensor":
    """Return what each edge carries of the logit difference, to first order: (reader, writer).

    It is (A − B) of the writer · the gradient at the reader's input. The gradient is taken on A; or
    with several steps it is the mean over embeddings on the way from B to A (integrated gradients).
    `clean` and `corrupt` have the activations of `WRITES` on A and on B.
    """
    import torch

    graph = Graph(a.config)
    change = changes(a.model, clean, corrupt)
    total = torch.zeros(len(graph.readers), len(graph.writers), dtype=torch.float64)
    for step in range(1, steps + 1):
        share = step / steps
        probes: list[Tensor] = []

        def between(name: str, tensor: "Tensor", share: float = share) -> "Tensor":
            if name != "embedding" or share == 1:
                return tensor
            return corrupt[name] + share * (tensor - corrupt[name])

        def read(which: slice, stream: "Tensor", probes: "list[Tensor]" = probes) -> "Tensor":
            count = len(range(*which.indices(len(graph.readers))))
            probes.append(stream.new_zeros(count, *stream.shape[1:]).requires_grad_())
            return look_back(a, stream + probes[-1])

        hook = compose(a.hook, between, split_hook(graph, read, lambda _name, _tensor: None))
        with torch.enable_grad():
            logits = check_finite(a.model(a.input_ids, hook=hook, last_only=True)[0, -1])
            gradient = torch.cat(
                torch.autograd.grad(logits[answers[0]] - logits[answers[1]], probes)
            )
        total += torch.einsum("rtd,wtd->rw", gradient, change).double().cpu()
        progress(step / steps)
    return (total / steps).masked_fill(~graph.all_edges(), 0.0)


def cut_hook(model: "LanguageModel", kept: "Tensor", instead: "dict[str, Tensor]") -> Hook:
    """Return a hook that cuts every edge that is not `kept` (reader, writer).

    A reader gets of a cut writer what `instead` has of it: the activations of `WRITES` in another
    pass, position by position, and after its end their mean over all positions but the first.
    """
    import torch

    graph = Graph(model.config)
    state: dict[str, Tensor] = {}  # of the present pass: `positions`, and the `changes` so far
    device = next(model.parameters()).device
    cut = (graph.all_edges() & ~kept).float().to(device)  # (reader, writer)
    # (time + 1, ...): the last row stands for all later positions
    held = {
        name: torch.cat((each, each[min(1, len(each) - 1) :].mean(0, keepdim=True)))
        for name, each in instead.items()
    }

    def wrote(name: str, tensor: "Tensor") -> None:
        length = len(held[name]) - 1
        other = held[name][state["positions"].clamp(max=length)]
        layer = int(name.split(".")[1]) if name != "embedding" else 0
        is_head = name.endswith("z")
        change = head_changes(model, layer, other, tensor) if is_head else (other - tensor)[None]
        before = [] if name == "embedding" else [state["changes"]]
        state["changes"] = torch.cat((*before, change))  # (writer so far, time, d_model)

    def read(which: slice, stream: "Tensor") -> "Tensor":
        changes = state["changes"]
        return stream + torch.einsum("rw,wtd->rtd", cut[which, : len(changes)], changes)

    split = split_hook(graph, read, wrote)

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name == "positions":
            state[name] = tensor
            return tensor
        return split(name, tensor)

    return hook
