"""`:circuit`: the edges that carry the answer of one prompt, and the model cut to them."""

import heapq
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Option, TextPair
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.model_loading import Intervention
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.settings import integer
from minillm_repl.tokenizer import Token
from minillm_repl.views.base import active_interventions, inspect_ids, show
from minillm_repl.views.circuit_view import CircuitView, Edge
from minillm_repl.views.edges import WRITES, Graph, check_graph, cut_hook, scores
from minillm_repl.views.inspected_text import InspectedText, no_grad
from minillm_repl.views.patching import Progress, check_pair, measure
from minillm_repl.views.prompts import CHAT, prompt_ids, with_time_left

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell


@no_grad
def compute(
    a: InspectedText,
    b: InspectedText,
    size: int = 100,
    steps: int = 1,
    progress: Progress = lambda _share: None,
) -> CircuitView:
    """Return a circuit of at most `size` edges, and what the model cut to it does on A.

    Raises UserError as `:patch` does, and for a model that has layers without heads.
    """
    check_pair(a, b)
    graph = check_graph(a)
    logits_a, clean = a.run_with_cache(*WRITES, last_only=True)
    logits_b, corrupt = b.run_with_cache(*WRITES, last_only=True)
    found = measure(a, logits_a[0], logits_b[0])
    score = scores(a, clean, corrupt, found.answers, steps, lambda share: progress(0.7 * share))
    score /= found.clean - found.corrupt
    kept, there = select(graph, score, size), graph.all_edges()
    runs = []
    for uncut in (kept, there & ~kept, _random(there, int(kept.sum()))):
        logits = a.with_hook(cut_hook(a.model, uncut, corrupt)).logits(last_only=True)
        runs.append(found.fractions(logits)[0])
        progress(0.7 + 0.1 * len(runs))
    edges = [
        Edge(graph.writers[writer], graph.readers[reader], float(score[reader, writer]))
        for reader, writer in kept.nonzero().tolist()
    ]
    answer_a, answer_b = (Token.from_id(a.tokenizer, answer) for answer in found.answers)
    return CircuitView(
        a=a.tokens,
        b=b.tokens,
        answer_a=answer_a,
        answer_b=answer_b,
        likeliest=found.likeliest,
        clean=found.clean,
        corrupt=found.corrupt,
        steps=steps,
        n_layers=graph.config.n_layers,
        n_heads=graph.config.n_heads,
        n_kv_heads=graph.config.n_kv_heads,
        all_edges=graph.n_edges,
        edges=tuple(sorted(edges, key=lambda each: -abs(each.score))),
        faithfulness=runs[0],
        completeness=runs[1],
        random=runs[2],
    )


def select(graph: Graph, score: "Tensor", size: int) -> "Tensor":
    """Return which edges are kept (reader, writer), `size` at most.

    From the logits on, the edge with the largest |score| into a part that is kept already comes
    next. Parts that read nothing are left out, and do not count.
    """
    order = _from_the_logits(graph, score)
    low, high = 0, len(order)  # how many edges of the order give `size` of them
    while low < high:
        middle = (low + high + 1) // 2
        fits = int(_connected(graph, order[:middle]).sum()) <= size
        low, high = (middle, high) if fits else (low, middle - 1)
    return _connected(graph, order[:low])


def _from_the_logits(graph: Graph, score: "Tensor") -> list[tuple[int, int]]:
    """Return all edges (reader, writer) in the order in which they are taken."""
    rows: list[list[float]] = score.abs().tolist()
    open_readers, candidates = set[int](), list[tuple[float, int, int]]()
    order: list[tuple[int, int]] = []

    def reach(readers: Iterable[int]) -> None:
        for reader in set(readers) - open_readers:
            open_readers.add(reader)
            for writer in range(graph.written_before(reader)):
                heapq.heappush(candidates, (-rows[reader][writer], reader, writer))

    reach([len(graph.readers) - 1])
    while candidates:
        _strength, reader, writer = heapq.heappop(candidates)
        order.append((reader, writer))
        reach(graph.sources(graph.writers[writer]))
    return order


def _connected(graph: Graph, edges: list[tuple[int, int]]) -> "Tensor":
    """Return the edges as (reader, writer), without those of parts that read nothing."""
    import torch

    kept = torch.zeros(len(graph.readers), len(graph.writers), dtype=torch.bool)
    if edges:
        readers, writers = zip(*edges, strict=True)
        kept[list(readers), list(writers)] = True
    # A part's readers come before those that read it: one way through the model is enough.
    for index, writer in enumerate(graph.writers):
        sources = list(graph.sources(writer))
        if sources and not kept[sources].any():
            kept[:, index] = False
    return kept


def _random(there: "Tensor", size: int) -> "Tensor":
    """Return as many edges by chance, always the same ones."""
    import torch

    order = torch.randperm(int(there.sum()), generator=torch.Generator().manual_seed(0))
    chosen = there.nonzero()[order[:size]]
    kept = torch.zeros_like(there)
    kept[chosen[:, 0], chosen[:, 1]] = True
    return kept


