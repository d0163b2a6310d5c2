"""What is watched beside the losses while a model learns: its heads, its layers, how far it moved.

Each probe is measured where the losses are, on the same tokens each time, and draws no random
number of the run's own: a run that is watched makes the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from minillm_repl.model.attention import attention_weights
from minillm_repl.model.build import LanguageModel
from minillm_repl.model.hooks import caching
from minillm_repl.training.evaluation import disjoint_starts
from minillm_repl.training.splits import Split

if TYPE_CHECKING:
    from minillm_repl.training.trainer import Trainer

Probe = Literal["heads", "lens", "kl"]
PROBES: tuple[Probe, ...] = get_args(Probe)
_MAX_SHARE = 1 / 7  # of the time of a run; what would take more is left out
_TEXTS, _HALF = 4, 32  # sequences that repeat themselves, and the tokens of a half
_MIN_HALF = 4
_TOKENS = 512  # of the text that `lens` and `kl` read
_MAX_LOGITS = 1 << 22  # numbers of their logits


@dataclass(frozen=True)
class Scores:
    """How heads follow a pattern: (layer, head) of the layers with attention, a share, 0 to 1."""

    induction: Tensor  # on the token after the last occurrence of the present one
    previous: Tensor  # on the token before
    copying: float  # the mean probability of the token that comes next, where all was seen before


class Probes:
    """Measures the probes of a trainer, and keeps their curves in its state."""

    def __init__(self, trainer: "Trainer", names: tuple[Probe, ...]) -> None:
        self._trainer = trainer
        self._spent = self._last = 0.0  # seconds: of all measurements, and of the last one
        split, config = trainer.val or trainer.train, trainer.model.config
        self._repeats = repeated_tokens(trainer.train, trainer.plan.context_length)  # (b, 2n)
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
        found = head_scores(self._trainer.model, self._repeats.to(self._trainer.device))
        values = {"copying": found.copying}
        for name, scores in (("induction", found.induction), ("previous", found.previous)):
            layer, head = divmod(int(scores.argmax()), scores.shape[1])
            self.best[name] = f"{self._trainer.model.config.attention_layers[layer]}.{head}"
            values[name] = float(scores.max())
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


def repeated_tokens(split: Split, context_length: int) -> Tensor | None:
    """Return sequences of tokens by chance, each twice in a row: (b, 2n); None for a tiny context.

    They are drawn from the text, as often as it has them, so that the model knows them.
    """
    half = min(_HALF, context_length // 2)
    if half < _MIN_HALF:
        return None
    chosen = np.random.default_rng(0).integers(len(split.ids), size=(_TEXTS, half))
    tokens = torch.from_numpy(split.ids[chosen].astype(np.int64))  # (b, n)
    return torch.cat([tokens, tokens], dim=1)


def head_scores(model: LanguageModel, ids: Tensor) -> Scores:
    """Return what heads do on sequences that repeat themselves after half their length (b, 2n)."""
    cache: dict[str, Tensor] = {}
    names = ("attention.q", "attention.k")
    probabilities = model(ids, hook=caching(cache, lambda name: name.endswith(names))).softmax(-1)
    config, length = model.config, ids.shape[1]
    half = length // 2
    query = torch.arange(half, length - 1)  # where the next token was seen before
    rows: dict[str, list[Tensor]] = {"induction": [], "previous": []}
    for layer in config.attention_layers:
        window = config.sliding_windows[layer] if config.sliding_windows else 0
        q, k = (cache[f"blocks.{layer}.{name}"] for name in names)
        weights = attention_weights(q, k, config, window)  # (b, h, 2n, 2n)
        later = torch.arange(1, length)
        rows["induction"].append(weights[..., query, query - half + 1].mean((0, 2)))  # (h,)
        rows["previous"].append(weights[..., later, later - 1].mean((0, 2)))
    batch = torch.arange(len(ids))[:, None]
    copying = probabilities[batch, query, ids[:, half + 1 :]].mean()
    return Scores(torch.stack(rows["induction"]), torch.stack(rows["previous"]), float(copying))


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
