"""`:session` and `:edit`: the tree of what was said, and the sessions that are kept."""

import time

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.answering import respond
from minillm_repl.repl.arguments import Arguments, Number, TextArgument
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.repl.session_file import read_session
from minillm_repl.repl.session_folder import SessionFolder, describe_model, saved_model_path
from minillm_repl.repl.session_restore import go_to, open_session, require_turn
from minillm_repl.repl.session_tree import Node
from minillm_repl.repl.shell import PROMPT, Shell
from minillm_repl.safetext import safe_line
from minillm_repl.settings import integer
from minillm_repl.views.base import show
from minillm_repl.views.session import compare, compute

_NOT_KEPT = N_(
    "this session is not kept: `minillm-repl --session NAME` keeps one, --no-history none"
)
_NUMBER = Number("number", integer(0), required=True)
_OTHER = Number("other", integer(1), required=True)
_NAME = TextArgument("NAME", required=True, free=True)


@command(
    "session",
    arguments=Forms(
        (),
        ("list",),
        ("open", _NAME),
        ("name", _NAME),
        ("new", TextArgument("NAME", free=True)),
        ("delete", _NAME),
        ("go", _NUMBER),
        ("compare", _NUMBER, _OTHER),
    ),
    json=True,
    aliases=("세션",),
    group="Talk",
    example=":session",
)
def session(shell: Shell, asked: Arguments) -> None:
    """Show all turns of this session, or open another session.

    A session is the conversation with its settings, seeds, system prompt, interventions, tries and
    branches. At a terminal it is kept in a file as you type: `minillm-repl --continue` goes on with
    the last one, `--session NAME` with another. Then `:regen` writes the same text as it would have
    without quitting, if the model and the version are the same. --no-history keeps none.

    :session list shows all sessions that are kept.
    :session open NAME goes on with one, and opens its model.
    :session name NAME names this one.
    :session new NAME begins another one, with the next prompt.
    :session delete NAME deletes one for good.

    Another try (`:regen`), an edited prompt (`:edit`), a branch (`:branch`) and an undone turn stay
    in the tree.
    :session go 3 goes on from turn 3.
    :session compare 3 5 shows two turns beside each other.
    """
    if shell.session is not shell.recorder.session:
        raise UserError(_("a lesson is no session: `:leave` leaves it"))
    shell.recorder.after_line("")  # what was said before this line
    text = asked.text.strip()
    if asked.keyword == "go":
        _go(shell, asked.number)
    elif asked.keyword == "compare":
        show(shell, compare(shell.recorder.saved.tree, asked.number, asked.other), asked.output)
    elif asked.keyword == "":
        recorder = shell.recorder
        file = str(recorder.journal.path) if recorder.journal else ""
        show(shell, compute(recorder.saved.tree, recorder.name, file, recorder.head), asked.output)
    else:
        run = {"list": _list, "open": _open, "name": _name, "new": _new, "delete": _delete}
        run[asked.keyword](shell, _folder(shell), text)


def _folder(shell: Shell) -> SessionFolder:
    if shell.recorder.folder is None:
        raise UserError(_(_NOT_KEPT))
    return shell.recorder.folder


def _go(shell: Shell, number: int) -> None:
    if number:
        require_turn(shell, number)
    go_to(shell, number)
    shell.show_text(shell.require_model())


def _list(shell: Shell, folder: SessionFolder, _text: str) -> None:
    table = plain_table(_("session"), _("turns"), _("last used"), _("first prompt"), right=(1,))
    for each in folder.listed():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.changed))
        mark = "▶ " if each.name == shell.recorder.name else ""
        table.add_row(mark + safe_line(each.name), f"{each.turns:,}", when, each.first)
    if not table.row_count:
        shell.screen.note(_("no session is kept yet"))
        return
    shell.screen.out.print(table)
    shell.screen.note(_("`:session open NAME` opens one · in {folder}", folder=folder.folder))


def _open(shell: Shell, folder: SessionFolder, name: str) -> None:
    path = folder.find(name)
    if shell.recorder.journal and path == shell.recorder.journal.path:
        raise UserError(_("{name} is open already", name=safe_line(name)))
    saved = read_session(path)
    model_path, model = saved_model_path(saved.model), shell.session.workspace.model
    is_open = model is not None and saved.model is not None
    if model_path and not (is_open and describe_model(shell.require_model()) == saved.model):
        loading = shell.registry.get("load")
        loading.run(shell, loading.parse(str(model_path)))
        shell.recorder.after_line("")  # of the session that is left
    open_session(shell, path)


