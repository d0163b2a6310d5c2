"""`:surprise`: how unexpected each token of a text is; perplexity and bits per byte."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log, log2
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.generate import TokenScore
from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES
from minillm_repl.render.drawing import short_label, title, token_strip
from minillm_repl.render.generation import percent
from minillm_repl.render.listing import rank_text
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.tokenizer.lookup import count_prefix_spaces
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, inspect_on_server, inspect_text, show, text_ids
from minillm_repl.views.inspected_text import InspectedText, Likely, check_finite, no_grad

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_TOP = 5  # tokens that the model expected instead
_SHOWN = 3  # of them in the table
_MOST = 8  # tokens that the table lists
_LEAST_BITS = 0.05  # the table leaves out tokens below that
_LN2 = log(2)
_MAX_LOGITS = 2**24  # numbers of the logits that are in memory at once


@dataclass(frozen=True, kw_only=True)
class Surprising:
    """A token, its surprisal, and what the model expected in its place."""

    position: int
    token: Token
    bits: float
    rank: int | None  # None: below the `listed` tokens that a server tells
    listed: int
    expected: tuple[Likely, ...]


@dataclass(frozen=True, kw_only=True)
class SurpriseView(View, Truncation):
    """The surprisal of each token of a text. Positions count from 0."""

    first: int  # the position of the first token that counts; the model sees the others too
    tokens: tuple[Token, ...]
    bits: tuple[float | None, ...]  # the surprisal of each token; position 0 has none
    mean: float  # nats
    perplexity: float  # e to the power of the mean
    bits_per_byte: float | None  # None if no token is text
    blind: float | None  # bits: the uniform baseline, log2(vocabulary); None: size unknown
    most: tuple[Surprising, ...]  # the highest surprisals, highest first
    scores: tuple[Surprising, ...]  # of all tokens that count

    table = ("scores",)

    def draw(self, width: int) -> RenderableType:
        """Return the text with levels of surprisal, the figures, and the most surprising tokens."""
        first = self.index_of(self.first)
        count = len(self.tokens) - first
        most = max(filter(None, self.bits[first:]), default=0.0)
        scale = most if self.blind is None else self.blind
        shares = [
            None if bits is None or index < first else bits / scale if scale else 0.0
            for index, bits in enumerate(self.bits)
        ]
        figures = [
            _("mean {bits:.2f} bits ({nats:.3f} nats)", bits=self.mean / _LN2, nats=self.mean),
            _("perplexity {number:,.2f}", number=self.perplexity),
        ]
        if self.bits_per_byte is not None:
            figures.append(_("{rate:.3f} bits per byte", rate=self.bits_per_byte))
        about = _n(
            "of {n} token, each given its prefix", "of {n} tokens, each given its prefix", count
        )
        legend = (
            _("▁ low surprisal · █ {bits:.2f} bits or more (the highest here)", bits=scale)
            if self.blind is None
            else _(
                "▁ low surprisal · █ {bits:.2f} bits or more (uniform guess, log₂ of the "
                "vocabulary size)",
                bits=scale,
            )
        )
        listed = [each for each in self.most if each.bits >= _LEAST_BITS] or self.most[:1]
        parts: list[RenderableType] = [
            title(_("surprisal"), about),
            token_strip(self.tokens, shares, width),
            Text(" · ".join(figures)),
            Text(legend, FIGURES),
            Text(),
            _table(listed),
        ]
        if len(listed) < count:
            note = _("highest-surprisal tokens (at least {bits:g} bits)", bits=_LEAST_BITS)
            parts.append(Text(note, FIGURES))
        return Group(*parts)


def _table(listed: "list[Surprising] | tuple[Surprising, ...]") -> RenderableType:
    table = plain_table("#", _("token"), _("bits"), _("rank"), _("top token"), right=(0, 2, 3))
    for each in listed:
        expected = Text("  ").join(
            Text.assemble(short_label(likely.token), f" {percent(likely.prob)}")
            for likely in each.expected[:_SHOWN]
        )
        table.add_row(
            str(each.position), short_label(each.token), f"{each.bits:.2f}",
            rank_text(each.rank, each.listed), expected,
        )  # fmt: skip
    return table


@no_grad
def compute(inspected: InspectedText, first: int = 1) -> SurpriseView:
    """Return the surprisals of the tokens from position `first` on; position 0 has no prefix.

    Raises UserError for a text of one token.
    """
    _check_long_enough(inspected)
    name = f"blocks.{inspected.config.n_layers - 1}.residual"
    _logits, cache = inspected.run_with_cache(name, last_only=True)
    scores, size = list[TokenScore](), max(1, _MAX_LOGITS // inspected.config.vocab_size)
    for start in range(0, len(inspected.ids) - 1, size):
        some = cache[name][None, start : start + size + 1]  # one more: it is no score's prefix
        logits = check_finite(inspected.model.unembed(some, inspected.hook)[0])
        part = replace(inspected, ids=inspected.ids[start : start + size + 1])
        scores += score_text(part, logits, _TOP)
    return view_of_scores(inspected, scores, first, logits.shape[-1])


def _check_long_enough(inspected: InspectedText) -> None:
    if len(inspected.ids) < 2:
        raise UserError(
            _("a text of one token has no surprisal: it has no prefix; use a longer text")
        )


def view_of_scores(
    inspected: InspectedText, scores: Sequence[TokenScore], first: int, vocab_size: int
) -> SurpriseView:
    """Return the surprisals of the tokens from position `first` on, of the scores of all but the
    first; a vocabulary of 0 tokens is one of unknown size.
    """
    nats = [-each.logprob for each in scores]
    # The index among the tokens that the model sees.
    first = min(max(first - len(inspected.unseen_ids), 1), len(inspected.ids) - 1)
    counted = nats[first - 1 :]
    mean = sum(counted) / len(counted)
    found = [
        _surprising(inspected, index, scores[index - 1])
        for index in range(first, len(inspected.ids))
    ]
    return SurpriseView(
        first=inspected.position_of(first),
        tokens=inspected.tokens,
        bits=(None, *(each / _LN2 for each in nats)),
        mean=mean,
        perplexity=exp(min(mean, 700.0)),
        bits_per_byte=bits_per_byte(inspected, nats, first),
        blind=log2(vocab_size) if vocab_size else None,
        most=tuple(sorted(found, key=lambda each: -each.bits)[:_MOST]),
        scores=tuple(found),
        **inspected.window_fields,
    )


def _surprising(inspected: InspectedText, index: int, score: TokenScore) -> Surprising:
    return Surprising(
        position=inspected.position_of(index),
        token=inspected.tokens[index],
        bits=-score.logprob / _LN2,
        rank=score.rank,
        listed=len(score.top),
        expected=tuple(
            Likely(Token.from_id(inspected.tokenizer, token), exp(logprob))
            for token, logprob in score.top[:_TOP]
        ),
    )


def score_text(
    inspected: InspectedText, logits: "Tensor", n_candidates: int = 0
) -> list[TokenScore]:
    """Return the score of each token but the first; `logits` (time, vocab) are of the text."""
    from minillm_repl.generate.scoring import score_logits

    return list(score_logits(logits[:-1].cpu().numpy(), inspected.ids[1:], n_candidates))


def bits_per_byte(
    inspected: InspectedText, nats: list[float], first: int = 1, since: int = 0
) -> float | None:
    """Return Σ surprisal ÷ Σ bytes of the tokens that are text, in bits; None without any.

    Only tokens count whose index is at least `first`, and that begin at byte `since` of the whole
    text or later. A space that the tokenizer puts before a text is not one of its bytes.
    """
    counted = [
        (nats[index - 1], end - start)
        for index, (start, end) in byte_spans(inspected).items()
        if index >= first and start >= since
    ]
    size = sum(length for _nats, length in counted)
    return sum(each for each, _length in counted) / _LN2 / size if size else None


def byte_spans(inspected: InspectedText) -> dict[int, tuple[int, int]]:
    """Return the bytes of the whole text that each seen token of text covers, by index."""
    ids = inspected.all_ids
    spans, start = {}, -count_prepended_bytes(inspected)
    for position, token in enumerate(ids):
        size = len(inspected.tokenizer.token_bytes(token))
        if size and not 0 <= position - inspected.prefix_length < len(inspected.unseen_ids):
            index = inspected.window.index_of(position)
            spans[index] = max(start, 0), max(start + size, 0)
        start += size
    return spans


def count_prepended_bytes(inspected: InspectedText) -> int:
    """Return how many bytes the tokenizer put before the text."""
    if inspected.prepended_bytes is not None:
        return inspected.prepended_bytes
    return count_prefix_spaces(inspected.tokenizer, inspected.all_ids)


@command(
    "surprise",
    arguments=(TextArgument(free=True),),
    json=True,
    aliases=("surprisal", "perplexity", "놀람"),
    group="Predictions",
    example=":surprise 날씨가 좋다.",
)
def surprise(shell: "Shell", asked: Arguments) -> None:
    """Show the surprisal of each token.

    The surprisal of a token is −log2 of the probability that the model gave it, in bits.

    mean: over the tokens. perplexity: e to the power of the mean in nats. bits per byte: all bits
    divided by all bytes of these tokens; it excludes special tokens and a space that the tokenizer
    put before the text. Bits per byte compare across models. The first token has no prefix and is
    not counted.

    `:surprise` alone shows the text that was just written; with TEXT, it shows that text.
    """
    conversation = shell.session.conversation
    turns = conversation.turns
    prompt_length = len(turns[-1].prompt_ids) if turns and not asked.text else 0
    is_continued = prompt_length < len(conversation.ids)
    first = prompt_length if is_continued else 0
    view = (
        _compute_on_server(shell, asked.text, first)
        if shell.require_model().server
        else compute(inspect_text(shell, asked.text), first)
    )
    show(shell, view, asked.output)


def _compute_on_server(shell: "Shell", text: str, first: int) -> SurpriseView:
    model = shell.require_model()
    inspected = inspect_on_server(model, text_ids(shell, model, text), text or None)
    with shell.screen.waiting(_("reading")):
        scores = list(model.decoder.score(inspected.ids, 1, _TOP, shell.interrupted))
    _check_long_enough(inspected)
    return view_of_scores(inspected, scores, first, model.checkpoint.tokenizer.vocab_size)
