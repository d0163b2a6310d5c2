"""`:patchscope`: a hidden state, put into another prompt, says what it holds (Ghandeharioun et al.,
2024).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import compose
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import UNLIMITED_WIDTH, short_label, title
from minillm_repl.render.generation import percent
from minillm_repl.render.tables import plain_table
from minillm_repl.repl.arguments import Arguments, Option, TextPair
from minillm_repl.repl.places import PlaceArgument
from minillm_repl.repl.registry import command
from minillm_repl.settings import integer
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import Truncation
from minillm_repl.views.base import View, find_place, inspect_ids, inspect_text, show
from minillm_repl.views.inspected_text import InspectedText, check_finite, check_layer, no_grad
from minillm_repl.views.prompts import with_time_left

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.repl.shell import Shell

IDENTITY = "cat->cat; 1135->1135; hello->hello; ?"
_ROWS = 13  # layers on a screen
_MAX_NUMBERS = 1 << 22  # positions × width of a batch
_LETTERS = "가나다", "abc"


@dataclass(frozen=True)
class Said:
    """What the target prompt goes on with, with the state after one layer in it."""

    place: str  # `embedding` or the number of the layer; empty: nothing was put in
    prob: float  # of the first token
    tokens: tuple[Token, ...]  # the most likely ones, one after the other


@dataclass(frozen=True, kw_only=True)
class PatchscopeView(View, Truncation):
    """What the hidden states of a token say in another prompt. Layers and positions from 0."""

    tokens: tuple[Token, ...]  # up to the place that is read
    position: int
    target: tuple[Token, ...]
    target_position: int  # of the token whose state is replaced
    into: int | None  # the layer that is written to; null: the one that was read
    rows: tuple[Said, ...]  # the embedding first
    plain: Said  # the target prompt as it is

    def draw(self, width: int) -> RenderableType:
        """Return a row for each layer: what the target goes on with."""
        count = len(self.rows)
        everything = count <= _ROWS or width >= UNLIMITED_WIDTH
        kept = range(count) if everything else {
            round(at * (count - 1) / (_ROWS - 1)) for at in range(_ROWS)
        }  # fmt: skip
        table = plain_table(
            _("after"), _("goes on with"), _("first token"), right=(0, 2), wrap=(1,)
        )
        for index in sorted(kept):
            row = self.rows[index]
            name = _("embedding") if row.place == "embedding" else row.place
            table.add_row(Text(name, TITLE), _written(row.tokens), percent(row.prob))
        table.add_section()
        plain = Text(_("unpatched"), FIGURES)
        table.add_row(plain, _written(self.plain.tokens), percent(self.plain.prob))
        target = Text(_("into") + " ", FIGURES)
        for index, token in enumerate(self.target):
            mark = index == self.target_position
            target.append("⟦" if mark else "").append(token.label, TITLE if mark else FIGURES)
            target.append("⟧" if mark else "")
        where = (
            _("into the same layer")
            if self.into is None
            else _("into layer {layer}", layer=self.into)
        )
        legend = _("after: the layer whose hidden state is read · first token: its probability · "
                   "unpatched: the target prompt as it is")  # fmt: skip
        if not everything:
            legend = _("{n} of {all} layers; :scroll shows all", n=len(kept), all=count) + (
                f" · {legend}"
            )
        about = _("at {token}, position {position}", token=self.tokens[-1].label,
                  position=self.position)  # fmt: skip
        heading = title(_("patchscope"), f"{about} · {where}")
        return Group(heading, target, table, Text(legend, FIGURES))


def _written(tokens: tuple[Token, ...]) -> Text:
    return Text("").join(short_label(token) for token in tokens)


def identity_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the few-shot prompt in which tokens stand for themselves, up to the one replaced.

    A model of characters gets one of letters, and without an arrow where it knows none.
    """
    ids = tokenizer.encode(IDENTITY, add_special=True)
    plain = tokenizer.encode(IDENTITY, add_special=False)
    if not tokenizer.find_unknown(IDENTITY) and len(plain) < len(IDENTITY) * 3 / 4:
        return ids
    arrow = next((each for each in ("->", ":") if not tokenizer.find_unknown(each)), "")
    between = next((each for each in ("; ", ", ", " ") if not tokenizer.find_unknown(each)), "")
    known = [each for each in _LETTERS if not tokenizer.find_unknown(each)]
    letters = min(
        known, key=lambda each: len(tokenizer.encode(each, add_special=False)), default=""
    )
    if not letters:
        texts = (tokenizer.token_bytes(each).decode(errors="ignore")
                 for each in range(tokenizer.vocab_size))  # fmt: skip
        letters = "".join([each for each in texts if len(each) == 1 and each.isalpha()][:3])
    last = "?" if not tokenizer.find_unknown("?") else letters[:1]
    text = between.join([*(f"{each}{arrow}{each}" for each in letters), last])
    return tokenizer.encode(text, add_special=True)


def replaced_index(target: InspectedText) -> int:
    """Return which token of a target prompt is replaced: the last one with a `?`, or the last."""
    marks = [at for at, token in enumerate(target.tokens) if "?" in token.text]
    return marks[-1] if marks else len(target.tokens) - 1


