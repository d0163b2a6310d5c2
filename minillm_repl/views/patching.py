"""Activations of one prompt in the pass over another: by runs, and by gradients."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import PatternHook, compose
from minillm_repl.tokenizer import Token
from minillm_repl.views.inspected_text import (
    InspectedText,
    check_finite,
    look_back,
    no_grad,
    topk_ids,
)

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[float], None]
"""Is called with the share that is done, 0 to 1."""

_MAX_ACTIVATION = 2**22  # numbers of one activation in a pass
_MAX_WORK = 2**33  # products of a weight and an input in a pass: well below a second of work
_MIN_DIFFERENCE = 1e-3  # logits between A and B: float32 rounds to some 1e-5


@dataclass(frozen=True)
class Part:
    """What is patched: where it is in the pass, and which axes of it are positions and heads."""

    names: tuple[str, ...]  # of the hooks, or how they end
    time: int = 0
    head: int | None = None  # None: a cell is a position; else it is a head

    @property
    def cell_axis(self) -> int:
        """The axis of which a cell is one index."""
        return self.time if self.head is None else self.head


PARTS = {
    "residual": Part(("embedding", ".residual")),
    "attention": Part(("attention.out",)),
    "feed-forward": Part(("mlp.out",)),
    "z": Part(("attention.z",), time=0, head=1),
    "q": Part(("attention.q",), time=1, head=0),
    "k": Part(("attention.k",), time=1, head=0),
    "v": Part(("attention.v",), time=1, head=0),
    "pattern": Part(("attention.pattern",), time=1, head=0),  # of a query: its row
}


@dataclass(frozen=True)
class Measure:
    """The logit difference of two answers, and what it is after both prompts."""

    answers: tuple[int, int]  # of A and of B
    clean: float  # after A
    corrupt: float  # after B
    likeliest: bool  # whether the answers are the top tokens

    def differences(self, logits: "Tensor") -> list[float]:
        """Return the logit of A's answer − that of B's, for each row (row, vocab)."""
        first, second = (logits[:, answer].double() for answer in self.answers)
        differences: list[float] = (first - second).tolist()
        return differences

    def fractions(self, logits: "Tensor") -> list[float]:
        """Return the differences as fractions: 0 is as after B, 1 as after A."""
        span = self.clean - self.corrupt
        return [(each - self.corrupt) / span for each in self.differences(logits)]


def measure(a: InspectedText, logits_a: "Tensor", logits_b: "Tensor") -> Measure:
    """Return the measure of two prompts from their last logits (vocab,).

    Raises UserError if the answers barely differ.
    """
    answers = _answers(logits_a, logits_b)
    clean, corrupt = (float(each[answers[0]] - each[answers[1]]) for each in (logits_a, logits_b))
    if abs(clean - corrupt) < _MIN_DIFFERENCE:
        first, second = (Token.from_id(a.tokenizer, answer) for answer in answers)
        raise UserError(
            _(
                "the logit difference of {a} and {b} is almost the same after both prompts "
                "({clean:.4f} after A, {corrupt:.4f} after B): fractions of it would be "
                "rounding errors",
                a=first.label,
                b=second.label,
                clean=clean,
                corrupt=corrupt,
            )
        )
    top = topk_ids(logits_a, 1)[0], topk_ids(logits_b, 1)[0]
    return Measure(answers, clean, corrupt, answers == top)


def _answers(logits_a: "Tensor", logits_b: "Tensor") -> tuple[int, int]:
    """Return the top tokens after A and B; if these are one token, the two that differ most."""
    first, second = topk_ids(logits_a, 1)[0], topk_ids(logits_b, 1)[0]
    if first != second:
        return first, second
    log_a, log_b = logits_a.double().log_softmax(-1), logits_b.double().log_softmax(-1)
    # The largest terms of KL(A ‖ B) and of KL(B ‖ A).
    more = log_a - log_b
    return topk_ids(log_a.exp() * more, 1)[0], topk_ids(log_b.exp() * -more, 1)[0]


def check_pair(a: InspectedText, b: InspectedText) -> None:
    """Raise UserError if two prompts do not pair token by token."""
    for name, prompt in (("A", a), ("B", b)):
        if prompt.unseen_ids:
            raise UserError(
                _(
                    "prompt {name} exceeds the context: the model sees {seen} of its {all} "
                    "tokens, but patching needs them all",
                    name=name,
                    all=len(prompt.ids) + len(prompt.unseen_ids),
                    seen=len(prompt.ids),
                )
            )
    if len(a.ids) != len(b.ids):
        raise UserError(
            _(
                "the two prompts need the same number of tokens, but have {a} and {b}; "
                "check with `:tokens TEXT`",
                a=len(a.ids),
                b=len(b.ids),
            )
        )
    if a.ids == b.ids:
        raise UserError(_("both prompts are the same tokens: there is nothing to patch"))


def batches(inspected: InspectedText, cells: Sequence[int], numbers: int) -> Iterator[list[int]]:
    """Yield the cells of each pass: as many rows as memory and a second allow.

    `numbers` is the size of the activation that is replaced.
    """
    work = inspected.config.n_params * len(inspected.ids)
    size = max(1, min(_MAX_ACTIVATION // numbers, _MAX_WORK // work))
    for start in range(0, len(cells), size):
        yield list(cells[start : start + size])


@no_grad
def patched_logits(
    inspected: InspectedText,
    name: str,
    activation: "Tensor",
    part: Part = PARTS["residual"],
    *,
    position: int | None = None,
    cells: Sequence[int] | None = None,
    progress: Progress = lambda _share: None,
) -> "Tensor":
    """Return the last logits (cell, vocab): for each cell, that of activation `name` is replaced.

    `activation` is of another text of the same length. With `position`, a head is replaced there
    only. `cells` are all, unless given.
    """
    import torch

    wanted = range(activation.shape[part.cell_axis]) if cells is None else cells
    rows: list[Tensor] = []
    for batch in batches(inspected, wanted, activation.numel()):
        mask = _mask(activation, part, batch, position)

        def replace(at: str, tensor: "Tensor", mask: "Tensor" = mask) -> "Tensor":
            return torch.where(mask, activation, tensor) if at == name else tensor

        hook = compose(inspected.hook, PatternHook(replace, lambda at: at == name))
        ids = inspected.input_ids.expand(len(batch), -1)  # (row, time)
        rows.append(check_finite(inspected.model(ids, hook=hook, last_only=True)[:, 0]))
        progress((batch[-1] + 1) / len(wanted))
    return torch.cat(rows)


def _mask(activation: "Tensor", part: Part, cells: list[int], position: int | None) -> "Tensor":
    """Return where each row is replaced: it broadcasts to (row, *activation.shape)."""
    import torch

    mask = _along(torch.eye(activation.shape[part.cell_axis])[cells], part.cell_axis, activation)
    if position is not None and part.head is not None:
        here = torch.arange(activation.shape[part.time]) == position
        mask = mask * _along(here[None], part.time, activation)
    return mask.bool().to(activation.device)


def _along(rows: "Tensor", axis: int, activation: "Tensor") -> "Tensor":
    """Return (row, n) as a tensor whose n lies along an axis of each row's activation."""
    shape = [1] * activation.ndim
    shape[axis] = rows.shape[1]
    return rows.view(len(rows), *shape)


