"""A session as a tree: each turn with what the model was given and what it wrote, after its parent.

A turn keeps only what it adds to the text of its parent, so that a long conversation stays small.
Another try, an edited prompt and a branch are children of the same parent.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.repl.conversation import MAX_TURNS, Branches, Turn

if TYPE_CHECKING:
    from minillm_repl.chat import Message
    from minillm_repl.tokenizer import Tokenizer

Kind = Literal["chat", "text", "continue"]  # a message, a text to complete, or more of a text
KINDS: tuple[Kind, ...] = get_args(Kind)
Run = tuple[int, int]
"""Messages of the parent that a prompt has too: the first one, and how many."""

_MAX_PATH_TOKENS = 50_000_000  # tokens of all texts on the way to a turn, each counted whole


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model of some turns, as a session remembers it."""

    name: str
    path: str = ""  # empty: it was in no file
    size: int = 0  # bytes of its files
    sha256: str = ""  # of a sample of their bytes


@dataclass(frozen=True, kw_only=True)
class Node:
    """A turn of a session."""

    number: int  # from 1
    parent: int  # 0: the empty text
    kind: Kind
    prompt: str  # what was typed: a message, a text, or what was appended
    answer: str | None  # what the model wrote; None if it could not
    kept_ids: int  # tokens of the parent's text that the prompt begins with
    added_ids: tuple[int, ...]  # the other tokens of the prompt
    new_ids: tuple[int, ...]  # tokens of the answer
    answer_start: int  # where the answer begins in the text; earlier where one is continued
    messages: "tuple[Message | Run, ...]"  # that the model answers; () completes a text
    prefix: str  # the part of the answer that was there before
    end_ids: tuple[int, ...]  # tokens that end an answer
    seed: int
    seed_setting: int | None
    branch: int  # which one of a `:branch`; 0: no branch
    at: str  # when, in UTC
    model: Model | None
    settings: Mapping[str, str]  # that were set then
    interventions: tuple[str, ...]  # that were active then, as the user was told


@dataclass(frozen=True)
class TextAfter:
    """The text after a turn: its tokens, and its messages where the model talks in turns."""

    ids: tuple[int, ...] = ()
    messages: "tuple[Message, ...]" = ()


@dataclass
class SessionTree:
    """All turns of a session, by number."""

    nodes: list[Node] = field(default_factory=list)

    def node(self, number: int) -> Node:
        """Return a turn. Raises UserError if there is none of this number."""
        if not 1 <= number <= len(self.nodes):
            raise UserError(
                _(
                    "no turn {number}: they are numbered from 1 to {count}",
                    number=number,
                    count=len(self.nodes),
                )
                if self.nodes
                else _("this session has no turn yet: type a prompt first")
            )
        return self.nodes[number - 1]

    def path(self, number: int) -> list[Node]:
        """Return the turns that lead to one, itself the last."""
        way = []
        while number:
            node = self.node(number)
            way.append(node)
            number = node.parent
        return way[::-1]

    def children(self, number: int) -> list[Node]:
        """Return the turns after one, in their order; 0 is the empty text."""
        return [node for node in self.nodes if node.parent == number]

    def walk(self, number: int) -> "tuple[list[tuple[Turn, Node]], TextAfter]":
        """Return the last turns that lead to one, as the conversation has them, and the text.

        Raises UserError for a tree whose texts are too long.
        """
        turns: deque[tuple[Turn, Node]] = deque(maxlen=MAX_TURNS)
        text, tokens = TextAfter(), 0
        for node in self.path(number):
            turn, text = follow(node, text)
            tokens += len(text.ids) + len(text.messages)
            if tokens > _MAX_PATH_TOKENS:
                raise UserError(_("the texts of this session are too long"))
            turns.append((turn, node))
        return list(turns), text


def follow(node: Node, before: TextAfter) -> tuple[Turn, TextAfter]:
    """Return a turn as the conversation has it, and the text after it."""
    from minillm_repl.chat import Message

    turn = Turn(
        ids_before=before.ids,
        messages_before=before.messages,
        prompt_ids=(*before.ids[: node.kept_ids], *node.added_ids),
        prompt_messages=_spread(node.messages, before.messages),
        assistant_prefix=node.prefix,
        seed=node.seed,
        seed_setting=node.seed_setting,
        answer_start=node.answer_start,
    )
    messages = turn.prompt_messages
    if messages and node.answer is not None:
        messages = (*messages, Message("assistant", node.answer))
    return turn, TextAfter((*turn.prompt_ids, *node.new_ids), messages)


