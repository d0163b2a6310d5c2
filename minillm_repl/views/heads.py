"""`:heads`: what each attention head does, on random tokens that are given twice."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, MODEL, TITLE, WARNING
from minillm_repl.render.drawing import UNLIMITED_WIDTH, bar, title
from minillm_repl.render.tables import NARROW, WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, ChoiceOption, Layer, Option
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.settings import integer
from minillm_repl.training.head_probe import baselines, make_probe, measure
from minillm_repl.views import circuits
from minillm_repl.views.attention_patterns import sliding_window
from minillm_repl.views.base import Row, View, inspect_ids, show
from minillm_repl.views.composition import OnProgress
from minillm_repl.views.composition import compute as compute_composition
from minillm_repl.views.inspected_text import InspectedText, check_layer, no_grad

if TYPE_CHECKING:
    from minillm_repl.repl.shell import Shell

_ROWS = 12  # heads that are listed
_PROBES = N_("induction"), N_("previous token"), N_("duplicate token")
_EIGENVALUES = 10  # of one head that are listed


@dataclass(frozen=True)
class HeadScores:
    """What one head does: shares of its attention, over all queries, and what it copies."""

    layer: int
    head: int
    induction: float  # share of attention on the token after an earlier one that is the same
    previous: float  # on the token before
    duplicate: float  # on an earlier token that is the same
    copying: float  # Σ Re λ / Σ |λ| over the eigenvalues of its OV circuit, −1 to 1


@dataclass(frozen=True, kw_only=True)
class HeadsView(View):
    """All heads, by one of their scores. Layers and heads count from 0."""

    model: str
    sequences: int  # that the scores are a mean over
    half: int  # random tokens in each half of a sequence
    start: bool  # whether a start token stands before them
    seed: int
    sort: str  # the score that they are sorted by
    most: Row  # the largest scores that there can be: of the three probes
    uniform: Row  # the scores of attention spread evenly
    blind: tuple[int, ...]  # layers whose window is too narrow for the other half
    heads: tuple[HeadScores, ...]  # the largest first

    @property
    def notes(self) -> list[Text]:
        """A warning, if some layers cannot see the other half."""
        if not self.blind:
            return []
        layers = ", ".join(map(str, self.blind))
        note = _("these layers see too few positions for induction here: {layers}", layers=layers)
        return [Text(note, WARNING)]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each head: shares of attention with bars, and the copying score."""
        shown = self.heads if width >= UNLIMITED_WIDTH else self.heads[:_ROWS]
        cells = 12 if width >= WIDE else 5 if width >= NARROW else 0
        columns = [column for probe in _PROBES for column in (_(probe), "")]
        table = plain_table(_("head"), *columns, _("copying"), right=(1, 3, 5, 7), wrap=())
        for each in shown:
            scores = each.induction, each.previous, each.duplicate
            drawn = [
                part
                for score, most in zip(scores, self.most, strict=True)
                for part in (f"{score:.1%}", Text(bar(score / most, cells), MODEL))
            ]
            table.add_row(Text(f"{each.layer}.{each.head}", TITLE), *drawn, f"{each.copying:+.2f}")
        table.add_section()
        for name, row in ((_("at most"), self.most), (_("uniform"), self.uniform)):
            numbers = (part for score in row for part in (f"{score:.1%}", ""))
            table.add_row(*(Text(part, FIGURES) for part in (name, *numbers)))
        return Group(self._title(len(shown)), table, Text(self._legend(), FIGURES))

    def _title(self, shown: int) -> Text:
        rows = _(
            "{n} of {all:,} by {score}, on random tokens given twice",
            n=shown,
            all=len(self.heads),
            score=_by(self.sort),
        )
        return title(_("heads of {model}", model=self.model), rows)

    def _legend(self) -> str:
        return _(
            "share of attention, over {times} texts of {n} random tokens, given twice "
            "(seed {seed}): on the token after an earlier same one (induction), on the one before, "
            "on an earlier same one · copying: Σ λ / Σ |λ| of OV, −1 to 1 · "
            ":heads {layer}.{head} shows one, :heads composition who reads whom",
            times=self.sequences,
            n=self.half,
            seed=self.seed,
            layer=self.heads[0].layer,
            head=self.heads[0].head,
        )


