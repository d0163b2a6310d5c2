"""What `:circuit` shows: figures, a map of the parts, and a tree of the edges."""

import heapq
import itertools
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE
from minillm_repl.render.drawing import shade, title
from minillm_repl.render.tables import plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.views.base import View

_MAX_BRANCHES = 40  # edges in the picture
_ENDS = "embedding", "logits"


@dataclass(frozen=True)
class Edge:
    """What one part of the model reads of another."""

    sender: str  # `embedding`, `2.1` or `2.mlp`
    receiver: str  # `3.0.q`, `3.mlp` or `logits`
    score: float  # estimate: which fraction of the logit difference it carries


@dataclass(frozen=True, kw_only=True)
class CircuitView(View):
    """The edges that carry A's answer, and what the model does with these edges alone."""

    a: tuple[Token, ...]
    b: tuple[Token, ...]
    answer_a: Token
    answer_b: Token
    likeliest: bool  # whether these are the top tokens after A and B
    clean: float  # logit of A's answer − logit of B's answer, after A
    corrupt: float  # the same after B
    steps: int  # of the integrated gradients; 1: the gradient on A
    n_layers: int
    n_heads: int
    n_kv_heads: int
    all_edges: int
    edges: tuple[Edge, ...]  # the largest |score| first
    faithfulness: float  # of A with all other edges from B: 1 is as the whole model on A, 0 as on B
    completeness: float  # of A with these edges from B: 0 if nothing is left of the answer
    random: float  # faithfulness of as many edges, chosen at random
    model: str = ""

    @property
    def composition(self) -> tuple[Edge, ...]:
        """The edges between heads and MLPs: no end of them is the embedding or the logits."""
        ends = ((each.sender, each.receiver) for each in self.edges)
        inner = [_ENDS[0] != sender and _ENDS[1] != receiver for sender, receiver in ends]
        return tuple(each for each, is_inner in zip(self.edges, inner, strict=True) if is_inner)

    def draw(self, width: int) -> RenderableType:
        """Return the figures, a map of the parts, and a tree of the edges from the logits down."""
        head = _("{n} of {all} edges", n=len(self.edges), all=f"{self.all_edges:,}")
        answers = {"a": self.answer_a.label, "b": self.answer_b.label}
        texts = ("".join(token.label for token in side) for side in (self.a, self.b))
        prompts = _("A: {a} · B: {b}", **dict(zip("ab", texts, strict=True)))
        parts: list[RenderableType] = [
            title(_("circuit"), head),
            Text(prompts, FIGURES, no_wrap=True, overflow="ellipsis"),
            self._figures(),
            Text(),
            Text(_("100%: the {a} − {b} logit difference on A, 0%: on B", **answers), FIGURES),
        ]
        if not self.likeliest:
            same = _("both prompts have the same answer; these two tokens differ most")
            parts.append(Text(same, FIGURES))
        how = _("estimates by the gradient on A")
        if self.steps > 1:
            how = _("estimates by {n} steps of integrated gradients", n=self.steps)
        if self.model:
            how += " · " + _("model {name}", name=self.model)
        return Group(*parts, Text(), self._map(width), Text(), *self._tree(), Text(how, FIGURES))

    def _figures(self) -> RenderableType:
        table = plain_table(_("run on A"), _("logit difference"), "", right=(1, 2))
        rows = {
            _("the whole model"): 1.0,
            _("these edges alone, the others as on B (faithfulness)"): self.faithfulness,
            _("all but these edges, these as on B (completeness: 0% is best)"): self.completeness,
            _("as many edges at random"): self.random,
        }
        for name, share in rows.items():
            value = self.corrupt + share * (self.clean - self.corrupt)
            table.add_row(name, f"{value:+.3f}", f"{100 * share:.1f}%")
        return table

    def _map(self, width: int) -> Text:
        """Return layers as rows, heads and the MLP as columns: the darker, the more it carries."""
        sums: dict[str, float] = {}
        for each in self.edges:
            sums[each.sender] = sums.get(each.sender, 0.0) + abs(each.score)
        largest = max(sums.values(), default=0.0) or 1.0
        columns = [*map(str, range(self.n_heads)), "mlp"]
        cell = 4 if (self.n_heads + 1) * 4 + 7 <= width else 2
        header = "".join(f"{name:>{cell}}" if cell > 2 else "" for name in columns)
        lines = Text.assemble((_("layer") + f"  {header}\n", FIGURES), no_wrap=True)
        for layer in reversed(range(self.n_layers)):
            lines.append(f"{layer:>5}  ", FIGURES)
            for name in columns:
                share = sums.get(f"{layer}.{name}")
                mark = "·" if share is None else (shade(share / largest).strip() or "░") * 2
                lines.append(f"{mark:>{cell}}", FIGURES if share is None else TITLE)
            lines.append("\n")
        note = _("darker: carries more (Σ |score| of its edges); ·: not in the circuit")
        return lines.append(note, FIGURES)

    def _tree(self) -> list[RenderableType]:
        """Return the circuit from the logits down: under each part what it reads, once."""
        by_node: dict[str, list[Edge]] = {}
        for each in self.edges:
            for node in self._readers(each.receiver):
                by_node.setdefault(node, []).append(each)
        root = Tree(Text("logits", TITLE), guide_style=FIGURES)
        shown, drawn = {"logits"}, set[Edge]()
        # The strongest edge of all parts that are drawn comes next, so that long ways are seen.
        order = itertools.count()  # of equal scores, the first comes first
        heap: list[tuple[float, int, Edge, Tree]] = []

        def offer(node: str, tree: Tree) -> None:
            for edge in by_node.get(node, []):
                heapq.heappush(heap, (-abs(edge.score), next(order), edge, tree))

        offer("logits", root)
        while heap and len(drawn) < _MAX_BRANCHES:
            _strength, _order, edge, tree = heapq.heappop(heap)
            drawn.add(edge)
            is_new = edge.sender not in shown
            branch = tree.add(_label(edge, seen=not is_new and edge.sender in by_node))
            if is_new:
                shown.add(edge.sender)
                offer(edge.sender, branch)
        parts: list[RenderableType] = [root]
        if len(drawn) < len(self.edges):
            rest = len(self.edges) - len(drawn)
            parts.append(Text(_("{n} more edges: `--json FILE` has all", n=rest), FIGURES))
        return parts

    def _readers(self, receiver: str) -> list[str]:
        """Return the parts that compute from an input: of keys and values, all heads of a group."""
        layer, *rest = receiver.split(".")
        if rest[-1:] not in (["k"], ["v"]):
            return [".".join([layer, *rest[:1]])]
        size, group = self.n_heads // self.n_kv_heads, int(rest[0])
        return [f"{layer}.{head}" for head in range(group * size, (group + 1) * size)]


def _label(edge: Edge, *, seen: bool) -> Text:
    side = edge.receiver.split(".")[2:]  # `q` of a head
    label = Text.assemble((f"{edge.receiver} ← " if side else "← ", FIGURES), (edge.sender, TITLE))
    label.append(f"  {100 * edge.score:+.1f}%", POSITIVE if edge.score > 0 else NEGATIVE)
    return label.append(" ↑", FIGURES) if seen else label
