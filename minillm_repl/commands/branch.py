"""`:branch`."""

import re
from dataclasses import dataclass

from minillm_repl.errors import UsageError, UserError
from minillm_repl.language import _
from minillm_repl.repl.argument_parsing import parse_options
from minillm_repl.repl.inspecting import Arguments, show_view, text_ids
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import integer, setting
from minillm_repl.tokenizer.window import with_truncation

_MAX_BRANCHES = 100  # ways


@dataclass(frozen=True)
class BranchOptions:
    """How far to look."""

    tokens: int = setting(20, integer(1, 10_000), "how long each way is at most", unit="tokens")


@command(
    "branch",
    ':branch N [tokens=20] ["TEXT"]|take N',
    aliases=("갈래",),
    words=("take", "tokens="),
    group="Talk",
)
def branch(shell: Shell, argument: str) -> None:
    """Sample several continuations as a tree.

    Each continuation is sampled as usual, with its own seed. Continuations that begin alike share a
    stem. In a chat, they are alternative answers to the last question.

    The percentage at a segment is the probability of the segment given its prefix, by the model's
    own softmax. The number after `=` is the probability of the whole continuation.

    :branch take 2 continues from the second one; `:undo` takes that back.
    """
    taken = re.fullmatch(r"take\s+(\d{1,9})", argument)
    if taken:
        _take_branch(shell, int(taken[1]))
        return
    arguments = Arguments.parse(argument)
    count_text, options = parse_options(arguments.words, BranchOptions())
    if count_text.strip() and not re.fullmatch(r"\d{1,9}", count_text.strip()):
        raise UsageError(
            _(":branch takes a number of continuations, such as 3, or `take` and the number of one")
        )
    count = int(count_text) if count_text.strip() else 3
    if not 1 <= count <= _MAX_BRANCHES:
        raise UserError(
            _(
                ":branch takes a number of continuations from 1 to {most}, not {ways}",
                most=_MAX_BRANCHES,
                ways=count,
            )
        )
    session, model = shell.session, shell.require_model()
    answered = (
        bool(session.turns) and bool(session.turns[-1].prompt_messages) and not arguments.text
    )
    ids = list(session.turns[-1].prompt_ids) if answered else text_ids(shell, model, arguments.text)
    from minillm_repl.generate.next_token import branches_view
    from minillm_repl.generate.options import GenerationConfig
    from minillm_repl.render.next_token import branches_picture

    config = GenerationConfig(
        max_tokens=options.tokens,
        sampling=session.settings,
        stop=session.settings.stop,
        eos_token_ids=session.eos_token_ids(model),
    )
    with shell.screen.waiting(_("sampling continuations")):
        view = branches_view(
            model.decoder,
            model.checkpoint.tokenizer,
            ids,
            config,
            session.fresh_seed(),
            count,
            shell.interrupted,
        )
    session.branch_prompt_length, session.branch_seed = len(ids), view.seed + len(view.branches) - 1
    session.branches = [
        [*ids, *(token.id for token in each.tokens[: each.said])] for each in view.branches
    ]
    show_view(
        shell, with_truncation(view, model.visible_window(ids)), branches_picture, arguments.output
    )
    if view.branches[-1].reason == "interrupt":
        shell.screen.note(
            _("stopped early: {n} of {ways} continuations", n=len(view.branches), ways=count)
        )
    elif session.settings.temp == 0 and count > 1:
        shell.screen.note(_("at temp 0 all continuations are the same"))


def _take_branch(shell: Shell, number: int) -> None:
    session, model = shell.session, shell.require_model()
    if not 1 <= number <= len(session.branches):
        if not session.branches:
            raise UserError(_("no continuation {number}: run `:branch 3` first", number=number))
        count = len(session.branches)
        raise UserError(
            _(
                "no continuation {number}: they are numbered from 1 to {count}",
                number=number,
                count=count,
            )
        )
    way = list(session.branches[number - 1])
    given = (
        list(session.turns[-1].prompt_ids)
        if session.turns and session.turns[-1].prompt_messages
        else None
    )
    if given and way[: len(given)] == given:
        session.set_text(way, model.checkpoint.tokenizer)  # another answer to the same question
    elif way[: len(session.ids)] == session.ids and session.ids:
        session.continue_text([], "")
        session.set_text(way, model.checkpoint.tokenizer)
    else:
        session.start_turn(way[: session.branch_prompt_length])
        session.set_text(way, model.checkpoint.tokenizer)
    session.set_turn_seed(session.branch_seed)
    shell.show_text(model)
    shell.screen.note(_("`:continue` continues from here"))
