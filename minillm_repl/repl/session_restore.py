"""A saved session opens again: its settings, its model, its interventions and its text."""

from collections.abc import Collection
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from minillm_repl import __version__
from minillm_repl.errors import UserError
from minillm_repl.language import _, _n
from minillm_repl.render.console import MODEL, Screen, Transcript
from minillm_repl.repl.arguments import Arguments
from minillm_repl.repl.conversation import Branches
from minillm_repl.repl.session_file import SavedSession, read_session
from minillm_repl.repl.session_folder import model_warning
from minillm_repl.repl.session_tree import Node, TextAfter, follow
from minillm_repl.safetext import safe, safe_line
from minillm_repl.settings import specs
from minillm_repl.storage.journal import Journal

if TYPE_CHECKING:
    from minillm_repl.repl.model_loading import LoadedModel
    from minillm_repl.repl.shell import Shell

_SHOWN_TURNS = 3  # of the conversation, when it is opened again


def open_session(
    shell: "Shell", path: Path, keep: Collection[str] = (), *, is_quiet: bool = False
) -> None:
    """Go on with the session of a file. The settings in `keep` stay as they are.

    Raises UserError, with nothing changed, if the file cannot be read or is open elsewhere.
    """
    recorder = shell.recorder
    journal = Journal(path)
    try:
        saved = read_session(path)
        saved.tree.walk(saved.head)  # or an error
    except BaseException:
        journal.close()
        raise
    _restore_settings(shell, saved, keep)
    shell.session.conversation.clear()
    recorder.continue_from(saved, journal)
    if not is_quiet:
        show_end(shell, saved)
    if saved.version != __version__:
        shell.screen.note(
            _(
                "this session was made with version {version}: numbers may differ",
                version=safe_line(saved.version[:40]),
            )
        )
    _restore_model(shell, saved)


def _restore_settings(shell: "Shell", saved: SavedSession, keep: Collection[str]) -> None:
    session, ignored = shell.session, list[str]()
    for name in specs(session.chosen):
        if name in keep:
            continue
        session.set(name, "default")
        if name in saved.settings:
            try:
                session.set(name, saved.settings[name])
            except UserError as error:
                ignored.append(str(error))
    ignored += [
        safe_line(name[:40]) for name in saved.settings if name not in specs(session.chosen)
    ]
    if ignored:
        shell.screen.warn(
            _("settings of the session are ignored: {what:.300}", what="; ".join(ignored))
        )


def _restore_model(shell: "Shell", saved: SavedSession) -> None:
    """Give the conversation its text in the open model's tokens; say if that is another model."""
    try:
        model = shell.require_model()
    except UserError as error:
        shell.screen.warn(_("{error}; the text of the session stays readable", error=str(error)))
        return
    warning = model_warning(model, saved.model)
    if warning:
        shell.screen.warn(warning)
    if not saved.head:
        return
    if go_to(shell, saved.head):
        if not warning:
            _restore_interventions(shell, saved)
    else:
        shell.screen.warn(
            _("the tokens of this model are others: the conversation goes on from its text")
        )


# -- the text


def go_to(shell: "Shell", number: int) -> bool:
    """Let the conversation go on after a turn; 0 is the empty text.

    Return False if the open model has other tokens: then it goes on from the text alone. Raises
    UserError if there is no such turn.
    """
    recorder, model = shell.recorder, shell.require_model()
    saved, conversation = recorder.saved, shell.session.conversation
    path, text = saved.tree.walk(number)
    fits, tokenizer = (
        fits_model(model, [node for _turn, node in path], text),
        model.checkpoint.tokenizer,
    )
    conversation.clear()
    if not fits:
        conversation.messages = list(text.messages)
        if not text.messages and path:
            conversation.ids = tokenizer.encode(
                "".join(_written(path[-1][1], saved)), add_special=True
            )
        recorder.set_path([], conversation.branches)
        return False
    if path and number == saved.head and saved.seed is not None:
        turn, node = path[-1]
        turn = replace(turn, seed=saved.seed, seed_setting=saved.seed_setting)
        path[-1] = (turn, node)
    conversation.turns = [turn for turn, _node in path]
    conversation.ids, conversation.messages = list(text.ids), list(text.messages)
    if path:
        conversation.seed = path[-1][0].seed
        conversation.turn_end_ids = path[-1][1].end_ids
    conversation.branches = _branches(saved, tokenizer.vocab_size)
    recorder.set_path(path, conversation.branches)
    return True


