"""`:compare`: two models on the same text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import N_, _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import MAX_LABEL_WIDTH, bar, fit_to_width, nats, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, TextArgument, Words
from minillm_repl.repl.model_loading import ModelFuture
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.storage.paths import find_checkpoint
from minillm_repl.tokenizer import Token, decode
from minillm_repl.tokenizer.lookup import count_prefix_spaces, has_same_vocabulary
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, inspect_ids, show
from minillm_repl.views.inspected_text import InspectedText, Likely, kl_divergence, no_grad, topk
from minillm_repl.views.prompts import CHAT, chat_ids, prompt_ids
from minillm_repl.views.surprise import (
    bits_per_byte,
    byte_spans,
    count_prepended_bytes,
    score_text,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_TOP, _MOST = 8, 8  # next tokens; positions that differ


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The predictions of two models after one position."""

    position: int
    token: Token
    kl: float  # nats: KL(ours ‖ theirs) = Σ ours · ln(ours / theirs)
    kl_back: float  # nats: KL(theirs ‖ ours)
    ours: Likely
    theirs: Likely


@dataclass(frozen=True, kw_only=True)
class CompareView(View, Truncation):
    """Two models on the same text. Each pair is for the open model and the other."""

    names: tuple[str, str]
    tokens: tuple[int, int]  # that each reads; `unseen` and `kept` are of the open model
    top: tuple[tuple[Likely, ...], tuple[Likely, ...]]  # the next token
    bits_per_byte: tuple[float | None, float | None]
    bytes: int  # over which these are measured: the same for both
    why: str  # why no more can be compared; empty if it can
    kl: tuple[float, float] | None  # nats, at the last position: KL(ours ‖ theirs), and back
    kl_mean: tuple[float, float] | None  # the means over all positions
    same_top: int | None  # positions at which both have the same top token
    differ: tuple[Difference, ...]  # the positions with the largest KL, which is above 0

    def draw(self, width: int) -> RenderableType:
        """Return the top tokens of both models side by side, and the largest differences."""
        names = [fit_to_width(name, min(cell_len(name), max(8, width // 3))) for name in self.names]
        bits = " · ".join(
            f"{name} {each:.3f}"
            for name, each in zip(names, self.bits_per_byte, strict=True)
            if each is not None
        )
        parts: list[RenderableType] = [
            title(_("next token"), _("by each model's own probabilities")),
            self._top_table(names, width),
        ]
        if bits:
            measured = _("bits per byte over the same {n:,} bytes: {bits}", n=self.bytes, bits=bits)
            parts.append(Text(measured))
        if self.why or self.kl is None or self.kl_mean is None:
            why = _(self.why)
            only = (
                _("only bits per byte can be compared: {why}", why=why)
                if bits
                else _("no numbers can be compared: {why}", why=why)
            )
            return Group(*parts, Text(only, FIGURES))
        here, mean = (
            _("{kl} nats ({back} back)", kl=nats(there), back=nats(back))
            for there, back in (self.kl, self.kl_mean)
        )
        agreement = _(
            "same top-1 token at {same:,} of {all:,} positions",
            same=self.same_top or 0,
            all=self.tokens[0],
        )
        parts += [Text(_("KL here {here} · mean {mean}", here=here, mean=mean)), Text(agreement)]
        return Group(*parts, *self._largest_differences(names))

    def _top_table(self, names: list[str], width: int) -> RenderableType:
        table = plain_table("", names[0], "", "", names[1], "", "")
        bars = max(4, min(20, (width - 2 * MAX_LABEL_WIDTH - 34) // 2))
        for place, (ours, theirs) in enumerate(zip(*self.top, strict=False), 1):
            table.add_row(str(place), *_cells(ours, bars), *_cells(theirs, bars))
        return table

    def _largest_differences(self, names: list[str]) -> list[RenderableType]:
        if not self.differ:
            return [Text(_("both models predict the same after every token"), FIGURES)]
        table = plain_table("#", _("after"), "KL", _("reverse"), *names, right=(0, 2, 3))
        for each in self.differ:
            table.add_row(
                str(each.position), short_label(each.token), nats(each.kl), nats(each.kl_back),
                Text.assemble(short_label(each.ours.token), f" {percent(each.ours.prob)}"),
                Text.assemble(short_label(each.theirs.token), f" {percent(each.theirs.prob)}"),
            )  # fmt: skip
        note = _(
            "KL: Σ p · ln(p / q) at each position, p by {ours} and q by {theirs}; reverse: p "
            "and q swapped",
            ours=names[0],
            theirs=names[1],
        )
        return [Text(), Text(_("largest differences"), TITLE), table, Text(note, FIGURES)]


def _cells(likely: Likely, bars: int) -> tuple[Text, str, Text]:
    return short_label(likely.token), percent(likely.prob), Text(bar(likely.prob, bars), MODEL)


@no_grad
def compute(ours: InspectedText, theirs: InspectedText, names: tuple[str, str]) -> CompareView:
    """Return the predictions of two models; of different vocabularies, only what is comparable."""
    logits = ours.logits(), theirs.logits()  # (time, vocab) each
    same_sizes = logits[0].shape[-1] == logits[1].shape[-1]
    why = _why_incomparable(ours, theirs, same_sizes)
    differences = (
        [] if why else [_difference(ours, index, logits) for index in range(len(ours.ids))]
    )
    last = differences[-1] if differences else None
    largest = sorted((each for each in differences if each.kl), key=lambda each: -each.kl)
    since = _shared_start(ours, theirs) if _text(ours) == _text(theirs) else None
    return CompareView(
        names=names,
        tokens=(len(ours.ids), len(theirs.ids)),
        top=(_top(ours, logits[0]), _top(theirs, logits[1])),
        bits_per_byte=(_bits(ours, logits[0], since), _bits(theirs, logits[1], since)),
        bytes=0 if since is None else len(_text(ours)) - since,
        why=why,
        kl=(last.kl, last.kl_back) if last else None,
        kl_mean=_mean_kl(differences) if last else None,
        same_top=sum(each.ours.token == each.theirs.token for each in differences)
        if last
        else None,
        differ=tuple(largest[:_MOST]),
        **ours.window_fields,
    )


def _why_incomparable(ours: InspectedText, theirs: InspectedText, same_sizes: bool) -> str:
    """Return why the distributions cannot be compared position by position; empty if they can."""
    if _text(ours) != _text(theirs):
        return N_("the two models read different texts: one of them lacks some characters")
    if not same_sizes or not has_same_vocabulary(ours.tokenizer, theirs.tokenizer):
        return N_("the two models have different vocabularies")
    if ours.window_fields != theirs.window_fields:
        return N_("one model sees less of the text than the other")
    if ours.ids != theirs.ids:
        return N_("the two models tokenize the text differently")
    return ""


def _text(inspected: InspectedText) -> bytes:
    """Return the whole text, without a space that the tokenizer put before it."""
    text = b"".join(map(inspected.tokenizer.token_bytes, inspected.all_ids))
    return text[count_prepended_bytes(inspected) :]


def _shared_start(ours: InspectedText, theirs: InspectedText) -> int | None:
    """Return the first byte at which both models begin a token that they predict.

    From there on, both predict all of the text.
    """
    our_starts, their_starts = (
        {start for index, (start, _end) in byte_spans(each).items() if index}
        for each in (ours, theirs)
    )
    return min(our_starts & their_starts, default=None)


def _difference(
    inspected: InspectedText, index: int, logits: "tuple[Tensor, Tensor]"
) -> Difference:
    ours, theirs = (each[index].double().log_softmax(-1) for each in logits)  # (vocab,) each
    return Difference(
        position=inspected.position_of(index),
        token=inspected.tokens[index],
        kl=kl_divergence(ours, theirs),
        kl_back=kl_divergence(theirs, ours),
        ours=topk(inspected.tokenizer, ours, 1)[0],
        theirs=topk(inspected.tokenizer, theirs, 1)[0],
    )


def _mean_kl(differences: list[Difference]) -> tuple[float, float]:
    count = len(differences)
    return (
        sum(each.kl for each in differences) / count,
        sum(each.kl_back for each in differences) / count,
    )


def _top(inspected: InspectedText, logits: "Tensor") -> tuple[Likely, ...]:
    return topk(inspected.tokenizer, logits[-1].double().log_softmax(-1), _TOP)


def _bits(inspected: InspectedText, logits: "Tensor", since: int | None) -> float | None:
    if since is None:
        return None
    nats = [-each.logprob for each in score_text(inspected, logits)]
    return bits_per_byte(inspected, nats, since=since)


@command(
    "compare",
    arguments=(
        Words("path", "PATH|NAME", required=True, completion="checkpoint"),
        CHAT,
        TextArgument(quoted=True),
    ),
    json=True,
    aliases=("비교",),
    group="Predictions",
    example=":compare hangul",
)
def compare(shell: "Shell", asked: Arguments) -> None:
    """Compare the predictions with those of another checkpoint.

    Both models read the text so far, or the text in quotes. After `chat`, each reads it as the
    first message of a chat, in a template of its own. The view shows their most likely next tokens
    side by side.

    Bits per byte are measured over the same bytes of the text, without special tokens. They compare
    any two models.

    If both models have the same vocabulary and tokenize the text alike, the view also compares
    every position. KL(open ‖ other) = Σ p · ln(p / q) is in nats; p is the open model and q the
    other. `reverse` is KL(other ‖ open). The view also counts the positions where both have the
    same top token. Identical models have a KL of 0 and agree everywhere.

    The open model stays open.
    """
    model = shell.require_model()
    chat = bool(asked.chat and asked.text)
    ids = prompt_ids(shell, model, asked.text, chat=chat)
    path = find_checkpoint(asked.path)
    other = shell.wait_for_model(ModelFuture(shell.session.workspace.loader, path), path)
    tokenizer = model.checkpoint.tokenizer
    text = asked.text or decode(tokenizer, ids)
    # A space that the tokenizer put before the text, and that decoding leaves there.
    if not asked.text and not tokenizer.prefix:
        text = text[count_prefix_spaces(tokenizer, ids) :]
    shared = has_same_vocabulary(tokenizer, other.checkpoint.tokenizer)
    their_ids = ids if shared else shell.encode(other, text)
    if chat:
        their_ids, text = chat_ids(shell, other, asked.text), decode(tokenizer, ids)
    ours, theirs = inspect_ids(shell, model, ids, text), inspect_ids(shell, other, their_ids, text)
    our_name, their_name = safe_line(model.name), safe_line(other.name)
    if our_name == their_name:
        our_name = _("{model} (open)", model=our_name)
    show(shell, compute(ours, theirs, (our_name, their_name)), asked.output)
