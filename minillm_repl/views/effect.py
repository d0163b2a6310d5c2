"""The effect of an intervention on the next token; `:ablate` and `:steer` show it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _
from minillm_repl.model.hooks import Hook
from minillm_repl.render.console import FIGURES
from minillm_repl.render.drawing import (
    MAX_LABEL_WIDTH,
    fit_to_width,
    nats,
    short_label,
    title,
    token_style,
)
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View
from minillm_repl.views.inspected_text import (
    InspectedText,
    Likely,
    check_finite,
    kl_divergence,
    no_grad,
    topk,
)

if TYPE_CHECKING:
    from torch import Tensor

_TOP = 6  # tokens before and after
_MAX_TOKENS = 8  # averaged tokens that are listed


@dataclass(frozen=True)
class Averaged:
    """The tokens of a text whose activations were averaged."""

    after: tuple[Token, ...]  # the tokens before them
    tokens: tuple[Token, ...]
    first: int  # the position of the first of them


@dataclass(frozen=True)
class Yardstick:
    """The effect of random directions of equal norm. KL in nats."""

    directions: int
    low: float  # the 5th percentile of their KL
    high: float  # the 95th percentile
    below: float  # percent of them that have a smaller KL than the intervention


@dataclass(frozen=True, kw_only=True)
class EffectView(View, Truncation):
    """The next token before an intervention, and with it."""

    tokens: tuple[Token, ...]
    change: str  # what was done: `head 2.1 ablated`
    before: tuple[Likely, ...]
    after: tuple[Likely, ...]
    kl: float  # nats: KL(after ‖ before) = Σ after · ln(after / before)
    kl_random: float | None  # the median KL of random directions; None if it is no direction
    random: Yardstick | None
    between: tuple[Averaged, Averaged] | None  # what a direction leads towards, and away from

    def draw(self, width: int) -> RenderableType:
        """Return the most likely next tokens before and now, side by side, and the KL."""
        cells = max(4, min(MAX_LABEL_WIDTH, (width - 24) // 2))
        table = plain_table("", _("before"), "", _("now"), "", right=(0, 2, 4), wrap=())
        for rank, (before, after) in enumerate(zip(self.before, self.after, strict=True), 1):
            table.add_row(str(rank), *_cells(before, cells), *_cells(after, cells))
        about = _(
            "next token after {token} (position {position})",
            token=self.tokens[-1].label,
            position=self.position_of(len(self.tokens) - 1),
        )
        lines = [_("KL(now ‖ before) {kl} nats", kl=nats(self.kl)), *self._random_line()]
        parts: list[RenderableType] = [
            title(self.change, about),
            table,
            Text("\n".join(lines), FIGURES),
        ]
        if self.between:
            towards, away = self.between
            means = Text.assemble(
                (_("towards the mean of") + " ", FIGURES), *_averaged(towards), ("\n", ""),
                (_("away from the mean of") + " ", FIGURES), *_averaged(away),
            )  # fmt: skip
            parts.append(means)
        return Group(*parts)

    def _random_line(self) -> list[str]:
        """Return the effect of random directions, if the intervention is a direction."""
        if self.random is None or self.kl_random is None:
            return []
        return [
            _(
                "{n} random directions of equal norm: median {median}, 5–95% {low}–{high} · "
                "percentile of this one: {below:.0f}",
                n=self.random.directions,
                median=nats(self.kl_random),
                low=nats(self.random.low),
                high=nats(self.random.high),
                below=self.random.below,
            )
        ]


def _cells(likely: Likely, width: int) -> tuple[Text, str]:
    label = fit_to_width(likely.token.label, width).rstrip()
    return Text(label, token_style(likely.token)), percent(likely.prob)


def _averaged(side: Averaged) -> list[Text | tuple[str, str]]:
    """Return `␣happy @2   after ⏎`: the tokens, their positions, and the last tokens before."""
    tokens: list[Text | tuple[str, str]] = [short_label(each) for each in side.tokens]
    if len(tokens) > _MAX_TOKENS:
        tokens[_MAX_TOKENS // 2 : -_MAX_TOKENS // 2] = [("…", FIGURES)]
    last = side.first + len(side.tokens) - 1
    positions = f" @{side.first}" if last == side.first else f" @{side.first}–{last}"
    before = "".join(each.label for each in side.after[-_MAX_TOKENS // 2 :])
    context = "   " + _("after {tokens}", tokens=before) if before else ""
    return [*tokens, (positions, FIGURES), (context, FIGURES)]


@no_grad
def compute(
    inspected: InspectedText,
    description: str,
    hook: Hook,
    random_hooks: Iterable[Hook] = (),
    averaged_texts: tuple[Averaged, Averaged] | None = None,
) -> EffectView:
    """Return the next token before an intervention and with it, and the KL between the two.

    `random_hooks` steer in random directions of the same norm, one or a batch of them each.
    `averaged_texts` are those that made the direction. Raises UserError if logits are not finite.
    """
    before = _last_log_probabilities(inspected)[0]  # (vocab,)
    after = _last_log_probabilities(inspected.with_hook(hook))[0]
    kl = kl_divergence(after, before)
    random_kls = [
        kl_divergence(row, before)
        for each in random_hooks
        for row in _last_log_probabilities(inspected.with_hook(each))
    ]
    median, yardstick = _yardstick(kl, random_kls) if random_kls else (None, None)
    return EffectView(
        tokens=inspected.tokens,
        change=description,
        before=topk(inspected.tokenizer, before, _TOP),
        after=topk(inspected.tokenizer, after, _TOP),
        kl=kl,
        kl_random=median,
        random=yardstick,
        between=averaged_texts,
        **inspected.window_fields,
    )


def _yardstick(kl: float, random_kls: list[float]) -> tuple[float, Yardstick]:
    """Return the median of the random KLs, and the other figures."""
    import torch

    kls = torch.tensor(random_kls, dtype=torch.float64)
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    low, median, high = kls.quantile(levels).tolist()
    return median, Yardstick(len(kls), low, high, float((kls < kl).double().mean()) * 100)


def _last_log_probabilities(inspected: InspectedText) -> "Tensor":
    """Return the log-probabilities after the last token: (row, vocab), one row for each direction
    of a batch.
    """
    model = inspected.model
    logits = model(inspected.input_ids, hook=inspected.hook, last_only=True)[:, -1]
    return check_finite(logits).double().log_softmax(-1)
