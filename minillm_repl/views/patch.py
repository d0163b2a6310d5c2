"""`:patch`: where the answer of one prompt can be carried to another (Meng et al., 2022)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.model.hooks import compose
from minillm_repl.render.console import FIGURES, NEGATIVE, POSITIVE, TITLE
from minillm_repl.render.drawing import (
    fit_to_width,
    label_width,
    signed_shade,
    title,
    token_style,
)
from minillm_repl.repl.arguments import Arguments, ChoiceOption, TextPair
from minillm_repl.repl.registry import command
from minillm_repl.tokenizer import Token
from minillm_repl.views.base import Row, View, inspect_text, show
from minillm_repl.views.inspected_text import (
    InspectedText,
    check_finite,
    no_grad,
    place_name,
    topk_ids,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

_HOOK_NAMES = {  # of the activations that are patched
    "residual": ("embedding", ".residual"),
    "attention": ("attention.out",),
    "feed-forward": ("mlp.out",),
}
_TITLES = {
    "residual": N_("patching the residual stream"),
    "attention": N_("patching the attention output"),
    "feed-forward": N_("patching the MLP output"),
}
_MAX_ACTIVATION = 2**22  # numbers of one activation in a pass
_MIN_DIFFERENCE = 1e-3  # logits between A and B: float32 rounds to some 1e-5
_PERCENT_WIDTH, _SHADE_WIDTH = 5, 2  # cells: ` -12%`, `▒▒`
_EMBEDDING = "e", "emb"  # the name of its column, narrow and wide
_MAX_LABEL = 24  # cells of a row's label


@dataclass(frozen=True, kw_only=True)
class PatchView(View):
    """Prompt B, with one activation of prompt A each: how much of A's answer that restores."""

    what: str  # `residual`, `attention` or `feed-forward`
    a: tuple[Token, ...]
    b: tuple[Token, ...]
    answer_a: Token
    answer_b: Token
    likeliest: bool  # whether these are the top tokens after A and B
    clean: float  # logit of A's answer − logit of B's answer, after A
    corrupt: float  # the same after B
    places: tuple[str, ...]  # in the order of the model
    effects: tuple[Row, ...]  # (place, position): 0 is as after B, 1 is as after A

    def draw(self, width: int) -> RenderableType:
        """Return the restored fraction: a row for each position, a column for each layer."""
        labels = [
            a.label if a == b else f"{a.label}→{b.label}"
            for a, b in zip(self.a, self.b, strict=True)
        ]
        longest = max(label_width(self.b), *map(cell_len, labels))
        name_width = min(longest, _MAX_LABEL, max(8, width // 3))
        index_width = len(str(len(self.b) - 1))
        room = width - name_width - index_width - 2
        cell = _PERCENT_WIDTH if len(self.places) * _PERCENT_WIDTH <= room else _SHADE_WIDTH
        shown = range(max(0, len(self.places) - room // cell), len(self.places))
        header = self._header(shown, index_width + name_width + 2, cell)
        lines = Text.assemble((header, FIGURES), no_wrap=True)
        for position, label in enumerate(labels):
            is_changed = self.a[position] != self.b[position]
            style = TITLE if is_changed else token_style(self.b[position])
            lines.append(f"{position:>{index_width}} ", FIGURES)
            lines.append(fit_to_width(label, name_width) + " ", style)
            for place in shown:
                lines.append(*_cell(self.effects[place][position], cell))
            lines.append("\n")
        lines.rstrip()
        answers = {"a": self.answer_a.label, "b": self.answer_b.label}
        measure = _("fraction of the {a} − {b} logit difference restored", **answers)
        template = N_("logit difference: {a:+.3f} on A (100%), {b:+.3f} on B (0%)")
        differences = _(template, a=self.clean, b=self.corrupt)
        return Group(
            title(_(_TITLES[self.what]), measure),
            Text(differences, FIGURES),
            lines,
            Text(" · ".join(self._notes(shown, cell)), FIGURES),
        )

    def _header(self, shown: range, indent: int, cell: int) -> str:
        """Return the line of layer numbers; of narrow columns, only every fifth has one."""
        is_wide = cell > _SHADE_WIDTH
        layers = [place.split()[0] for place in self.places]  # `embedding`, or a number
        names = [
            _EMBEDDING[is_wide] if layer == "embedding"
            else layer if is_wide or int(layer) % 5 == 0
            else ""
            for layer in layers[shown.start :]
        ]  # fmt: skip
        return " " * indent + "".join(fit_to_width(name, cell, right=True) for name in names) + "\n"

    def _notes(self, shown: range, cell: int) -> list[str]:
        notes = [_("columns: after each layer")]
        if shown[0] == 0 and self.what == "residual":
            name = _EMBEDDING[cell > _SHADE_WIDTH]
            notes = [_("columns: after each layer, {name}: the embedding", name=name)]
        if cell == _SHADE_WIDTH:
            notes.append(_("░ ≥20% ▒ ≥40% ▓ ≥60% █ ≥80%, -: negative"))
        if not self.likeliest:
            notes.append(_("both prompts have the same answer; these two tokens differ most"))
        if len(shown) < len(self.places):
            notes.append(_("the last {n} of {all}", n=len(shown), all=len(self.places)))
        return notes


def _cell(effect: float, width: int) -> tuple[str, str]:
    """Return a fraction as a percentage, at most ±999%, or as shades; and its colour."""
    percentage = round(100 * min(max(effect, -9.99), 9.99))
    text = f"{percentage:>{width - 1}}%" if width == _PERCENT_WIDTH else signed_shade(effect)
    if abs(effect) < 0.005:
        return text, FIGURES
    return text, POSITIVE if effect > 0 else NEGATIVE


@no_grad
def compute(
    a: InspectedText,
    b: InspectedText,
    what: str = "residual",
    progress: Callable[[float], None] = lambda _share: None,
) -> PatchView:
    """Return how much of A's answer each activation of A restores in the pass over B.

    `what` is `residual`, or what `attention` or the `feed-forward` adds to the residual stream. The
    measure is a logit difference, A's answer − B's answer: 0 is as after B, 1 as after A. The
    answers are the top tokens; if these are the same, the two tokens that differ most. `progress`
    is called with the share that is done, 0 to 1. Raises UserError if the prompts do not pair token
    by token, if one exceeds the context, or if the answers barely differ.
    """
    _check_pair(a, b)
    logits_a, cache = a.run_with_cache(*_HOOK_NAMES[what], last_only=True)  # (1, vocab)
    logits_b = b.logits(last_only=True)
    answers = _answers(logits_a[0], logits_b[0])
    answer_a, answer_b = (Token.from_id(a.tokenizer, answer) for answer in answers)
    clean, corrupt = _differences(logits_a, answers)[0], _differences(logits_b, answers)[0]
    if abs(clean - corrupt) < _MIN_DIFFERENCE:
        raise UserError(
            _(
                "the logit difference of {a} and {b} is almost the same after both prompts "
                "({clean:.4f} after A, {corrupt:.4f} after B): fractions of it would be "
                "rounding errors",
                a=answer_a.label,
                b=answer_b.label,
                clean=clean,
                corrupt=corrupt,
            )
        )
    effects = []
    for name, activation in cache.items():
        patched = _differences(patched_logits(b, name, activation), answers)
        effects.append(tuple((each - corrupt) / (clean - corrupt) for each in patched))
        progress(len(effects) / len(cache))
    return PatchView(
        what=what,
        a=a.tokens,
        b=b.tokens,
        answer_a=answer_a,
        answer_b=answer_b,
        likeliest=answers == (topk_ids(logits_a[0], 1)[0], topk_ids(logits_b[0], 1)[0]),
        clean=clean,
        corrupt=corrupt,
        places=tuple(_place(b, name) for name in cache),
        effects=tuple(effects),
    )


def _check_pair(a: InspectedText, b: InspectedText) -> None:
    """Raise UserError if two prompts do not pair token by token."""
    for name, prompt in (("A", a), ("B", b)):
        if prompt.unseen_ids:
            raise UserError(
                _(
                    "prompt {name} exceeds the context: the model sees {seen} of its {all} "
                    "tokens, but patching needs them all",
                    name=name,
                    all=len(prompt.ids) + len(prompt.unseen_ids),
                    seen=len(prompt.ids),
                )
            )
    if len(a.ids) != len(b.ids):
        raise UserError(
            _(
                "the two prompts need the same number of tokens, but have {a} and {b}; "
                "check with `:tokens TEXT`",
                a=len(a.ids),
                b=len(b.ids),
            )
        )
    if a.ids == b.ids:
        raise UserError(_("both prompts are the same tokens: there is nothing to patch"))


@no_grad
def patched_logits(inspected: InspectedText, name: str, activation: "Tensor") -> "Tensor":
    """Return the last logits (time, vocab): in row t, activation `name` is replaced at t.

    `activation` (time, d_model) is of another text of the same length.
    """
    import torch

    rows = []
    size = max(1, _MAX_ACTIVATION // activation.numel())
    for start in range(0, len(inspected.ids), size):
        positions = torch.arange(start, min(start + size, len(inspected.ids)))  # (row,)

        def hook(at: str, tensor: "Tensor", positions: "Tensor" = positions) -> "Tensor":
            if at != name:
                return tensor
            patched = tensor.clone()  # (row, time, d_model)
            patched[torch.arange(len(positions)), positions] = activation[positions]
            return patched

        ids = inspected.input_ids.expand(len(positions), -1)  # (row, time)
        logits = inspected.model(ids, hook=compose(inspected.hook, hook), last_only=True)
        rows.append(check_finite(logits[:, 0]))
    return torch.cat(rows)


def _answers(logits_a: "Tensor", logits_b: "Tensor") -> tuple[int, int]:
    """Return the top tokens after A and B; if these are one token, the two that differ most."""
    first, second = topk_ids(logits_a, 1)[0], topk_ids(logits_b, 1)[0]
    if first != second:
        return first, second
    log_a, log_b = logits_a.double().log_softmax(-1), logits_b.double().log_softmax(-1)
    # The largest terms of KL(A ‖ B) and of KL(B ‖ A).
    more = log_a - log_b
    return topk_ids(log_a.exp() * more, 1)[0], topk_ids(log_b.exp() * -more, 1)[0]


def _differences(logits: "Tensor", answers: tuple[int, int]) -> list[float]:
    """Return the logit of the first answer − that of the second, for each row (row, vocab)."""
    first, second = logits[:, answers[0]].double(), logits[:, answers[1]].double()
    differences: list[float] = (first - second).tolist()
    return differences


def _place(inspected: InspectedText, name: str) -> str:
    is_residual = name == "embedding" or name.endswith("residual")
    return place_name(inspected, name) if is_residual else name.split(".")[1]


@command(
    "patch",
    arguments=(
        TextPair("->", "A -> B", also="→", required=2),
        ChoiceOption("what", "residual", "attention", "feed-forward"),
    ),
    json=True,
    aliases=("바꿔넣기",),
    group="Interventions",
    example=":patch 눈이 -> 비가",
)
def patch(shell: "Shell", asked: Arguments) -> None:
    """Patch activations from prompt A into prompt B.

    The command runs prompt B many times. Each run replaces one activation, at one position after
    one layer, with the activation of prompt A. A cell shows the fraction of A's answer that this
    restores: (patched − B) / (A − B). Each term is a logit difference: the logit of A's top token
    minus the logit of B's top token, after the patched prompt, B and A. 0% is no effect and 100% is
    the same as A; values below 0% and above 100% are possible.

    If both prompts have the same answer, the two tokens are those that add most to KL(A ‖ B) and
    KL(B ‖ A). If A − B is below 0.001, the view shows nothing: the numbers would be rounding
    errors.

    The activation is the residual stream. With what=attention or what=feed-forward, it is what that
    part adds to the residual stream. The prompts need the same number of tokens; they are paired by
    position. Positions and layers count from 0.
    """
    a, b = (inspect_text(shell, text) for text in asked.texts)
    with shell.screen.waiting(_("patching")) as update:
        view = compute(
            a, b, asked.what, lambda share: update(_("patching  {share:.0%}", share=share))
        )
    show(shell, view, asked.output)
