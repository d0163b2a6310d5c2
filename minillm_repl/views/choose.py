"""`:choose`: how likely each of several continuations is, and which one the model would take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _
from minillm_repl.render.console import CHOSEN, FIGURES, MODEL
from minillm_repl.render.drawing import bar, title
from minillm_repl.render.generation import percent, percent_of_bits
from minillm_repl.render.tables import NARROW, WIDE, plain_table
from minillm_repl.repl.arguments import Argument, Arguments, Values
from minillm_repl.repl.quoting import last_quoted, mask_quoted, unquoted
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation, with_truncation
from minillm_repl.views.base import View, show, text_ids
from minillm_repl.views.prob import ProbView, readings
from minillm_repl.views.prob import compute as compute_prob

if TYPE_CHECKING:
    from minillm_repl.generate import Decoder
    from minillm_repl.repl.shell import Shell

_LN2 = log(2)
_SEPARATOR = "|"
_FEW_COLUMNS = 60  # of a terminal: below, a table would cut its numbers


@dataclass(frozen=True, kw_only=True)
class Option:
    """One of the continuations."""

    text: str
    tokens: tuple[Token, ...]
    prob: float  # the product over its tokens, by the model's own softmax
    bits: float  # the surprisal, −log2 of the product
    bits_per_byte: float  # of the bytes of `text`
    share: float  # `prob` ÷ the sum of `prob` over all options


@dataclass(frozen=True)
class ChooseView(View, Truncation):
    """Several continuations of a text, in the order in which they were typed."""

    after: Token  # the last token of the text
    options: tuple[Option, ...]
    chosen: int  # the index of the option with the highest probability; the first of equals
    chosen_per_byte: int  # the index of the option with the fewest bits per byte

    def draw(self, width: int) -> RenderableType:
        """Return a row for each option: its share, its probability and its surprisal."""
        heading = title(
            _("{n} continuations", n=len(self.options)), _("after {token}", token=self.after.label)
        )
        legend = _("share: of the probability of all of them together · * fewest bits per byte")
        body = self._lines() if width < _FEW_COLUMNS else self._table(width)
        return Group(heading, body, Text(legend, FIGURES))

    def _lines(self) -> Text:
        """Return each option over its figures, for a terminal with few columns."""
        lines = Text()
        for index, each in enumerate(self.options):
            mark = "*" if index == self.chosen_per_byte else ""
            lines.append(safe_line(each.text) + "\n", CHOSEN if index == self.chosen else "")
            figures = _(
                "share {share} · probability {prob} · {bits:.2f} bits · {rate:.2f} bits/byte",
                share=percent(each.share),
                prob=percent_of_bits(each.bits),
                bits=each.bits,
                rate=each.bits_per_byte,
            )
            lines.append(f"{figures}{mark}\n")
        lines.rstrip()
        return lines

    def _table(self, width: int) -> RenderableType:
        bars = 24 if width >= WIDE else 10 if width >= NARROW else 0
        table = plain_table(
            _("continuation"), _("share"), "", _("probability"), _("bits"), _("bits/byte"),
            right=(1, 3, 4, 5), wrap=(0,),
        )  # fmt: skip
        for index, each in enumerate(self.options):
            table.add_row(
                Text(safe_line(each.text), CHOSEN if index == self.chosen else ""),
                percent(each.share), Text(bar(each.share, bars), MODEL),
                percent_of_bits(each.bits), f"{each.bits:.2f}",
                f"{each.bits_per_byte:.2f}" + ("*" if index == self.chosen_per_byte else " "),
            )  # fmt: skip
        return table


def compute(
    decoder: "Decoder",
    tokenizer: Tokenizer,
    ids: Sequence[int],
    continuations: Sequence[tuple[str, Sequence[Sequence[int]]]],
    interrupted: Callable[[], bool],
) -> ChooseView:
    """Return how likely each continuation is after `ids`: a text, and its readings in tokens.

    Of several readings, the most likely one counts. Raises UserError if interrupted.
    """
    found = [
        min(
            (compute_prob(decoder, tokenizer, ids, each, interrupted) for each in tokens),
            key=lambda view: view.bits,
        )
        for _text, tokens in continuations
    ]
    shares = _shares([view.bits for view in found])
    options = tuple(
        _option(text, view, share)
        for (text, _tokens), view, share in zip(continuations, found, shares, strict=True)
    )
    indices = range(len(options))
    return ChooseView(
        after=Token.from_id(tokenizer, ids[-1]),
        options=options,
        chosen=min(indices, key=lambda index: options[index].bits),
        chosen_per_byte=min(indices, key=lambda index: options[index].bits_per_byte),
    )


def _option(text: str, view: ProbView, share: float) -> Option:
    return Option(
        text=text,
        tokens=tuple(each.token for each in view.chances),
        prob=view.prob,
        bits=view.bits,
        bits_per_byte=view.bits / len(text.encode("utf-8", "surrogatepass")),
        share=share,
    )


def _shares(bits: Sequence[float]) -> list[float]:
    """Return 2^−bits of each, divided by their sum. The product of many tokens may be 0."""
    weights = [exp((min(bits) - each) * _LN2) for each in bits]
    return [weight / sum(weights) for weight in weights]


class Continuations(Argument):
    """Two continuations or more, with `|` between them; at the end, a text in quotes."""

    takes_rest = True

    def __init__(self) -> None:
        defaults: Values = {"continuations": (), "text": ""}
        super().__init__(f'A {_SEPARATOR} B [{_SEPARATOR} …] ["TEXT"]', defaults, required=True)

    def take(self, text: str) -> tuple[Values, str]:
        """Read all that remains."""
        parts, start = [], 0
        for part in mask_quoted(text).split(_SEPARATOR):  # as long as the text itself
            parts.append(text[start : start + len(part)].strip())
            start += len(part) + 1
        quoted = last_quoted(parts[-1])
        if quoted and quoted != parts[-1]:  # alone, it is a continuation
            parts[-1] = parts[-1].removesuffix(quoted).strip()
        else:
            quoted = ""
        if len(parts) < 2 or not all(parts):
            raise UsageError(
                _("give two continuations or more, with {mark} between them", mark=_SEPARATOR)
            )
        return {"continuations": tuple(map(unquoted, parts)), "text": unquoted(quoted)}, ""


def _check_readable(tokenizer: Tokenizer, text: str) -> None:
    """Raise UserError for a text whose probability would be that of another text."""
    unknown = tokenizer.find_unknown(text)
    if unknown:
        raise UserError(
            _(
                "{text} has no probability: the vocabulary lacks {characters}",
                text=safe_line(text),
                characters=", ".join(map(safe_line, unknown[:8])),
            )
        )


@command(
    "choose",
    arguments=(Continuations(),),
    json=True,
    aliases=("고르기",),
    group="Predictions",
    example=":choose 좋다. | 맑다. | 시원하다.",
)
def choose(shell: "Shell", asked: Arguments) -> None:
    """Compare the probabilities of several continuations.

    The model reads the text so far, or the text in quotes, and then each continuation. The
    probability of a continuation is the product over its tokens, by the model's own softmax. The
    share is that probability divided by the sum over all continuations that you typed.

    A longer continuation has a lower product. Bits per byte, the surprisal −log2 of the product
    divided by the bytes of the continuation, compare across lengths. If a continuation is more
    likely with a space before it, the view uses it with the space.
    """
    model = shell.require_model()
    ids = text_ids(shell, model, asked.text)
    tokenizer = model.checkpoint.tokenizer
    for text in asked.continuations:
        _check_readable(tokenizer, text)
    continuations = [(text, readings(shell, model, text)) for text in asked.continuations]
    view = compute(model.decoder, tokenizer, ids, continuations, shell.interrupted)
    longest = max(view.options, key=lambda option: len(option.tokens))
    # The model has read all but the last token of the longest continuation.
    read_ids = [*ids, *(token.id for token in longest.tokens[:-1])]
    show(shell, with_truncation(view, model.visible_window(read_ids)), asked.output)
