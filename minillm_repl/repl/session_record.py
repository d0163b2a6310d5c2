"""Records a session while it goes on: after each line, what has changed since the line before.

Nothing that changes the conversation knows of it: turns, tries, branches, settings and
interventions are found by comparing. Where no history is kept, the tree is in memory alone.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.repl.care import is_crisis
from minillm_repl.repl.conversation import Branches, Turn
from minillm_repl.repl.session import Session
from minillm_repl.repl.session_file import (
    MAX_NODES,
    SavedSession,
    intervention_records,
    model_record,
    session_record,
    still_needed,
    turn_record,
)
from minillm_repl.repl.session_folder import SessionFolder, describe_model
from minillm_repl.repl.session_tree import Node, TextAfter, branch_turns, is_same, make_node
from minillm_repl.settings import to_texts
from minillm_repl.storage.journal import Journal, Record

if TYPE_CHECKING:
    from minillm_repl.repl.model_loading import Intervention, LoadedModel
    from minillm_repl.repl.shell import Shell
    from minillm_repl.tokenizer import Tokenizer


class Recorder:
    """The session of a shell, as a tree and, with a folder, as a file."""

    def __init__(self, shell: "Shell") -> None:
        self._shell, self._session = shell, shell.session
        self.folder: SessionFolder | None = None  # where it is kept, if it is
        self.launch: dict[str, str] = {}  # how models are opened
        self.wanted_name = ""  # of the next file
        self.journal: Journal | None = None
        self.saved = SavedSession()
        self._path: list[tuple[Turn, Node | None]] = []  # None: a turn that is private
        self._model: LoadedModel | None = None
        self._interventions: tuple[Intervention, ...] = ()
        self._branches: Branches | None = None
        self._pending: list[Record] = []  # lines before the first turn, or that could not be kept
        self._has_warned = False

    @property
    def name(self) -> str:
        """The name of the session; empty before its first turn, or if it is not kept."""
        return self.journal.path.stem if self.journal else ""

    @property
    def head(self) -> int:
        """The turn that the conversation goes on from."""
        return self.saved.head

    def after_line(self, line: str) -> None:
        """Record what a line has changed. A lesson, which has a session of its own, is not."""
        if self._shell.session is not self._session:
            return
        model = self._session.workspace.model
        if len(self.saved.tree.nodes) >= MAX_NODES:
            self.start_new()
        records = [*self._model_change(model), *self._settings_change()]
        if model is not None:
            records += self._turn_changes(model.checkpoint.tokenizer, line)
            records += self._intervention_change(model, line)
        self._pending += records
        if self.saved.tree.nodes:
            self._write()

    def is_private(self, text: str) -> bool:
        """Tell whether a text is one that the history does not keep."""
        return is_crisis(self._shell, text)

    # -- what has changed

    def _model_change(self, model: "LoadedModel | None") -> Iterator[Record]:
        if model is None or (self._model and model.checkpoint is self._model.checkpoint):
            return
        self._model = model
        described = describe_model(model)
        if described != self.saved.model:
            self.saved.model, self.saved.launch = described, self.launch
            yield model_record(described, self.launch)
            if not model.interventions or model.interventions != self._interventions:
                self.saved.interventions, self.saved.lines = (), ()  # `:save` keeps them
            yield from intervention_records(self.saved, self.saved.lines)

    def _settings_change(self) -> Iterator[Record]:
        texts = settings_texts(self._session)
        if texts != self.saved.settings and not any(map(self.is_private, texts.values())):
            self.saved.settings = texts
            yield {"event": "settings", "settings": texts}

    def _intervention_change(self, model: "LoadedModel", line: str) -> Iterator[Record]:
        if model.interventions == self._interventions or self.is_private(line):
            return
        added = [each for each in model.interventions if each not in self._interventions]
        lines = still_needed(self.saved, [own for each in added for own in each.lines]) or [line]
        self._interventions = model.interventions
        self.saved.interventions = tuple(change.description for change in model.interventions)
        new = tuple((self.head, each) for each in lines)
        self.saved.lines = (*self.saved.lines, *new) if model.interventions else ()
        yield from intervention_records(self.saved, new)

    def _turn_changes(self, tokenizer: "Tokenizer", line: str) -> Iterator[Record]:
        conversation = self._session.conversation
        turns = conversation.turns
        known = {id(turn): place for place, (turn, _node) in enumerate(self._path)}
        if turns and id(turns[0]) in known:  # of more than can be undone, the oldest are gone
            self._path = self._path[known[id(turns[0])] :]
        before = self._path
        self._path = []
        for place, turn in enumerate(turns):
            is_last = place == len(turns) - 1
            is_known = place < len(before) and before[place][0] is turn
            if is_known and (not is_last or before[place][1] is None):
                self._path.append(before[place])
                continue
            after = turns[place + 1] if not is_last else None
            text = (
                TextAfter(after.ids_before, after.messages_before)
                if after
                else TextAfter(tuple(conversation.ids), tuple(conversation.messages))
            )
            yield from self._turn(turn, text, tokenizer, line)
        yield from self._branch_changes(tokenizer, line)
        yield from self._head_change()

    def _turn(
        self, turn: Turn, text: TextAfter, tokenizer: "Tokenizer", line: str
    ) -> Iterator[Record]:
        """Find the node of a turn, or add one."""
        parent, before = self._parent(turn)
        node = self._node(turn, text, parent, before, tokenizer)
        same = next(
            (each for each in self.saved.tree.children(parent) if is_same(each, node)), None
        )
        if same is not None:
            self._path.append((turn, same))
        elif self._has_private(node, turn, line):
            self._path.append((turn, None))
        else:
            self._path.append((turn, node))
            self.saved.tree.nodes.append(node)
            self.saved.head, self.saved.seed, self.saved.seed_setting = node.number, None, None
            yield turn_record(node)

    def _parent(self, turn: Turn) -> tuple[int, TextAfter]:
        """Return the parent of the next turn on the path, and its text."""
        before = TextAfter(turn.ids_before, turn.messages_before)
        if not self._path:
            return 0, TextAfter()
        node = self._path[-1][1]
        return (node.number, before) if node else (0, TextAfter())

    def _node(
        self, turn: Turn, text: TextAfter, parent: int, before: TextAfter, tokenizer: "Tokenizer"
    ) -> Node:
        return make_node(
            turn,
            text,
            before,
            tokenizer,
            number=len(self.saved.tree.nodes) + 1,
            parent=parent,
            end_ids=self._session.conversation.turn_end_ids if turn.prompt_messages else (),
            at=utc_now(),
            model=self.saved.model,
            settings=self.saved.settings,
            interventions=self.saved.interventions,
        )

    def _has_private(self, node: Node, turn: Turn, line: str) -> bool:
        """Tell whether a turn has anything that the history does not keep."""
        goes_on = node.kind == "continue" and len(self._path) > 0 and self._path[-1][1] is None
        said = [each for each in node.messages if not isinstance(each, tuple)]
        typed = [each.content for each in said if each.role != "assistant"]
        typed += [line, *([] if turn.prompt_messages else [node.prompt])]
        return goes_on or any(map(self.is_private, dict.fromkeys(typed)))

    def _branch_changes(self, tokenizer: "Tokenizer", line: str) -> Iterator[Record]:
        """Record the continuations of `:branch`: other answers, or ways on from the text."""
        conversation = self._session.conversation
        branches = conversation.branches
        if branches is self._branches or branches.texts == ():
            self._branches = branches
            return
        self._branches = branches
        text = TextAfter(tuple(conversation.ids), tuple(conversation.messages))
        is_answer, sampled = branch_turns(branches, conversation.turns, text, tokenizer)
        path = self._path
        self._path = path[:-1] if is_answer else path
        parent, before = self._parent(sampled[0][0])
        self._path = path
        numbers = []
        for number, (turn, after) in enumerate(sampled, 1):
            node = replace(self._node(turn, after, parent, before, tokenizer), branch=number)
            if self._has_private(node, turn, line):
                return
            self.saved.tree.nodes.append(node)
            numbers.append(node.number)
            yield turn_record(node)
        self.saved.branches = (branches.seed, branches.prompt_length)
        self.saved.branch_nodes = tuple(numbers)
        tokens = branches.prompt_length
        yield {
            "event": "branches",
            "turns": numbers,
            "seed": branches.seed,
            "prompt_tokens": tokens,
        }

    def _head_change(self) -> Iterator[Record]:
        """Record where the conversation stands, where that is not after the newest turn."""
        kept = [entry for entry in self._path if entry[1] is not None]
        turn, node = kept[-1] if kept else (None, None)
        number = node.number if node else 0
        seeds: tuple[int | None, int | None] = (None, None)
        if turn and node and (turn.seed, turn.seed_setting) != (node.seed, node.seed_setting):
            seeds = turn.seed, turn.seed_setting
        if (number, *seeds) != (self.head, self.saved.seed, self.saved.seed_setting):
            self.saved.head = number
            self.saved.seed, self.saved.seed_setting = seeds
            yield {"event": "at", "turn": number, "seed": seeds[0], "setting": seeds[1]}

    # -- the file

    def _write(self) -> None:
        """Append what is new to the file. A disk that is full must not keep anyone from talking."""
        if self.folder is None:
            self._pending.clear()
            return
        try:
            if self.journal is None:
                self.journal = self.folder.create(self.wanted_name)
                self._pending.insert(0, session_record(utc_now()))
            self.journal.append(self._pending)
            self._pending.clear()
            self._has_warned = False
        except UserError as error:
            if not self._has_warned:  # once: it is tried again after each line
                self._shell.screen.warn(str(error))
            self._has_warned = True

    def start_new(self, name: str = "") -> None:
        """Begin another session with the next turn; the one so far stays as it is."""
        if self.journal:
            self.journal.close()
        before = self.saved
        self.journal, self.wanted_name, self._path = None, name, []
        lines = tuple((0, line) for _turn, line in before.lines)
        kept = {name: getattr(before, name) for name in ("settings", "model", "interventions")}
        self.saved = SavedSession(launch=self.launch, lines=lines, **kept)
        self._pending = [{"event": "settings", "settings": before.settings}]
        if before.model:
            self._pending.insert(0, model_record(before.model, self.launch))
        self._pending += intervention_records(self.saved, self.saved.lines)

    def continue_from(self, saved: SavedSession, journal: Journal) -> None:
        """Go on with a session that was read from its file."""
        if self.journal and self.journal is not journal:
            self.journal.close()
        self.saved, self.journal, self._path = saved, journal, []
        self._pending = []
        self._model, self._branches = self._session.workspace.model, None
        self._interventions = self._model.interventions if self._model else ()

    def set_path(self, path: "list[tuple[Turn, Node]]", branches: Branches) -> None:
        """Take over the turns that the conversation was given from the tree."""
        self._path = list(path)
        self._branches = branches

    def set_interventions(self) -> None:
        """Take over the interventions of the open model as those that the file has."""
        model = self._session.workspace.model
        self._interventions = model.interventions if model else ()

    @property
    def session(self) -> Session:
        """The session that is recorded."""
        return self._session


def settings_texts(session: Session) -> dict[str, str]:
    """Return the settings that were chosen, as texts."""
    texts = to_texts(session.chosen)
    return {name: texts[name] for name in sorted(session.sources)}


def utc_now() -> str:
    """Return the time, as the records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
