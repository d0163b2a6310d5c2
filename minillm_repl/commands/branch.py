"""`:branch`."""

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.arguments import Arguments, Number, Option, TextArgument
from minillm_repl.repl.conversation import Branches, fresh_seed
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.repl.shell import Shell
from minillm_repl.settings import integer
from minillm_repl.tokenizer.truncation import with_truncation
from minillm_repl.views.inspecting import show_view, text_ids

_MAX_BRANCHES = 100  # ways


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
)
def branch(shell: Shell, asked: Arguments) -> None:
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
    answers = conversation.turns[-1:] if not asked.text else []
    answered = bool(answers) and bool(answers[0].prompt_messages)
    ids = list(answers[0].prompt_ids) if answered else text_ids(shell, model, asked.text)
    from minillm_repl.generate.next_token import branches_view
    from minillm_repl.generate.options import GenerationConfig
    from minillm_repl.render.next_token import branches_picture

    config = GenerationConfig(
        max_tokens=asked.tokens,
        sampling=session.settings,
        stop=session.settings.stop,
        eos_token_ids=conversation.eos_token_ids(model),
    )
    with shell.screen.waiting(_("sampling continuations")):
        view = branches_view(
            model.decoder,
            model.checkpoint.tokenizer,
            ids,
            config,
            fresh_seed(session.settings),
            asked.count,
            shell.interrupted,
        )
    conversation.branches = Branches(
        texts=tuple(
            (*ids, *(token.id for token in each.tokens[: each.said])) for each in view.branches
        ),
        prompt_length=len(ids),
        seed=view.seed + len(view.branches) - 1,
    )
    show_view(
        shell, with_truncation(view, model.visible_window(ids)), branches_picture, asked.output
    )
    if view.branches[-1].reason == "interrupt":
        shell.screen.note(
            _("stopped early: {n} of {ways} continuations", n=len(view.branches), ways=asked.count)
        )
    elif session.settings.temp == 0 and asked.count > 1:
        shell.screen.note(_("at temp 0 all continuations are the same"))


def _take_branch(shell: Shell, number: int) -> None:
    model, settings = shell.require_model(), shell.session.settings
    conversation = shell.session.conversation
    branches = conversation.branches
    if not 1 <= number <= len(branches.texts):
        if not branches.texts:
            raise UserError(_("no continuation {number}: run `:branch 3` first", number=number))
        count = len(branches.texts)
        raise UserError(
            _(
                "no continuation {number}: they are numbered from 1 to {count}",
                number=number,
                count=count,
            )
        )
    way = list(branches.texts[number - 1])
    given = (
        list(conversation.turns[-1].prompt_ids)
        if conversation.turns and conversation.turns[-1].prompt_messages
        else None
    )
    if given and way[: len(given)] == given:
        conversation.set_text(
            way, model.checkpoint.tokenizer
        )  # another answer to the same question
    elif way[: len(conversation.ids)] == conversation.ids and conversation.ids:
        conversation.continue_text([], "", settings)
        conversation.set_text(way, model.checkpoint.tokenizer)
    else:
        conversation.start_turn(way[: branches.prompt_length], settings)
        conversation.set_text(way, model.checkpoint.tokenizer)
    conversation.set_turn_seed(branches.seed)
    shell.show_text(model)
    shell.screen.note(_("`:continue` continues from here"))
