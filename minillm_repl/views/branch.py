"""`:branch`: several sampled continuations of a text, as a tree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import prod
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from minillm_repl.errors import UserError
from minillm_repl.generate import GenerationConfig
from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import short_label, title
from minillm_repl.render.generation import exact_percent
from minillm_repl.repl.arguments import Arguments, Number, Option, TextArgument
from minillm_repl.repl.conversation import Branches, fresh_seed
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.settings import integer
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation, with_truncation
from minillm_repl.views.base import View, show, text_ids

if TYPE_CHECKING:
    from minillm_repl.generate import Decoder, Finished, Reason, Step
    from minillm_repl.repl.shell import Shell

_MAX_BRANCHES = 100
Known = tuple[float | None, ...]
"""Probabilities; None where a server does not tell."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One continuation."""

    tokens: tuple[Token, ...]
    probs: Known  # of each token, by the model's own softmax
    prob: float | None  # their product
    reason: "Reason"  # why it ended
    said: int  # how many tokens its text has, without those that end it


@dataclass(frozen=True)
class BranchesView(View, Truncation):
    """Several continuations of a text, sampled with the seeds `seed`, `seed` + 1, ..."""

    after: Token  # the last token of the text
    seed: int
    branches: tuple[Branch, ...]

    def draw(self, _width: int) -> RenderableType:
        """Return the branches as a tree; branches that begin alike share a stem."""
        tree = Tree(short_label(self.after), guide_style=FIGURES)
        ends = [
            _End(number, each.tokens, each.probs, each.prob)
            for number, each in enumerate(self.branches, 1)
        ]
        has_totals = _grow(tree, ends, is_root=True)
        count = len(ends)
        seeds = (
            _("seeds {seed} to {last}", seed=self.seed, last=self.seed + count - 1)
            if count > 1
            else _("seed {seed}", seed=self.seed)
        )
        notes = [_("%: probability of a segment given its prefix")]
        if has_totals:
            notes.append(_("=: probability of the whole continuation"))
        notes.append(_("`:branch take N` continues from one"))
        heading = title(_n("{n} continuation", "{n} continuations", count), seeds)
        return Group(heading, tree, Text(" · ".join(notes), FIGURES))


@dataclass(frozen=True)
class _End:
    """The part of a branch that is not drawn yet."""

    number: int
    tokens: tuple[Token, ...]
    probs: Known
    prob: float | None  # of the whole branch


def _grow(tree: Tree, ends: Sequence[_End], *, is_root: bool) -> bool:
    """Add ends of branches below a node; those that begin alike share a stem.

    At the root, a segment that is a whole branch already shows the branch's probability. Return
    whether a branch has its probability beside that of a segment.
    """
    has_totals = False
    firsts = dict.fromkeys(end.tokens[0].id for end in ends if end.tokens)
    for first in firsts:
        alike = [end for end in ends if end.tokens and end.tokens[0].id == first]
        columns = zip(*([token.id for token in end.tokens] for end in alike), strict=False)
        # How many tokens all of these begin with.
        stem = len(list(takewhile(lambda ids: len(set(ids)) == 1, columns)))
        label = Text.assemble(
            (_running_text(alike[0].tokens[:stem]), MODEL),
            (f"  {_percent(_product(alike[0].probs[:stem]))}", FIGURES),
        )
        complete = [end for end in alike if len(end.tokens) == stem]
        for end in complete:
            label.append(f"  [{end.number}]", TITLE)
            if not is_root:
                label.append(f"={_percent(end.prob)}")
                has_totals = True
        rest = [
            _End(end.number, end.tokens[stem:], end.probs[stem:], end.prob)
            for end in alike
            if end not in complete
        ]
        has_totals |= _grow(tree.add(label), rest, is_root=False)
    for end in ends:
        if not end.tokens:
            tree.add(Text(_("[{number}] ends here", number=end.number), FIGURES))
    return has_totals


def _product(probs: Known) -> float | None:
    return None if None in probs else prod(each or 0.0 for each in probs)


def _percent(prob: float | None) -> str:
    return "–" if prob is None else exact_percent(prob)


def _running_text(tokens: Sequence[Token]) -> str:
    """Return the text of tokens on one line; special tokens by their names."""
    pieces = [bytes(token.bytes) or token.text.encode("utf-8", "replace") for token in tokens]
    return safe_line(b"".join(pieces).decode("utf-8", "replace"))


