"""Path patching: what one part of a model tells another directly (Wang et al., 2023)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from minillm_repl.errors import UserError
from minillm_repl.language import N_, _
from minillm_repl.model.hooks import Hook, compose
from minillm_repl.render.console import FIGURES, TITLE
from minillm_repl.render.drawing import signed_bar, title
from minillm_repl.repl.arguments import INDEX
from minillm_repl.tokenizer import Token
from minillm_repl.views.base import View
from minillm_repl.views.inspected_text import InspectedText, check_finite, check_layer, no_grad
from minillm_repl.views.patching import Progress, batches, check_pair, measure

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 16  # senders that have a bar
_SENDER = re.compile(rf"({INDEX})\.({INDEX}|mlp)|embedding")
_RECEIVER = re.compile(rf"({INDEX})\.(?:({INDEX})\.([qkv])|(mlp))|logits")
_FROZEN = ("embedding", "attention.z", "mlp.out")


def parse_sender(text: str) -> str:
    """Parse a part that writes into the residual stream: `2.1`, `2.mlp`, `embedding`."""
    if not _SENDER.fullmatch(text.lower()):
        raise ValueError(_("a head, an MLP or the embedding, such as 2.1, 2.mlp or embedding"))
    return text.lower()


def parse_receiver(text: str) -> str:
    """Parse a part that reads the residual stream: `3.0.q`, `3.mlp`, `logits`."""
    if not _RECEIVER.fullmatch(text.lower()):
        raise ValueError(_("an input of a head, an MLP, or logits, such as 3.0.q, 3.mlp or logits"))
    return text.lower()


@dataclass(frozen=True)
class PathEffect:
    """What a sender's activation on A does through one receiver in the pass over B."""

    sender: str  # `2.1`, `2.mlp` or `embedding`
    effect: float  # 0 is as after B, 1 is as after A


@dataclass(frozen=True, kw_only=True)
class PathView(View):
    """Prompt B, in which a receiver reads what each sender has on prompt A."""

    receiver: str
    a: tuple[Token, ...]
    b: tuple[Token, ...]
    answer_a: Token
    answer_b: Token
    likeliest: bool  # whether these are the top tokens after A and B
    clean: float  # logit of A's answer − logit of B's answer, after A
    corrupt: float  # the same after B
    senders: tuple[PathEffect, ...]  # the largest effect first
    model: str = ""

    def draw(self, width: int) -> RenderableType:
        """Return a bar for each of the senders with the largest effects."""
        shown = self.senders[:_ROWS]
        max_abs = max(abs(each.effect) for each in shown)
        name_width = max(len(each.sender) for each in shown)
        bars = max(16, min(60, width - name_width - 12))
        lines = Text(no_wrap=True)
        for each in shown:
            lines.append(f"{each.sender:<{name_width}} ", TITLE)
            lines.append_text(signed_bar(each.effect, max_abs, bars))
            lines.append(f" {100 * each.effect:+.1f}%\n")
        lines.rstrip()
        texts = ("".join(token.label for token in side) for side in (self.a, self.b))
        template = N_("logit difference: {a:+.3f} on A (100%), {b:+.3f} on B (0%)")
        how = _(
            "fraction of the {a} − {b} logit difference restored",
            a=self.answer_a.label,
            b=self.answer_b.label,
        )
        notes = [_("direct paths: all other heads and MLPs stay as on B")]
        if len(self.senders) > _ROWS:
            notes.append(_("top {n} of {all} senders", n=_ROWS, all=len(self.senders)))
        if self.model:
            notes.append(_("model {name}", name=self.model))
        return Group(
            title(_("path patching into {receiver}", receiver=self.receiver), how),
            Text(_(template, a=self.clean, b=self.corrupt), FIGURES),
            Text(
                _("A: {a} · B: {b}", **dict(zip("ab", texts, strict=True))),
                FIGURES, no_wrap=True, overflow="ellipsis",
            ),
            lines,
            Text(" · ".join(notes), FIGURES),
        )  # fmt: skip


