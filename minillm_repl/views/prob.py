"""`:prob`: how likely the model finds a continuation, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.generate import TokenScore
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import bar, short_label, title
from minillm_repl.render.generation import exact_percent, percent
from minillm_repl.render.listing import rank_text
from minillm_repl.render.tables import NARROW, WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument, TextPair
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation, with_truncation
from minillm_repl.views.base import View, show
from minillm_repl.views.prompts import chat_ids

if TYPE_CHECKING:
    from minillm_repl.generate import Decoder
    from minillm_repl.repl.model_loading import LoadedModel
    from minillm_repl.repl.shell import Shell

_LN2 = log(2)


@dataclass(frozen=True, kw_only=True)
class ContinuationToken:
    """One token of a continuation."""

    token: Token
    prob: float  # by the model's own softmax, given the text and the tokens before it
    rank: int | None  # 1 = most likely; None: below the `listed` tokens that a server tells
    listed: int
    likeliest: Token  # the top token at this position
    likeliest_prob: float


@dataclass(frozen=True)
class ProbView(View, Truncation):
    """The probability of a continuation."""

    after: Token  # the last token of the text
    chances: tuple[ContinuationToken, ...]
    prob: float  # the product over the tokens
    bits: float  # the surprisal, −log2 of the product

    def draw(self, width: int) -> RenderableType:
        """Return a row for each token: its probability, its rank, and the top token there."""
        bars = 24 if width >= WIDE else 10 if width >= NARROW else 0
        table = plain_table(
            _("token"), _("probability"), "", _("rank"), _("most likely"), "",
            right=(1, 3, 5), wrap=() if width >= NARROW else (0, 4),
        )  # fmt: skip
        for each in self.chances:
            table.add_row(
                short_label(each.token), exact_percent(each.prob),
                Text(bar(each.prob, bars), MODEL),
                rank_text(each.rank, each.listed),
                short_label(each.likeliest), percent(each.likeliest_prob),
            )  # fmt: skip
        text = "".join(each.token.label for each in self.chances)
        total = Text.assemble(
            (_("total") + " ", FIGURES),
            (exact_percent(self.prob), TITLE),
            (" · " + _("surprisal {bits:.2f} bits", bits=self.bits), FIGURES),
        )
        heading = title(
            _("probability of {text}", text=text), _("after {token}", token=self.after.label)
        )
        return Group(heading, table, total)


def compute(
    decoder: "Decoder",
    tokenizer: Tokenizer,
    ids: Sequence[int],
    continuation_ids: Sequence[int],
    interrupted: Callable[[], bool],
) -> ProbView:
    """Return how likely `continuation_ids` are after `ids`. Raises UserError if interrupted."""
    all_ids = [*ids, *continuation_ids]
    scores = list(decoder.score(all_ids, len(ids), 1, interrupted))
    total = sum(each.logprob for each in scores)  # nats
    return ProbView(
        after=Token.from_id(tokenizer, ids[-1]),
        chances=tuple(_chance(tokenizer, each) for each in scores),
        prob=exp(total),
        bits=abs(total) / _LN2,
    )


def _chance(tokenizer: Tokenizer, score: TokenScore) -> ContinuationToken:
    top_token, top_logprob = score.top[0]
    return ContinuationToken(
        token=Token.from_id(tokenizer, score.id),
        prob=exp(score.logprob),
        rank=score.rank,
        listed=len(score.top),
        likeliest=Token.from_id(tokenizer, top_token),
        likeliest_prob=exp(top_logprob),
    )


def readings(shell: "Shell", model: "LoadedModel", text: str) -> list[list[int]]:
    """Return the tokens of a continuation as it is typed, and, where that takes no more tokens,
    with a space before it: some tokenizers have the space in the word's own token.

    Raises UserError for a text that the model cannot read.
    """
    typed = shell.encode(model, text, start=False)
    spaced = model.checkpoint.tokenizer.encode(" " + text, add_special=False)
    if text.startswith(" ") or len(spaced) > len(typed):
        return [typed]
    return [typed, spaced]


@command(
    "prob",
    arguments=Forms(
        (TextArgument(verbatim=True, required=True),),
        ("chat", TextPair("->", "PROMPT -> TEXT", also="→", required=2)),
    ),
    json=True,
    aliases=("확률",),
    group="Predictions",
    example=":prob 다.",
)
def prob(shell: "Shell", asked: Arguments) -> None:
    """Show the probability of a continuation that you type.

    The view shows TEXT as a continuation of the text so far. For each token, it shows the
    probability by the model's own softmax, the rank (1 = most likely), and the top token at that
    position.

    `:prob chat PROMPT -> TEXT` shows TEXT as the answer to PROMPT, in the model's chat template.

    The total is the product of the probabilities; the surprisal is −log2 of it. If TEXT is more
    likely with a space before it, the view shows it with the space.
    """
    model = shell.require_model()
    # The start token alone is a text too: what follows it begins a document.
    ids = shell.session.conversation.ids or list(model.checkpoint.tokenizer.start_ids)
    text = asked.text
    if asked.keyword:
        prompt, text = asked.texts
        ids = chat_ids(shell, model, prompt)
    if not ids:
        raise UserError(_("no text to append this to: type a prompt first"))
    tokenizer = model.checkpoint.tokenizer
    views = [
        compute(model.decoder, tokenizer, ids, reading, shell.interrupted)
        for reading in readings(shell, model, text)
    ]
    view = min(views, key=lambda view: view.bits)
    # The model has read all but the last token of the continuation.
    read_ids = [*ids, *(each.token.id for each in view.chances[:-1])]
    show(shell, with_truncation(view, model.visible_window(read_ids)), asked.output)
