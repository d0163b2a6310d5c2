"""The file of a session: its records, checked strictly, because a file is untrusted.

docs/format.md describes the lines. What a session was is the sum of its lines, read in order.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minillm_repl import __version__
from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.session_tree import KINDS, Model, Node, Run, SessionTree
from minillm_repl.safetext import safe_line
from minillm_repl.storage.journal import Record, read_journal

MAX_NODES = 2_000  # turns of a session; then another one begins, so that no file grows for ever
_FORMAT = 1
_MAX_ID = 2**31 - 1
_MAX_SEED = 2**63 - 1
_ROLES = ("system", "user", "assistant", "tool")


@dataclass
class SavedSession:
    """What a session file says."""

    version: str = ""  # of the program that made it
    tree: SessionTree = field(default_factory=SessionTree)
    head: int = 0  # the turn that the conversation goes on from
    seed: int | None = None  # of the last try there, where it is not that of the turn
    seed_setting: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    model: Model | None = None
    launch: dict[str, str] = field(default_factory=dict)  # how the model was opened
    interventions: tuple[str, ...] = ()  # that are active
    # The lines that made them since there was none, each with the turn that it was typed after.
    lines: tuple[tuple[int, str], ...] = ()
    branches: tuple[int, int] = (0, 0)  # of the last `:branch`: its seed, and the prompt's tokens
    branch_nodes: tuple[int, ...] = ()


def read_session(path: Path) -> SavedSession:
    """Read a session file. Raises UserError naming the file and the line that is not right."""
    saved, name = SavedSession(), safe_line(path.name)
    for number, record in enumerate(read_journal(path), 1):
        try:
            _take(saved, record, is_first=number == 1)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(
                _(
                    "{name}, line {number} is not a line of a session: {error:.120}",
                    name=name,
                    number=number,
                    error=safe_line(str(error)),
                )
            ) from None
    if not saved.version:
        raise UserError(_("{name} is not a session file", name=name))
    return saved


def _take(saved: SavedSession, record: Record, *, is_first: bool) -> None:
    """Add a line to what the lines before it say. Raises ValueError for a wrong one."""
    match record["event"]:
        case "session" if is_first:
            if record["format"] != _FORMAT:
                raise ValueError(_("format {format}", format=str(record["format"])[:20]))
            saved.version = _text(record["version"])
        case _ if is_first:
            raise ValueError(_("the first line must begin a session"))
        case "model":
            size = _number(record["bytes"])
            texts = (_text(record[key]) for key in ("name", "path", "sha256"))
            name, model_path, sha256 = texts
            saved.model = Model(name=name, path=model_path, size=size, sha256=sha256)
            saved.launch = _texts(record["launch"])
            saved.interventions, saved.lines = (), ()
        case "settings":
            saved.settings = _texts(record["settings"])
        case "interventions":
            saved.interventions = tuple(map(_text, _list(record["active"])))
            line = (_number(record["turn"], 0, len(saved.tree.nodes)), _text(record["line"]))
            saved.lines = (*saved.lines, line)[-1000:] if saved.interventions else ()
        case "turn":
            saved.tree.nodes.append(_node(saved, record))
            if not record.get("branch"):
                saved.head, saved.seed, saved.seed_setting = len(saved.tree.nodes), None, None
        case "branches":
            count = len(saved.tree.nodes)
            saved.branch_nodes = tuple(
                _number(each, 1, count) for each in _list(record["turns"])[:100]
            )
            saved.branches = (_number(record["seed"]), _number(record["prompt_tokens"]))
        case "at":
            saved.head = _number(record["turn"], 0, len(saved.tree.nodes))
            saved.seed, saved.seed_setting = _optional(record["seed"]), _optional(record["setting"])
        case other:
            raise ValueError(_("unknown event {event}", event=str(other)[:40]))


def _node(saved: SavedSession, record: Record) -> Node:
    from minillm_repl.chat import Message

    number = len(saved.tree.nodes) + 1
    if record["n"] != number or number > 10 * MAX_NODES:
        raise ValueError(_("turn {n} out of order", n=str(record["n"])[:20]))
    messages = list[Message | Run]()
    for each in _list(record["messages"]):
        if "run" in each:
            first, count = (_number(value) for value in _list(each["run"]))
            messages.append((first, count))
        elif each["role"] in _ROLES:
            messages.append(Message(each["role"], _text(each["content"])))
        else:
            raise ValueError(_("unknown role {role}", role=str(each["role"])[:40]))
    if sum(isinstance(each, tuple) for each in messages) > 1 or record["kind"] not in KINDS:
        raise ValueError(_("a text is missing"))
    tokens = record["tokens"]
    return Node(
        number=number,
        parent=_number(record["parent"], 0, number - 1),
        kind=record["kind"],
        prompt=_text(record["prompt"]),
        answer=None if record["answer"] is None else _text(record["answer"]),
        kept_ids=_number(tokens["kept"]),
        added_ids=_ids(tokens["prompt"]),
        new_ids=_ids(tokens["new"]),
        answer_start=_number(tokens["start"], 0, _MAX_ID),
        messages=tuple(messages),
        prefix=_text(record["prefix"]),
        end_ids=_ids(record["end"]),
        seed=_number(record["seed"]),
        seed_setting=_optional(record["setting"]),
        branch=_number(record.get("branch", 0)),
        at=_text(record["at"])[:40],
        model=saved.model,
        settings=saved.settings,
        interventions=saved.interventions,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(_("a text is missing"))
    return value


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > 100:
        raise ValueError(_("a text is missing"))
    return {name: _text(each) for name, each in value.items()}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(_("a list is missing"))
    return value


def _number(value: Any, low: int = 0, high: int = _MAX_SEED) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(_("a number is missing or out of range"))
    return value


def _optional(value: Any) -> int | None:
    return None if value is None else _number(value)


def _ids(value: Any) -> tuple[int, ...]:
    ids = _list(value)
    if not all(type(each) is int and 0 <= each <= _MAX_ID for each in ids):
        raise ValueError(_("a number is missing or out of range"))
    return tuple(ids)


# -- the lines that are written


def session_record(at: str) -> Record:
    """Return the first line."""
    return {"event": "session", "format": _FORMAT, "version": __version__, "at": at}


def model_record(model: Model, launch: Mapping[str, str]) -> Record:
    """Return the line of a model."""
    values = {"name": model.name, "path": model.path, "bytes": model.size}
    return {"event": "model", **values, "sha256": model.sha256, "launch": dict(launch)}


def still_needed(saved: SavedSession, lines: Iterable[str]) -> list[str]:
    """Return lines without those that found a direction again which is there.

    Found once more, under the interventions that were made since, it would be another one.
    """
    found = {tuple(line.split()[:2]): line for _turn, line in saved.lines}  # the last of a name
    return [
        line
        for line in lines
        if not line.startswith(":direction ") or found.get(tuple(line.split()[:2])) != line
    ]


def intervention_records(saved: SavedSession, lines: Iterable[tuple[int, str]]) -> Iterator[Record]:
    """Yield a line of the file for each line, after a turn, that made interventions."""
    active = list(saved.interventions)
    for turn, line in lines:
        yield {"event": "interventions", "turn": turn, "line": line, "active": active}


def turn_record(node: Node) -> Record:
    """Return the line of a turn."""
    record = {
        "event": "turn",
        "n": node.number,
        "parent": node.parent,
        "at": node.at,
        "kind": node.kind,
        "prompt": node.prompt,
        "answer": node.answer,
        "seed": node.seed,
        "setting": node.seed_setting,
        "prefix": node.prefix,
        "messages": [
            {"run": list(each)} if isinstance(each, tuple) else asdict(each)
            for each in node.messages
        ],
        "tokens": {
            "kept": node.kept_ids,
            "prompt": list(node.added_ids),
            "new": list(node.new_ids),
            "start": node.answer_start,
        },
        "end": list(node.end_ids),
    }
    return record | ({"branch": node.branch} if node.branch else {})
