"""Trains the features of a layer: a TopK sparse autoencoder on the residual stream (Gao et al.,
2024), with an auxiliary loss that wakes features that are dead.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minillm_repl.errors import UserError
from minillm_repl.language import _
from minillm_repl.model.hooks import Hook
from minillm_repl.views.features_dictionary import Dictionary, Examples, Figures
from minillm_repl.views.inspected_text import InspectedText, no_grad

if TYPE_CHECKING:
    from torch import Tensor

Interrupted = Callable[[], bool]
Windows = Sequence[tuple[int, ...]]

_MAX_NUMBERS = 1 << 26  # of the streams in memory: 256 MiB
_BATCH = 1024  # tokens of a step
_RATE = 2e-3  # of Adam; it falls to 0 over the last fifth
_DEAD_STEPS = 50  # without any activation
_AUX = 1 / 32  # weight of the loss of dead features
_EXAMPLES, _BEFORE, _AFTER = 4, 11, 4  # texts of a feature, and the tokens around the one marked
_CHUNK = 2048  # tokens that are encoded at once


def collect(
    text: InspectedText,
    windows: Windows,
    name: str,
    interrupted: Interrupted,
    progress: Callable[[float], None] = lambda _share: None,
) -> "Tensor":
    """Return an activation at each token but the first of each window: (tokens, d_model).

    `name` is that of its hook. Raises UserError after Ctrl-C.

    At position 0 models keep one large vector, whatever the token.
    """
    import torch

    rows: list[Tensor] = []
    for number, window in enumerate(windows):
        progress(number / len(windows))
        if interrupted():
            raise UserError(_("stopped"))
        found = replace(text, ids=window).run_with_cache(name, last_only=True)[1][name]
        rows.append(found[1:].float())
    return torch.cat(rows)


def max_windows(d_model: int, size: int) -> int:
    """Return how many windows of so many tokens fit into memory as streams."""
    return max(2, _MAX_NUMBERS // (d_model * size))


@dataclass
class Trainer:
    """Trains a dictionary on streams (tokens, d_model), a step at a time.

    A transcoder is trained to make `targets` of them (tokens, d_model).
    """

    streams: "Tensor"
    layer: int
    k: int
    features: int
    start: Dictionary | None = None  # one that is trained further
    seed: int = 0
    targets: "Tensor | None" = None

    def __post_init__(self) -> None:
        import torch
        from torch.nn.functional import normalize

        device, width = self.streams.device, self.streams.shape[1]
        self._generator = torch.Generator().manual_seed(self.seed)
        # A unit of 1 for the mean square: the same rate serves every layer.
        self._scale = float(self.streams.pow(2).mean().sqrt()) or 1.0
        made = self.streams if self.targets is None else self.targets
        self._out_scale = float(made.pow(2).mean().sqrt()) or 1.0
        if self.start is None:
            directions = torch.randn(self.features, width, generator=self._generator)
            self._decoder = normalize(directions, dim=-1).to(device)  # (features, d_model)
            self._encoder = self._decoder.T.clone().contiguous()  # (d_model, features)
            self._encoder_bias = torch.zeros(self.features, device=device)
            self._bias = made.mean(0) / self._out_scale
        else:
            self._decoder = self.start.decoder.clone().to(device)
            self._encoder = self.start.encoder.to(device) * (self._scale / self._out_scale)
            self._encoder_bias = self.start.encoder_bias.to(device) / self._out_scale
            self._bias = self.start.decoder_bias.to(device) / self._out_scale
        self._parameters = [self._decoder, self._encoder, self._encoder_bias, self._bias]
        for each in self._parameters:
            each.requires_grad_()
        self._optimizer = torch.optim.Adam(self._parameters, lr=_RATE, betas=(0.9, 0.999))
        self._silent = torch.zeros(self.features, device=device)  # steps since it was active
        self.step, self.loss, self.l0 = 0, 0.0, 0.0

    @property
    def dead(self) -> int:
        """How many features were active in none of the last steps."""
        return int((self._silent >= _DEAD_STEPS).sum())

    def steps(self, count: int) -> Iterator[int]:
        """Take steps, and yield the number of each after it."""
        import torch

        for step in range(count):
            chosen = torch.randint(len(self.streams), (_BATCH,), generator=self._generator)
            chosen = chosen.to(self.streams.device)
            x = self.streams[chosen] / self._scale  # (b, d_model)
            y = x if self.targets is None else self.targets[chosen] / self._out_scale
            left = (count - step) / max(1, count / 5)
            for group in self._optimizer.param_groups:
                group["lr"] = _RATE * min(1.0, left)
            with torch.enable_grad():
                self._take(x, y)
            self.step = step + 1
            yield self.step

    def _take(self, x: "Tensor", y: "Tensor") -> None:
        """Take one step on a batch of what is read and what is to be made: (b, d_model) each."""
        import torch

        read = x - self._bias if self.targets is None else x
        before = read @ self._encoder + self._encoder_bias  # (b, features)
        top = before.topk(min(self.k, self.features), dim=-1)
        active = torch.zeros_like(before).scatter(-1, top.indices, top.values.relu())
        error = y - active @ self._decoder - self._bias  # (b, d_model)
        loss = error.pow(2).sum(-1).mean() / y.var(0, unbiased=False).sum()
        is_active = (active > 0).any(0)
        self._silent = torch.where(is_active, 0, self._silent + 1)
        dead = self._silent >= _DEAD_STEPS
        count = min(int(dead.sum()), x.shape[1] // 2)
        total = loss
        if count:  # dead features learn what the others have left
            woken = before.masked_fill(~dead, -torch.inf).topk(count, dim=-1)
            kept = torch.zeros_like(before).scatter(-1, woken.indices, woken.values.relu())
            rest = error.detach()
            missed = (rest - kept @ self._decoder).pow(2).sum(-1).mean()
            total = loss + _AUX * missed / rest.pow(2).sum(-1).mean().clamp(min=1e-12)
        total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            self._decoder /= self._decoder.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        self.loss, self.l0 = float(loss.detach()), float((active > 0).sum(-1).float().mean())

    def dictionary(self) -> Dictionary:
        """Return what is learnt so far. Its directions have norm 1."""
        decoder, encoder, encoder_bias, bias = (each.detach().clone() for each in self._parameters)
        earlier = self.start.steps if self.start else 0
        return Dictionary(
            layer=self.layer,
            k=min(self.k, self.features),
            encoder=encoder * (self._out_scale / self._scale),
            decoder=decoder,
            # In units of the stream: activations are then the lengths of what is added.
            encoder_bias=encoder_bias * self._out_scale,
            decoder_bias=bias * self._out_scale,
            subtracts_bias=self.targets is None,
            is_transcoder=self.targets is not None,
            steps=earlier + self.step,
        )


@no_grad
def measure(dictionary: Dictionary, text: InspectedText, windows: Windows) -> Figures:
    """Return how good a dictionary is on windows: at each token but the first of each.

    The losses are of the token that comes next. A stream is replaced at all those positions.
    """
    import torch
    from torch.nn.functional import cross_entropy

    place = dictionary.writes
    losses, count = [0.0, 0.0, 0.0], 0
    read: Tensor | None = None
    fired, l0, squares = torch.zeros(dictionary.size), 0.0, 0.0
    every: list[Tensor] = []

    def with_stream(change: "Callable[[Tensor], Tensor]") -> Hook:
        def hook(name: str, tensor: "Tensor") -> "Tensor":
            if name != place:
                return tensor
            return torch.cat([tensor[:, :1], change(tensor[:, 1:])], dim=1)

        return hook

    def rebuilt(x: "Tensor") -> "Tensor":
        return dictionary.decode(dictionary.encode(x if read is None else read[None]))

    for window in windows:
        subject = replace(text, ids=window)
        cache = subject.run_with_cache(place, dictionary.reads, last_only=True)[1]
        stream = cache[place][1:]  # (t − 1, d_model)
        # Of a transcoder what is read stands before what is replaced, and stays as it is.
        read = cache[dictionary.reads][1:] if dictionary.is_transcoder else None
        active = dictionary.encode(stream if read is None else read)
        fired += (active > 0).sum(0).cpu()
        l0 += float((active > 0).sum())
        squares += float((stream - dictionary.decode(active)).double().pow(2).sum())
        every.append(stream.double())
        changes: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: x, rebuilt, torch.zeros_like)
        for index, change in enumerate(changes):
            logits = subject.with_hook(with_stream(change)).logits()[1:-1]  # (t − 2, vocab)
            targets = torch.tensor(window[2:], device=logits.device)
            losses[index] += float(cross_entropy(logits.double(), targets, reduction="sum"))
        count += len(window) - 2
    streams = torch.cat(every)
    variance = float((streams - streams.mean(0)).pow(2).sum())
    return Figures(
        loss=losses[0] / count,
        loss_with=losses[1] / count,
        loss_without=losses[2] / count,
        explained=1 - squares / variance if variance else 0.0,
        l0=l0 / len(streams),
        dead=int((fired == 0).sum()),
        tokens=len(streams),
    )


@no_grad
def find_examples(
    dictionary: Dictionary, streams: "Tensor", windows: Windows, interrupted: Interrupted
) -> Examples:
    """Return where each feature is most active: one token of a window each.

    `streams` are those of `collect`. After Ctrl-C, those of the first part.
    """
    import numpy as np
    import torch

    size = dictionary.size
    best = torch.zeros(size, _EXAMPLES)
    where = torch.full((size, _EXAMPLES, 2), -1)  # window, token
    active_count, seen, first = torch.zeros(size), 0, 0
    for number, window in enumerate(windows):
        stream = streams[first : first + len(window) - 1]
        first += len(window) - 1
        active = dictionary.encode(stream).cpu()  # (t − 1, features)
        active_count += (active > 0).sum(0)
        seen += len(active)
        peak = active.max(0)  # (features,) values and places
        place = torch.stack([torch.full_like(peak.indices, number), peak.indices + 1], dim=-1)
        values = torch.cat([best, peak.values[:, None]], dim=1)
        places = torch.cat([where, place[:, None]], dim=1)
        order = values.topk(_EXAMPLES, dim=1)
        best = order.values
        where = places.gather(1, order.indices[..., None].expand(-1, -1, 2))
        if interrupted():
            break
    ids = np.full((size, _EXAMPLES, _BEFORE + 1 + _AFTER), -1, np.int64)
    marked = np.zeros((size, _EXAMPLES), np.int64)
    for feature in range(size):
        for each in range(_EXAMPLES):
            if best[feature, each] <= 0:
                continue
            window, at = where[feature, each].tolist()
            start = max(0, at - _BEFORE)
            shown = windows[window][start : at + 1 + _AFTER]
            ids[feature, each, : len(shown)] = shown
            marked[feature, each] = at - start
    density = (active_count / max(1, seen)).numpy()
    return Examples(ids=ids, marked=marked, values=best.numpy(), density=density)