def _spread(
    messages: "Sequence[Message | Run]", before: "Sequence[Message]"
) -> "tuple[Message, ...]":
    """Return the messages of a prompt; runs are of the messages `before`."""
    spread: list[Message] = []
    for each in messages:
        spread += before[each[0] : each[0] + each[1]] if isinstance(each, tuple) else [each]
    return tuple(spread)


def _fold(
    messages: "Sequence[Message]", before: "Sequence[Message]"
) -> "tuple[Message | Run, ...]":
    """Return the messages of a prompt with the longest run of those `before` as a run."""
    longest, place = (0, 0), 0
    for start in range(min(2, len(messages))):  # after a system prompt or at once
        for first in range(len(before)):
            count = 0
            while (
                first + count < len(before)
                and start + count < len(messages)
                and before[first + count] == messages[start + count]
            ):
                count += 1
            if count > longest[1]:
                longest, place = (first, count), start
    if not longest[1]:
        return tuple(messages)
    return (*messages[:place], longest, *messages[place + longest[1] :])


def kind_of(turn: Turn) -> Kind:
    """Tell what a turn was: a message, a text, or more of the text before."""
    before = len(turn.ids_before)
    if before and turn.prompt_ids[:before] == turn.ids_before:
        same = turn.prompt_messages == turn.messages_before[:-1]
        if same or not turn.prompt_messages:
            return "continue"
    return "chat" if turn.prompt_messages else "text"


def typed_text(turn: Turn, tokenizer: "Tokenizer") -> str:
    """Return what was typed for a turn."""
    from minillm_repl.tokenizer import decode

    kind = kind_of(turn)
    if kind == "chat":
        return turn.prompt_messages[-1].content
    start = len(turn.ids_before) if kind == "continue" else 0
    return decode(tokenizer, list(turn.prompt_ids[start:]))


def make_node(
    turn: Turn, text: TextAfter, before: TextAfter, tokenizer: "Tokenizer", **more: Any
) -> Node:
    """Return the node of a turn, whose parent's text is `before`; `text` is the text after it.

    `more` are the fields of a node that neither tells.
    """
    kept = 0
    for mine, theirs in zip(turn.prompt_ids, before.ids, strict=False):
        if mine != theirs:
            break
        kept += 1
    new_ids = text.ids[len(turn.prompt_ids) :]
    answer: str | None = _decode(tokenizer, new_ids)
    if turn.prompt_messages:
        is_answered = len(text.messages) > len(turn.prompt_messages)
        answer = text.messages[-1].content if is_answered else None
    return Node(
        kind=kind_of(turn),
        prompt=typed_text(turn, tokenizer),
        answer=answer,
        kept_ids=kept,
        added_ids=turn.prompt_ids[kept:],
        new_ids=new_ids,
        answer_start=turn.answer_start,
        messages=_fold(turn.prompt_messages, before.messages),
        prefix=turn.assistant_prefix,
        seed=turn.seed,
        seed_setting=turn.seed_setting,
        branch=0,
        **more,
    )


def branch_turns(
    branches: Branches, turns: Sequence[Turn], text: TextAfter, tokenizer: "Tokenizer"
) -> tuple[bool, list[tuple[Turn, TextAfter]]]:
    """Return the continuations of a `:branch` as turns, with the text after each.

    They are other answers to the last turn, which is told too, or ways on from `text`.
    """
    from minillm_repl.chat import Message

    first = branches.texts[0][: branches.prompt_length]
    is_answer = bool(turns and turns[-1].prompt_messages and turns[-1].prompt_ids == first)
    base = Turn(
        ids_before=text.ids,
        messages_before=text.messages,
        prompt_ids=first,
        answer_start=len(first),
    )
    if is_answer:
        base = turns[-1]
    found = []
    for seed, ids in enumerate(branches.texts, branches.seed - len(branches.texts) + 1):
        messages = base.prompt_messages
        if messages:
            answer = base.assistant_prefix + _decode(tokenizer, ids[len(first) :])
            messages = (*messages, Message("assistant", answer))
        found.append((replace(base, seed=seed), TextAfter(ids, messages)))
    return is_answer, found


def is_same(one: Node, other: Node) -> bool:
    """Tell whether two children of a turn have the same prompt and the same answer."""

    def content(node: Node) -> tuple[object, ...]:
        return node.kept_ids, node.added_ids, node.new_ids, node.answer, node.prefix, node.model

    return content(one) == content(other)


def _decode(tokenizer: "Tokenizer", ids: Sequence[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