@no_grad
def compute(
    source: InspectedText,
    target: InspectedText,
    index: int | None = None,
    into: int | None = None,
    count: int = 5,
    progress: Callable[[float], None] = lambda _share: None,
) -> PatchscopeView:
    """Return what `target` goes on with, if one of its hidden states is that of the last token of
    `source`, for the state after each layer.

    `index` is the token of the target that is replaced, `into` the layer after which it is; by
    default the same as in the source. Raises UserError if there is none, or no room.
    """
    import torch

    config = target.config
    if into is not None:
        check_layer(config, into)
    if len(target.ids) + count > config.context_length:
        raise UserError(_("the target prompt leaves no room for {n} tokens", n=count))
    at = replaced_index(target) if index is None else index
    cache = source.run_with_cache("embedding", ".residual", last_only=True)[1]
    names = ["embedding", *(f"blocks.{layer}.residual" for layer in range(config.n_layers))]
    states = torch.stack([cache[name][-1] for name in names])  # (place, d_model)
    places = [name if into is None else f"blocks.{into}.residual" for name in names]
    size = max(1, _MAX_NUMBERS // ((len(target.ids) + count) * max(config.d_model, config.d_mlp)))
    said: list[Said] = []
    for first in range(0, len(names), size):
        part = slice(first, first + size)
        scale = len(names[part]) / len(names)
        done = lambda share, first=first, scale=scale: progress(  # noqa: E731
            first / len(names) + share * scale
        )
        said += _go_on(target, at, states[part], places[part], names[part], count, done)
    none = states[:0]
    return PatchscopeView(
        tokens=source.tokens,
        position=source.position_of(len(source.ids) - 1),
        target=target.tokens,
        target_position=at,
        into=into,
        rows=tuple(said),
        plain=_go_on(target, at, none, [], [""], count, lambda _share: None)[0],
        **source.window_fields,
    )


def _go_on(
    target: InspectedText,
    at: int,
    states: "Tensor",
    places: list[str],
    names: list[str],
    count: int,
    progress: Callable[[float], None],
) -> list[Said]:
    """Return what the target goes on with, a row of the batch for each state (row, d_model)."""
    import torch

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        rows = [row for row, place in enumerate(places) if place == name]
        if rows:
            tensor = tensor.clone()
            tensor[rows, at] = states[rows].to(tensor)
        return tensor

    ids = target.input_ids.expand(len(names), -1)  # (row, time)
    probs: Tensor | None = None
    for step in range(count):
        logits = target.model(ids, hook=compose(target.hook, hook), last_only=True)[:, -1]
        likely = check_finite(logits).softmax(-1).max(-1)  # (row,) each
        probs = likely.values if probs is None else probs
        ids = torch.cat((ids, likely.indices[:, None]), dim=1)
        progress((step + 1) / count)
    assert probs is not None
    return [
        Said(
            place=name.split(".")[1] if "." in name else name,
            prob=float(prob),
            tokens=tuple(Token.from_id(target.tokenizer, each) for each in row[-count:].tolist()),
        )
        for name, prob, row in zip(names, probs, ids, strict=True)
    ]


@command(
    "patchscope",
    arguments=(
        PlaceArgument(),
        Option("into", integer(0), None, "LAYER"),
        Option("tokens", integer(1, 50), 5),
        TextPair("in", "[TEXT] [in TARGET]"),
    ),
    json=True,
    group="Look inside",
    example=":patchscope 날씨가 좋",
)
def patchscope(shell: "Shell", asked: Arguments) -> None:
    """Ask a hidden state what it holds, in another prompt.

    The residual stream at a place, after each layer, is put into a target prompt, in the place of
    one token after the same layer. The rows show what the target then goes on with, greedily
    (Ghandeharioun et al., 2024, "Patchscopes"). Below stands what it goes on with unpatched: where
    a row says the same, the state has changed nothing.

    The default target is `cat->cat; 1135->1135; hello->hello; ?`: a few tokens that stand for
    themselves, so that the model names what is in the place of `?`. A model of characters gets
    letters instead. `in` gives another target: :patchscope @날 날씨가 좋다 in 오늘은 ? 그래서. The
    last token of it with a ? is replaced, or the last token.

    The place is a position (@3, @-1) or a token (@날, where it was predicted); the default is the
    last position. `into=3` puts every state in after layer 3. `tokens=5` is how many tokens are
    written. Small models follow such prompts poorly: look at the difference between the rows.
    `--json FILE` writes all numbers. Layers and positions count from 0.
    """
    text, target_text = asked.texts
    inspected = inspect_text(shell, text)
    position, _token = find_place(inspected, asked.place)
    source = inspected.up_to(inspected.index_of(position))
    model = shell.require_model()
    ids = (
        shell.encode(model, target_text)
        if target_text
        else identity_ids(model.checkpoint.tokenizer)
    )
    target = inspect_ids(shell, model, ids)
    with shell.screen.waiting(_("patching")) as update:
        progress = with_time_left(update, _("patching"))
        view = compute(source, target, None, asked.into, asked.tokens, progress)
    show(shell, view, asked.output)