@no_grad
def compute(
    a: InspectedText,
    b: InspectedText,
    sender: str,
    receiver: str,
    progress: Progress = lambda _share: None,
) -> PathView:
    """Return what a sender, or each one before the receiver if `sender` is empty, does to it.

    The first pass over B takes the sender from A and holds every other head and MLP as on B, so the
    receiver reads the sender's change directly. The second pass over B has the receiver as it was
    in the first. Raises UserError if there is no such part, or it does not come before the other.
    """
    check_pair(a, b)
    if b.config.attention_layers != tuple(range(b.config.n_layers)):
        raise UserError(_("this needs attention in all layers, and this model has other parts"))
    senders = _senders(b, receiver)
    if sender:
        _check_sender(b, sender)
        if sender not in senders:
            raise UserError(
                _(
                    "{sender} does not write before {receiver} reads",
                    sender=sender,
                    receiver=receiver,
                )
            )
        senders = [sender]
    logits_a, clean = a.run_with_cache(*_FROZEN, last_only=True)
    logits_b, corrupt = b.run_with_cache(*_FROZEN, last_only=True)
    found = measure(a, logits_a[0], logits_b[0])
    effects: list[PathEffect] = []
    numbers = max(activation.numel() for activation in corrupt.values())
    for batch in batches(b, range(len(senders)), numbers):
        names = [senders[index] for index in batch]
        fractions = found.fractions(_path_logits(b, clean, corrupt, names, receiver))
        effects += map(PathEffect, names, fractions)
        progress(len(effects) / len(senders))
    answer_a, answer_b = (Token.from_id(a.tokenizer, answer) for answer in found.answers)
    return PathView(
        receiver=receiver,
        a=a.tokens,
        b=b.tokens,
        answer_a=answer_a,
        answer_b=answer_b,
        likeliest=found.likeliest,
        clean=found.clean,
        corrupt=found.corrupt,
        senders=tuple(sorted(effects, key=lambda each: -abs(each.effect))),
    )


def _check_sender(inspected: InspectedText, sender: str) -> None:
    layer, _dot, which = sender.partition(".")
    if which:
        check_layer(inspected.config, int(layer), None if which == "mlp" else int(which))


def _senders(inspected: InspectedText, receiver: str) -> list[str]:
    """Return all that writes into the residual stream before a receiver reads it.

    Raises UserError if the model has no such receiver.
    """
    config, found = inspected.config, _RECEIVER.fullmatch(receiver)
    assert found is not None
    layer = config.n_layers if found[1] is None else int(found[1])
    if found[1] is not None:
        check_layer(config, layer, int(found[2]) if found[3] == "q" else None)
    if found[3] in ("k", "v") and int(found[2]) >= config.n_kv_heads:
        raise UserError(
            _(
                "no KV head {head}: KV heads are numbered from 0 to {last}",
                head=int(found[2]),
                last=config.n_kv_heads - 1,
            )
        )
    senders = ["embedding"]
    for earlier in range(layer):
        senders += [*(f"{earlier}.{head}" for head in range(config.n_heads)), f"{earlier}.mlp"]
    if found[4] and not config.parallel_residual:  # the MLP reads what attention has added
        senders += (f"{layer}.{head}" for head in range(config.n_heads))
    return senders


def _path_logits(
    b: InspectedText,
    clean: "dict[str, Tensor]",
    corrupt: "dict[str, Tensor]",
    senders: list[str],
    receiver: str,
) -> "Tensor":
    """Return the last logits (sender, vocab) with the receiver as each sender alone makes it."""
    ids = b.input_ids.expand(len(senders), -1)  # (sender, time)
    read: dict[str, Tensor] = {}
    frozen = _frozen(clean, corrupt, senders)
    place, pick = _receiver_place(receiver)

    def first(name: str, tensor: "Tensor") -> "Tensor":
        if name == place:
            read[name] = tensor
        return frozen(name, tensor)

    def second(name: str, tensor: "Tensor") -> "Tensor":
        return pick(tensor, read[name]) if name == place else tensor

    logits = b.model(ids, hook=compose(b.hook, first), last_only=True)
    if place:
        logits = b.model(ids, hook=compose(b.hook, second), last_only=True)
    return check_finite(logits[:, 0])


def _frozen(clean: "dict[str, Tensor]", corrupt: "dict[str, Tensor]", senders: list[str]) -> Hook:
    """Return a hook that holds every sender as on B, and in row i sender i as on A."""

    def hook(name: str, tensor: "Tensor") -> "Tensor":
        if name not in corrupt:
            return tensor
        held = corrupt[name].expand(len(senders), *corrupt[name].shape).clone()
        for row, sender in enumerate(senders):
            layer, _dot, which = sender.partition(".")
            if name == sender or (which == "mlp" and name == f"blocks.{layer}.mlp.out"):
                held[row] = clean[name]
            elif which.isdigit() and name == f"blocks.{layer}.attention.z":
                held[row, :, int(which)] = clean[name][:, int(which)]
        return held

    return hook


def _receiver_place(receiver: str) -> "tuple[str, Callable[[Tensor, Tensor], Tensor]]":
    """Return the hook name of a receiver, empty for the logits; and what puts it in place."""
    layer, *rest = receiver.split(".")
    if not rest:
        return "", lambda tensor, _read: tensor
    if rest == ["mlp"]:
        return f"blocks.{layer}.mlp.out", lambda _tensor, read: read
    head, kind = int(rest[0]), rest[1]

    def pick(tensor: "Tensor", read: "Tensor") -> "Tensor":
        patched = tensor.clone()  # (sender, head, time, head_dim)
        patched[:, head] = read[:, head]
        return patched

    return f"blocks.{layer}.attention.{kind}", pick
