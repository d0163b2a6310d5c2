"""`:watch`: how a model learns, as its predictions for a prompt, moment by moment."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.render.console import FIGURES, MODEL, TITLE
from minillm_repl.render.drawing import bar, component_name, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import WIDE, plain_table
from minillm_repl.repl.arguments import Arguments, Option, TextArgument
from minillm_repl.repl.forms import Forms
from minillm_repl.repl.registry import command
from minillm_repl.safetext import safe_line
from minillm_repl.settings import integer
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation, find_bos_token_id, truncate
from minillm_repl.views import lens
from minillm_repl.views.attn import FocusView, compute_focus
from minillm_repl.views.base import View, show
from minillm_repl.views.inspected_text import InspectedText, Likely, no_grad, topk
from minillm_repl.views.lens import LensView
from minillm_repl.views.watch_curves import PROBES

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel
    from minillm_repl.repl.shell import Shell

_MAX_MOMENTS = 200  # beyond, every other moment is forgotten
_TOP = 5  # tokens of a moment
_ROWS = 20  # moments that are shown
_MAX_TOKENS = 20  # of the prompt, in the title
_LABEL = 8  # cells of a token in a row


@dataclass(frozen=True, kw_only=True)
class Moment(View, Truncation):
    """The predictions for a prompt after one step of training."""

    step: int
    prob: float  # of the token that is the top token at the last moment
    top: tuple[Likely, ...]
    lens: LensView
    attention: FocusView

    def draw(self, width: int) -> RenderableType:
        """Return the logit lens and the attention of this moment."""
        after = Text(_("after step {step:,}", step=self.step), FIGURES)
        return Group(after, self.lens.draw(width), self.attention.draw(width))

    def line(self, prompt: str) -> Text:
        """Return the most likely next tokens in one line."""
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(_("watch") + " ", FIGURES).append(safe_line(prompt)).append(" → ", FIGURES)
        for likely in self.top:
            label = short_label(likely.token, _LABEL)
            line.append_text(label).append(f" {percent(likely.prob)}  ")
        return line


@dataclass(frozen=True)
class WatchView(View, Truncation):
    """How a model learned what comes after a prompt."""

    tokens: tuple[Token, ...]
    answer: Token  # the top token at the last moment
    moments: tuple[Moment, ...]

    def draw(self, width: int) -> RenderableType:
        """Return a row for each moment, or for twenty that are evenly spread."""
        last = len(self.moments) - 1
        rows = sorted({round(row * last / (_ROWS - 1)) for row in range(_ROWS)})
        bars = 20 if width >= WIDE else 8
        answer = self.answer.label
        table = plain_table(
            _("step"), f"p({answer})", "", _("most likely"), _("{token} from", token=answer),
            _("attends to most"), right=(0, 1), wrap=(3,),
        )  # fmt: skip
        for moment in (self.moments[row] for row in rows):
            shown = moment.top[: 3 if width < WIDE else 5]
            is_answer = moment.top[0].token == self.answer
            table.add_row(
                f"{moment.step:,}", percent(moment.prob), Text(bar(moment.prob, bars), MODEL),
                Text(" ").join(short_label(likely.token, _LABEL) for likely in shown),
                component_name(moment.lens.first) if is_answer else "–",
                _attends_most(moment.attention),
            )  # fmt: skip
        notes = [
            _("from: first layer from which the logit lens keeps {token} on top", token=answer),
            _("attends to most: the head and the token with the largest weight"),
            _("`:watch step=N` shows one step"),
        ]
        if len(rows) <= last:
            notes.insert(2, _("{n} of {all} moments", n=len(rows), all=last + 1))
        prompt = "".join(token.label for token in self.tokens[-_MAX_TOKENS:])
        heading = title(_("how it learned"), _("next token after {text}", text=prompt))
        return Group(heading, table, Text(" · ".join(notes), FIGURES))


def _attends_most(attention: FocusView) -> Text:
    """Return `2.1 말 @3 73%`: the head with the largest weight, and its key."""
    head = max(attention.heads, key=lambda head: head.looked[0][1])
    position, weight = head.looked[0]
    label = short_label(attention.tokens[attention.index_of(position)], _LABEL)
    name, where = (f"{head.layer}.{head.head} ", TITLE), (f" @{position}", FIGURES)
    return Text.assemble(name, label, where, f" {weight:.0%}")


class Watch:
    """A prompt that is inspected while a model is trained."""

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, tuple(ids)
        self._moments: list[tuple[Moment, Tensor]] = []  # probabilities: (vocab,)

    @no_grad
    def look(self, model: "LanguageModel", step: int) -> Moment:
        """Return the predictions for the prompt after `step` steps, and remember them."""
        bos_token_id = find_bos_token_id(self._tokenizer)
        window = truncate(self._ids, model.config.context_length, bos_token_id)
        inspected = InspectedText(
            model,
            self._tokenizer,
            window.ids,
            unseen_ids=window.dropped_ids,
            prefix_length=window.kept,
        )
        final = inspected.logits(last_only=True)[0].double().log_softmax(-1).cpu()  # (vocab,)
        top = topk(self._tokenizer, final, _TOP)
        moment = Moment(
            step=step,
            prob=top[0].prob,
            top=top,
            lens=lens.compute(inspected),
            attention=compute_focus(inspected),
            **inspected.window_fields,
        )
        self._moments.append((moment, final.exp()))
        if len(self._moments) > _MAX_MOMENTS:
            del self._moments[1::2]
        return moment

    def view(self) -> WatchView | None:
        """Return all moments, each with the probability of the final answer; None without any."""
        if not self._moments:
            return None
        last = self._moments[-1][0]
        answer = last.top[0].token
        moments = (replace(each, prob=float(final[answer.id])) for each, final in self._moments)
        return WatchView(
            tokens=last.lens.tokens,
            answer=answer,
            moments=tuple(moments),
            unseen=last.unseen,
            kept=last.kept,
        )


@command(
    "watch",
    arguments=Forms(
        (TextArgument("PROMPT"),),
        (Option("step", integer(0), metavar="N", required=True),),
        *((probe,) for probe in PROBES),
        ("off",),
    ),
    json=True,
    aliases=("지켜보기",),
    group="Train",
    example=":watch 날씨가",
)
def watch(shell: "Shell", asked: Arguments) -> None:
    """Watch the predictions for a prompt during training.

    Enter `:watch PROMPT`, then `:train`. Each time the losses are measured, and at the start and
    the end, the screen shows the most likely next tokens.

    :watch alone, afterwards, shows all measured steps. For each, it shows the probability of the
    final answer, the first layer at which the logit lens gives it, and what the last token attends
    to most.
    :watch step=N shows the logit lens and the attention at the measured step nearest to N.
    `:watch heads`, `:watch lens` and `:watch kl` measure a curve at each of these steps, which
    `:plot heads` shows, also later: it is kept in the checkpoint.
    heads: the largest scores of `:heads`, on random tokens given twice: induction, at most about
    50%, since the first half has nothing to repeat, and previous token; and the mean probability of
    the right token in the second half (copying). An induction head forms where these rise together.
    lens: KL(final ‖ logit lens) after each layer, in nats, on held-out text.
    kl: KL(now ‖ start) and KL(now ‖ last measurement), in nats, on held-out text.
    They take at most a seventh of the time; what would take more is left out.

    :watch off stops watching.
    """
    workspace = shell.session.workspace
    if asked.keyword == "off":
        workspace.watch_prompt, workspace.watch_view, workspace.watched = "", None, ()
        shell.screen.note(_("nothing is watched"))
    elif asked.keyword:
        workspace.watched = tuple(dict.fromkeys((*workspace.watched, asked.keyword)))
        names = ", ".join(workspace.watched)
        shell.screen.note(
            _(
                "watching {names}: run `:train`, then `:plot {name}`",
                names=names,
                name=asked.keyword,
            )
        )
    elif asked.text:
        workspace.watch_prompt = asked.text
        if workspace.model:
            shell.encode(workspace.model, asked.text)  # it warns of characters that are unknown
        text = safe_line(asked.text)
        shell.screen.note(_("watching {text}: run `:train`, then `:watch`", text=text))
    else:
        view = _require_view(workspace.watch_view, workspace.watch_prompt)
        if asked.step is None:
            show(shell, view, asked.output)
        else:
            nearest = min(view.moments, key=lambda each: abs(each.step - asked.step))
            show(shell, nearest, asked.output)


def _require_view(view: WatchView | None, prompt: str) -> WatchView:
    """Return what was measured. Raises UserError if nothing was."""
    if view is not None:
        return view
    if prompt:
        raise UserError(
            _("nothing was watched yet: `:train` will watch {text}", text=safe_line(prompt))
        )
    raise UserError(_("nothing was watched yet: enter `:watch PROMPT`, then `:train`"))