def compute(
    decoder: "Decoder",
    tokenizer: Tokenizer,
    ids: Sequence[int],
    config: GenerationConfig,
    seed: int,
    count: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> BranchesView:
    """Return `count` continuations of `ids`, sampled with the seeds `seed`, `seed` + 1, ...

    After an interrupt, it has those made so far.
    """
    from minillm_repl.generate import Finished, Step
    from minillm_repl.generate.generate import generate
    from minillm_repl.generate.sampling import make_rng

    branches = []
    for branch_seed in range(seed, seed + count):
        rng = make_rng(branch_seed)
        events = list(generate(decoder, tokenizer, ids, config, rng, interrupted))
        steps = [event for event in events if isinstance(event, Step)]
        finished = events[-1]
        assert isinstance(finished, Finished)
        branches.append(_branch(tokenizer, steps, finished, config.stop))
        if finished.reason == "interrupt":
            break
    return BranchesView(Token.from_id(tokenizer, ids[-1]), seed, tuple(branches))


def _branch(
    tokenizer: Tokenizer, steps: "Sequence[Step]", finished: "Finished", stop: Sequence[str]
) -> Branch:
    from minillm_repl.generate.detokenizer import text_token_ids

    probs = tuple(step.model_prob for step in steps)
    return Branch(
        tokens=tuple(Token.from_id(tokenizer, step.id) for step in steps),
        probs=probs,
        prob=_product(probs),
        reason=finished.reason,
        said=len(text_token_ids(tokenizer, [step.id for step in steps], finished, stop)),
    )


@command(
    "branch",
    arguments=Forms(
        (
            Number("count", integer(1, _MAX_BRANCHES), 3),
            Option("tokens", integer(1, 10_000), 20),
            TextArgument(quoted=True),
        ),
        ("take", Number("number", integer(0), required=True)),
    ),
    json=True,
    aliases=("갈래",),
    group="Talk",
    example=":branch 3 tokens=5",
)
def branch(shell: "Shell", asked: Arguments) -> None:
    """Sample several continuations as a tree.

    Each continuation is sampled as usual, with its own seed. Continuations that begin alike share a
    stem. In a chat, they are alternative answers to the last question.

    The percentage at a segment is the probability of the segment given its prefix, by the model's
    own softmax. The number after `=` is the probability of the whole continuation.

    :branch take 2 continues from the second one; `:undo` takes that back.
    """
    if asked.keyword == "take":
        _take_branch(shell, asked.number)
        return
    session, model = shell.session, shell.require_model()
    conversation = session.conversation
    turns = conversation.turns if not asked.text else []
    is_answer = bool(turns) and bool(turns[-1].prompt_messages)
    ids = list(turns[-1].prompt_ids) if is_answer else text_ids(shell, model, asked.text)
    config = GenerationConfig(
        max_tokens=asked.tokens,
        sampling=session.settings,
        stop=session.settings.stop,
        eos_token_ids=conversation.eos_token_ids(model),
        rules=model.token_rules(session.settings, conversation.eos_token_ids(model)),
    )
    tokenizer, seed = model.checkpoint.tokenizer, fresh_seed(session.settings)
    with shell.screen.waiting(_("sampling continuations")):
        view = compute(model.decoder, tokenizer, ids, config, seed, asked.count, shell.interrupted)
    texts = ((*ids, *(token.id for token in each.tokens[: each.said])) for each in view.branches)
    conversation.branches = Branches(
        texts=tuple(texts), prompt_length=len(ids), seed=seed + len(view.branches) - 1
    )
    show(shell, with_truncation(view, model.visible_window(ids)), asked.output)
    if view.branches[-1].reason == "interrupt":
        done = len(view.branches)
        shell.screen.note(_("stopped early: {n} of {ways} continuations", n=done, ways=asked.count))
    elif session.settings.temp == 0 and asked.count > 1:
        shell.screen.note(_("at temp 0 all continuations are the same"))


def _take_branch(shell: "Shell", number: int) -> None:
    """Make a branch the text so far. Raises UserError if there is no branch of that number."""
    model, settings = shell.require_model(), shell.session.settings
    conversation, tokenizer = shell.session.conversation, model.checkpoint.tokenizer
    branches, turns = conversation.branches, conversation.turns
    if not branches.texts:
        raise UserError(_("no continuation {number}: run `:branch 3` first", number=number))
    if not 1 <= number <= len(branches.texts):
        raise UserError(
            _(
                "no continuation {number}: they are numbered from 1 to {count}",
                number=number,
                count=len(branches.texts),
            )
        )
    ids = list(branches.texts[number - 1])
    question = list(turns[-1].prompt_ids) if turns and turns[-1].prompt_messages else []
    if not question or ids[: len(question)] != question:
        if conversation.ids and ids[: len(conversation.ids)] == conversation.ids:
            conversation.continue_text([], "", settings)
        else:
            conversation.start_turn(ids[: branches.prompt_length], settings)
    # Otherwise it is another answer to the same question.
    conversation.set_text(ids, tokenizer)
    conversation.set_turn_seed(branches.seed)
    shell.show_text(model)
    shell.screen.note(_("`:continue` continues from here"))
