"""What a view reads: a model, a text, and one pass of the model over the text.

Nothing here imports torch until a pass is made: a view is declared before torch is there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.config import AnyConfig
from minillm_repl.model.hooks import Hook, PatternHook, compose, no_hook
from minillm_repl.tokenizer import Token, Tokenizer
from minillm_repl.tokenizer.truncation import TruncatedText

if TYPE_CHECKING:
    from torch import Tensor

    from minillm_repl.model.build import LanguageModel

BY_HEAD = "attention.q", "attention.k", "attention.v", "attention.pattern"
"""The hooks whose first axis is that of the heads; of all others it is that of the positions."""

_NAMED_TOKENS = 8  # of a text that an error names

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


def no_grad(compute: Callable[ParamsT, ResultT]) -> Callable[ParamsT, ResultT]:
    """Do what `torch.no_grad` does, but import torch only when the function is called."""

    @wraps(compute)
    def without_gradients(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
        import torch

        with torch.no_grad():
            return compute(*args, **kwargs)

    return without_gradients


@dataclass(frozen=True)
class Likely:
    """A token that can come next, and its probability under the model's own softmax."""

    token: Token
    prob: float


@dataclass(frozen=True)
class InspectedText:
    """A model and a text of at least one token that fits its context.

    Of a longer text it has what the model sees: the first `prefix_length` tokens, and those after
    the `unseen_ids`. `hook` intervenes in every pass.
    """

    model: "LanguageModel"
    tokenizer: Tokenizer
    ids: tuple[int, ...]
    hook: Hook = no_hook
    unseen_ids: tuple[int, ...] = ()  # tokens of the text that no longer fit
    prefix_length: int = 0
    # bytes that the tokenizer has put before the text; None leaves it to what it usually does
    prepended_bytes: int | None = None

    @property
    def config(self) -> AnyConfig:
        """The sizes of the model."""
        return self.model.config

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of the text."""
        return tuple(Token.from_id(self.tokenizer, token) for token in self.ids)

    @property
    def window(self) -> TruncatedText:
        """What of the text is seen."""
        return TruncatedText(
            ids=self.ids,
            dropped_ids=self.unseen_ids,
            unseen=len(self.unseen_ids),
            kept=self.prefix_length,
        )

    @property
    def window_fields(self) -> dict[str, int]:
        """What a view says of that: how many tokens are not seen, and how many before them are."""
        return self.window.truncation_fields

    @property
    def all_ids(self) -> tuple[int, ...]:
        """The ids of the whole text, those that are not seen included."""
        return (*self.ids[: self.prefix_length], *self.unseen_ids, *self.ids[self.prefix_length :])

    def position_of(self, index: int) -> int:
        """Return where in the whole text one of `ids` stands."""
        return self.window.position_of(index)

    def index_of(self, position: int) -> int:
        """Return which of `ids` stands at a position of the whole text, from its end if negative.

        Raises UserError.
        """
        total = len(self.ids) + len(self.unseen_ids)
        absolute_position = position + total if position < 0 else position
        if not 0 <= absolute_position < total:
            raise UserError(
                _(
                    "no position {position} in {text}: positions run from 0 to {last}, or from "
                    "-1 backwards",
                    position=position,
                    text=self._beginning(),
                    last=total - 1,
                )
            )
        if 0 <= absolute_position - self.prefix_length < len(self.unseen_ids):
            last = self.prefix_length + len(self.unseen_ids) - 1
            raise UserError(
                _(
                    "position {place} is outside the context: the model does not see "
                    "positions {first} to {last}",
                    place=absolute_position,
                    first=self.prefix_length,
                    last=last,
                )
            )
        return self.window.index_of(absolute_position)

    def _beginning(self) -> str:
        """Return the first tokens of the text, to say which text is meant."""
        labels = "".join(token.label for token in self.tokens[:_NAMED_TOKENS])
        return labels + ("…" if len(self.ids) > _NAMED_TOKENS else "")

    def up_to(self, index: int) -> "InspectedText":
        """Return the text up to one of `ids`, that included: nothing later can matter to it."""
        return replace(
            self,
            ids=self.ids[: index + 1],
            # Tokens are missing only between the first `prefix_length` tokens and the others.
            unseen_ids=self.unseen_ids if index >= self.prefix_length else (),
        )

    def with_hook(self, hook: Hook) -> "InspectedText":
        """Return the same with one more change on the way, after those there are."""
        return replace(self, hook=compose(self.hook, hook))

    @property
    def input_ids(self) -> "Tensor":
        """The ids as a batch of one: (1, time)."""
        import torch

        return torch.tensor([self.ids], device=next(self.model.parameters()).device)

    @no_grad
    def logits(self, *, last_only: bool = False) -> "Tensor":
        """Return the logits after every token (time, vocab), or after the last (1, vocab).

        Raises UserError if they are not finite.
        """
        return check_finite(self.model(self.input_ids, hook=self.hook, last_only=last_only)[0])

    @no_grad
    def run_with_cache(
        self, *names: str, last_only: bool = False, rows: int = 0
    ) -> "tuple[Tensor, dict[str, Tensor]]":
        """Return the logits, as `logits` does, and the activations whose hook names end in `names`.

        The activations have no batch dimension. With `rows`, they are those of the last positions
        only, so many, which a long text needs: gigabytes are kept otherwise. Raises UserError if
        the logits are not finite.
        """
        cache: dict[str, Tensor] = {}

        def keep(name: str, tensor: "Tensor") -> "Tensor":
            if name.endswith(names):
                kept, axis = tensor[0], 1 if name.endswith(BY_HEAD) else 0
                if rows and rows < kept.shape[axis]:  # a copy: the whole is let go
                    kept = kept.narrow(axis, kept.shape[axis] - rows, rows).clone()
                cache[name] = kept
            return tensor

        hook = compose(self.hook, PatternHook(keep, lambda name: name.endswith(names)))
        # (1, time, vocab) -> (time, vocab)
        logits = check_finite(self.model(self.input_ids, hook=hook, last_only=last_only)[0])
        return logits, cache


def place_name(inspected: InspectedText, hook_name: str) -> str:
    """Return the label of a place in the residual stream: `blocks.0.residual.mid` is `0 attention`;
    after a block whose attention and MLP work in parallel, `0 block`.
    """
    if hook_name == "embedding":
        return hook_name
    _blocks, layer, what, *rest = hook_name.split(".")
    if what == "attention" or rest == ["mid"]:
        return f"{layer} {'convolution' if inspected.config.is_conv(int(layer)) else 'attention'}"
    is_block = what == "residual" and inspected.config.parallel_residual
    return f"{layer} {'block' if is_block else 'feed-forward'}"


def check_finite(logits: "Tensor") -> "Tensor":
    """Return logits that are numbers. Raises UserError if they are not."""
    if not logits.isfinite().all():
        raise UserError(
            _("the logits are not finite: a weight is not finite, or a result overflows float32")
        )
    return logits


def look_back(inspected: InspectedText, tensor: "Tensor") -> "Tensor":
    """Return a tensor at which Ctrl-C ends a backward pass, as hooks let it end a pass."""
    if tensor.requires_grad:
        tensor.register_hook(partial(inspected.hook, "gradient"))  # type: ignore[no-untyped-call]
    return tensor


def differs(actual: "Tensor", expected: "Tensor") -> bool:
    """Tell whether two vectors differ by more than the rounding of float32."""
    return float((actual - expected).norm()) > 1e-5 * float(actual.norm() + expected.norm())


def topk_ids(log_probabilities: "Tensor", k: int) -> list[int]:
    """Return the ids of the `k` most likely tokens of one distribution (vocab,), ties by id."""
    order: list[int] = log_probabilities.argsort(descending=True, stable=True)[:k].tolist()
    return order


def topk(tokenizer: Tokenizer, log_probabilities: "Tensor", k: int) -> tuple[Likely, ...]:
    """Return the `k` most likely tokens of one distribution (vocab,), with their probabilities."""
    return tuple(
        Likely(Token.from_id(tokenizer, token), float(log_probabilities[token].exp()))
        for token in topk_ids(log_probabilities, k)
    )


def kl_divergence(log_p: "Tensor", log_q: "Tensor") -> float:
    """Return KL(p ‖ q) = Σ p · ln(p / q) of two distributions (vocab,), in nats."""
    return max(float((log_p.exp() * (log_p - log_q)).sum()), 0.0)  # rounding may go below 0


def most_likely_of(subject: InspectedText, tokens: Sequence[int]) -> int:
    """Return which of `tokens` is the most likely to come next."""
    if len(tokens) == 1:
        return tokens[0]
    logits = subject.logits(last_only=True)[0]  # (vocab,)
    return max(tokens, key=lambda token: float(logits[token]))


def rank(log_probabilities: "Tensor", token: int) -> int:
    """Return the rank of a token in one distribution (vocab,): 1 is the most likely, ties by id."""
    log_probability = log_probabilities[token]
    # Tokens above it, and equal ones with a lower id, come first.
    return (
        int(
            (log_probabilities > log_probability).sum()
            + (log_probabilities[:token] == log_probability).sum()
        )
        + 1
    )


def to_tuples(matrix: "Tensor") -> tuple[tuple[float, ...], ...]:
    """Return a matrix as plain numbers."""
    return tuple(map(tuple, matrix.tolist()))


def check_layer(config: AnyConfig, layer: int, head: int | None = None) -> None:
    """Raise UserError if the model has no such layer, or the layer no such head."""
    if not 0 <= layer < config.n_layers:
        raise UserError(
            _(
                "no layer {layer}: layers are numbered from 0 to {last}",
                layer=layer,
                last=config.n_layers - 1,
            )
        )
    if head is not None and config.is_conv(layer):
        raise UserError(
            _(
                "layer {layer} has a short convolution, and no heads; layers with attention: "
                "{layers:.60}",
                layer=layer,
                layers=", ".join(map(str, config.attention_layers)),
            )
        )
    if head is not None and not 0 <= head < config.n_heads:
        raise UserError(
            _(
                "no head {head}: heads are numbered from 0 to {last}",
                head=head,
                last=config.n_heads - 1,
            )
        )