@command(
    "circuit",
    arguments=Forms(
        (
            CHAT,
            TextPair("->", "A -> B", also="→", required=2),
            Option("edges", integer(1), 100, "100"),
            Option("ig", integer(1, 100), 1, "1"),
        ),
        ("run",),
        ("off",),
        (),
    ),
    json=True,
    aliases=("회로",),
    group="Interventions",
    example=":circuit 날씨가 맑다 -> 날씨가 좋다 edges=20",
)
def circuit(shell: "Shell", asked: Arguments) -> None:
    """Find the circuit between two prompts, and run it alone.

    The model is a graph. The embedding, each head and each MLP write into the residual stream; the
    queries, keys and values of each head, each MLP and the logits read it. An edge is what one part
    reads of another.

    The score of an edge is (A − B) of what is written · ∂(logit difference) at what is read, as a
    fraction of the logit difference: an estimate of what the edge carries. The gradient is that on
    A (edge attribution patching); ig=5 takes the mean over 5 embeddings on the way from B to A.

    From the logits on, the strongest edges into what is kept already are kept, `edges` in all.
    Then the cut model is run on A: each part reads the kept edges as they are, and the others as on
    B. Faithfulness is the fraction of the logit difference that this restores: 100% is the whole
    model. Completeness is the fraction that is left if the kept edges are as on B, and the others
    as they are: 0% if nothing was missed. Beside it are as many edges by chance.

    The map shows which parts are in the circuit. The tree shows what each part reads, from the
    logits down; ↑ marks a part whose own edges stand elsewhere. `:export FILE.svg` makes a picture.

    :circuit run lets the model go on with the circuit of the last view alone, also while text is
    generated. After the end of prompt B, a cut edge carries the mean over B's positions.
    :circuit off ends that. `:circuit chat A -> B` makes each prompt a chat.

    The prompts need the same number of tokens. Layers and heads count from 0; k and v are numbered
    by KV head. Where a norm follows attention (Gemma 2 and 3, OLMo 2, EXAONE 4), what a head writes
    is its part of the sum, times the scale of that norm in the same pass: the parts add up to what
    the layer writes. Models with short convolutions (LFM2) have no circuit here.
    """
    if asked.keyword == "run":
        _run(shell)
    elif asked.keyword == "off":
        removed = shell.session.workspace.remove_interventions("circuit")
        shell.screen.note(_("the whole model runs again") if removed else _state(shell))
    elif not asked.texts[0]:
        shell.screen.note(_state(shell))
    else:
        model = shell.require_model().without_interventions("circuit")
        a, b = (
            inspect_ids(shell, model, prompt_ids(shell, model, text, chat=bool(asked.chat)))
            for text in asked.texts
        )
        with shell.screen.waiting(_("looking for the circuit")) as update:
            progress = with_time_left(update, _("looking for the circuit"))
            view = compute(a, b, asked.edges, asked.ig, progress)
        view = replace(view, model=safe_line(model.name))
        show(shell, view, asked.output, model)
        shell.screen.note(_("`:circuit run` runs the cut model, `:circuit off` the whole one"))


def _run(shell: "Shell") -> None:
    """Cut the open model to the circuit of the last view. Raises UserError if there is none."""
    view, model = shell.last_shown, shell.require_model().without_interventions("circuit")
    if not isinstance(view, CircuitView) or view.model != safe_line(model.name):
        raise UserError(_("no circuit to run: `:circuit A -> B` first"))
    import torch

    b = inspect_ids(shell, model, [token.id for token in view.b])
    graph = check_graph(b)
    kept = torch.zeros(len(graph.readers), len(graph.writers), dtype=torch.bool)
    for edge in view.edges:
        kept[graph.readers.index(edge.receiver), graph.writers.index(edge.sender)] = True
    corrupt = b.run_with_cache(*WRITES, last_only=True)[1]
    hook = cut_hook(model.language_model, kept, corrupt)
    describe = partial(_describe, len(view.edges), graph.n_edges)
    # The cache keeps what one stream of a Canon layer has read, and here each reader has its own.
    whole = model.checkpoint.config.has_canon_layers
    lines = _lines(view)
    shell.session.workspace.add_intervention(
        Intervention("circuit", describe, hook, reads_whole_text=whole, lines=lines)
    )
    shell.screen.note(_("{change} · `:circuit off` ends it", change=describe()))


def _lines(view: CircuitView) -> tuple[str, str]:
    """Return what finds a circuit again, and runs it."""
    a, b = ("ids:" + " ".join(str(token.id) for token in side) for side in (view.a, view.b))
    return f":circuit {a} -> {b} edges={len(view.edges)} ig={view.steps}", ":circuit run"


def _describe(edges: int, n_edges: int) -> str:
    return _("cut to {n} of {all} edges", n=edges, all=f"{n_edges:,}")


def _state(shell: "Shell") -> str:
    """Return which circuit is active."""
    active = " · ".join(active_interventions(shell, "circuit"))
    return active or _("no circuit is active: `:circuit A -> B` finds one")