def _by(sort: str) -> str:
    """Return what the heads are sorted by, in the language of the user."""
    names = dict(zip(("induction", "previous", "duplicate"), _PROBES, strict=True))
    return _(names.get(sort, N_("copying")))


@dataclass(frozen=True, kw_only=True)
class HeadCardView(View):
    """One head: its scores, its ranks among all heads, and the eigenvalues of its OV circuit."""

    model: str
    scores: HeadScores
    ranks: tuple[int, int, int, int]  # of induction, previous, duplicate, copying: 1 is the largest
    of: int  # heads
    uniform: Row
    eigenvalues: tuple[tuple[float, float], ...]  # (real, imaginary), the largest |λ| first

    def draw(self, width: int) -> RenderableType:
        """Return the scores with their ranks, and the largest eigenvalues with bars."""
        table = plain_table(_("score"), "", _("rank"), _("uniform"), right=(1, 2, 3), wrap=())
        values = self.scores.induction, self.scores.previous, self.scores.duplicate
        for row in zip(_PROBES, values, self.ranks, self.uniform, strict=False):
            name, value, rank, uniform = row
            table.add_row(_(name), f"{value:.1%}", f"{rank}/{self.of}", f"{uniform:.1%}")
        copying = f"{self.scores.copying:+.2f}"
        table.add_row(_("copying"), copying, f"{self.ranks[3]}/{self.of}", "")
        count = len(self.eigenvalues)
        positive = sum(real > 0 for real, _imaginary in self.eigenvalues)
        heading = title(
            _("head {place} of {model}", place=f"{self.scores.layer}.{self.scores.head}",
              model=self.model),
            _("OV circuit: {n} of {all} eigenvalues above 0 (real part)", n=positive, all=count),
        )  # fmt: skip
        legend = _(
            "λ: the largest {n} of {all} eigenvalues of W_E·W_V·W_O·W_U, as share of the largest "
            "|λ| = {most:.3g} · above 0: the head raises the logit of what it attends to; below 0: "
            "lowers it · copying: Σ λ / Σ |λ|",
            n=min(_EIGENVALUES, count),
            all=count,
            most=self._largest,
        )
        return Group(heading, table, Text(), *self._spectrum(width), Text(legend, FIGURES))

    @property
    def _largest(self) -> float:
        return abs(complex(*self.eigenvalues[0])) or 1.0

    def _spectrum(self, width: int) -> Iterator[Text]:
        """Yield a line for each of the largest eigenvalues: a + bi, and a bar for |λ|."""
        for real, imaginary in self.eigenvalues[:_EIGENVALUES]:
            share = abs(complex(real, imaginary)) / self._largest
            number = f"{real / self._largest:+.2f}"
            turned = f" {imaginary / self._largest:+.2f}i" if imaginary else ""
            yield Text.assemble(
                f"λ {number}{turned:<8}  ", (bar(share, max(8, min(40, width - 24))), MODEL)
            )


@no_grad
def compute(
    inspected: InspectedText,
    name: str,
    sort: str = "induction",
    seed: int = 0,
    progress: OnProgress = lambda _share: None,
) -> HeadsView:
    """Return the scores of all heads: of `inspected`, only its model counts, not its text.

    Raises UserError if the model sees too few positions.
    """
    model, config = inspected.model, inspected.config
    probe = make_probe(inspected.tokenizer, config, seed)
    halfway = lambda share: progress(share / 2)  # noqa: E731
    shares = measure(model, probe, inspected.hook, halfway).tolist()
    product, heads = circuits.unembedded_embedding(model), []
    for layer in config.attention_layers:
        copying = circuits.copying_scores(circuits.ov_eigenvalues(model, layer, product)).tolist()
        for head, (each, score) in enumerate(zip(shares[layer], copying, strict=True)):
            heads.append(HeadScores(layer, head, each[0], each[1], each[2], score))
        progress((1 + (layer + 1) / config.n_layers) / 2)
    most, uniform = baselines(probe)
    windows = ((layer, sliding_window(inspected, layer)) for layer in range(config.n_layers))
    return HeadsView(
        model=name,
        sequences=len(probe.sequences),
        half=probe.half,
        start=bool(probe.start),
        seed=seed,
        sort=sort,
        most=most,
        uniform=uniform,
        blind=tuple(layer for layer, window in windows if 0 < window < probe.half),
        heads=tuple(sorted(heads, key=lambda each: -float(getattr(each, sort)))),
    )