def _name(shell: Shell, folder: SessionFolder, name: str) -> None:
    if shell.recorder.journal is None:
        folder.path(name)  # or an error
        shell.recorder.wanted_name = name
        shell.screen.note(_("the session is kept from its first turn on, as {name}", name=name))
        return
    folder.rename(shell.recorder.journal, name)
    shell.screen.note(_("this session is {name} now", name=safe_line(name)))


def _new(shell: Shell, folder: SessionFolder, name: str) -> None:
    if name:
        folder.path(name)
    shell.recorder.start_new(name)
    shell.session.conversation.clear()
    shell.screen.note(_("a new session begins with the next prompt"))


def _delete(shell: Shell, folder: SessionFolder, name: str) -> None:
    path = folder.find(name)
    if shell.recorder.journal and path == shell.recorder.journal.path:
        shell.recorder.start_new()
        shell.session.conversation.clear()
    folder.delete(name)
    shell.screen.note(_("session {name} deleted", name=safe_line(name)))


@command(
    "edit",
    arguments=Forms(
        (_NUMBER, TextArgument(free=True)),
        ("answer", _NUMBER, TextArgument(required=True, free=True)),
    ),
    aliases=("고치기",),
    group="Talk",
    example=":edit 1 안녕하세요",
)
def edit(shell: Shell, asked: Arguments) -> None:
    """Change the prompt of a turn, and let the model answer it.

    `:session` shows the numbers of the turns. What stood before turn N stays; the turn itself, and
    what came after it, stay in the tree: `:session go N` returns to them. Without TEXT, the next
    prompt line has the text of the turn, for you to change.

    :edit answer 2 TEXT puts TEXT in the place of the answer of turn 2, without generating.
    `:continue` goes on from it.
    """
    if shell.session is not shell.recorder.session:
        raise UserError(_("a lesson is no session: `:leave` leaves it"))
    shell.recorder.after_line("")  # what was said before this line
    node = require_turn(shell, asked.number)
    if asked.keyword == "answer":
        _edit_answer(shell, node, asked.text)
    elif asked.text.strip():
        _edit_prompt(shell, node, asked.text)
    else:
        text = f'"""\n{node.prompt}\n"""' if "\n" in node.prompt else node.prompt
        shell.next_line = f":edit {node.number} {text}"
        if not shell.screen.interactive:
            raise UserError(_("give the text: `:edit {n} TEXT`", n=node.number))


def _edit_prompt(shell: Shell, node: Node, text: str) -> None:
    """Take the place of a turn with another prompt, and generate. Raises UserError."""
    model, session = shell.require_model(), shell.session
    kind, number = node.kind, node.number
    before = shell.recorder.head
    go_to(shell, node.parent)
    try:
        if kind == "chat":
            shell.start_chat_turn(model, text)
            shell.echo(text, "\n")
        elif kind == "continue":
            ids = shell.encode(model, text, start=False)
            session.conversation.continue_text(ids, text, session.settings)
        else:
            session.conversation.start_turn(shell.encode(model, text), session.settings)
    except UserError:
        go_to(shell, before)  # as it was
        raise
    respond(shell, model, PROMPT if kind == "text" else "")
    shell.screen.note(_("turn {n} stays in the tree: `:session` shows it", n=number))


def _edit_answer(shell: Shell, node: Node, text: str) -> None:
    """Put a text in the place of an answer. Raises UserError."""
    model, session = shell.require_model(), shell.session
    tokenizer = model.checkpoint.tokenizer
    ids = tokenizer.encode(text, add_special=False)
    go_to(shell, node.number)
    turn = session.conversation.undo()
    session.conversation.start_turn(
        list(turn.prompt_ids),
        session.settings,
        prompt_messages=turn.prompt_messages,
        assistant_prefix=turn.assistant_prefix,
        answer_start=turn.answer_start,
        seed=turn.seed,
    )
    session.conversation.set_text([*turn.prompt_ids, *ids], tokenizer)
    shell.show_text(model)
    shell.screen.note(_("`:continue` continues from here"))
