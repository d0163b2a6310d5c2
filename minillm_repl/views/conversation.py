"""The conversation with its numbers, for `:export`: a transcript, JSON, or a page to look into."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.generate import as_json
from minillm_repl.language import _
from minillm_repl.render.page import page, transcript
from minillm_repl.repl.session_restore import fits_model
from minillm_repl.repl.settings import Settings
from minillm_repl.safetext import safe
from minillm_repl.settings import change, specs
from minillm_repl.views.base import View

if TYPE_CHECKING:
    from minillm_repl.repl.session_tree import Node
    from minillm_repl.repl.shell import Shell

N_CANDIDATES = 10  # of each token
SUFFIXES = (".md", ".json", ".html")  # of the files that `write` makes
_Numbers = dict[str, Any]  # of a token: those of a step of `--json`


@dataclass(frozen=True, kw_only=True)
class TurnWithNumbers:
    """A turn, and the numbers behind each token of its answer."""

    number: int
    kind: str  # chat, text or continue
    prompt: str
    answer: str
    seed: int
    at: str  # UTC
    settings: dict[str, str]
    interventions: tuple[str, ...]  # that were active then
    tokens: tuple[_Numbers, ...]  # none where the model is another, or tells no numbers
    note: str  # why there are none, or whose they are


@dataclass(frozen=True, kw_only=True)
class ConversationView(View):
    """The turns that lead to the present one."""

    model: str
    sha256: str  # of samples of its files
    session: str
    turns: tuple[TurnWithNumbers, ...]

    def draw(self, _width: int) -> RenderableType:
        """Return the texts alone."""
        return Text("\n".join(safe(f"> {each.prompt}\n{each.answer}") for each in self.turns))

    def written(self, suffix: str) -> str:
        """Return the file with this suffix: one of SUFFIXES."""
        if suffix == ".json":
            return self.to_json()
        data = self.to_dict()
        return page(data) if suffix == ".html" else transcript(data)


def compute(shell: "Shell", *, with_numbers: bool) -> ConversationView:
    """Return the conversation of a shell. Raises UserError if nothing was said, or after Ctrl-C."""
    recorder = shell.recorder
    if shell.session is not recorder.session:
        raise UserError(_("a lesson is no session: `:leave` leaves it"))
    recorder.after_line("")  # what was said before this line
    path, text = recorder.saved.tree.walk(recorder.head)
    if not path:
        raise UserError(_("this session has no turn yet: type a prompt first"))
    model = shell.require_model()
    turns, fits = [], with_numbers and fits_model(model, [node for _turn, node in path], text)
    with shell.screen.waiting(_("computing the numbers")) as update:
        for place, (turn, node) in enumerate(path):
            update(_("computing the numbers  {share:.0%}", share=place / len(path)))
            ids = list(turn.prompt_ids) if with_numbers else []
            turns.append(_with_numbers(shell, node, ids, turn.answer_start, fits=fits))
    saved = recorder.saved.model
    return ConversationView(
        model=model.name,
        sha256=saved.sha256 if saved else "",
        session=recorder.name,
        turns=tuple(turns),
    )


def _with_numbers(
    shell: "Shell", node: "Node", ids: list[int], start: int, *, fits: bool
) -> TurnWithNumbers:
    from minillm_repl.generate.interactive import replay

    model = shell.require_model()
    active = tuple(each.description for each in model.interventions)
    notes, tokens = [], list[_Numbers]()
    if not fits:
        notes = [_("no numbers: the tokens are those of another model")] if ids else []
    else:
        if active != node.interventions:
            was = " · ".join(node.interventions) or _("none")
            notes.append(_("numbers without the interventions of then, which were: {was}", was=was))
        try:
            settings = _settings(shell, node)
            steps = replay(
                model.decoder,
                model.checkpoint.tokenizer,
                ids,
                node.new_ids,
                settings,
                rules=model.token_rules(settings, model.checkpoint.eos_token_ids + node.end_ids),
                answer_start=start,
                n_candidates=N_CANDIDATES,
                interrupted=shell.interrupted,
            )
            for step in steps:
                data = as_json(step)
                del data["event"]
                tokens.append(data)
        except UserError as error:
            if shell.interrupted():
                raise
            notes, tokens = [str(error)], []
    return TurnWithNumbers(
        number=node.number,
        kind=node.kind,
        prompt=node.prompt,
        answer=(node.answer or "").removeprefix(node.prefix),
        seed=node.seed,
        at=node.at,
        settings=dict(node.settings),
        interventions=node.interventions,
        tokens=tuple(tokens),
        note=" · ".join(notes),
    )


def _settings(shell: "Shell", node: "Node") -> Settings:
    """Return the settings of a turn: those that were set, else the model's, else the program's."""
    recommended = {
        name.replace("-", "_"): value
        for name, value in shell.session.recommended.items()
        if name not in node.settings
    }
    settings = replace(Settings(), **recommended)
    for name, text in node.settings.items():
        if name in specs(settings):
            settings = change(settings, name, text)
    return settings