def compute_card(
    inspected: InspectedText,
    name: str,
    layer: int,
    head: int,
    seed: int = 0,
    progress: OnProgress = lambda _share: None,
) -> HeadCardView:
    """Return the scores of one head and its eigenvalues. Raises UserError if there is no such."""
    check_layer(inspected.config, layer, head)
    atlas = compute(inspected, name, seed=seed, progress=progress)
    scores = next(each for each in atlas.heads if (each.layer, each.head) == (layer, head))
    product = circuits.unembedded_embedding(inspected.model)
    values = circuits.ov_eigenvalues(inspected.model, layer, product)[head]
    values = values[values.abs().argsort(descending=True)]

    def rank(score: str) -> int:
        own = getattr(scores, score)
        return 1 + sum(bool(getattr(each, score) > own) for each in atlas.heads)

    return HeadCardView(
        model=name,
        scores=scores,
        ranks=(rank("induction"), rank("previous"), rank("duplicate"), rank("copying")),
        of=len(atlas.heads),
        uniform=atlas.uniform,
        eigenvalues=tuple((value.real, value.imag) for value in values.tolist()),
    )


_SORT = ChoiceOption("sort", "induction", "previous", "duplicate", "copying")
_SEED = Option("seed", integer(0), 0)


@command(
    "heads",
    arguments=Forms(
        (_SORT, _SEED),
        (Layer("required", required=True), _SEED),
        ("composition", Layer("required")),
    ),
    json=True,
    aliases=("헤드",),
    group="Look inside",
    example=":heads",
)
def heads(shell: "Shell", asked: Arguments) -> None:
    """Show what each attention head does: an atlas of all heads.

    The model reads random tokens, and then the same tokens again, eight times with other tokens.
    Nothing in such a text is to be expected, but the second half repeats the first. A score is the
    share of a head's attention that follows a pattern, over all queries of both halves: that of
    `detect_head` in TransformerLens.
        induction: the token after an earlier token that is the same
        previous token: the token before
        duplicate token: an earlier token that is the same
    The last rows show the largest score that there can be, and that of attention spread evenly.

    copying: Σ λ / Σ |λ| over the eigenvalues λ of W_E·W_V·W_O·W_U, the OV circuit of the head. Near
    1, the head raises the logits of the tokens that it attends to; near −1, it lowers them. A head
    is an induction head if both its induction score and its copying score are high.

    :heads 2.1 (or L2H1) shows one head: its ranks, and its eigenvalues.
    :heads composition shows which heads read what earlier heads write, with their query, their key
    or their value: ‖W_OV·W‖ / (‖W_OV‖·‖W‖). :heads composition 2.1 shows the pairs of one head.

    Circuits are of the weights alone: the norms are part of the matrices, RoPE and biases are left
    out. `sort=previous` sorts by another score. `seed=1` takes other tokens. --json FILE writes all
    numbers. Layers and heads count from 0.
    """
    model = shell.require_model()
    inspected = inspect_ids(shell, model, [0])
    name = safe_line(model.name)
    with shell.screen.waiting(_("measuring the heads")) as update:

        def progress(share: float) -> None:
            if shell.interrupted():
                raise UserError(_("stopped"))
            update(_("measuring the heads  {share:.0%}", share=share))

        place = None if asked.layer is None else (asked.layer, asked.head)
        view: View
        if asked.keyword == "composition":
            view = compute_composition(inspected.model, name, place, progress)
        elif place is not None:
            view = compute_card(inspected, name, *place, asked.seed, progress)
        else:
            view = compute(inspected, name, asked.sort, asked.seed, progress)
    show(shell, view, asked.output)
