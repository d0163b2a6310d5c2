"""`:branch`."""

import re
from dataclasses import dataclass

from minillm_repl.errors import Misunderstood, UserError
from minillm_repl.language import _
from minillm_repl.repl.argument_parsing import with_options
from minillm_repl.repl.inspecting import Asked, show, text_ids
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import setting, whole
from minillm_repl.tokenizer.window import seen_as

_MOST = 100  # ways


@dataclass(frozen=True)
class Branching:
    """How far to look."""

    tokens: int = setting(20, whole(1, 10_000), "how long each way is at most", unit="tokens")


@command(
    "branch",
    ':branch N [tokens=20] ["TEXT"]|take N',
    aliases=("갈래",),
    words=("take", "tokens="),
    group="Talk",
)
def branch(shell: Shell, argument: str) -> None:
    """Continue the text in several ways, and show them as a tree.

    Each way is drawn as a completion would be, with a seed of its own; where they say the same,
    they share a stem. The percentage of a piece is the product of its tokens' probabilities by the
    model's own softmax, after what is before it; that after `=` is of a whole way. In a chat they
    are other answers to the last question.
    :branch take 2 goes on from the second way; `:undo` takes it back.
    """
    taken = re.fullmatch(r"take\s+(\d{1,9})", argument)
    if taken:
        _take(shell, int(taken[1]))
        return
    asked = Asked.of(argument)
    said, how = with_options(asked.words, Branching())
    if said.strip() and not re.fullmatch(r"\d{1,9}", said.strip()):
        raise Misunderstood(
            _(":branch takes how many ways to go, such as 3, or `take` and the number of one")
        )
    ways = int(said) if said.strip() else 3
    if not 1 <= ways <= _MOST:
        raise UserError(
            _(":branch takes a number from 1 to {most}, not {ways}", most=_MOST, ways=ways)
        )
    session, model = shell.session, shell.model()
    answered = bool(session.turns) and bool(session.turns[-1].asked) and not asked.text
    ids = list(session.turns[-1].given) if answered else text_ids(shell, model, asked.text)
    from minillm_repl.generate.next_token import branches_view
    from minillm_repl.render.next_token import branches_picture

    with shell.screen.waiting(_("going several ways")):
        view = branches_view(
            model.decoder, model.checkpoint.tokenizer, ids, session.settings, session.fresh_seed(), ways,
            max_tokens=how.tokens, stop=session.settings.stop, end=session.ends(model), interrupted=shell.interrupted,
        )  # fmt: skip
    session.ways_given, session.ways_seed = len(ids), view.seed + len(view.branches) - 1
    session.ways = [
        [*ids, *(token.id for token in each.tokens[: each.said])] for each in view.branches
    ]
    show(shell, seen_as(view, model.seen(ids)), branches_picture, asked.output)
    if view.branches[-1].reason == "interrupt":
        shell.screen.note(_("stopped on the way: {n} of {ways}", n=len(view.branches), ways=ways))
    elif session.settings.temp == 0 and ways > 1:
        shell.screen.note(_("at temp 0 all ways are the same"))


def _take(shell: Shell, number: int) -> None:
    session, model = shell.session, shell.model()
    if not 1 <= number <= len(session.ways):
        if not session.ways:
            raise UserError(
                _("there is no way {number}: `:branch 3` looks for some", number=number)
            )
        count = len(session.ways)
        raise UserError(
            _("there is no way {number}: they count from 1 to {count}", number=number, count=count)
        )
    way = list(session.ways[number - 1])
    given = list(session.turns[-1].given) if session.turns and session.turns[-1].asked else None
    if given and way[: len(given)] == given:
        session.walk_to(way, model.checkpoint.tokenizer)  # another answer to the same question
    elif way[: len(session.ids)] == session.ids and session.ids:
        session.go_on([], "")
        session.walk_to(way, model.checkpoint.tokenizer)
    else:
        session.begin(way[: session.ways_given])
        session.walk_to(way, model.checkpoint.tokenizer)
    session.drawn_with(session.ways_seed)
    shell.show_text(model)
    shell.screen.note(_("`:continue` goes on from here"))
