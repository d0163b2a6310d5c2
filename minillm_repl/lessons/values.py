"""What a lesson can say of the open model and the present text: values of its `{placeholders}`.

Every figure is that of the view which shows it, written as the view writes it. docs/lessons.md
lists the names.
"""

import re
from collections.abc import Callable
from functools import cached_property
from math import log, nan
from typing import TYPE_CHECKING, Any

from minillm_repl.errors import UserError
from minillm_repl.generate.sampling import softmax
from minillm_repl.language import _
from minillm_repl.lessons.conditions import find_conditions
from minillm_repl.lessons.looking import (
    find_searching_head,
    lens_below,
    strongest_induction,
    top_key,
)
from minillm_repl.lessons.model_values import NO_VALUE, model_value, trained_loss
from minillm_repl.render.drawing import component_name, nats
from minillm_repl.render.generation import percent
from minillm_repl.repl.shell import Shell
from minillm_repl.safetext import safe_line
from minillm_repl.tokenizer import Token, decode
from minillm_repl.views.base import inspect_ids
from minillm_repl.views.sampler import next_logits

if TYPE_CHECKING:
    from minillm_repl.views.attn import FocusView
    from minillm_repl.views.inspected_text import InspectedText
    from minillm_repl.views.lens import LensView
    from minillm_repl.views.qkv import Met
    from minillm_repl.views.residual import ResidualView
    from minillm_repl.views.surprise import SurpriseView
    from minillm_repl.views.sweep import SweepView

_MAX_CANDIDATES = 9  # next tokens that can be asked for
# From the placeholder to the name of the pattern in `:attn`.
_PATTERNS = {"previous": "previous token", "first": "first token", "self": "itself"}


