"""`:diff`: what has changed between two models: how far they part, on which tokens, and where."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Values, Words
from minillm_repl.repl.model_loading import LoadedModel, ModelFuture
from minillm_repl.repl.quoting import split_outside_quotes, unquoted
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.storage.encoding import DetectedEncoding, read_text_chunks
from minillm_repl.storage.paths import find_checkpoint, user_path
from minillm_repl.tokenizer.lookup import has_same_vocabulary
from minillm_repl.views.base import inspect_ids, show, text_ids
from minillm_repl.views.diff_view import DiffView, LayerGap, Parting
from minillm_repl.views.inspected_text import InspectedText, no_grad, topk

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_KEPT = 50  # positions that a view has
_WINDOW = 256  # tokens of a file that are read at once
_ROWS = 64  # positions whose distributions are compared at once
_MAX_CHARACTERS = 4 << 20  # of a file


def different_vocabularies() -> str:
    """Return why two models cannot be compared token by token."""
    return _(
        "the two models have different tokenizers, so their predictions cannot be compared token "
        "by token; `:compare` shows what can"
    )


class _Sums:
    """What is found so far, window by window."""

    def __init__(self) -> None:
        self.kls: list[float] = []
        self.flips = 0
        self.worst: list[Parting] = []
        self.losses = [0.0, 0.0]
        self.predicted = 0
        # by place: Σ ‖ours − theirs‖, Σ ‖theirs‖, Σ cosine
        self.gaps: dict[str, tuple[float, float, float]] = {}

    @no_grad
    def add(self, ours: InspectedText, theirs: InspectedText, first: int, since: int) -> None:
        """Compare two models on one window; positions count from `first`, and those from `since`
        on are new.
        """
        logits, cache = ours.run_with_cache("embedding", "residual")
        their_logits, their_cache = theirs.run_with_cache("embedding", "residual")
        if logits.shape != their_logits.shape:
            raise UserError(different_vocabularies())
        self._add_layers(cache, their_cache, since)
        for start in range(since, len(logits), _ROWS):
            rows = slice(start, start + _ROWS)
            self._add_rows(ours, first, start, logits[rows], their_logits[rows])

    def _add_rows(
        self, inspected: InspectedText, first: int, start: int, ours: "Tensor", theirs: "Tensor"
    ) -> None:
        log_p, log_q = (each.double().log_softmax(-1) for each in (ours, theirs))  # (rows, vocab)
        kls = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0).tolist()
        tops = zip(log_p.argmax(-1).tolist(), log_q.argmax(-1).tolist(), strict=True)
        self.flips += sum(top != other for top, other in tops)
        least = self.worst[-1].kl if len(self.worst) == _KEPT else 0.0
        for row, kl in enumerate(kls):
            index = start + row
            if index + 1 < len(inspected.ids):
                target = inspected.ids[index + 1]
                self.losses[0] -= float(log_p[row, target])
                self.losses[1] -= float(log_q[row, target])
                self.predicted += 1
            if kl > least:
                position = first + inspected.position_of(index)
                parting = Parting(
                    position=position,
                    token=inspected.tokens[index],
                    kl=kl,
                    ours=topk(inspected.tokenizer, log_p[row], 1)[0],
                    theirs=topk(inspected.tokenizer, log_q[row], 1)[0],
                )
                self.worst.append(parting)
        self.kls += kls
        self.worst = sorted(self.worst, key=lambda each: -each.kl)[:_KEPT]

    def _add_layers(
        self, ours: "dict[str, Tensor]", theirs: "dict[str, Tensor]", since: int
    ) -> None:
        from torch.nn.functional import cosine_similarity

        if ours.keys() != theirs.keys():
            return
        for name, stream in ours.items():
            r, other = stream[since:].double(), theirs[name][since:].double()  # (time, d_model)
            if r.shape != other.shape:
                return
            place = name if name == "embedding" else name.split(".")[1]
            distance, norm, cosine = self.gaps.get(place, (0.0, 0.0, 0.0))
            self.gaps[place] = (
                distance + float((r - other).norm(dim=-1).sum()),
                norm + float(other.norm(dim=-1).sum()),
                cosine + float(cosine_similarity(r, other, dim=-1).sum()),
            )

    def view(self, names: tuple[str, str], text: str, stopped: str) -> DiffView:
        """Return the view of all that was compared."""
        count = len(self.kls)
        gaps = self.gaps.items()
        layers = tuple(
            LayerGap(place, distance / (norm or 1.0), cosine / count)
            for place, (distance, norm, cosine) in gaps
        )
        ordered = sorted(self.kls)
        return DiffView(
            names=names,
            text=text,
            positions=count,
            stopped=stopped,
            kl_mean=sum(self.kls) / count,
            kl_median=(ordered[(count - 1) // 2] + ordered[count // 2]) / 2,
            kl_max=ordered[-1],
            flips=self.flips,
            loss=tuple(  # type: ignore[arg-type]
                each / self.predicted if self.predicted else float("nan") for each in self.losses
            ),
            layers=layers,
            parts_at=next((each.place for each in layers if each.distance), ""),
            worst=tuple(self.worst),
        )


Windows = Iterator[tuple[InspectedText, InspectedText, int, int]]
"""Of each window: both models on it, the position of its first token, and its first new index."""


def compute(
    windows: Windows,
    names: tuple[str, str],
    text: str,
    progress: Callable[[int], None] = lambda _positions: None,
) -> DiffView:
    """Return what differs between two models on windows of a text.

    What Ctrl-C ends after the first window is a view over what was compared. Raises UserError if
    one model sees less of the text.
    """
    sums, stopped = _Sums(), ""
    try:
        for ours, theirs, first, since in windows:
            if ours.ids != theirs.ids:
                raise UserError(_("one model sees less of the text than the other"))
            sums.add(ours, theirs, first, since)
            progress(len(sums.kls))
    except UserError as error:
        if not sums.kls:
            raise
        stopped = str(error)
    return sums.view(names, text, stopped)


class _Target(Words):
    """Another model, maybe a text or a file after `on`."""

    def __init__(self) -> None:
        super().__init__("path", "PATH|NAME|base [on FILE|TEXT]", "base", required=True,
                         completion="checkpoint")  # fmt: skip
        self.defaults = {"path": "", "on": ""}

    def take(self, text: str) -> tuple[Values, str]:
        """Read all that remains."""
        if not text:
            return self.missing("")
        path, is_on, on = split_outside_quotes(f"{text} ", " on ")
        if is_on and not on.strip():
            raise UsageError(_("a text is missing beside {mark}", mark="on"))
        return {"path": unquoted(path.strip()), "on": unquoted(on.strip())}, ""


@command(
    "diff",
    arguments=(_Target(),),
    json=True,
    aliases=("차이",),
    group="Predictions",
    example=":diff base",
)
def diff(shell: "Shell", asked: Arguments) -> None:
    """Show what has changed between two models.

    Token by token, and layer by layer.

    :diff PATH compares the open model with another one: quantised, tuned, or an earlier checkpoint.
    :diff base compares it with itself without the interventions of this session (`:ablate`,
    `:steer`).
    Both read the text so far, or what follows `on`: a file, if there is one of that name, else a
    text. A file is read in windows of at most 256 tokens.

    KL is KL(open ‖ other) = Σ p · ln(p / q) at each position, in nats; p is the open model. A top-1
    flip is a position where the most likely next token is another. Identical models have a KL of
    exactly 0.

    distance: how far the residual streams are apart after each layer, ‖r_open − r_other‖ /
    ‖r_other‖, over all positions. It is measured where the two have the same layers. The place
    where they part is the first at which the distance is not 0.

    Models with different tokenizers are refused; `:compare` shows what can be compared of them.
    Ctrl-C stops; the figures are then over the positions that are done. --json FILE writes all
    numbers.
    """
    model = shell.require_model()
    if asked.path == "base":
        if not model.interventions:
            shell.screen.note(
                _("nothing is changed in this session: `:ablate` and `:steer` change the model")
            )
        other, their_name = model.with_interventions(()), _("base")
    else:
        path = find_checkpoint(asked.path)
        other = shell.wait_for_model(ModelFuture(shell.session.workspace.loader, path), path)
        their_name = safe_line(other.name)
    tokenizers = model.checkpoint.tokenizer, other.checkpoint.tokenizer
    if other.server or not has_same_vocabulary(*tokenizers):
        raise UserError(different_vocabularies())
    our_name = safe_line(model.name)
    if our_name == their_name:
        our_name = _("{model} (open)", model=our_name)
    windows, text = _read(shell, (model, other), asked.on)
    with shell.screen.waiting(_("comparing two models")) as update:
        view = compute(
            windows,
            (our_name, their_name),
            text,
            lambda count: update(_("comparing two models  {n:,} positions", n=count)),
        )
    show(shell, view, asked.output)


def _read(shell: "Shell", models: tuple[LoadedModel, LoadedModel], on: str) -> tuple[Windows, str]:
    """Return the windows of the text that is asked for, and what to call it. Raises UserError."""
    path = user_path(on) if on else None
    try:
        is_file = path is not None and path.is_file()
    except OSError:  # a long text is no name of a file
        is_file = False
    if path is None or not is_file:
        ids = text_ids(shell, models[0], on)
        return _one(shell, models, ids, on or None), _("the text") if on else _("the text so far")
    detected, parts, size = DetectedEncoding(), list[str](), 0
    for part in read_text_chunks(path, detected):
        parts.append(part)
        size += len(part)
        if size > _MAX_CHARACTERS:
            name = safe_line(str(path))
            raise UserError(
                _("{name} is longer than {n:,} characters", name=name, n=_MAX_CHARACTERS)
            )
    for note in detected.notes(path):
        shell.screen.warn(note)
    ids = shell.encode(models[0], "".join(parts), start=False)
    return _many(shell, models, ids), safe_line(path.name)


def _one(
    shell: "Shell", models: tuple[LoadedModel, LoadedModel], ids: list[int], text: str | None
) -> Windows:
    """Yield a text as one window: what the models see of it."""
    ours, theirs = (inspect_ids(shell, model, ids, text) for model in models)
    yield ours, theirs, 0, 0


def _many(shell: "Shell", models: tuple[LoadedModel, LoadedModel], ids: list[int]) -> Windows:
    """Yield windows of a long text, each after the start tokens, if there are any."""
    start = models[0].checkpoint.tokenizer.start_ids
    least = min(model.decoder.context_length for model in models)
    size = max(1, min(_WINDOW, least - len(start)))
    for first in range(0, len(ids), size):
        window = [*start, *ids[first : first + size]]
        ours, theirs = (inspect_ids(shell, model, window) for model in models)
        yield ours, theirs, first - len(start), len(start)