def require_turn(shell: "Shell", number: int) -> Node:
    """Return a turn that the open model can go on from.

    Raises UserError if there is none of this number, or if it has tokens of another model.
    """
    model, tree = shell.require_model(), shell.recorder.saved.tree
    node = tree.node(number)
    path, text = tree.walk(number)
    if not fits_model(model, [each for _turn, each in path], text):
        raise UserError(
            _(
                "turn {number} has the tokens of another model, {name}: `:load` opens it",
                number=number,
                name=safe_line(node.model.name if node.model else ""),
            )
        )
    return node


def fits_model(model: "LoadedModel", path: list[Node], text: TextAfter) -> bool:
    """Tell whether the tokens of a text mean the same in the vocabulary of a model.

    No id from a file reaches the model otherwise: one that it does not have must not be looked up.
    """
    tokenizer = model.checkpoint.tokenizer
    if model.server is not None:
        return not path  # its ids are of one session only
    end_ids = path[-1].end_ids if path else ()
    if any(each >= tokenizer.vocab_size for each in (*text.ids, *end_ids)):
        return False
    if any(
        each >= tokenizer.vocab_size for node in path for each in (*node.added_ids, *node.new_ids)
    ):
        return False
    for node in path:
        written = b"".join(map(tokenizer.token_bytes, node.new_ids)).decode("utf-8", "replace")
        if not (node.answer or "").removeprefix(node.prefix).startswith(written.rstrip("\ufffd")):
            return False
    return True


def _branches(saved: SavedSession, vocab_size: int) -> Branches:
    """Return the continuations of the last `:branch`, for `:branch take`."""
    nodes = [saved.tree.node(number) for number in saved.branch_nodes]
    if len({node.parent for node in nodes}) != 1:
        return Branches()
    before = saved.tree.walk(nodes[0].parent)[1]
    texts = tuple(follow(node, before)[1].ids for node in nodes)
    seed, prompt_length = saved.branches
    is_known = all(each < vocab_size for ids in texts for each in ids)
    is_whole = all(ids[:prompt_length] == texts[0][:prompt_length] for ids in texts)
    return Branches(texts, prompt_length, seed) if is_known and is_whole else Branches()


def _written(node: Node, saved: SavedSession) -> list[str]:
    """Return the texts that a turn's text consists of, without its tokens."""
    texts: list[str] = []
    for each in saved.tree.path(node.number):
        if each.kind != "continue":
            texts = []
        texts += [each.prompt, each.answer or ""]
    return texts


def show_end(shell: "Shell", saved: SavedSession) -> None:
    """Show the name of a session and the last turns of its conversation."""
    path, out = saved.tree.path(saved.head), shell.screen.out
    left_out = len(path) - _SHOWN_TURNS
    shell.screen.note(
        _n(
            "session {name} · {n} turn",
            "session {name} · {n} turns",
            len(saved.tree.nodes),
            name=safe_line(shell.recorder.name),
        )
    )
    if left_out > 0:
        shell.screen.note(_n("… {n} turn before", "… {n} turns before", left_out))
    for node in path[-_SHOWN_TURNS:]:
        end = "\n" if node.kind == "chat" else ""
        shell.echo(node.prompt, end)
        answer = (node.answer or "").removeprefix(node.prefix if node.kind == "continue" else "")
        out.print(Text(safe(answer), MODEL), soft_wrap=True)


# -- the interventions


def _restore_interventions(shell: "Shell", saved: SavedSession) -> None:
    """Run the lines again that made the interventions, each after the turn that it was typed after.

    Only commands that intervene are run, and none writes a file: a session file is untrusted.
    """
    recorder, lines, wanted = shell.recorder, saved.lines, saved.interventions
    if not lines:
        return
    screen, view = shell.screen, (shell.last_view, shell.last_shown, shell.last_pinned)
    failed = list[str]()
    with screen.waiting(_("restoring the interventions")):
        nowhere = Transcript(file=StringIO())
        shell.screen = Screen(nowhere, nowhere)
        try:
            for turn, line in lines:
                try:
                    go_to(shell, turn)
                    _run_intervention(shell, line)
                except UserError as error:
                    failed.append(f"{safe_line(line[:80])}: {error}")
        finally:
            shell.screen = screen
            shell.last_view, shell.last_shown, shell.last_pinned = view
            go_to(shell, saved.head)
            recorder.set_interventions()
    for each in failed:
        screen.warn(each)
    if wanted and not failed:
        model = shell.require_model()
        active = " · ".join(change.description for change in model.interventions)
        screen.note(_("active interventions: {changes}", changes=active))


def _run_intervention(shell: "Shell", line: str) -> None:
    name, _space, argument = line.lstrip(":/ ").partition(" ")
    command = shell.registry.get(name.strip().lower())
    asked = command.parse(argument)
    if not command.restores(asked):
        raise UserError(_(":{name} is no intervention", name=safe_line(command.name)))
    command.run(shell, Arguments(asked.values))