class LessonValues:
    """The model and the text of a session at one moment; the text has one token or more."""

    def __init__(
        self,
        shell: Shell,
        text: str = "",
        *,
        has_trained: bool = False,
        earlier_loss: float | None = None,  # nats, of the training before the last one
    ) -> None:
        self._shell, self.model = shell, shell.require_model()
        self.ids, self._has_trained = tuple(shell.session.conversation.ids), has_trained
        self._earlier_loss = earlier_loss
        self._text_override = text  # what `{text}` is, if not all that has been written by now
        self._config, self._tokenizer = (
            self.model.checkpoint.config,
            self.model.checkpoint.tokenizer,
        )

    def value(self, name: str) -> str:
        """Return the value of a placeholder, safe to show.

        Raises UserError if there is no placeholder of this name.
        """
        # `token.-1` has an index, `previous.head` a field.
        base, _dot, suffix = name.partition(".")
        number = int(suffix) if re.fullmatch(r"-?\d+", suffix) else None
        text = model_value(self.model, self.ids, name) or self._own_value(name)
        if text is None:
            match base:
                case "token" | "id" if number is not None:
                    text = self._token_value(base, number)
                case "next" | "prob" | "logit" | "hot" | "cold" if number is not None:
                    text = self._candidate_value(base, number)
                case "p" if suffix:
                    text = percent(self.next_prob(suffix))
                case "trained" if suffix:
                    text = trained_loss(self.model.checkpoint.record, suffix, self._earlier_loss)
                case "induction":
                    text = self._induction_value(suffix)
                case "previous" | "first" | "self":
                    text = self._head_value(base, suffix)
                case _:
                    text = self._view_value(name)
        if text is None:
            raise _unknown_value_error(name)
        return safe_line(text)

    def holds(self, condition: str) -> bool:
        """Return whether a condition holds; `not` before it negates it.

        Raises UserError if there is no condition of this name.
        """
        negated, name = condition.startswith("not "), condition.removeprefix("not ").strip()
        conditions = find_conditions(
            self.model.checkpoint, self._text, has_trained=self._has_trained
        )
        if name not in conditions:
            raise _unknown_value_error(name)
        return conditions[name] != negated

    def about(self, text: str) -> "LessonValues | None":
        """Return the values of another text; None if the model cannot read all of it."""
        ids = self._tokenizer.encode(text)
        if not ids or decode(self._tokenizer, ids) != text:
            return None
        other = LessonValues(
            self._shell, has_trained=self._has_trained, earlier_loss=self._earlier_loss
        )
        other.ids = tuple(ids[-self.model.decoder.context_length :])
        return other

    def next_prob(self, word: str) -> float:
        """Return the probability that the next token is a word, or begins with its space."""
        spelt = (word, f" {word}")
        ids = range(self._config.vocab_size)
        found = [n for n in ids if Token.from_id(self._tokenizer, n).text in spelt]
        return float(softmax(self._logits)[0][found].sum())

    def told_apart(self, name: str) -> float:
        """Return the share of held-out texts that a direction of the session tells apart; NaN for
        none of that name.
        """
        found = self._shell.session.workspace.directions.get(name)
        return float(found.layers[found.best_layer].accuracy) if found else nan

    @cached_property
    def _text(self) -> str:
        return self._text_override or decode(self._tokenizer, list(self.ids))

    def _own_value(self, name: str) -> str | None:
        """Return the text or a value of its surprisal; None for any other name."""
        if name == "text":
            return self._text
        if name not in ("loss", "bits", "perplexity", "hardest", "hardest.prob", "hardest.bits"):
            return None
        view = self._surprise
        if view is None:
            return NO_VALUE  # a text of one token has nothing that could surprise
        hardest = view.most[0]
        return {
            "loss": f"{view.mean:.3f}",
            "bits": f"{view.mean / log(2):.2f}",
            "perplexity": f"{view.perplexity:,.2f}",
            "hardest": hardest.token.label,
            "hardest.prob": percent(2**-hardest.bits),
            "hardest.bits": f"{hardest.bits:.2f}",
        }[name]

    def _token_value(self, kind: str, number: int) -> str:
        if not -len(self.ids) <= number < len(self.ids):
            return NO_VALUE
        token = Token.from_id(self._tokenizer, self.ids[number])
        return token.label if kind == "token" else str(token.id)

    def _candidate_value(self, kind: str, number: int) -> str:
        if not 1 <= number <= len(self._sweep.candidates):
            return NO_VALUE
        candidate = self._sweep.candidates[number - 1]
        if kind == "next":
            return candidate.token.label
        if kind == "logit":
            return f"{self._logits[candidate.token.id]:.2f}"
        temp = {"prob": 1.0, "hot": 2.0, "cold": 0.5}[kind]
        # None means that a sampler dropped the token.
        return percent(candidate.probs[self._sweep.temps.index(temp)] or 0.0)

    def _induction_value(self, field: str) -> str:
        try:
            layer, head, share, even = self._induction
        except UserError:  # too short a context for random tokens given twice
            return NO_VALUE
        values = {"head": f"{layer}.{head}", "share": f"{share:.1%}", "even": f"{even:.1%}"}
        if field not in values:
            raise _unknown_value_error(f"induction.{field}")
        return values[field]

    def _head_value(self, pattern: str, field: str) -> str:
        scored = [
            (
                sum(of.score for of in each.patterns if of.name == _PATTERNS[pattern]),
                -each.layer,
                -each.head,
            )
            for each in self._focus.heads
        ]
        share, layer, head = max(scored)  # of equal shares the first head: the numbers are negated
        match field:
            case "head":
                return f"{-layer}.{-head}"
            case "share":
                return percent(share)
        raise _unknown_value_error(f"{pattern}.{field}")

    def _view_value(self, name: str) -> str:
        figures: dict[str, Callable[[], str]] = {
            "entropy": lambda: f"{self._entropy:.2f}",
            "choices": lambda: f"{2**self._entropy:,.1f}",
            "head": lambda: ".".join(map(str, self._searching_head)),
            "met": lambda: self.subject.tokens[self.subject.index_of(self._top_key.position)].label,
            "dot": lambda: f"{self._top_key.dot:.2f}",
            "scaled": lambda: f"{self._top_key.dot / self._config.head_dim**0.5:.2f}",
            "weight": lambda: percent(self._top_key.weight),
            "lens.place": lambda: component_name(self._lens.first),
            "lens.first": lambda: self._lens.rows[0].top[0].token.label,
            "lens.below": lambda: lens_below(self._lens, self._config.n_layers),
            "lens.kl": lambda: nats(self._lens.rows[0].kl),
            "road.first": lambda: f"{self._residual.rows[0].stream:.2f}",
            "road.added": lambda: f"{self._residual.rows[-2:][0].added:.2f}",
            "road.stream": lambda: f"{self._residual.rows[-1].stream:.2f}",
        }
        if name not in figures:
            raise _unknown_value_error(name)
        return figures[name]()

    # -- views, each computed once when first asked for

    @cached_property
    def subject(self) -> "InspectedText":
        """The model and the text as views look at them."""
        return inspect_ids(self._shell, self.model, self.ids)

    @cached_property
    def _induction(self) -> tuple[int, int, float, float]:
        return strongest_induction(self.subject)

    @cached_property
    def _logits(self) -> Any:
        # A copy: the decoder writes its next logits into the same array.
        return next_logits(self.model.decoder, self.ids, self._shell.interrupted).copy()

    @cached_property
    def _sweep(self) -> "SweepView":
        from minillm_repl.generate import Sampling
        from minillm_repl.views.sweep import compute_sweep as sweep_view

        # The sweep always has temperatures 1 and 2; the one that is set is a column too.
        return sweep_view(
            self._logits, Sampling(temp=0.5), self.ids, self._tokenizer, _MAX_CANDIDATES
        )

    @property
    def _entropy(self) -> float:
        """The entropy of the model's own distribution, in bits."""
        return self._sweep.entropies[self._sweep.temps.index(1.0)]

    @cached_property
    def _surprise(self) -> "SurpriseView | None":
        from minillm_repl.views.surprise import compute as surprise_view

        return surprise_view(self.subject) if len(self.subject.ids) > 1 else None

    @cached_property
    def _focus(self) -> "FocusView":
        from minillm_repl.views.attn import compute_focus

        return compute_focus(self.subject)

    @cached_property
    def _searching_head(self) -> tuple[int, int]:
        layer, head = map(int, self._head_value("previous", "head").split("."))
        return find_searching_head(self.subject, otherwise=(layer, head))

    @cached_property
    def _top_key(self) -> "Met":
        return top_key(self.subject, *self._searching_head)

    @cached_property
    def _lens(self) -> "LensView":
        from minillm_repl.views import lens

        return lens.compute(self.subject)

    @cached_property
    def _residual(self) -> "ResidualView":
        from minillm_repl.views import residual

        return residual.compute(self.subject)


def _unknown_value_error(name: str) -> UserError:
    return UserError(_("the lesson uses the unknown name {name}", name=safe_line(name)))
