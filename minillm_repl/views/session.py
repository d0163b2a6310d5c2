"""What `:session` shows: the tree of all turns, and two turns beside each other."""

from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.language import _, _n
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import fit_to_width, title
from minillm_repl.repl.session_tree import Node, SessionTree
from minillm_repl.safetext import safe, safe_line
from minillm_repl.views.base import View

_MAX_INDENT = 8  # levels of branches that are indented
_KINDS = {"chat": ">", "text": ">", "continue": "+"}  # before what was typed


@dataclass(frozen=True, kw_only=True)
class TurnOfSession:
    """A turn in the tree."""

    number: int
    parent: int  # 0: the empty text
    kind: str
    prompt: str
    answer: str | None
    seed: int
    branch: int  # which one of a `:branch`; 0: none
    at: str  # UTC
    model: str
    tokens: int  # of the answer

    @classmethod
    def of(cls, node: Node) -> "TurnOfSession":
        """Return what the view shows of a turn."""
        return cls(
            number=node.number,
            parent=node.parent,
            kind=node.kind,
            prompt=node.prompt,
            answer=node.answer,
            seed=node.seed,
            branch=node.branch,
            at=node.at,
            model=node.model.name if node.model else "",
            tokens=len(node.new_ids),
        )


@dataclass(frozen=True, kw_only=True)
class SessionView(View):
    """All turns of a session. A turn stands below its parent; other tries are indented."""

    name: str  # empty: it is not kept
    file: str
    turn: int  # the one that the conversation goes on from
    turns: tuple[TurnOfSession, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a line for each turn, and what the signs mean."""
        count = _n("{n} turn", "{n} turns", len(self.turns))
        name = safe_line(self.name) or _("not kept")
        lines = [
            title(_("session {name}", name=name), " · ".join(filter(None, (count, self.file))))
        ]
        digits = len(str(len(self.turns)))
        shown: TurnOfSession | None = None
        for indent, turn in self._rows():
            lines.append(self._line(turn, shown, indent, digits, width))
            shown = turn
        notes = [
            _("▶ the conversation goes on from here"),
            _("indented: another try, prompt or branch"),
            _("`:session go N` goes on from a turn, `:edit N` changes its prompt"),
        ]
        return Group(*lines, Text(" · ".join(notes), FIGURES))

    def _line(
        self, turn: TurnOfSession, above: TurnOfSession | None, indent: int, digits: int, width: int
    ) -> Text:
        mark = "▶" if turn.number == self.turn else " "
        number = f"[{turn.number}]".ljust(digits + 2)
        branch = _("branch {n}", n=turn.branch) + " " if turn.branch else ""
        label = f"{mark}{'  ' * indent} {number} {branch}"
        # Another try of the prompt above shows what differs: the answer.
        is_again = above is not None and above.parent == turn.parent and above.prompt == turn.prompt
        prompt = "↻" if is_again else f"{_KINDS.get(turn.kind, '>')} {safe_line(turn.prompt)}"
        answer = _("(no answer)") if turn.answer is None else safe_line(turn.answer)
        room = max(10, width - cell_len(label) - 4)
        wanted = min(cell_len(prompt), max(room // 2, room - cell_len(answer)))
        shown = _cut(prompt, wanted)
        return Text.assemble(
            (label, TITLE if mark == "▶" else FIGURES), shown, "  ",
            (_cut(answer, max(1, room - cell_len(shown))), MODEL), no_wrap=True, overflow="crop",
        )  # fmt: skip

    def _rows(self) -> list[tuple[int, TurnOfSession]]:
        """Return the turns in the order of the tree, with their indents: of several children, the
        one that leads to the present turn comes last, and is not indented.
        """
        children: dict[int, list[TurnOfSession]] = {}
        for turn in self.turns:
            children.setdefault(turn.parent, []).append(turn)
        present, on_path = self.turn, set[int]()
        while present:
            on_path.add(present)
            present = self.turns[present - 1].parent
        rows = list[tuple[int, TurnOfSession]]()
        stack = [(0, each) for each in _main_last(children.get(0, []), on_path)]
        stack = [(indent + (place > 0), each) for place, (indent, each) in enumerate(stack)]
        while stack:  # the last one is next: no recursion, because a tree may be deep
            indent, turn = stack.pop()
            rows.append((min(indent, _MAX_INDENT), turn))
            following = _main_last(children.get(turn.number, []), on_path)
            stack += [(indent + (place > 0), each) for place, each in enumerate(following)]
        return rows


def _main_last(turns: list[TurnOfSession], on_path: set[int]) -> list[TurnOfSession]:
    """Return children for a stack: the main one first, so that it is taken last."""
    if not turns:
        return []
    main = next((each for each in turns if each.number in on_path), turns[-1])
    return [main, *(each for each in reversed(turns) if each is not main)]


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else fit_to_width(text, max(1, width - 1)).rstrip() + "…"


@dataclass(frozen=True, kw_only=True)
class TurnsView(View):
    """Two turns of a session beside each other."""

    common: int  # the last turn that leads to both; 0: none
    same_tokens: int  # that both answers begin with
    a: TurnOfSession
    b: TurnOfSession

    def draw(self, _width: int) -> RenderableType:
        """Return both prompts and answers; what the answers begin with alike is dim."""
        texts = [self.a.answer or "", self.b.answer or ""]
        alike = 0
        for one, other in zip(*texts, strict=False):
            if one != other:
                break
            alike += 1
        parts: list[RenderableType] = [
            title(
                _("turns {a} and {b}", a=self.a.number, b=self.b.number),
                _("both follow turn {n}", n=self.common) if self.common else "",
            )
        ]
        for turn, text in zip((self.a, self.b), texts, strict=True):
            facts = [_("seed {seed}", seed=turn.seed), turn.at, safe_line(turn.model)]
            parts += [
                Text.assemble(
                    (f"[{turn.number}] ", TITLE), (" · ".join(filter(None, facts)), FIGURES)
                ),
                Text(f"> {safe(turn.prompt)}"),
                Text.assemble((safe(text[:alike]), FIGURES), (safe(text[alike:]), MODEL)),
            ]
        same = _n(
            "the answers begin with the same {n} token",
            "the answers begin with the same {n} tokens",
            self.same_tokens,
        )
        return Group(*parts, Text(same, FIGURES))


def compute(tree: SessionTree, name: str, file: str, head: int) -> SessionView:
    """Return the tree of a session."""
    turns = tuple(map(TurnOfSession.of, tree.nodes))
    return SessionView(name=name, file=file, turn=head, turns=turns)


def compare(tree: SessionTree, a: int, b: int) -> TurnsView:
    """Return two turns beside each other. Raises UserError if there is none of a number."""
    first, second = tree.node(a), tree.node(b)
    ways = [[node.number for node in tree.path(node.parent)] for node in (first, second)]
    common = max({*ways[0]} & {*ways[1]}, default=0)
    same = 0
    for mine, theirs in zip(first.new_ids, second.new_ids, strict=False):
        if mine != theirs:
            break
        same += 1
    one, other = TurnOfSession.of(first), TurnOfSession.of(second)
    return TurnsView(common=common, same_tokens=same, a=one, b=other)
