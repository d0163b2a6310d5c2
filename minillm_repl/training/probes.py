"""What is watched beside the losses while a model learns: its heads, its layers, how far it moved.

Each probe is measured where the losses are, on the same tokens each time, and draws no random
number of the run's own: a run that is watched makes the same weights.
"""

from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from minillm_repl.errors import UserError
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.hooks import caching
from minillm_repl.tokenizer import Tokenizer
from minillm_repl.training import head_probe
from minillm_repl.training.evaluation import disjoint_starts

if TYPE_CHECKING:
    from minillm_repl.training.trainer import Trainer

Probe = Literal["heads", "lens", "kl"]
PROBES: tuple[Probe, ...] = get_args(Probe)
_MAX_SHARE = 1 / 7  # of the time of a run; what would take more is left out
_TOKENS = 512  # of the text that `lens` and `kl` read
_MAX_LOGITS = 1 << 22  # numbers of their logits


class Probes:
    """Measures the probes of a trainer, and keeps their curves in its state."""

    def __init__(self, trainer: "Trainer", names: tuple[Probe, ...], tokenizer: Tokenizer) -> None:
        self._trainer = trainer
        self._spent = self._last = 0.0  # seconds: of all measurements, and of the last one
        split, config = trainer.val or trainer.train, trainer.model.config
        self._repeats: head_probe.Probe | None = None
        with suppress(UserError):  # a tiny context, or a tiny vocabulary: nothing repeats there
            self._repeats = head_probe.make_probe(tokenizer, config)
        there = self._repeats is not None
        self.names = tuple(each for each in names if each != "heads" or there)
        count = max(trainer.plan.context_length, min(_TOKENS, _MAX_LOGITS // config.vocab_size))
        starts = disjoint_starts(split, count)
        self._text = split.batch(starts)[0].to(trainer.device)  # (b, t)
        self._first: Tensor | None = None  # log-probabilities: (b, t, vocab)
        self._before: Tensor | None = None
        self.best: dict[str, str] = {}  # the head with the highest score, as `2.1`

    @torch.no_grad()
    def measure(self) -> bool:
        """Add a point to each curve; False where a seventh of the run's time is spent on them."""
        state = self._trainer.state
        if state.step and self._spent + self._last > _MAX_SHARE * state.seconds:
            return False
        started = perf_counter()
        measures: dict[Probe, Callable[[], dict[str, float]]] = {
            "heads": self._heads, "lens": self._lens, "kl": self._kl,
        }  # fmt: skip
        for probe in self.names:
            for name, value in measures[probe]().items():
                curve = state.probes.setdefault(f"{probe}.{name}", [])
                if not curve or curve[-1][0] < state.step:
                    curve.append((state.step, round(value, 6)))
        self._last = perf_counter() - started
        self._spent += self._last
        return True

    def _heads(self) -> dict[str, float]:
        assert self._repeats is not None
        model, cache = self._trainer.model, dict[str, Tensor]()
        last = f"blocks.{model.config.n_layers - 1}.residual"
        shares = head_probe.measure(
            model, self._repeats, caching(cache, lambda name: name == last)
        )  # (layer, head, 3)
        values = {"copying": head_probe.copying(model, self._repeats, cache[last])}
        for at, name in enumerate(("induction", "previous")):
            layer, head = divmod(int(shares[..., at].argmax()), model.config.n_heads)
            self.best[name] = f"{layer}.{head}"
            values[name] = float(shares[layer, head, at])
        return values

    def _lens(self) -> dict[str, float]:
        return layer_divergences(self._trainer.model, self._text)

    def _kl(self) -> dict[str, float]:
        now = self._trainer.model(self._text).log_softmax(-1)  # (b, t, vocab)
        first = now if self._first is None else self._first
        before = now if self._before is None else self._before
        self._first, self._before = first, now
        return {"start": _divergence(now, first), "before": _divergence(now, before)}


def _divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Return KL(p ‖ q) in nats, the mean over all positions."""
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(-1).double().mean()))


def layer_divergences(model: LanguageModel, ids: Tensor) -> dict[str, float]:
    """Return KL(final ‖ logit lens) after each layer but the last, in nats: the mean over tokens.

    `embedding` is before the first layer, `0` after it.
    """
    cache: dict[str, Tensor] = {}
    last = f"blocks.{model.config.n_layers - 1}.residual"
    wanted = {f"blocks.{layer}.residual": str(layer) for layer in range(model.config.n_layers - 1)}
    wanted = {"embedding": "embedding", **wanted}
    final = model(ids, hook=caching(cache, lambda name: name in wanted or name == last))
    final = final.log_softmax(-1)  # (b, t, vocab)
    return {
        name: _divergence(final, model.unembed(cache[place]).log_softmax(-1))
        for place, name in wanted.items()
    }