def gradients(
    inspected: InspectedText, names: tuple[str, ...], answers: tuple[int, int]
) -> dict[str, "Tensor"]:
    """Return the gradient of the last logit difference at each activation whose name ends so.

    The gradients have no batch dimension.
    """
    import torch

    probes: dict[str, Tensor] = {}

    def probe(name: str, tensor: "Tensor") -> "Tensor":
        if not name.endswith(names):
            return tensor
        # Zeros change no number; their gradient is that of the activation.
        probes[name] = torch.zeros_like(tensor, requires_grad=True)
        return look_back(inspected, tensor + probes[name])

    hook = compose(inspected.hook, PatternHook(probe, lambda name: name.endswith(names)))
    with torch.enable_grad():
        logits = inspected.model(inspected.input_ids, hook=hook, last_only=True)[0, -1]
        difference = check_finite(logits)[answers[0]] - logits[answers[1]]
        found = torch.autograd.grad(difference, list(probes.values()), allow_unused=True)
    return {
        name: torch.zeros_like(zeros[0]) if gradient is None else gradient[0].detach()
        for (name, zeros), gradient in zip(probes.items(), found, strict=True)
    }


def attributed(
    a: InspectedText, b: InspectedText, part: Part, found: Measure, position: int | None = None
) -> "dict[str, Tensor]":
    """Return the effect of each patch to first order, (cell,) by hook name.

    It is (A − B) · gradient, as a fraction of the logit difference between A and B: two passes and
    one backward for all cells (Nanda, 2023).
    """
    clean, corrupt = (each.run_with_cache(*part.names, last_only=True)[1] for each in (a, b))
    effects: dict[str, Tensor] = {}
    for name, gradient in gradients(b, part.names, found.answers).items():
        product = ((clean[name] - corrupt[name]) * gradient).double()
        if position is not None and part.head is not None:
            product = product.select(part.time, position).unsqueeze(part.time)
        others = [axis for axis in range(product.ndim) if axis != part.cell_axis]
        effects[name] = product.sum(others) / (found.clean - found.corrupt)
    return effects
